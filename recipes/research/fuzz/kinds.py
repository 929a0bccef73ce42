"""What is damaged: how its inputs are made, and how one is used."""

import csv
import io
import shutil
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recipes import config as configuration
from recipes import keys
from recipes.config import DEMO, ClipFormat, Config, RunConfig
from recipes.data.corpus import Corpus, build
from recipes.data.decode import open_clip
from recipes.data.index import load_index
from recipes.data.pack import add
from recipes.errors import ConfigError
from recipes.figures.gallery.sample import draw
from recipes.pretrain import pretrain
from recipes.research.benchmark.scaling import ScalingKeys
from recipes.research.benchmark.step import StepKeys
from recipes.research.fuzz.damage import altered, damaged, value, written
from recipes.research.soak.__main__ import SoakKeys
from recipes.restore import restore
from recipes.scoring import detection, table
from recipes.scoring.table import SCHEMA
from recipes.training import checkpoint, dynamics, metrics

T = TypeVar("T")
MEDIA = (  # encoder of pictures, of sound, container
    "libx264 aac mp4, libx265 aac matroska, mpeg4 mp2 avi, mpeg2video mp2 mpeg, mpeg2video mp2 mpegts, "
    "libx264 aac flv, libvpx-vp9 libopus webm, libsvtav1 aac mp4, wmv2 mp2 asf, mjpeg pcm_s16le mov"
)


class Kind(NamedTuple):
    """Inputs of one kind."""

    make: Callable[[Path], None]  # writes whole ones into a folder, which is not there yet
    use: Callable[[Path, Path, np.random.Generator], None]  # that folder, one to write to, randomness


def nothing(folder: Path) -> None:
    """No input: it is written damaged."""


def pick_file(folder: Path, rng: np.random.Generator) -> Path:
    return pick_one(sorted(path for path in folder.rglob("*") if path.is_file()), rng)


def pick_one(choices: Sequence[T], rng: np.random.Generator) -> T:
    return choices[rng.integers(len(choices))]


