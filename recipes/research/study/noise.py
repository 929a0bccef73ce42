"""Kinds of noise: which text and which sound each clip is given in place of its own."""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from recipes.research.study.clips import Clips

KINDS = ("text", "similar_text", "shifted_text", "text_not_of_rare", "sound", "silence")


class Noisy(NamedTuple):
    """Clips of which some are misaligned.

    Attributes:
        clips: What is trained on.
        aligned: Whether the sound, and the text, of each clip are its own, bool (N, 2): in the order of the losses.
    """

    clips: Clips
    aligned: Tensor


def corrupt(clips: Clips, kind: str, share: float, rare: Tensor, seed: int) -> Noisy:
    """Misalign a share of the clips.

    Args:
        clips: Clean ones.
        kind: ``text``: that of a clip of another category. ``similar_text``: of the same category, but of another
            concept. ``shifted_text``: of the clip after it in the recording, of the one before it at the end.
            ``text_not_of_rare``: like ``text``, but clips of rare concepts stay clean. ``sound``: of a clip of another
            category. ``silence``: a sound track in which nothing is heard.
        share: Of the clips, in [0, 1]. For ``text_not_of_rare`` of the other ones.
        rare: Mask over the concepts.
        seed: Of the choice.

    Returns:
        The clips in the same order, and the truth about them.

    Raises:
        ValueError: An unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}: expected one of {', '.join(KINDS)}")
    g = torch.Generator().manual_seed(seed)
    exempt = rare[clips.concept] if kind == "text_not_of_rare" else torch.zeros(len(clips), dtype=torch.bool)
    donors = _donors(clips, kind, g)
    possible = ~exempt & (donors >= 0)
    order = torch.randperm(len(clips), generator=g)
    chosen = order[possible[order]][: round(share * int((~exempt).sum()))]
    aligned = torch.ones(len(clips), 2, dtype=torch.bool)
    of = torch.arange(len(clips))
    if kind == "silence":
        audio = clips.audio.clone()
        audio[chosen] = 0
        aligned[chosen, 0] = False
        return Noisy(replace(clips, audio=audio), aligned)
    of[chosen] = donors[chosen]
    if kind == "sound":
        aligned[chosen, 0] = False
        return Noisy(replace(clips, audio=clips.audio[of]), aligned)
    aligned[chosen, 1] = False
    return Noisy(clips.with_text_of(of), aligned)


def _donors(clips: Clips, kind: str, g: torch.Generator) -> Tensor:
    """For each clip one that could lend it text or sound, (N,); -1 where there is none."""
    if kind == "silence":
        return torch.arange(len(clips))
    if kind == "shifted_text":
        after = torch.arange(len(clips)) + 1
        ends = torch.cat([clips.recording[1:] != clips.recording[:-1], torch.ones(1, dtype=torch.bool)])
        donors = torch.where(ends, after - 2, after).clamp(min=0)
        fits = (clips.recording[donors] == clips.recording) & (clips.text_key[donors] != clips.text_key)[:, 0]
        return torch.where(fits, donors, -1)
    same = clips.category[:, None] == clips.category
    fits = same & (clips.concept[:, None] != clips.concept) if kind == "similar_text" else ~same
    drawn = torch.where(fits, torch.rand(fits.shape, generator=g), -1).max(1)
    return torch.where(drawn.values >= 0, drawn.indices, -1)
