"""What happens in a video, decided before anything is drawn: a pure function of style, seed and index."""

import base64
import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from recipes.data.corpus.narration import chatter, describe
from recipes.data.corpus.thing import COLOURS, MOTIONS, SHAPES, TEXTURES, Beat, Thing

NO_TEXT = 0.02  # share of training videos without any narration
NO_AUDIO = 0.02  # share of training videos without an audio track
SEGMENT_SECONDS = (4.0, 7.0)
VIDEO_SECONDS = (20, 30)
NARRATION_SECONDS = (2.4, 3.6)  # shorter than the shortest segment


@dataclass(frozen=True)
class Style:
    """Shares of narrations and pictures that do not belong; the other narrations are aligned.

    A cutaway shows an object that is neither heard nor named, in place of a picture whose narration is not aligned.
    """

    early: float  # narrations said while the segment before theirs is on screen
    late: float  # narrations said while the segment after theirs is on screen
    wrong: float  # well-formed descriptions of an object that is not in the video
    off_topic: float  # chatter
    cutaway: float  # segments

    @property
    def aligned(self) -> float:
        """Share of narrations that name what is on screen."""
        return 1.0 - self.early - self.late - self.wrong - self.off_topic


STYLES = {
    "narrated": Style(early=0.06, late=0.06, wrong=0.05, off_topic=0.03, cutaway=0.0),
    "wild": Style(early=0.05, late=0.05, wrong=0.3, off_topic=0.3, cutaway=0.2),
}
CLEAN = Style(early=0.0, late=0.0, wrong=0.0, off_topic=0.0, cutaway=0.0)  # held-out videos, whatever the style


@dataclass(frozen=True)
class Segment:
    """A few seconds of a video with one object."""

    start: float  # seconds
    end: float
    heard: Thing
    shown: Thing
    beat: Beat

    @property
    def cutaway(self) -> bool:
        """Whether the picture belongs to neither the sound nor the text."""
        return self.shown != self.heard


@dataclass(frozen=True)
class Narration:
    """A sentence with its time, and what it is worth: aligned, early, late, wrong or off_topic."""

    start: float  # seconds
    end: float
    text: str
    kind: str
    segment: int  # which one is on screen while it is said


@dataclass(frozen=True)
class Plan:
    """All that is rendered, and the truth about it."""

    video_id: str
    seconds: int
    segments: tuple[Segment, ...]
    narrations: tuple[Narration, ...]  # by start; empty for some training videos
    has_audio: bool
    render_seed: int  # backgrounds, sizes and noise

    def truth(self) -> list[dict[str, Any]]:
        """One row per narration: the sentence, its kind, and what is really shown and heard."""
        rows = []
        for narration in self.narrations:
            segment = self.segments[narration.segment]
            said = {name: vars(narration)[name] for name in ("start", "end", "text", "kind")}
            aligned = {"aligned": narration.kind == "aligned", "sound_aligned": self.has_audio and not segment.cutaway}
            rows.append({"video_id": self.video_id, **said, **aligned, "shown": vars(segment.shown)})
        return rows


