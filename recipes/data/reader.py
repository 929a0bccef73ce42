"""The one way to read clips: the recording of a row is opened, windows of it are read, what is broken is skipped.

The subclasses of `Reader` say where windows begin, and what is made of them.
"""

from abc import abstractmethod
from typing import Any, Generic, TypeVar

import numpy as np
from datasets import Dataset as Index
from torch.utils.data import Dataset

from recipes.config import ClipFormat
from recipes.data.decode import BrokenClip
from recipes.data.recording import Modality, Recording, Row, Window, open_recording
from recipes.data.sampler import Key
from recipes.data.skipped import Skipped

Item = TypeVar("Item")


class Reader(Dataset[Item | Skipped], Generic[Item]):
    """A dataset of items, each made of one or more windows of a row of an index.

    Attributes:
        index: rows as from `load_index`.
        fmt: the shape of a window.
        modality: the only one to read; None: both.
    """

    def __init__(self, index: Index, fmt: ClipFormat, modality: Modality | None = None):
        self.index, self.fmt, self.modality = index, fmt, modality

    def __len__(self) -> int:
        return len(self.index)

    @abstractmethod
    def row(self, key: Any) -> int:
        """The row that a key reads."""

    def rng(self, key: Any) -> np.random.Generator | None:
        """All that is random about the item of a key; None: nothing is."""
        return None

    @abstractmethod
    def starts(self, key: Any, row: Row, recording: Recording, rng: Any) -> list[float]:
        """Where the windows begin, in seconds of the file."""

    @abstractmethod
    def item(self, key: Any, row: Row, windows: list[Window], rng: Any) -> Item:
        """What is made of the windows."""

    def __getitem__(self, key: Any) -> Item | Skipped:
        """Reads the item of a key, or says why it cannot be read."""
        row, rng = self.index[self.row(key)], self.rng(key)
        try:
            with open_recording(row, self.fmt, self.modality) as recording:
                windows = [recording.window(start) for start in self.starts(key, row, recording, rng)]
        except BrokenClip as broken:
            return Skipped(row["id"], broken.reason)
        return self.item(key, row, windows, rng)


class RandomReader(Reader[Item]):
    """One random window of each row. Everything random is drawn from (seed, epoch, row).

    So it depends neither on the worker, nor on what was read before.
    """

    seed: int

    def row(self, key: Key) -> int:
        """The row of (epoch, row)."""
        return key[1]

    def rng(self, key: Key) -> np.random.Generator:
        """What is random about row `key[1]` in epoch `key[0]`."""
        return np.random.default_rng(np.random.SeedSequence([self.seed, *key]))

    def starts(self, key: Key, row: Row, recording: Recording, rng: np.random.Generator) -> list[float]:
        """Any time from which the window lies within the clip."""
        return [recording.random_start(rng)]
