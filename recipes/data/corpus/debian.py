"""Build a small real corpus from two Debian packages, qabcs-data and gcompris-qt-data; nothing gets installed.

python -m recipes.data.corpus.debian out=corpora/debian

Needs pillow, and cairosvg for drawings: without it they are skipped.
"""

import hashlib
import io
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from recipes import cli
from recipes.cli import Command
from recipes.data.corpus.folder import megabytes, render_all, whole_folder
from recipes.data.corpus.packages import PACKAGES, Entry, PackageError, check_root, download, read_entries
from recipes.data.corpus.write import write_mp4
from recipes.files import jsonl, locks
from recipes.keys import key

LICENSES = {  # file by file: usr/share/doc/<package>/copyright
    "qabcs": "GPL-3+; a few pictures CC0 or public domain",
    "gcompris": "GPL-3+; media also Creative Commons or public domain",
}
SIZE, FPS, SAMPLE_RATE = 112, 10, 16_000  # pixels, frames and samples per second
SHORTEST, LONGEST = 2.0, 4.0  # seconds of a clip
TEST_TENTHS = 5  # tenths of the concepts that are held out


class BrokenMedia(Exception):
    """A picture or a sound that cannot be used; the message says why."""


@dataclass
class DebianCorpus:
    """The keys of the command."""

    out: Path = key(meaning="folder to create")
    root: Path | None = key(None, "an unpacked package tree, / where they are installed; null: download them")
    workers: int | None = key(None, "processes; null: as many as there are cores; 1: this one", least=1, most=1024)


def build(out: Path, root: Path | None = None, workers: int | None = None) -> Path:
    """Builds `manifest.jsonl` and `videos/<id>.mp4`, and returns their folder; a broken picture or sound is skipped.

    Raises:
        FileExistsError: `out` exists.
        locks.Held: Another process builds it.
        PackageError: the packages cannot be downloaded, are not under `root`, or nothing in them can be used.
    """
    _check_out(out)
    with locks.hold(out), tempfile.TemporaryDirectory(prefix="debian-corpus-") as unpacked:
        if root is None:
            download(Path(unpacked))
        entries = read_entries(root or Path(unpacked))
        with whole_folder(out) as folder:
            results = render_all(partial(_render, folder=folder), entries, workers, "clip")
            rows = [result for result in results if isinstance(result, dict)]
            _report([(entry.id, why) for entry, why in zip(entries, results, strict=True) if isinstance(why, str)])
            if not rows:
                raise PackageError(f"none of the {len(entries)} clips under {root or unpacked} can be made")
            (folder / "manifest.jsonl").write_text(jsonl.as_text(rows), encoding="utf-8")
    count = Counter(value for row in rows for value in (row["split"], f"{row['source']} {row['kind']}"))
    print(
        f"{out}: {len(rows)} clips ({', '.join(f'{name}: {number}' for name, number in sorted(count.items()))}), "
        f"{len(entries) - len(rows)} skipped, {sum(row['seconds'] for row in rows):.0f} s, {megabytes(out):.1f} MB"
    )
    return out


def _check_out(out: Path) -> None:
    if out.exists():
        raise FileExistsError(f"{out} exists already; choose another folder or remove it")


def _report(skipped: list[tuple[str, str]]) -> None:
    for why, number in Counter(why for _, why in skipped).most_common():
        ids = [id for id, reason in skipped if reason == why]
        print(f"skipped {number}: {why}: {', '.join(ids[:5])}{', ...' if number > 5 else ''}")


def split_of(concept: str) -> str:
    """The split of all clips of a concept."""
    digest = hashlib.sha1(concept.encode()).hexdigest()
    return "test" if int(digest[:8], 16) % 10 < TEST_TENTHS else "train"


def _render(entry: Entry, folder: Path) -> dict[str, Any] | str:
    """Makes one clip; returns its row of the manifest, or why it is skipped."""
    rng = np.random.default_rng(zlib.crc32(entry.id.encode()))
    try:
        picture, sound = _picture(entry.picture), _sound(entry.sound)
    except BrokenMedia as error:
        return str(error)
    frames = round(FPS * np.clip(len(sound) / SAMPLE_RATE, SHORTEST, LONGEST))
    wave = _fit(sound, frames * SAMPLE_RATE // FPS, entry.kind == "noise", rng)
    video = f"videos/{entry.id}.mp4"
    write_mp4(folder / video, _pan(picture, frames, rng), FPS, wave, SAMPLE_RATE)
    return {
        "id": entry.id,
        "video": video,
        "text": entry.text,
        "split": split_of(entry.concept),
        "concept": entry.concept,
        "category": entry.category,
        "kind": entry.kind,
        "source": entry.source,
        "label": entry.category,
        "seconds": frames / FPS,
        "license": LICENSES[entry.source],
    }


@contextmanager
def _decoding(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # decoders raise anything at a broken file
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
    """Decodes to mono float32 (samples,), without the silence around it, peak 0.8."""
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
    """Fits a sound to a length: the loudest window of a long one; a short one repeats, or is heard once, anywhere."""
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


def plan(corpus: DebianCorpus) -> str:
    """Checks the folders, and says what would be done."""
    _check_out(corpus.out)
    if corpus.root:
        check_root(corpus.root)
    source = f"the packages under {corpus.root}" if corpus.root else f"{' and '.join(PACKAGES)}, downloaded by apt-get"
    return f"{corpus.out} would be made of {source}"


def run(corpus: DebianCorpus) -> None:
    """Build the corpus; it says itself what it has made."""
    build(corpus.out, corpus.root, corpus.workers)


COMMAND = Command("recipes.data.corpus.debian", __doc__, DebianCorpus, run, plan)
main = COMMAND.main

if __name__ == "__main__":
    cli.exit(main)
