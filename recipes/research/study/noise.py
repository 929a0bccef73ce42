"""Kinds of noise: which clips lose their own text or sound, and what they get instead."""

from dataclasses import replace
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from recipes.research.study.clips import Clips

Kind = Literal["text", "similar_text", "shifted_text", "text_not_of_rare", "sound", "silence"]
KINDS: tuple[Kind, ...] = get_args(Kind)


class Noisy(NamedTuple):
    """Clips of which some are misaligned."""

    clips: Clips
    aligned: Tensor  # whether a clip has its own sound, and its own text, bool (N, 2): in the order of the losses


def corrupt(clips: Clips, kind: str, share: float, rare: Tensor, seed: int) -> Noisy:
    """Misalign a share of the clips, of those that are not rare for ``text_not_of_rare``.

    ``text``: the text of a clip of another category. ``similar_text``: of the same category, but another concept.
    ``shifted_text``: of the next clip in the recording, of the previous one at its end. ``text_not_of_rare``: like
    ``text``, but clips of rare concepts stay clean. ``sound``: the sound of a clip of another category. ``silence``: a
    silent track.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}: expected one of {', '.join(KINDS)}")
    g = torch.Generator().manual_seed(seed)
    exempt = rare[clips.concept] if kind == "text_not_of_rare" else torch.zeros(len(clips), dtype=torch.bool)
    donors = _donors(clips, kind, g)
    possible = ~exempt & (donors >= 0)
    order = torch.randperm(len(clips), generator=g)
    chosen = order[possible[order]][: round(share * int((~exempt).sum()))]
    sources = torch.arange(len(clips))
    sources[chosen] = donors[chosen]

    aligned = torch.ones(len(clips), 2, dtype=torch.bool)
    aligned[chosen, 0 if kind in ("sound", "silence") else 1] = False
    if kind == "sound":
        return Noisy(replace(clips, audio=clips.audio[sources]), aligned)
    if kind == "silence":
        return Noisy(replace(clips, audio=clips.audio.index_fill(0, chosen, 0)), aligned)
    return Noisy(replace(clips, text=clips.text[sources], text_key=clips.text_key[sources]), aligned)


def _donors(clips: Clips, kind: str, g: torch.Generator) -> Tensor:
    """A donor of text or sound for each clip, (N,); -1 where there is none."""
    if kind == "silence":
        return torch.arange(len(clips))
    if kind == "shifted_text":
        following = torch.arange(len(clips)) + 1
        last = torch.cat([clips.recording[1:] != clips.recording[:-1], torch.ones(1, dtype=torch.bool)])
        donors = torch.where(last, following - 2, following).clamp(min=0)
        valid = (clips.recording[donors] == clips.recording) & (clips.text_key[donors] != clips.text_key)[:, 0]
        return torch.where(valid, donors, -1)
    same = clips.category[:, None] == clips.category
    valid = same & (clips.concept[:, None] != clips.concept) if kind == "similar_text" else ~same
    best = torch.where(valid, torch.rand(valid.shape, generator=g), -1).max(1)
    return torch.where(best.values >= 0, best.indices, -1)
