"""Hugging Face data sets: their videos and texts one after another, from a disk, or streamed from the hub.

WebDataset shards on the hub need none of this: `data.manifest=hf://datasets/OWNER/NAME` reads them in place.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset, Video, load_dataset, load_from_disk

from recipes.data import manifest

SAVED = ("state.json", "dataset_dict.json")  # in a folder that `save_to_disk` wrote


def open_split(name: str, split: str) -> IterableDataset:
    """Opens a split as a stream: on the hub, of a folder of files that `datasets` knows, or of one that it saved."""
    folder = Path(name)
    if not any((folder / file).is_file() for file in SAVED):
        return load_dataset(name, split=split, streaming=True)
    saved = load_from_disk(name)
    if not isinstance(saved, Dataset):
        if split not in saved:
            raise ValueError(f"{name}: no split {split!r}; it has {', '.join(saved)}")
        saved = saved[split]
    return saved.to_iterable_dataset()


def read_rows(
    data: IterableDataset, video: str, text: str | None, name: str | None, start: int = 0
) -> Iterator[dict[str, Any]]:
    """The rows of a split from `start` on, as of an index, but `video` is a locator or bytes.

    `video`, `text` and `name` are columns; None: no text, numbers for names. A ValueError if a row has no such column,
    or something else in it.
    """
    if isinstance((data.features or {}).get(video), Video):
        data = data.cast_column(video, Video(decode=False))
    for number, row in enumerate(data.skip(start), start):
        if missing := [column for column in (video, text, name) if column is not None and column not in row]:
            raise ValueError(f"no column {', '.join(missing)}; there are {', '.join(row)}")
        value = row[video]
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if not isinstance(value, bytes | str):
            raise ValueError(f"row {number}, column {video}: expected a video, a path or bytes; found {value!r:.80}")
        fields = {"id": row[name] if name else f"{number:09d}", "text": row[text] if text else None}
        yield manifest.row(f"row {number}", fields, value, "")
