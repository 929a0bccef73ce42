"""Pack videos and their texts into tar shards, which any storage can hold, and WebDataset can read.

python -m recipes.data.pack --data howto100m --out howto100m-shards                  whatever recipes.pretrain reads
python -m recipes.data.pack --hub OWNER/NAME --text caption --out NAME-shards        a Hugging Face data set, streamed
python -m recipes.data.pack --shards s3://BUCKET/FOLDER --out FOLDER.parquet         an index of shards, no more

Videos are copied as they are. Those that cannot be opened are left out and listed in skipped.jsonl. A pack that was
interrupted goes on where it was, by the same command.
"""

import argparse
import hashlib
import io
import json
import os
import sys
import tarfile
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from recipes.data import hub, manifest, shards, storage
from recipes.data.clips import Skipped
from recipes.data.decode import BrokenClip, clip_in
from recipes.data.index import SCHEMA, load_index
from recipes.data.skipped import SkippedClips
from recipes.data.videos import VIDEOS
from recipes.data.workers import WorkerError, guarded
from recipes.files import locks, write_atomically
from recipes.progress import progress_bar

CONTENTS = "pack.json"  # in the folder of shards: what they are made of
CLIPS = 256  # of a shard
ROWS_AT_ONCE = 4096

Rows = Callable[[int], Iterable[dict[str, Any]]]  # from a number on; of an index, but `video` may be bytes


def pack(rows: Rows, total: int | None, contents: dict[str, Any], out: Path, clips: int = CLIPS) -> int:
    """Write shards of videos, and their index.

    Args:
        rows: What to pack.
        total: How many there are, if that is known.
        contents: What names these rows: a folder of others is not gone on with.
        out: Folder of the shards.
        clips: Rows of a shard, those that are skipped among them.

    Returns:
        How many videos the shards hold.

    Raises:
        ValueError: The folder holds something else.
        OSError: A shard cannot be written; those before are whole.
    """
    _claim(out, contents | {"clips": clips})
    number = sum(1 for _ in out.glob(f"*{shards.ENDING}"))  # they are written one after another
    start = number * clips
    left = guarded(open_header, ((row["id"], row) for row in rows(start)))
    skipped = SkippedClips(out)
    with progress_bar(total=total, desc="pack", unit="clip", initial=start) as bar:
        while block := list(islice(left, clips)):
            skipped.record([result for _, result in block if result is not None])
            _write_shard(out / f"shard-{number:06d}{shards.ENDING}", block, start)
            bar.update(len(block))
            number, start = number + 1, start + len(block)
    return write_index(shards.read_shards(out), out / shards.INDEX, out)


def write_index(rows: Iterable[dict[str, Any]], path: Path, root: Path) -> int:
    """Write rows as a manifest, videos relative to a folder; returns how many there are."""
    rows, count, temporary = iter(rows), 0, path.with_name(f".{path.name}.tmp")
    with pq.ParquetWriter(temporary, SCHEMA) as writer:
        while block := list(islice(rows, ROWS_AT_ONCE)):
            found = [row | {"video": storage.relative(row["video"], root)} for row in block]
            writer.write_batch(pa.RecordBatch.from_pylist(found, schema=SCHEMA))
            count += len(block)
    os.replace(temporary, path)
    return count


def _claim(out: Path, contents: dict[str, Any]) -> None:
    mark = out / CONTENTS
    out.mkdir(parents=True, exist_ok=True)
    if mark.exists():
        found = json.loads(mark.read_text(encoding="utf-8"))
        if found != contents:
            raise ValueError(f"{out}: is a pack of {found}, not of {contents}; choose another folder")
    elif any(path.name != f".{CONTENTS}.tmp" for path in out.iterdir()):
        raise ValueError(f"{out}: expected an empty folder, or a pack that was interrupted")
    write_atomically(mark, json.dumps(contents))


def _write_shard(shard: Path, rows: list[tuple[dict[str, Any], Skipped | None]], first: int) -> None:
    """One shard, whole or not at all; keys are the numbers of the rows, the first of which is `first`."""
    temporary = shard.with_name(f".{shard.name}.tmp")
    with tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as tar:
        for number, (row, skipped) in enumerate(rows, first):
            if skipped is not None:
                continue
            with _opened(row["video"]) as video:
                add(tar, f"{number:09d}{_ending(row['video'])}", video)
            about = {name: value for name, value in manifest.fields_of(row, "").items() if name != "video"}
            add(tar, f"{number:09d}.json", io.BytesIO(json.dumps(about, ensure_ascii=False).encode()))
    os.replace(temporary, shard)


def open_header(row: dict[str, Any]) -> None:
    """Raise a `BrokenClip` where a video has no header that can be read."""
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
    """Append a file, read from its beginning, to a shard."""
    member = tarfile.TarInfo(name)  # no dates, no owners: the same videos make the same bytes
    member.size = file.seek(0, os.SEEK_END)
    file.seek(0)
    tar.addfile(member, file)


def _of_index(data: str) -> tuple[Rows, int, dict[str, Any]]:
    index = load_index(data)
    ids = hashlib.sha256("\n".join(index["id"]).encode()).hexdigest()[:16]
    return lambda start: (index[i] for i in range(start, len(index))), len(index), {"rows": len(index), "ids": ids}


def _of_hub(name: str, split: str, columns: dict[str, str | None]) -> tuple[Rows, None, dict[str, Any]]:
    data = hub.open_split(name, split)
    return lambda start: hub.read_rows(data, **columns, start=start), None, {"hub": name, "split": split, **columns}


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m recipes.data.pack", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = p.add_mutually_exclusive_group(required=True)
    what.add_argument("--data", help="a manifest, or a folder in any layout that recipes.pretrain reads")
    what.add_argument("--hub", help="a Hugging Face data set: its name on the hub, or a folder")
    what.add_argument("--shards", help="a folder of shards, here or behind a URL, that need an index only")
    p.add_argument("--out", type=Path, required=True, help="folder of the shards; with --shards the index, .parquet")
    p.add_argument("--clips", type=int, default=CLIPS, help="of a shard (default: %(default)s)")
    p.add_argument("--split", default="train", help="of --hub (default: %(default)s)")
    p.add_argument("--video", default="video", help="column of --hub with the videos (default: %(default)s)")
    p.add_argument("--text", help="column of --hub with the texts; default: without texts")
    p.add_argument("--id", help="column of --hub with the ids; default: numbers")
    options = p.parse_args(arguments)
    if options.clips < 1:
        p.error(f"--clips {options.clips}: expected at least 1")
    try:
        if options.shards:
            if options.out.suffix != ".parquet":
                p.error(f"--out {options.out}: expected the name of an index to end in .parquet")
            index = options.out
            count = write_index(shards.read_shards(options.shards), index, index.absolute().parent)
        else:
            columns = {"video": options.video, "text": options.text, "name": options.id}
            rows = _of_index(options.data) if options.data else _of_hub(options.hub, options.split, columns)
            index = options.out / shards.INDEX
            with locks.hold(options.out):
                count = pack(*rows, options.out, options.clips)
    except (OSError, ValueError, WorkerError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not count:
        print(f"error: {index}: there is not one clip in it", file=sys.stderr)
        return 2
    print(f"{count} clips; train on them with data.manifest={index}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
