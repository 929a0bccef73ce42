"""What is seen and heard: an object with a shape, a colour, a texture and a motion, and the beat of its motion."""

from dataclasses import dataclass

import numpy as np

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "diamond", "heart")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "white")
TEXTURES = ("plain", "striped", "dotted", "checked")
PERIODS = {"drifts": 7.0, "bounces": 1.0, "spins": 2.4, "swings": 1.8, "pulses": 1.3}  # seconds of one cycle
MOTIONS = tuple(PERIODS)


@dataclass(frozen=True)
class Thing:
    """One object, each field a word of the vocabularies above."""

    shape: str
    colour: str
    texture: str
    motion: str


@dataclass(frozen=True)
class Beat:
    """The rhythm of a motion, which picture and sound follow."""

    tempo: float  # cycles relative to the motion's usual pace
    phase: float  # where in its cycle the motion starts, in turns

    def turns(self, motion: str, seconds: np.ndarray) -> np.ndarray:
        """Cycles of a motion (one of `MOTIONS`) since the start of a segment; each begins at a whole number."""
        return seconds * (self.tempo / PERIODS[motion]) + self.phase
