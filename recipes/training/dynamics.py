"""The distribution of cosines over a run: histograms and moments of intervals of steps, in bounded memory.

An interval begins as one step. Whenever there are more than MOST of them, intervals become twice as long and neighbours
are merged.
"""

import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import Tensor

from harmony import stats
from harmony.stats import Histogram, Moments
from recipes.errors import ConfigError

BINS = 100  # 0 is an edge, so that negative cosines are counted, not estimated
MOST = 1000  # intervals
FILE = "dynamics.safetensors"  # in a checkpoint
TRAINING = "backbone"  # name of the cosines that training itself measures; the others are probes
Cosines = Mapping[str, tuple[Tensor, Tensor]]
"""{name: (cosines (B,), mask (B,) of those that are defined)}."""


class Seen(NamedTuple):
    """Cosines seen so far: of one interval, or stacked over n intervals (leading axis n)."""

    histogram: Histogram
    moments: Moments

    def merge(self, other: "Seen") -> "Seen":
        """Both together."""
        return Seen(self.histogram.merge(other.histogram), self.moments.merge(other.moments))


def seen_in(cosines: Tensor, mask: Tensor) -> Seen:
    """The histogram and the moments of the defined cosines (B,) of one batch."""
    return Seen(stats.histogram(cosines, mask, bins=BINS), stats.moments(cosines, mask))


NOTHING = seen_in(torch.zeros(0), torch.zeros(0, dtype=torch.bool))


class Interval(NamedTuple):
    """The cosines {name: Seen} from a first to a last step, both included and counted from 1."""

    first: int
    last: int
    seen: dict[str, Seen]

    def merge(self, other: "Interval") -> "Interval":
        """Both together."""
        merged = dict(self.seen)
        for name, seen in other.seen.items():
            merged[name] = merged[name].merge(seen) if name in merged else seen
        return Interval(min(self.first, other.first), max(self.last, other.last), merged)


class Series(NamedTuple):
    """The cosines of one name over n intervals: first and last steps (n,), histograms (n, bins) and moments (n,)."""

    first: Tensor
    last: Tensor
    seen: Seen


class Dynamics(NamedTuple):
    """The intervals of a run in order, each of at most ``length`` steps; immutable."""

    length: int = 1
    intervals: tuple[Interval, ...] = ()

    def add(self, step: int, cosines: Cosines, most: int = MOST) -> "Dynamics":
        """Add the cosines of a step, counted from 1; returns new dynamics of at most ``most`` intervals."""
        seen = {name: seen_in(*measured) for name, measured in cosines.items()}
        seen = {name: s for name, s in seen.items() if s.moments.number > 0}
        return self.merge(Dynamics(1, (Interval(step, step, seen),)), most) if seen else self

    def merge(self, other: "Dynamics", most: int = MOST) -> "Dynamics":
        """Both together, as if one had seen all; associative and commutative, the moments up to rounding."""
        length = max(self.length, other.length)
        return Dynamics(length, _merged(self.intervals + other.intervals, length)).at_most(most)

    def at_most(self, most: int) -> "Dynamics":
        """Make intervals twice as long until there are at most so many; returns new dynamics."""
        length, intervals = self
        while len(intervals) > most:
            length *= 2
            intervals = _merged(intervals, length)
        return Dynamics(length, intervals)

    @property
    def names(self) -> list[str]:
        """All names: the cosines of training first, layers in their order."""
        names = {name for interval in self.intervals for name in interval.seen}
        return sorted(names, key=lambda name: (name != TRAINING, *_natural(name)))

    def series(self, name: str) -> Series:
        """The cosines of a name, over the intervals that have any."""
        return _series([interval for interval in self.intervals if name in interval.seen], name)

    def total(self, name: str) -> Seen:
        """The cosines of a name over the whole run; nothing if there are none."""
        return functools.reduce(Seen.merge, (i.seen[name] for i in self.intervals if name in i.seen), NOTHING)

    def only(self, name: str) -> "Dynamics":
        """The cosines of a name alone."""
        chosen = (i._replace(seen={name: i.seen[name]}) for i in self.intervals if name in i.seen)
        return self._replace(intervals=tuple(chosen))


def save(dynamics: Dynamics, path: Path) -> None:
    """Write as safetensors, counts in the narrowest integers that hold them."""
    steps = [(i.first, i.last) for i in dynamics.intervals]
    arrays = {"length": np.array([dynamics.length]), "steps": np.array(steps, dtype=np.int64).reshape(-1, 2)}
    for name in dynamics.names:
        seen = _series(dynamics.intervals, name).seen
        counts = seen.histogram.counts.numpy()
        arrays[f"{name}:counts"] = counts.astype(np.min_scalar_type(counts.max()))
        arrays[f"{name}:moments"] = torch.stack(seen.moments).numpy()
    save_file(arrays, path)


def load(path: Path) -> Dynamics:
    """Read what `save` wrote; empty if there is no file; a ConfigError where it is damaged."""
    if not path.exists():
        return Dynamics()
    try:
        return _from_arrays(load_file(path))
    except (OSError, SafetensorError, LookupError, ValueError, TypeError, RuntimeError, ArithmeticError) as error:
        raise ConfigError(f"{path}: damaged: {error}") from error


def _from_arrays(arrays: dict[str, np.ndarray]) -> Dynamics:
    intervals = [Interval(int(first), int(last), {}) for first, last in arrays["steps"]]
    for name in sorted(key.removesuffix(":counts") for key in arrays if key.endswith(":counts")):
        counts = torch.from_numpy(arrays[f"{name}:counts"].astype(np.int64))
        moments = torch.from_numpy(arrays[f"{name}:moments"])
        for i, interval in enumerate(intervals):
            if moments[0, i] > 0:
                interval.seen[name] = Seen(Histogram(counts[i]), Moments(*moments[:, i]))
    length = int(arrays["length"][0])
    if length < 1:
        raise ValueError(f"the length of an interval is {length}")
    return Dynamics(length, tuple(intervals))


def _natural(name: str) -> tuple[str, float, str]:
    """Sorts "layers/2" before "layers/10", and numbers before words."""
    family, _, part = name.partition("/")
    return family, float(part) if part.isdigit() else float("inf"), part


def _merged(intervals: Iterable[Interval], length: int) -> tuple[Interval, ...]:
    """Merge the intervals that begin in the same cell of a grid of so many steps."""
    cells: dict[int, Interval] = {}
    for interval in sorted(intervals, key=lambda i: i.first):
        cell = (interval.first - 1) // length
        cells[cell] = cells[cell].merge(interval) if cell in cells else interval
    return tuple(cells.values())


def _series(intervals: Iterable[Interval], name: str) -> Series:
    """The cosines of a name stacked over intervals, nothing where an interval has none."""
    intervals = list(intervals)
    seen = [interval.seen.get(name, NOTHING) for interval in intervals]
    if not seen:
        raise ValueError(f"no cosines are called {name!r}.")
    steps = torch.tensor([(i.first, i.last) for i in intervals])
    counts = torch.stack([s.histogram.counts for s in seen])
    moments = Moments(*(torch.stack(column) for column in zip(*(s.moments for s in seen), strict=True)))
    return Series(steps[:, 0], steps[:, 1], Seen(Histogram(counts), moments))
