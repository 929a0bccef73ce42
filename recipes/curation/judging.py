"""What the filters say: scores of all pairs of the data, and of held-out trusted pairs, right and exchanged."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes.config import DataConfig
from recipes.curation import exchange
from recipes.curation.calibration import HeldOut
from recipes.curation.pairs import pair_scores
from recipes.data.clips import NarratedClips
from recipes.data.loader import eval_loader
from recipes.model.build import model_inputs

SPACES = {"va": "sound", "vt": "text"}  # a pair of modalities, and what is paired with the video; order of the losses

Sides = tuple[Tensor, Tensor]  # embeddings (N, D) of videos, and of their sounds or texts


@dataclass(frozen=True)
class Embeddings:
    """What the filters make of N clips that could be read."""

    clips: list[int]  # their numbers
    spaces: list[dict[str, Sides]]  # of each filter
    valid: dict[str, np.ndarray]  # whether a clip has sound, and text, (N,)
    keys: np.ndarray  # equal where texts are, (N,)
    starts: list[float]
    skipped: list[Any]


@torch.inference_mode()
def embed_batches(
    filters: Sequence[nn.ModuleDict], clips: NarratedClips, batches: Iterable[Sequence[int]], data: DataConfig
) -> Iterator[Embeddings]:
    """Embed batches of clips with all filters; each clip is read once."""
    for batch in eval_loader(clips, batches, data.workers, data.timeout, data.prefetch_gib):
        if "video" not in batch:
            yield Embeddings([], [], {}, np.empty(0, int), [], batch["skipped"])
            continue
        spaces = []
        for modules in filters:
            encoded = modules["model"](**model_inputs(batch, next(modules.parameters()).device))
            projected = modules["objective"].project(encoded)
            sides = {space: (video, other.flatten(1)) for space, (video, other) in projected.items()}
            spaces.append({space: (video.float(), other.float()) for space, (video, other) in sides.items()})
        valid = {"va": batch["audio_valid"].numpy(), "vt": batch["text_valid"][:, 0].numpy()}
        keys, starts = batch["text_key"][:, 0].numpy(), batch["start"].tolist()
        yield Embeddings(batch["index"].tolist(), spaces, valid, keys, starts, batch["skipped"])


def embed_all(
    filters: Sequence[nn.ModuleDict], clips: NarratedClips, numbers: Sequence[int], batch_size: int, data: DataConfig
) -> Embeddings:
    """Embed some clips, which memory holds: the bank, or what is trusted."""
    batches = [numbers[first : first + batch_size] for first in range(0, len(numbers), batch_size)]
    parts = list(embed_batches(filters, clips, batches, data))
    full = [part for part in parts if part.clips]
    if not full:
        raise ValueError(f"none of {len(numbers)} clips could be read; the first: {parts[0].skipped[0].reason}")
    spaces = [
        {space: tuple(torch.cat([part.spaces[f][space][side] for part in full]) for side in (0, 1)) for space in SPACES}
        for f in range(len(filters))
    ]
    return Embeddings(
        [clip for part in full for clip in part.clips],
        spaces,  # type: ignore[arg-type]
        {space: np.concatenate([part.valid[space] for part in full]) for space in SPACES},
        np.concatenate([part.keys for part in full]),
        [start for part in full for start in part.starts],
        [clip for part in parts for clip in part.skipped],
    )


@dataclass(frozen=True)
class Bank:
    """Clips against which all pairs are scored, as the filters embed them: those that have the modality."""

    spaces: list[dict[str, Sides]]
    temperature: float

    @classmethod
    def of(cls, embeddings: Embeddings, temperature: float) -> "Bank":
        """The bank of some embedded clips."""
        valid = {space: torch.from_numpy(np.flatnonzero(mask)) for space, mask in embeddings.valid.items()}
        present = [
            {space: (video[valid[space]], other[valid[space]]) for space, (video, other) in of_filter.items()}
            for of_filter in embeddings.spaces
        ]
        return cls(present, temperature)

    def scores(self, number: int, space: str, videos: Tensor, others: Tensor) -> np.ndarray:
        """Scores (B,) of pairs by one filter."""
        bank_videos, bank_others = self.spaces[number][space]
        if not len(bank_videos):
            return np.full(len(videos), np.nan)
        return pair_scores(videos, others, bank_videos, bank_others, self.temperature).cpu().numpy()

    def judge(self, embeddings: Embeddings, judges: np.ndarray, space: str) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance (N,) of the scores of own pairs over the filters that judge them, bool (filters, N).

        They are NaN where a clip lacks the modality.
        """
        all_scores = np.stack(
            [self.scores(number, space, *sides[space]) for number, sides in enumerate(embeddings.spaces)]
        )
        number = np.maximum(judges.sum(0), 1)
        mean = np.where(judges, all_scores, 0).sum(0) / number
        variance = np.where(judges, np.square(all_scores - mean), 0).sum(0) / np.maximum(number - 1, 1)
        known = embeddings.valid[space] & judges.any(0)
        return np.where(known, mean, np.nan), np.where(known, variance, np.nan)


def held_out_scores(
    bank: Bank, trusted: Embeddings, groups: np.ndarray, folds: np.ndarray, right: np.ndarray, space: str, seed: int
) -> tuple[HeldOut, dict[str, np.ndarray]]:
    """Score held-out trusted pairs, each by the filter that did not learn from it.

    Args:
        bank: What pairs are scored against.
        trusted: The trusted clips as the filters embed them, N.
        groups: What they are cut from, (N,).
        folds: Which filter left them out, (N,).
        right: Whether somebody said that the pair fits, bool (N,).
        space: "va" or "vt".
        seed: Of the exchange.

    Returns:
        What calibrates; and scores of other wrong pairs: "similar", "of the recording", "labelled".
    """
    folded = [
        _fold_scores(bank, trusted, groups, np.flatnonzero((folds == number) & trusted.valid[space]), right, at, seed)
        for number, at in ((number, (number, space)) for number in range(len(trusted.spaces)))
    ]
    joined = {name: np.concatenate([fold[name] for fold in folded]) for name in folded[0]}
    calibrating = [joined.pop(name) for name in ("right", "groups", "random", "random groups")]
    return HeldOut(*calibrating), joined


def _fold_scores(
    bank: Bank,
    trusted: Embeddings,
    groups: np.ndarray,
    held: np.ndarray,
    right: np.ndarray,
    at: tuple[int, str],
    seed: int,
) -> dict[str, np.ndarray]:
    """Scores of the trusted clips that one filter left out, by kind of pair; ``at`` is the filter and the space."""
    number, space = at
    videos, others = trusted.spaces[number][space]

    def score(clips: np.ndarray, partners: np.ndarray) -> np.ndarray:
        return bank.scores(number, space, videos[torch.from_numpy(clips)], others[torch.from_numpy(partners)])

    fits, wrong, rng = held[right[held]], held[~right[held]], np.random.default_rng([seed, number])
    texts = trusted.keys[fits] if space == "vt" else fits
    own = F.normalize(others[torch.from_numpy(fits)], dim=-1)
    pairs = {
        "similar": exchange.among_similar((own @ own.T).cpu().numpy(), groups[fits], texts, rng),
        "random": exchange.at_random(groups[fits], texts, rng),
        "of the recording": exchange.in_recording(groups[fits], texts, rng),
    }
    scores = {kind: score(fits[owners], fits[partners]) for kind, (owners, partners) in pairs.items()}
    scores |= {"right": score(fits, fits), "labelled": score(wrong, wrong)}
    return scores | {"groups": groups[fits], "random groups": groups[fits[pairs["random"][0]]]}
