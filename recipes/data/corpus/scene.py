"""Draws segments: one textured, moving object over a grainy gradient seen by a camera that drifts a little."""

import cmath
import math

import numpy as np

from recipes.data.corpus.plan import Segment
from recipes.data.corpus.thing import Beat

RGB = {
    "red": (225, 30, 35),
    "orange": (250, 130, 20),
    "yellow": (245, 230, 40),
    "green": (40, 180, 50),
    "cyan": (60, 220, 225),
    "blue": (35, 70, 230),
    "purple": (170, 50, 200),
    "white": (245, 245, 245),
}
SHADE = 0.22  # how bright the dark half of a texture is
TIP, NOTCH = 1.15, 0.48  # outer and inner radius of the star
REACH = 1.25  # the farthest tip of any shape, in radii


def draw(segment: Segment, fps: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Draws the frames of a segment, (T, size, size, 3) uint8: those from its start up to its end."""
    seconds = np.arange(np.ceil(segment.start * fps), np.ceil(segment.end * fps)) / fps - segment.start
    frames = _background(seconds, size, rng)
    x, y, angle, radius = _pose(segment.shown.motion, seconds, segment.beat, rng)
    for chunk in np.array_split(np.arange(len(seconds)), max(1, len(seconds) // 8)):  # arrays that fit the cache
        rows, columns = _box(y[chunk], radius[chunk], size), _box(x[chunk], radius[chunk], size)
        u, v = _object_axes(x[chunk], y[chunk], angle[chunk], radius[chunk], size, rows, columns)
        pixels = (radius[chunk] * size).astype(np.float32)[:, None, None]
        inside = -_distance(segment.shown.shape, u, v) * pixels  # pixels from the outline
        cover = np.clip(0.5 + inside, 0.0, 1.0)
        rim = np.clip(3.0 - inside, 0.0, 1.0)  # the pattern stops short of the outline, which keeps the shape clear
        light = np.maximum(_texture(segment.shown.texture, u, v), rim)
        light *= 0.86 + 0.12 * u  # lit from one side: plain discs spin visibly
        window = frames[:, chunk[0] : chunk[-1] + 1, rows, columns]  # a view
        window *= 1.0 - cover
        for plane, level in zip(window, RGB[segment.shown.colour], strict=True):
            plane += np.float32(level) * light * cover
    pictures = np.empty((len(seconds), size, size, 3), np.uint8)
    for channel, plane in enumerate(frames):
        pictures[..., channel] = plane
    return pictures


def _background(seconds: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """A dull gradient with soft blotches and grain, cropped along the camera's path, (3, T, size, size) float32."""
    margin = size // 8
    side = size + 2 * margin
    ends = rng.uniform(40, 140, (2, 1, 1, 1)) + rng.uniform(-20, 20, (2, 3, 1, 1))
    angle = rng.uniform(0, 2 * np.pi)
    rows, columns = np.meshgrid(np.linspace(-1, 1, side), np.linspace(-1, 1, side), indexing="ij")
    blend = np.clip(0.5 + 0.4 * (np.cos(angle) * columns + np.sin(angle) * rows), 0, 1)
    coarse, at = rng.normal(0, 14, (5, 5)), np.linspace(0, 4, side)
    weights = np.clip(1 - np.abs(at[:, None] - np.arange(5)), 0, 1)  # linear interpolation
    blotches = weights @ coarse @ weights.T
    canvas = (1 - blend) * ends[0] + blend * ends[1] + blotches + rng.normal(0, 5, (side, side))
    canvas = np.clip(canvas, 0, 255).astype(np.float32)
    heading = rng.uniform(0, 2 * np.pi)
    path = margin * (1 + np.sin(seconds[:, None] * rng.uniform(0.2, 0.5) + [heading, heading * 2]))
    corners = path.round().astype(int)
    return np.stack([canvas[:, top : top + size, left : left + size] for top, left in corners], axis=1)


def _pose(
    motion: str, seconds: np.ndarray, beat: Beat, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The place of the object: centre x and y and radius as shares of the frame, angle in radians, each (T,)."""
    turns = beat.turns(motion, seconds)
    wave = np.sin(2 * np.pi * turns)
    x, y = (np.full_like(turns, value) for value in rng.uniform(0.45, 0.55, 2))
    angle = np.full_like(turns, rng.uniform(-0.25, 0.25))
    radius = np.full_like(turns, rng.uniform(0.25, 0.31))
    if motion == "drifts":
        sweep = 0.26 * (4 * np.abs(turns % 1 - 0.5) - 1)  # constant speed, there and back
        side = rng.choice((-1, 1))
        x, y = x + side * sweep, y + 0.3 * sweep * rng.uniform(-1, 1)
    elif motion == "bounces":
        y = 0.7 - 0.38 * np.abs(np.sin(np.pi * turns))  # touches the floor at every whole turn
    elif motion == "spins":
        angle = angle + 2 * np.pi * turns * rng.choice((-1, 1))
    elif motion == "swings":
        lean = 0.8 * wave
        x, y, angle = 0.5 + 0.3 * np.sin(lean), 0.25 + 0.3 * np.cos(lean), angle - lean
    elif motion == "pulses":
        radius = radius * (1 - 0.4 * np.cos(2 * np.pi * turns))  # smallest at every whole turn
    return x, y, angle, radius


def _box(centre: np.ndarray, radius: np.ndarray, size: int) -> slice:
    """Rows (or columns) that an object can touch over a few frames."""
    first, last = np.min(centre - REACH * radius), np.max(centre + REACH * radius)
    return slice(max(0, int(first * size) - 1), min(size, int(last * size) + 2))


def _object_axes(
    x: np.ndarray, y: np.ndarray, angle: np.ndarray, radius: np.ndarray, size: int, rows: slice, columns: slice
) -> tuple[np.ndarray, np.ndarray]:
    """Pixel centres in the object's own axes, u right and v down, radius 1: two (T, rows, columns) float32."""
    grid = (np.arange(size) + 0.5) / size
    across, down = (grid[columns] - x[:, None]) / radius[:, None], (grid[rows] - y[:, None]) / radius[:, None]
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    u = (cos * across).astype(np.float32)[:, None, :] + (sin * down).astype(np.float32)[:, :, None]
    v = (cos * down).astype(np.float32)[:, :, None] - (sin * across).astype(np.float32)[:, None, :]
    return u, v


def _distance(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Signed distance to the outline, negative inside, in units of the radius (near the outline; elsewhere rough)."""
    across, down = np.abs(u), np.abs(v)
    match shape:
        case "circle":
            return np.sqrt(u * u + v * v) - 0.95
        case "square":
            return np.maximum(across, down) - 0.82
        case "triangle":
            return np.maximum(v, 0.866 * across - 0.5 * v) - 0.55
        case "star":
            half = math.pi / 5  # from a tip to the notch beside it
            turn = np.abs((np.arctan2(u, -v) + half) % (2 * half) - half)
            edge = complex(NOTCH * math.cos(half) - TIP, NOTCH * math.sin(half))  # from the tip to the notch
            normal = cmath.phase(edge) - math.pi / 2
            return np.sqrt(u * u + v * v) * np.cos(turn - normal) - TIP * math.cos(normal)
        case "ring":
            return np.abs(np.sqrt(u * u + v * v) - 0.72) - 0.27
        case "cross":
            return np.minimum(np.maximum(across - 1.0, down - 0.34), np.maximum(across - 0.34, down - 1.0))
        case "diamond":
            return (across / 0.66 + down / 1.12 - 1.0) * 0.57
        case "heart":
            return np.sqrt(u * u + np.square(0.65 * np.sqrt(across) - 1.15 * v - 0.3)) - 0.95
    raise ValueError(f"unknown shape {shape!r}")


def _texture(texture: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Brightness of the paint, from `SHADE` to 1, with edges a little soft."""
    match texture:
        case "plain":
            return np.ones_like(u)
        case "striped":
            pattern = 0.25 - np.abs(_wrap(u / 0.6))
        case "dotted":
            pattern = np.hypot(_wrap(u / 0.58), _wrap(v / 0.58)) - 0.31
        case "checked":
            pattern = (np.abs(_wrap(u / 0.9)) - 0.25) * (np.abs(_wrap(v / 0.9)) - 0.25) * 8
        case _:
            raise ValueError(f"unknown texture {texture!r}")
    return SHADE + (1 - SHADE) * np.clip(0.5 + 8 * pattern, 0, 1)


def _wrap(x: np.ndarray) -> np.ndarray:
    return x - np.floor(x) - 0.5
