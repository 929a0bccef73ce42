"""Pack videos and their texts into tar shards, which any storage can hold, and WebDataset can read.

python -m recipes.data.pack data=howto100m out=howto100m-shards                  whatever recipes.pretrain reads
python -m recipes.data.pack hub=OWNER/NAME text=caption out=NAME-shards          a Hugging Face data set, streamed
python -m recipes.data.pack shards=s3://BUCKET/FOLDER out=FOLDER.parquet         an index of shards, no more

Videos are copied as they are. Those that cannot be opened are left out and listed in skipped.jsonl. A pack that was
interrupted goes on where it was, by the same command.
"""

import io
import json
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from recipes import cli
from recipes.cli import Command
from recipes.data import hub, manifest, storage
from recipes.data import shards as tar_shards
from recipes.data.decode import BrokenClip, clip_in
from recipes.data.index import ROWS_AT_ONCE, SCHEMA, ids_digest, load_index
from recipes.data.skipped import Skipped, SkippedClips
from recipes.data.videos import VIDEOS
from recipes.data.workers import guarded
from recipes.errors import DataError
from recipes.files import locks, replacing, write_atomically
from recipes.keys import key
from recipes.progress import progress_bar

CONTENTS = "pack.json"  # in the folder of shards: what they are made of


@dataclass
class Packing:
    """What to pack, and where."""

    out: Path = key(meaning="folder of the shards; with shards= the index, a file ending in .parquet")
    data: str | None = key(None, "a manifest, or a folder in any layout that recipes.pretrain reads")
    hub: str | None = key(None, "a Hugging Face data set: its name on the hub, or a folder")
    shards: str | None = key(None, "a folder of shards, here or behind a URL, that need an index only")
    clips: int = key(256, "of a shard", least=1)
    split: str = key("train", "of hub=")
    video: str = key("video", "column of hub= with the videos")
    text: str | None = key(None, "column of hub= with the texts; null: there are none")
    id: str | None = key(None, "column of hub= with the ids; null: numbers")

    def problems(self) -> Iterator[str]:
        """Nothing to pack, or too much; a wrong name."""
        given = [name for name in ("data", "hub", "shards") if getattr(self, name)]
        if len(given) != 1:
            yield f"out= needs exactly one of data=, hub= and shards=; given: {', '.join(given) or 'none'}"
        if self.shards and self.out.suffix != ".parquet":
            yield f"out={self.out}: expected the name of an index to end in .parquet"

    @property
    def index(self) -> Path:
        """The index of the shards."""
        return self.out if self.shards else self.out / tar_shards.INDEX


class Rows(NamedTuple):
    """What to pack: rows of an index, but `video` may be bytes.

    Attributes:
        following: gives the rows from a number on.
        total: how many there are; None: unknown.
        contents: identifies them: a folder of other rows is refused.
    """

    following: Callable[[int], Iterable[dict[str, Any]]]
    total: int | None
    contents: dict[str, Any]


def pack(rows: Rows, out: Path, clips: int) -> int:
    """Writes shards of `clips` rows each, skipped ones among them, and their index; returns how many videos it has.

    Raises:
        DataError: The folder holds something else.
        OSError: A shard cannot be written; those before it are whole.
    """
    contents = rows.contents | {"clips": clips}
    out.mkdir(parents=True, exist_ok=True)
    check_out(out, contents)
    write_atomically(out / CONTENTS, json.dumps(contents))
    number = sum(1 for _ in out.glob(f"*{tar_shards.ENDING}"))  # they are written one after another
    start = number * clips
    results = guarded(open_header, ((row["id"], row) for row in rows.following(start)))
    skipped = SkippedClips(out)
    with progress_bar(total=rows.total, desc="pack", unit="clip", initial=start) as bar:
        while block := list(islice(results, clips)):
            skipped.record([result for _, result in block if result is not None])
            _write_shard(out / f"shard-{number:06d}{tar_shards.ENDING}", block, start)
            bar.update(len(block))
            number, start = number + 1, start + len(block)
    return write_index(tar_shards.read_shards(out), out / tar_shards.INDEX, out)


