"""Kinds of noise: which clips lose their own text or sound, and what they get instead."""

from dataclasses import replace
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from recipes.research.study.clips import Clips

Kind = Literal[
    "text", "similar_text", "shifted_text", "mixed_text", "text_not_of_rare", "sound", "silence", "text_and_sound"
]
KINDS: tuple[Kind, ...] = get_args(Kind)


class Noisy(NamedTuple):
    """Clips of which some are misaligned."""

    clips: Clips
    aligned: Tensor  # whether a clip has its own sound, and its own text, bool (N, 2): in the order of the losses
    trusted: int = 0  # of the clips, the last ones, which a person has looked at: they are aligned


def corrupt(clips: Clips, kind: str, share: float, rare: Tensor, seed: int, trusted: int = 0) -> Noisy:
    """Misalign a share of the clips but for the last ones, which are trusted; for ``text_not_of_rare``, of those that
    are not rare.

    ``text``: the text of a clip of another category. ``similar_text``: of the same category, but another concept.
    ``shifted_text``: of the next clip in the recording, of the previous one at its end. ``text_not_of_rare``: like
    ``text``, but clips of rare concepts stay clean. ``mixed_text``: one of the first three, at random. ``sound``: the
    sound of a clip of another category. ``silence``: a silent track. ``text_and_sound``: both, independently.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}: expected one of {', '.join(KINDS)}")
    if kind == "text_and_sound":
        texts = corrupt(clips, "text", share, rare, seed, trusted)
        both = corrupt(texts.clips, "sound", share, rare, seed + 1, trusted)
        return both._replace(aligned=texts.aligned & both.aligned)
    g = torch.Generator().manual_seed(seed)
    exempt = rare[clips.concept] if kind == "text_not_of_rare" else torch.zeros(len(clips), dtype=torch.bool)
    exempt = exempt | (torch.arange(len(clips)) >= len(clips) - trusted)
    donors = _donors(clips, kind, g)
    possible = ~exempt & (donors >= 0)
    order = torch.randperm(len(clips), generator=g)
    chosen = order[possible[order]][: round(share * int((~exempt).sum()))]
    sources = torch.arange(len(clips))
    sources[chosen] = donors[chosen]

    aligned = torch.ones(len(clips), 2, dtype=torch.bool)
    aligned[chosen, 0 if kind in ("sound", "silence") else 1] = False
    if kind == "sound":
        return Noisy(replace(clips, audio=clips.audio[sources]), aligned, trusted)
    if kind == "silence":
        return Noisy(replace(clips, audio=clips.audio.index_fill(0, chosen, 0)), aligned, trusted)
    return Noisy(replace(clips, text=clips.text[sources], text_key=clips.text_key[sources]), aligned, trusted)


def _donors(clips: Clips, kind: str, g: torch.Generator) -> Tensor:
    """A donor of text or sound for each clip, (N,); -1 where there is none."""
    if kind == "silence":
        return torch.arange(len(clips))
    if kind == "mixed_text":
        donors = torch.stack([_donors(clips, each, g) for each in ("text", "similar_text", "shifted_text")])
        return donors.gather(0, torch.randint(3, (1, len(clips)), generator=g))[0]
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
