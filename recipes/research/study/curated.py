"""What `recipes.curate` does, on clips in memory: filters learn from the trusted clips, and weigh the others."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from recipes.curation.filters import CurateKeys, halves
from recipes.curation.folds import fold_of
from recipes.curation.judging import SPACES, Bank, Embeddings, held_out_scores
from recipes.curation.verdict import Verdict
from recipes.research.study.clips import Clips, World
from recipes.research.study.evaluate import embed
from recipes.research.study.noise import Noisy
from recipes.research.study.rule import Rule
from recipes.research.study.train import run
from recipes.research.study.world import WorldConfig

FILTERS, STEPS, ROUNDS = CurateKeys.filters, CurateKeys.steps, CurateKeys.rounds


def weigh(config: WorldConfig, world: World, noisy: Noisy, seed: int) -> Noisy:
    """Weigh each pair by the probability that it is right; the trusted clips keep a weight of one."""
    weights, best = torch.ones(len(noisy.clips), 2), 0.0
    for number in range(ROUNDS):
        weighed = noisy._replace(clips=replace(noisy.clips, weights=weights))
        judged, auroc = judge(config, world, weighed, seed, number)
        if auroc <= best:
            break
        weights, best = judged, auroc
    return noisy._replace(clips=replace(noisy.clips, weights=weights))


def trusted_alone(_: WorldConfig, world: World, noisy: Noisy, seed: int) -> Noisy:
    """Train on nothing but the trusted clips."""
    rows = torch.arange(len(noisy.clips) - noisy.trusted, len(noisy.clips))
    return Noisy(noisy.clips.take(rows), noisy.aligned[rows], noisy.trusted)


def judge(config: WorldConfig, world: World, noisy: Noisy, seed: int, number: int) -> tuple[Tensor, float]:
    """Train the filters of a round, and weigh all pairs (N, 2); also, how well they tell held-out pairs apart."""
    clips, first = noisy.clips, len(noisy.clips) - noisy.trusted
    recording = [str(name) for name in clips.recording.tolist()]
    folds = fold_of(recording[first:], FILTERS, seed)
    left_out = halves(recording[:first], FILTERS, seed) if number else np.ones((FILTERS, first), bool)
    worth = (clips.weights.amax(1) > 0).numpy()
    spaces = []
    for f in range(FILTERS):
        learnt = np.concatenate([~left_out[f] & worth[:first], folds != f])
        modules = learn(clips.take(torch.from_numpy(learnt)), config, world.vocabulary, FILTERS * seed + f)
        embeddings = embed(modules, clips)
        spaces.append({space: (embeddings[f"{space} video"], embeddings[f"{space} other"]) for space in SPACES})
    data, trusted = part(clips, spaces, slice(0, first)), part(clips, spaces, slice(first, None))
    bank, weights, aurocs = Bank.of(data, config.objective.temperature), torch.ones(len(clips), 2), []
    right = np.ones(noisy.trusted, bool)
    for k, space in enumerate(SPACES):
        held_out, _ = held_out_scores(bank, trusted, np.array(recording[first:]), folds, right, space, seed)
        scores, spread = bank.judge(data, left_out, space)
        unseen, judges = np.ones(first, bool), int(left_out.sum(0).max())
        verdict = Verdict(scores, spread, unseen, judges, held_out, CurateKeys.draws)
        weights[:first, k] = torch.from_numpy(verdict.weights()).float()
        aurocs.append(held_out.auroc)
    return weights, float(np.mean(aurocs))


def learn(clips: Clips, config: WorldConfig, vocabulary: int, seed: int) -> nn.ModuleDict:
    """A plain model of some clips."""
    short = replace(config.train, steps=STEPS, batch_size=min(config.train.batch_size, len(clips)))
    everything = Noisy(clips, torch.ones(len(clips), 2, dtype=torch.bool))
    *_, last = run(everything, Rule("nothing"), replace(config, train=short), seed, vocabulary)
    return last.modules


def part(clips: Clips, spaces: list[dict[str, tuple[Tensor, Tensor]]], rows: slice) -> Embeddings:
    """What the filters make of some clips, all of which have sound and text."""
    chosen = [{space: (video[rows], other[rows]) for space, (video, other) in each.items()} for each in spaces]
    keys = clips.text_key[rows, 0].numpy()
    return Embeddings(list(range(len(keys))), chosen, dict.fromkeys(SPACES, keys >= 0), keys, [], [])
