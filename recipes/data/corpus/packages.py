"""Entries of a small real corpus: pictures, sounds and texts of the Debian packages qabcs-data and gcompris-qt-data."""

import re
import shutil
import struct
import subprocess
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from recipes.errors import Failure

QABCS, GCOMPRIS = "usr/share/qabcs/abcs", "usr/share/gcompris-qt/rcc"
PACKAGES = {"qabcs-data": QABCS, "gcompris-qt-data": GCOMPRIS}
ACTIVITIES = {"explore_farm_animals": "animals", "explore_world_music": "music", "instruments": "instrument"}


class PackageError(Failure):
    """The packages cannot be downloaded, or are not as expected."""


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


def read_entries(root: Path) -> list[Entry]:
    """The entries of both packages, which were unpacked in `root`; a PackageError or OSError if they are not whole."""
    check_root(root)
    return [*_read_qabcs(root / QABCS), *_read_gcompris(root / GCOMPRIS)]


def check_root(root: Path) -> None:
    """Raises a PackageError unless a folder holds both packages."""
    for package, folder in PACKAGES.items():
        if not (root / folder).is_dir():
            raise PackageError(f"{root} has no {folder}: root= must hold the unpacked package {package}")


def download(folder: Path) -> None:
    """Downloads the packages and unpacks them into a folder."""
    by_hand = f"point root= at an unpacked package tree (of {' and '.join(PACKAGES)})"
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