def plan_video(style: str, seed: int, index: int, held_out: bool = False) -> Plan:
    """Decides everything about the video of number `index` in its split.

    Held-out videos are clean, whatever the style. Their objects come from one shuffled list of all objects, so that no
    two clips of the first 200 videos or so look alike.
    """
    split = "test" if held_out else style
    digest = hashlib.blake2b(f"{split}/{seed}/{index}".encode(), digest_size=16).digest()
    rng = np.random.default_rng(list(digest))
    trust = CLEAN if held_out else STYLES[style]
    count = int(rng.integers(4 if held_out else 3, 7))
    edges, seconds = _edges(count, rng)
    things, strangers = _held_out_things(seed, index, count) if held_out else _things(count, rng)
    segments = [
        Segment(start, end, thing, thing, Beat(rng.uniform(0.85, 1.15), rng.random()))
        for start, end, thing in zip(edges[:-1], edges[1:], things, strict=True)
    ]
    narrations = []
    for i, (segment, kind) in enumerate(zip(segments, _kinds(trust, count, rng), strict=True)):
        named, cut = rng.permutation(np.array(strangers, dtype=object)) if strangers else (None, None)
        if kind == "off_topic":
            text = chatter(rng)
        else:
            text = describe(named if kind == "wrong" else segment.heard, rng, complete=held_out)
        on_screen = i + {"early": -1, "late": 1}.get(kind, 0)
        narrations.append(Narration(*_moment(segments[on_screen], rng), text, kind, on_screen))
        if kind != "aligned" and rng.random() < trust.cutaway / (1.0 - trust.aligned):
            segments[i] = replace(segment, shown=_other_motion(cut, segment.heard, rng))
    no_text, no_audio = rng.random(2) < (NO_TEXT, NO_AUDIO)
    return Plan(
        video_id=base64.urlsafe_b64encode(digest[:8]).decode().rstrip("="),  # eleven characters
        seconds=seconds,
        segments=tuple(segments),
        narrations=() if no_text and not held_out else tuple(sorted(narrations, key=lambda n: n.start)),
        has_audio=held_out or not no_audio,
        render_seed=int(rng.integers(2**31)),
    )


def _edges(count: int, rng: np.random.Generator) -> tuple[list[float], int]:
    """Cuts a video of whole seconds into segments of uneven lengths: (count + 1) times, and the length of the video."""
    shortest, longest = SEGMENT_SECONDS
    lowest, highest = max(VIDEO_SECONDS[0], int(shortest * count)), min(VIDEO_SECONDS[1], int(longest * count))
    seconds = int(rng.integers(lowest, highest + 1))
    mean = seconds / count
    uneven = rng.uniform(-1.0, 1.0, count)
    uneven -= uneven.mean()
    uneven *= min(mean - shortest, longest - mean) / np.abs(uneven).max()
    return [0.0, *np.cumsum(mean + uneven).round(2).tolist()[:-1], float(seconds)], seconds


def _things(count: int, rng: np.random.Generator) -> tuple[list[Thing], list[Thing]]:
    """The objects of a video, and two strangers; no two of them share a shape or a colour."""
    shapes, colours = rng.permutation(SHAPES)[: count + 2], rng.permutation(COLOURS)
    textures, motions = rng.choice(TEXTURES, count + 2), rng.choice(MOTIONS, count + 2)
    things = [Thing(*map(str, words)) for words in zip(shapes, colours, textures, motions, strict=False)]
    return things[:count], things[count:]


def _held_out_things(seed: int, index: int, count: int) -> tuple[list[Thing], list[Thing]]:
    """The objects of a held-out video, from one shuffled pack of all objects; no strangers."""
    pack = [Thing(s, c, t, m) for s in SHAPES for c in COLOURS for t in TEXTURES for m in MOTIONS]
    order = np.random.default_rng(seed).permutation(len(pack))
    return [pack[order[(6 * index + i) % len(pack)]] for i in range(count)], []


def _kinds(style: Style, count: int, rng: np.random.Generator) -> list[str]:
    """One kind of narration per segment; the first is never early, the last never late."""
    names = ("aligned", "early", "late", "wrong", "off_topic")
    rates = (style.aligned, style.early, style.late, style.wrong, style.off_topic)
    kinds = [str(kind) for kind in rng.choice(names, count, p=rates)]
    kinds[0] = "late" if kinds[0] == "early" else kinds[0]
    kinds[-1] = "early" if kinds[-1] == "late" else kinds[-1]
    return kinds


def _moment(segment: Segment, rng: np.random.Generator) -> tuple[float, float]:
    length = rng.uniform(*NARRATION_SECONDS)
    start = rng.uniform(segment.start, segment.end - length)
    return round(start, 2), round(start + length, 2)


def _other_motion(thing: Thing, heard: Thing, rng: np.random.Generator) -> Thing:
    """Keeps a cutaway from moving in time with a sound that is not its own."""
    others = [motion for motion in MOTIONS if motion != heard.motion]
    return thing if thing.motion != heard.motion else replace(thing, motion=others[int(rng.integers(len(others)))])
