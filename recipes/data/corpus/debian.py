"""Builds a small real corpus from two Debian packages, qabcs-data and gcompris-qt-data; nothing gets installed.

`python -m recipes.data.corpus.debian --out corpora/debian`. Pictures, sounds and texts are the packages' own; a slow
pan and zoom makes a video of each picture. Needs pillow, and cairosvg for drawings (without it they are skipped).
"""

import argparse
import hashlib
import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from recipes.data.corpus.write import write_mp4
from recipes.files import locks
from recipes.progress import progress_bar

QABCS, GCOMPRIS = "usr/share/qabcs/abcs", "usr/share/gcompris-qt/rcc"
PACKAGES = {"qabcs-data": QABCS, "gcompris-qt-data": GCOMPRIS}
LICENSES = {  # file by file: usr/share/doc/<package>/copyright
    "qabcs": "GPL-3+; a few pictures CC0 or public domain",
    "gcompris": "GPL-3+; media also Creative Commons or public domain",
}
ACTIVITIES = {"explore_farm_animals": "animals", "explore_world_music": "music", "instruments": "instrument"}
SIZE, FPS, SAMPLE_RATE = 112, 10, 16_000  # pixels, frames and samples per second
SHORTEST, LONGEST = 2.0, 4.0  # seconds of a clip
TEST_TENTHS = 5  # tenths of the concepts that are held out


class PackageError(Exception):
    """The packages cannot be had, or are not what is expected."""


class BrokenMedia(Exception):
    """A picture or a sound that cannot be used; the message says why."""


@dataclass(frozen=True)
class Entry:
    """One picture with one sound and a text; `picture` and `sound` are the bytes of their files."""

    id: str
    text: str
    concept: str
    category: str
    kind: str  # "noise": the sound of the thing, or "speech": its name, spoken
    source: str
    picture: bytes
    sound: bytes

    @property
    def split(self) -> str:
        digest = hashlib.sha1(self.concept.encode()).hexdigest()
        return "test" if int(digest[:8], 16) % 10 < TEST_TENTHS else "train"


def build(out: Path, root: Path | None = None, workers: int | None = None) -> Path:
    """Build the corpus: `manifest.jsonl` and `videos/<id>.mp4`; the same packages give the same content.

    The manifest is a labelled one, too: the `label` of a clip is its category in the packages.

    The folder appears only when it is complete. A broken picture or sound is skipped, and reported.

    Args:
        out: folder to create.
        root: folder the packages were unpacked in, `/` where they are installed; default: download them.
        workers: processes; default all cores, 1 works in this process.

    Returns:
        `out`.

    Raises:
        FileExistsError: `out` exists.
        locks.Held: Another process builds it.
        PackageError: the packages cannot be downloaded, are not under `root`, or nothing in them can be used.
        OSError: a file of the packages is missing, or the disk is full.
    """
    out = Path(out)
    if out.exists():
        raise FileExistsError(f"{out} exists already; choose another folder or remove it")
    with locks.hold(out):
        return _build(out, root, workers)


def _build(out: Path, root: Path | None, workers: int | None) -> Path:
    if root is None:
        with tempfile.TemporaryDirectory(prefix="debian-corpus-") as folder:
            _download(Path(folder))
            return _build(out, Path(folder), workers)
    for package, folder in PACKAGES.items():
        if not (Path(root) / folder).is_dir():
            raise PackageError(f"{root} has no {folder}: --root must hold the unpacked package {package}")
    entries = [*_read_qabcs(Path(root) / QABCS), *_read_gcompris(Path(root) / GCOMPRIS)]
    partial_out = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial_out, ignore_errors=True)  # of a build that was killed
    try:
        (partial_out / "videos").mkdir(parents=True)
        results = _render_all(entries, partial_out, workers or os.cpu_count() or 1)
        rows = [result for result in results if isinstance(result, dict)]
        _report([(entry.id, why) for entry, why in zip(entries, results, strict=True) if isinstance(why, str)])
        if not rows:
            raise PackageError(f"none of the {len(entries)} clips under {root} can be made")
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (partial_out / "manifest.jsonl").write_text("".join(lines), encoding="utf-8")
        os.replace(partial_out, out)
    finally:
        shutil.rmtree(partial_out, ignore_errors=True)
    count = Counter(value for row in rows for value in (row["split"], f"{row['source']} {row['kind']}"))
    megabytes = sum(file.stat().st_size for file in out.rglob("*") if file.is_file()) / 1e6
    print(
        f"{out}: {len(rows)} clips ({', '.join(f'{name}: {number}' for name, number in sorted(count.items()))}), "
        f"{len(entries) - len(rows)} skipped, {sum(row['seconds'] for row in rows):.0f} s, {megabytes:.1f} MB"
    )
    return out


def _report(skipped: list[tuple[str, str]]) -> None:
    """Print why clips were skipped, and which."""
    for why, number in Counter(why for _, why in skipped).most_common():
        ids = [id for id, reason in skipped if reason == why]
        print(f"skipped {number}: {why}: {', '.join(ids[:5])}{', ...' if number > 5 else ''}")


# packages


