"""Synthesises the soundtrack. Shape gives an object its pitch, motion its rhythm, in time with the picture, texture its
tone: plain is pure, striped a reed, dotted is chopped into grains, checked hisses. Colour cannot be heard.
"""

from collections.abc import Sequence

import numpy as np

from recipes.data.corpus.plan import Segment
from recipes.data.corpus.thing import SHAPES, Thing

PITCH = {shape: 150.0 * 1.5**step for step, shape in enumerate(SHAPES)}  # Hz
GRAINS = 22.0  # a second, of a dotted object
FADE = 0.02  # seconds, at both ends of a segment


def synthesise(segments: Sequence[Segment], sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    """Plays the objects of segments without gaps, over a little noise: mono (samples,) float32 in [-1, 1]."""
    waves = []
    for segment in segments:
        first, last = round(segment.start * sample_rate), round(segment.end * sample_rate)
        seconds = np.arange(last - first) / sample_rate
        turns = segment.beat.turns(segment.heard.motion, seconds)
        fade = np.clip(np.minimum(seconds, seconds[::-1]) / FADE, 0.0, 1.0)
        waves.append(rng.uniform(0.25, 0.45) * fade * _voice(segment.heard, seconds, turns, sample_rate, rng))
    wave = np.concatenate(waves)
    wave += rng.uniform(0.003, 0.015) * rng.standard_normal(len(wave), np.float32)
    return np.clip(wave, -1.0, 1.0).astype(np.float32)


def _voice(
    thing: Thing, seconds: np.ndarray, turns: np.ndarray, sample_rate: int, rng: np.random.Generator
) -> np.ndarray:
    pitch = np.full_like(seconds, PITCH[thing.shape])
    if thing.motion == "swings":
        pitch *= 1.0 + 0.15 * np.sin(2 * np.pi * turns)
    return _tone(thing, pitch, seconds, sample_rate, rng) * _envelope(thing.motion, turns)


def _tone(
    thing: Thing, pitch: np.ndarray, seconds: np.ndarray, sample_rate: int, rng: np.random.Generator
) -> np.ndarray:
    """A wave of some pitch (Hz per sample) with the overtones, grains or hiss of the texture, (samples,)."""
    angle = (2 * np.pi * (np.cumsum(pitch) / sample_rate % 1.0)).astype(np.float32)
    match thing.texture:
        case "plain":
            return np.sin(angle)
        case "striped":
            odd = [n for n in (1, 3, 5, 7) if n * pitch.max() < 0.48 * sample_rate]  # nothing folds back
            return sum(np.sin(n * angle) / n**0.7 for n in odd) * 0.75
        case "dotted":
            return np.sin(angle) * 1.4 * np.clip(8 * (0.45 - (GRAINS * seconds) % 1), 0, 1)
        case "checked":
            return 0.7 * np.sin(angle) + 0.35 * rng.standard_normal(len(angle), np.float32)
    raise ValueError(f"unknown texture {thing.texture!r}")


def _envelope(motion: str, turns: np.ndarray) -> np.ndarray:
    match motion:
        case "drifts" | "swings":
            return np.full_like(turns, 0.7)
        case "bounces":
            return 1.6 * np.exp(-7.0 * (turns % 1.0))
        case "spins":
            return 1.0 - (8.0 * turns) % 1.0
        case "pulses":
            return 1.1 * (0.5 - 0.5 * np.cos(2 * np.pi * turns)) ** 2
    raise ValueError(f"unknown motion {motion!r}")