def write_index(rows: Iterable[dict[str, Any]], path: Path, root: Path) -> int:
    """Writes rows as a manifest, videos relative to a folder; returns how many there are."""
    rows, count = iter(rows), 0
    with replacing(path) as temporary, pq.ParquetWriter(temporary, SCHEMA) as writer:
        while block := list(islice(rows, ROWS_AT_ONCE)):
            relative = [row | {"video": storage.relative(row["video"], root)} for row in block]
            writer.write_batch(pa.RecordBatch.from_pylist(relative, schema=SCHEMA))
            count += len(block)
    return count


def check_out(out: Path, contents: dict[str, Any]) -> None:
    """Raises a DataError if a folder holds anything but an interrupted pack of these contents."""
    mark = out / CONTENTS
    if mark.exists():
        earlier = json.loads(mark.read_text(encoding="utf-8"))
        if earlier != contents:
            raise DataError(f"{out}: is a pack of {earlier}, not of {contents}; choose another folder")
    elif out.exists() and any(path.name != f".{CONTENTS}.tmp" for path in out.iterdir()):
        raise DataError(f"{out}: expected an empty folder, or a pack that was interrupted")


def _write_shard(shard: Path, rows: list[tuple[dict[str, Any], Skipped | None]], first: int) -> None:
    """One shard, whole or not at all; keys are the numbers of the rows, the first of which is `first`."""
    with replacing(shard) as temporary, tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as tar:
        for number, (row, skipped) in enumerate(rows, first):
            if skipped is not None:
                continue
            with _opened(row["video"]) as video:
                add(tar, f"{number:09d}{_ending(row['video'])}", video)
            about = {name: value for name, value in manifest.fields_of(row, "").items() if name != "video"}
            add(tar, f"{number:09d}.json", io.BytesIO(json.dumps(about, ensure_ascii=False).encode()))


def open_header(row: dict[str, Any]) -> None:
    """Raises a `BrokenClip` if the header of a video cannot be read."""
    try:
        file = _opened(row["video"])
    except OSError as error:
        raise BrokenClip(row["id"], error.strerror or str(error)) from error
    with file, clip_in(file, row["id"]):
        pass


def _opened(video: str | bytes) -> BinaryIO:
    return io.BytesIO(video) if isinstance(video, bytes) else storage.open_bytes(video)


def _ending(video: str | bytes) -> str:
    ending = "" if isinstance(video, bytes) else PurePosixPath(video).suffix.lower()
    return ending if ending in VIDEOS else VIDEOS[0]


def add(tar: tarfile.TarFile, name: str, file: BinaryIO) -> None:
    """Appends a whole file to a shard."""
    member = tarfile.TarInfo(name)  # no dates, no owners: the same videos make the same bytes
    member.size = file.seek(0, os.SEEK_END)
    file.seek(0)
    tar.addfile(member, file)


def rows_of(packing: Packing) -> Rows:
    """What `data` or `hub` means."""
    if packing.data:
        index = load_index(packing.data)
        contents = {"rows": len(index), "ids": ids_digest(index)[:16]}
        return Rows(lambda start: (index[i] for i in range(start, len(index))), len(index), contents)
    columns = {"video": packing.video, "text": packing.text, "name": packing.id}
    data = hub.open_split(packing.hub, packing.split)
    contents = {"hub": packing.hub, "split": packing.split, **columns}
    return Rows(lambda start: hub.read_rows(data, **columns, start=start), None, contents)


def run(packing: Packing) -> None:
    """Packs, and says how to train on it; a DataError if there is not one clip in it."""
    if packing.shards:
        rows = tar_shards.read_shards(packing.shards)
        count = write_index(rows, packing.out, packing.out.absolute().parent)
    else:
        with locks.hold(packing.out):
            count = pack(rows_of(packing), packing.out, packing.clips)
    if not count:
        raise DataError(f"{packing.index}: there is not one clip in it")
    print(f"{count} clips; train on them with data.manifest={packing.index}")


def plan(packing: Packing) -> str:
    """How much there is to pack; what `pack` would refuse is refused."""
    if packing.shards:
        if not (count := len(tar_shards.shards_of(packing.shards))):
            raise DataError(f"{packing.shards}: there is not one shard in it")
        return f"{packing.index}: an index of {count} shards"
    rows = rows_of(packing)
    check_out(packing.out, rows.contents | {"clips": packing.clips})
    return f"{packing.out}: shards of {packing.clips} clips each, of {rows.total or 'all'} clips"


COMMAND = Command("recipes.data.pack", __doc__, Packing, run, plan)
main = COMMAND.main

if __name__ == "__main__":
    cli.exit(main)