# --------------------------------------------------------------------------------------------------------------- media
def make_media(folder: Path) -> None:
    """A second of noise in several codecs and containers."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for pictures, sound, container in map(str.split, MEDIA.split(", ")):
        with av.open(str(folder / f"{pictures}-{sound}.{container}"), "w", format=container) as file:
            stream = file.add_stream(pictures, rate=10)
            stream.width, stream.height = 96, 64
            stream.pix_fmt = "yuvj420p" if pictures == "mjpeg" else "yuv420p"
            stream.codec_context.gop_size = 4
            track = file.add_stream(sound, rate=48_000, layout="mono")
            for number in range(12):
                noise = rng.integers(0, 255, (64, 96, 3), dtype=np.uint8)
                frame = av.VideoFrame.from_ndarray(noise, format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, 10)
                file.mux(stream.encode(frame))
                chunk = av.AudioFrame.from_ndarray(rng.integers(-9999, 9999, (1, 4800), dtype=np.int16), "s16", "mono")
                chunk.sample_rate, chunk.pts, chunk.time_base = 48_000, number * 4800, Fraction(1, 48_000)
                file.mux(track.encode(chunk))
            for each in (stream, track):
                file.mux(each.encode(None))


def use_media(folder: Path, scratch: Path, rng: np.random.Generator) -> None:
    path = scratch / "clip"
    path.write_bytes(damaged(pick_file(folder, rng).read_bytes(), rng))
    with open_clip(path) as clip:
        clip.window(rng.random() * 1.5, 4, 10.0, 8000, 4000, 32)


# ----------------------------------------------------------------------------------------------------------- manifests
NARRATIONS = [{"start": 0.5, "end": 2.0, "text": "a red circle"}, {"start": 2.0, "end": 4.0, "text": "moves"}]
ABOUT = {"split": "train", "start": 0.0, "end": 5.0, "group": "film", "narrations": NARRATIONS}
ROWS = [{"id": f"clip {n}", "video": f"{n}.mp4", **ABOUT} for n in range(3)]


def use_manifests(folder: Path, scratch: Path, rng: np.random.Generator) -> None:
    """Load one as JSONL, CSV or Parquet, its values altered or its bytes damaged."""
    rows = [altered(row, rng) if rng.random() < 0.5 else row for row in ROWS]
    ending = pick_one(("jsonl", "csv", "parquet"), rng)
    if ending == "jsonl":
        data = "\n".join(map(written, rows)).encode()
    elif ending == "csv":
        data = _as_csv(rows).encode("utf-8", "replace")
    else:
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(ROWS), sink)
        data = sink.getvalue()
    (scratch / "0.mp4").touch()
    path = scratch / f"manifest.{ending}"
    path.write_bytes(damaged(data, rng) if ending == "parquet" or rng.random() < 0.5 else data)
    load_index(path)


def _as_csv(rows: list[Any]) -> str:
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(list(ROWS[0]))
    for row in rows:
        values = row.values() if isinstance(row, dict) else [row]
        table.writerow([written(v) if isinstance(v, list | dict) else str(v)[:9999] for v in values])
    return text.getvalue()


# -------------------------------------------------------------------------------------------------------------- shards
def make_shards(folder: Path) -> None:
    """A shard of three videos with texts."""
    make_media(folder / "videos")
    video = (folder / "videos" / "libx264-aac.mp4").read_bytes()
    with tarfile.open(folder / "shard.tar", "w") as shard:
        for number in range(3):
            add(shard, f"{number}.mp4", io.BytesIO(video))
            add(shard, f"{number}.json", io.BytesIO(written(ROWS[number]).encode()))


def use_shards(folder: Path, scratch: Path, rng: np.random.Generator) -> None:
    data = bytearray((folder / "shard.tar").read_bytes())
    if rng.random() < 0.5:  # in a header, where the damage is worse
        heads = [at for at in range(0, len(data), 512) if data[at + 257 : at + 262] == b"ustar"]
        at = pick_one(heads, rng)
        data[at : at + 512] = damaged(bytes(data[at : at + 512]), rng)[:512].ljust(512, b"\0")
    path = scratch / "shard.tar"
    path.write_bytes(bytes(data) if rng.random() < 0.5 else damaged(bytes(data), rng))
    for row in load_index(path):
        with open_clip(row["video"]) as clip:
            clip.window(0.0, 2, 10.0, 8000, 800, 32)


# ------------------------------------------------------------------------------------------------------ configurations
def use_configurations(folder: Path, scratch: Path, rng: np.random.Generator) -> None:
    """Load keys from damaged YAML or strange overrides, and once more; only a ConfigError may come of it."""
    kind = pick_one((Config, SoakKeys, StepKeys, ScalingKeys), rng)
    path, overrides = None, []
    match rng.integers(3):
        case 0:
            path = scratch / "config.yaml"
            path.write_bytes(damaged(DEMO.read_bytes(), rng))
        case 1:
            path = scratch / "config.yaml"
            path.write_text(written(altered(keys.as_dict(kind()), rng)))  # JSON is YAML
        case _:
            overrides = [_override(kind, rng) for _ in range(rng.integers(1, 4))]
    try:
        config = keys.load(kind, path, overrides)
        keys.save(config, scratch / "again.yaml")
        if keys.load(kind, scratch / "again.yaml") != config:
            raise AssertionError("what was saved is loaded with other values")
    except ConfigError:
        raise
    except ValueError as error:
        raise AssertionError(f"no ConfigError: {error!r}") from error


def _override(kind: type[Any], rng: np.random.Generator) -> str:
    """``key=value`` with the default or a strange value, sometimes damaged."""
    name, _, default, _ = pick_one(list(keys.walk(kind)), rng)
    text = f"{name}={str(default if rng.random() < 0.4 else value(rng))[:6000]}"
    return damaged(text.encode("utf-8", "replace"), rng).decode("utf-8", "replace") if rng.random() < 0.2 else text


# --------------------------------------------------------------------------------------------------------- checkpoints
def make_checkpoints(folder: Path) -> None:
    """A run of one step."""
    corpus = folder / "corpus"
    build(Corpus(corpus, "narrated", videos=4, test_videos=2, seed=1, size=48, fps=5, workers=1))
    config = configuration.load(DEMO)
    config.run = RunConfig("run", str(folder))
    config.data = replace(config.data, manifest=str(corpus), test=str(corpus / "test.jsonl"))
    config.clip = ClipFormat(frames=4, size=32, sample_rate=4000, audio_seconds=0.64, words=8)
    config.model.audio_patch = 128
    config.objective = replace(config.objective, audio_space=16, text_space=16)
    config.train = replace(config.train, steps=1, batch_size=4, warmup=0, device="cpu")
    config.evaluate.untrained = False
    keys.check(config)
    pretrain(config)


def use_checkpoints(folder: Path, scratch: Path, rng: np.random.Generator) -> None:
    """Restore a run of which a file is damaged, missing, or altered with a checksum to match."""
    run = scratch / "run"
    shutil.copytree(folder / "run", run)
    path = pick_file(run, rng)
    match rng.integers(4):
        case 0:
            path.unlink()
        case 1 if path.suffix == ".json":
            path.write_text(written(altered(checkpoint.read_json(path), rng)))
        case _:
            path.write_bytes(damaged(path.read_bytes(), rng))
    if rng.random() < 0.5:
        for sums in run.rglob(checkpoint.CHECKSUMS):
            sums.unlink()
    restored = restore(run)
    checkpoint.load_facts(restored.folder, data=str, processes=int, counts=dict, results=dict)
    dynamics.load(restored.folder / dynamics.FILE)
    metrics.read_metrics(run)


# -------------------------------------------------------------------------------------------------------------- tables
def make_tables(folder: Path) -> None:
    folder.mkdir(parents=True)
    fields = {"narration": 0, "caption": "a text", "start": 0.0, "end": 1.0}
    rows = []
    for clip in range(40):
        row = {f.name: clip % 7 / 7 if pa.types.is_floating(f.type) else None for f in SCHEMA}
        rows.append(row | fields | {"clip": clip, "id": f"clip {clip}", "video": f"{clip % 9}.mp4"})
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), folder / "scores.parquet")


def use_tables(folder: Path, scratch: Path, rng: np.random.Generator) -> None:
    """Draw a gallery of it, take a quantile of it, or judge it by a truth file."""
    scores, path = pq.read_table(folder / "scores.parquet"), scratch / "scores.parquet"
    if rng.random() < 0.5:
        name = pick_one(scores.column_names, rng)
        try:
            column = pa.array([value(rng)] * len(scores))
        except (pa.ArrowException, OverflowError, UnicodeEncodeError, ValueError, TypeError):
            column = pa.array(["x"] * len(scores))
        scores = scores.drop_columns([name])
        scores = scores.append_column(name, column) if rng.random() < 0.8 else scores
    try:
        pq.write_table(scores, path)
    except pa.ArrowException:  # no such table can be
        return
    if rng.random() < 0.5:
        path.write_bytes(damaged(path.read_bytes(), rng))
    match rng.integers(3):
        case 0:
            draw(path, 0.1, 4, 0, 4)
        case 1:
            table.quantile(path, "cosine", 0.5)
        case _:
            truth = [{"video_id": f"clip {n}", "text": "a text", "aligned": n % 2 > 0} for n in range(40)]
            lines = [written(altered(line, rng) if rng.random() < 0.02 else line) for line in truth]
            (scratch / "truth.jsonl").write_text("\n".join(lines))
            detection.judge(path, scratch / "truth.jsonl")


KINDS = {
    "media": Kind(make_media, use_media),
    "manifests": Kind(nothing, use_manifests),
    "shards": Kind(make_shards, use_shards),
    "configurations": Kind(nothing, use_configurations),
    "checkpoints": Kind(make_checkpoints, use_checkpoints),
    "tables": Kind(make_tables, use_tables),
}
"""By the names that the command takes."""