def _download(folder: Path) -> None:
    """Download the packages and unpack them into a folder."""
    by_hand = f"point --root at an unpacked package tree (of {' and '.join(PACKAGES)})"
    missing = [tool for tool in ("apt-get", "dpkg") if not shutil.which(tool)]
    if missing:
        raise PackageError(f"{' and '.join(missing)} not found: run this on Debian or Ubuntu, or {by_hand}")
    print(f"downloading {' and '.join(PACKAGES)} (78 MB)", flush=True)
    _run(["apt-get", "download", "-q", *PACKAGES], folder, f"run `apt-get update` first, or {by_hand}")
    for archive in sorted(folder.glob("*.deb")):
        _run(["dpkg", "-x", archive.name, "."], folder, f"is the disk full? Try again, or {by_hand}")


def _run(command: list[str], folder: Path, advice: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise PackageError(f"`{' '.join(command)}` failed; {advice}. It said:\n{done.stderr.strip()}")


def _read_qabcs(base: Path) -> Iterator[Entry]:
    """The entries of an alphabet book: each picture with its noise, and with each recording of its English name."""
    words = _words(base / "en" / "abc1.properties") | _words(base / "en" / "abc2.properties")
    for picture in sorted(base.glob("all/pics/*/*.png")):
        stem, category = picture.stem, picture.parent.name
        text = words.get(stem, stem.replace("_", " "))
        sounds = {
            "noise": base / "all" / "noises" / f"{stem}.ogg",
            "speech-en": base / "en" / "sounds" / "words" / f"{stem}.ogg",
            "speech-en_gb": base / "en_gb" / "sounds" / "words" / f"{stem}.ogg",
        }
        for name, sound in sounds.items():
            if sound.is_file():
                id, kind = f"qabcs-{category}-{stem}-{name}", name.split("-")[0]
                media = picture.read_bytes(), sound.read_bytes()
                yield Entry(id, text, _concept(text), category, kind, "qabcs", *media)


def _words(table: Path) -> dict[str, str]:
    """From pictures to words: lines such as `animals:b=brown bear==brown_bear=brown_bear`."""
    rows = (line.split("=") for line in table.read_text(encoding="utf-8").splitlines())
    return {fields[3].strip(): fields[1].strip() for fields in rows if len(fields) > 3}


def _read_gcompris(base: Path) -> Iterator[Entry]:
    """The entries of three activities: objects with an image, a text and a sound in their QML and JavaScript files."""
    for activity, category in ACTIVITIES.items():
        files, seen = _read_rcc(base / f"{activity}.rcc"), set()
        sources = (data.decode("utf-8") for name, data in sorted(files.items()) if name.endswith((".qml", ".js")))
        for block in chain.from_iterable(re.findall(r"\{[^{}]*\}", source) for source in sources):
            fields = dict(re.findall(r'"(\w+)"\s*:\s*[^"\n]*"([^"\n]*)"', block))
            image = fields.get("image2", fields.get("image", "")).removeprefix("qrc:")  # image2 is the photograph
            audio = fields.get("audio", "").removeprefix("qrc:").replace(".$CA", ".ogg")  # $CA: the codec's ending
            if "text" not in fields or image not in files or audio not in files or audio in seen:
                continue
            seen.add(audio)
            text = fields["text"].removeprefix("Find ")
            id, concept = f"gcompris-{activity}-{Path(audio).stem}-noise", _concept(fields.get("title", text))
            yield Entry(id, text, concept, category, "noise", "gcompris", files[image], files[audio])


def _read_rcc(path: Path) -> dict[str, bytes]:
    """The files in a Qt binary resource, by path; those compressed with zstd (no sound, no table) are left out."""
    data = path.read_bytes()
    try:
        magic, version, tree, contents, names = struct.unpack_from(">4s4I", data)
        if magic != b"qres" or version not in (1, 2, 3):
            raise ValueError
        node_size = 14 if version == 1 else 22  # since version 2 a node ends in a date

        def walk(node: int, folder: str) -> Iterator[tuple[str, bytes]]:
            name, flags, first, second = struct.unpack_from(">IHII", data, tree + node * node_size)
            length = struct.unpack_from(">H", data, names + name)[0]
            title = data[names + name + 6 : names + name + 6 + 2 * length].decode("utf-16-be")
            place = f"{folder}/{title}" if node else ""  # the root has no name
            if flags & 2:  # a folder of `first` nodes, from node `second` on
                for child in range(second, second + first):
                    yield from walk(child, place)
            elif not flags & 4:  # 4: zstd
                start = contents + second + 4
                content = data[start : start + struct.unpack_from(">I", data, start - 4)[0]]
                yield place, zlib.decompress(content[4:]) if flags & 1 else content

        return dict(walk(0, ""))
    except (struct.error, zlib.error, ValueError, RecursionError) as error:
        raise PackageError(f"{path}: expected a Qt resource file, format 1 to 3 ({error or data[:8]})") from error


def _concept(text: str) -> str:
    """What a text is about: without article and plural, so that "the cymbal" and "Cymbals" share a split."""
    return re.sub(r"^(a|an|the|some) ", "", text.lower().strip()).removesuffix("s")


# clips


def _render_all(entries: list[Entry], folder: Path, workers: int) -> list[dict[str, Any] | str]:
    work, bar = partial(_render, folder=folder), {"total": len(entries), "desc": "corpus", "unit": "clip"}
    if workers == 1:
        return list(progress_bar(iterable=map(work, entries), **bar))
    # spawn: the caller may have started threads (torch does), which a fork would not survive
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return list(progress_bar(iterable=pool.map(work, entries), **bar))


def _render(entry: Entry, folder: Path) -> dict[str, Any] | str:
    """Make one clip; returns its row of the manifest, or why it is skipped."""
    rng = np.random.default_rng(zlib.crc32(entry.id.encode()))
    try:
        picture, sound = _picture(entry.picture), _sound(entry.sound)
    except BrokenMedia as error:
        return str(error)
    frames = round(FPS * np.clip(len(sound) / SAMPLE_RATE, SHORTEST, LONGEST))
    wave = _fit(sound, frames * SAMPLE_RATE // FPS, entry.kind == "noise", rng)
    video = f"videos/{entry.id}.mp4"
    write_mp4(folder / video, _pan(picture, frames, rng), FPS, wave, SAMPLE_RATE)
    about = {key: getattr(entry, key) for key in ("text", "split", "concept", "category", "kind", "source")}
    about["label"] = entry.category
    return {"id": entry.id, "video": video, **about, "seconds": frames / FPS, "license": LICENSES[entry.source]}


@contextmanager
def _decoding(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # what decoders raise at a broken file knows no bounds
        raise BrokenMedia(f"the {what} cannot be read ({type(error).__name__})") from error


def _picture(data: bytes) -> Image.Image:
    if data.lstrip().startswith(b"<"):
        try:
            import cairosvg
        except (ImportError, OSError) as error:  # OSError: it is there, but the cairo library is not
            raise BrokenMedia("drawings (SVG) need cairosvg: pip install cairosvg") from error
        with _decoding("drawing"):
            data = cairosvg.svg2png(bytestring=data, output_width=4 * SIZE)
    with _decoding("picture"):
        return Image.open(io.BytesIO(data)).convert("RGBA")


def _sound(data: bytes) -> np.ndarray:
    """Decode to mono float32 (samples,), without the silence around it, peak 0.8."""
    with _decoding("sound"), av.open(io.BytesIO(data)) as container:
        resampler = av.AudioResampler("flt", "mono", SAMPLE_RATE)
        decoded = chain(container.decode(audio=0), [None])  # None: what is left in the resampler
        wave = np.concatenate([part.to_ndarray()[0] for frame in decoded for part in resampler.resample(frame)])
    peak = np.abs(wave).max(initial=0.0)
    if not peak > 1e-3:
        raise BrokenMedia("the sound is silent")
    loud = np.flatnonzero(np.abs(wave) > 0.02 * peak)
    return 0.8 / peak * wave[max(0, loud[0] - SAMPLE_RATE // 50) : loud[-1] + SAMPLE_RATE // 20]


def _fit(sound: np.ndarray, length: int, repeat: bool, rng: np.random.Generator) -> np.ndarray:
    """Give a sound a length: the loudest window of a long one; a short one repeats, or is heard once, somewhere."""
    if len(sound) >= length:
        energy = np.concatenate([[0.0], np.cumsum(np.square(sound, dtype=np.float64))])
        start = int((energy[length:] - energy[:-length]).argmax())
        return np.ascontiguousarray(sound[start : start + length])
    if repeat:
        return np.resize(np.pad(sound, (0, SAMPLE_RATE // 7)), length)
    before = int(rng.integers(length - len(sound) + 1))
    return np.pad(sound, (before, length - len(sound) - before))


def _pan(picture: Image.Image, frames: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """A slow pan and zoom, in or out, over a picture on a colour gradient: uint8 (SIZE, SIZE, 3) each."""
    side = 2 * SIZE
    gradient = np.broadcast_to(np.linspace(*rng.uniform(90, 255, (2, 3)), side)[:, None], (side, side, 3))
    canvas = Image.fromarray((gradient if rng.random() < 0.5 else gradient.swapaxes(0, 1)).astype(np.uint8))
    scale = rng.uniform(0.62, 0.85) * side / max(picture.size)
    width, height = (max(1, round(scale * pixels)) for pixels in picture.size)
    picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    canvas.paste(picture, ((side - width) // 2, (side - height) // 2), picture)
    near = rng.uniform(0.6, 0.8) * side
    corner = rng.uniform(0, side - near, 2)
    path = np.linspace((0, 0, side, side), (*corner, *(corner + near)), frames)  # what is in view: left, top, ...
    for box in path if rng.random() < 0.5 else path[::-1]:
        yield np.asarray(canvas.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=tuple(box)))


def main() -> None:
    """Build the corpus that the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m recipes.data.corpus.debian", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to create")
    parser.add_argument("--root", type=Path, help="an unpacked package tree, / if installed (default: download)")
    parser.add_argument("--workers", type=int, help="processes (default: all cores)")
    try:
        build(**vars(parser.parse_args()))
    except (PackageError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
