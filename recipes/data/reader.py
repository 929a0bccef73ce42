"""The one way to read clips: open the recording of a row, read windows of it, skip what is broken."""

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
    """A dataset of items, each made of windows of one row; `modality` is the only one to read, None: both.

    Subclasses say where the windows begin, and what is made of them.
    """

    def __init__(self, index: Index, fmt: ClipFormat, modality: Modality | None = None):
        self.index, self.fmt, self.modality = index, fmt, modality

    def __len__(self) -> int:
        return len(self.index)

    @abstractmethod
    def row(self, key: Any) -> int:
        """The number of the row that a key reads."""

    def name(self, row: int) -> str:
        """The id of a row."""
        return self.index[row]["id"]

    def rng(self, key: Any) -> np.random.Generator | None:
        """The random numbers of an item; None: nothing about it is random."""
        return None

    @abstractmethod
    def starts(self, key: Any, row: Row, recording: Recording, rng: Any) -> list[float]:
        """Where the windows begin, in seconds of the file."""

    @abstractmethod
    def item(self, key: Any, row: Row, windows: list[Window], rng: Any) -> Item:
        """What is made of the windows."""

    def __getitem__(self, key: Any) -> Item | Skipped:
        row, rng = self.index[self.row(key)], self.rng(key)
        try:
            with open_recording(row, self.fmt, self.modality) as recording:
                windows = [recording.window(start) for start in self.starts(key, row, recording, rng)]
        except BrokenClip as broken:
            return Skipped(row["id"], broken.reason)
        return self.item(key, row, windows, rng)


class RandomReader(Reader[Item]):
    """One random window of each row. A key is (epoch, row): all that is random depends on it and the seed alone."""

    def __init__(self, index: Index, fmt: ClipFormat, seed: int, modality: Modality | None = None):
        super().__init__(index, fmt, modality)
        self.seed = seed

    def row(self, key: Key) -> int:
        return key[1]

    def rng(self, key: Key) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence([self.seed, *key]))

    def starts(self, key: Key, row: Row, recording: Recording, rng: np.random.Generator) -> list[float]:
        return [recording.random_start(rng)]
