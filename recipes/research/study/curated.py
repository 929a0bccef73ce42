"""What `recipes.curate` does, on clips in memory: filters learn from the trusted clips, and weigh the others."""

from dataclasses import astuple, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from recipes.curation import exchange
from recipes.curation.calibration import Calibration, HeldOut, calibrate
from recipes.curation.folds import fold_of
from recipes.curation.pairs import pair_scores
from recipes.research.study.clips import Clips, World
from recipes.research.study.evaluate import embed
from recipes.research.study.noise import Noisy
from recipes.research.study.rule import Rule
from recipes.research.study.train import run
from recipes.research.study.world import WorldConfig

FILTERS, STEPS = 8, 200
SPACES = ("va", "vt")  # in the order of the losses


class Judged(NamedTuple):
    """What the filters say of the pairs of one space."""

    scores: np.ndarray  # of the data, means over the filters (N,)
    calibration: Calibration


def weigh(config: WorldConfig, world: World, noisy: Noisy, seed: int) -> Noisy:
    """Weigh each pair by the probability that it is right; the trusted clips keep a weight of one."""
    judged = judge(config, world, noisy, seed)
    weights = torch.ones(len(noisy.clips), 2)
    for k, space in enumerate(judged.values()):
        weights[: len(space.scores), k] = torch.from_numpy(space.calibration.posterior(space.scores)).float()
    return noisy._replace(clips=replace(noisy.clips, weights=weights))


def trusted_alone(_: WorldConfig, world: World, noisy: Noisy, seed: int) -> Noisy:
    """Train on nothing but the trusted clips."""
    rows = torch.arange(len(noisy.clips) - noisy.trusted, len(noisy.clips))
    return Noisy(noisy.clips.take(rows), noisy.aligned[rows], noisy.trusted)


def judge(config: WorldConfig, world: World, noisy: Noisy, seed: int) -> dict[str, Judged]:
    """Train the filters, each without a fold of the trusted clips, and judge all pairs."""
    trusted = trusted_alone(config, world, noisy, seed).clips
    folds = fold_of([str(name) for name in trusted.recording.tolist()], FILTERS, seed)
    short = replace(config, train=replace(config.train, steps=STEPS, batch_size=min(config.train.batch_size, 32)))
    bank = torch.arange(len(noisy.clips) - noisy.trusted)
    seen: dict[str, list[Tensor]] = {space: [] for space in SPACES}
    held_out: dict[str, list[HeldOut]] = {space: [] for space in SPACES}
    for number in range(FILTERS):
        learnt = trusted.take(torch.from_numpy(np.flatnonzero(folds != number)))
        modules = learn(learnt, short, world.vocabulary, FILTERS * seed + number)
        embeddings = embed(modules, noisy.clips)
        held = len(bank) + np.flatnonzero(folds == number)
        for space in SPACES:
            sides = [embeddings[f"{space} {side}"] for side in ("video", "other")]
            scores = Scores(sides[0], sides[1], bank, config.objective.temperature)
            seen[space].append(scores.of(bank, bank))
            held_out[space].append(judge_held_out(scores, held, noisy.clips, space, seed))
    return {space: fit(torch.stack(seen[space]).numpy(), held_out[space]) for space in SPACES}


def learn(clips: Clips, config: WorldConfig, vocabulary: int, seed: int) -> nn.ModuleDict:
    """A plain model of some clips."""
    config = replace(config, train=replace(config.train, batch_size=min(config.train.batch_size, len(clips))))
    everything = Noisy(clips, torch.ones(len(clips), 2, dtype=torch.bool))
    *_, last = run(everything, Rule("nothing"), config, seed, vocabulary)
    return last.modules


class Scores(NamedTuple):
    """Embeddings of both sides of all clips, and those rows that are the bank."""

    video: Tensor
    other: Tensor
    bank: Tensor
    temperature: float

    def of(self, clips: Tensor, partners: Tensor) -> Tensor:
        """Scores of the videos of clips with the other side of their partners."""
        bank = (self.video[self.bank], self.other[self.bank])
        return pair_scores(self.video[clips], self.other[partners], *bank, self.temperature)


def judge_held_out(scores: Scores, held: np.ndarray, clips: Clips, space: str, seed: int) -> HeldOut:
    """Score the trusted clips of a fold, and exchange their texts, or sounds."""
    groups, rows = clips.recording[held].numpy(), torch.from_numpy(held)
    texts = clips.text_key[held, 0].numpy() if space == "vt" else held
    owners, partners = exchange.at_random(groups, texts, np.random.default_rng(seed))
    wrong = scores.of(rows[owners], rows[partners]).numpy()
    return HeldOut(scores.of(rows, rows).numpy(), groups, wrong, groups[owners])


def fit(scores: np.ndarray, held_out: list[HeldOut]) -> Judged:
    """Average the scores (filters, N) and say what they mean."""
    together = HeldOut(*(np.concatenate(parts) for parts in zip(*map(astuple, held_out), strict=True)))
    mean = scores.mean(0)
    return Judged(mean, calibrate(mean, scores.var(0, ddof=1), len(scores), together))
