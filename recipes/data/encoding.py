"""Text files as they are found: mostly UTF-8, sometimes cp1252, now and then half a surrogate pair."""

import codecs
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from recipes.data import storage

ODD = "as-cp1252"  # how to decode bytes that are not UTF-8


def _as_cp1252(error: UnicodeError) -> tuple[str, int]:
    """Reads the bytes that are not UTF-8 as cp1252, and as latin-1 the few that cp1252 lacks."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    odd = error.object[error.start : error.end]
    try:
        return odd.decode("cp1252"), error.end
    except UnicodeDecodeError:
        return odd.decode("latin-1"), error.end


codecs.register_error(ODD, _as_cp1252)


def read_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file or URL: (number from 1, line with its end), without byte order mark; warns of cp1252."""
    with storage.open_bytes(path) as file:
        yield from _decoded(path, file)


def read_text(path: str | Path) -> str:
    """Reads a whole text file as `read_lines` does."""
    return "".join(text for _, text in read_lines(path))


def read_blocks(path: Path, size: int) -> Iterator[tuple[int, str]]:
    """As `read_lines`, in blocks of about `size` bytes, for files that are one huge line."""
    with storage.open_bytes(path) as file:
        yield from _decoded(path, _blocks(file, size))


def _blocks(file: BinaryIO, size: int) -> Iterator[bytes]:
    rest = b""
    while block := file.read(size):
        block = rest + block
        cut = max(block.rfind(b","), block.rfind(b"\n")) + 1  # never inside a character
        rest = block[cut:]
        if cut:
            yield block[:cut]
    if rest:
        yield rest


def _decoded(path: str | Path, pieces: Iterable[bytes]) -> Iterator[tuple[int, str]]:
    odd: list[int] = []
    number = 1
    for piece in pieces:
        try:
            text = piece.decode("utf-8")
        except UnicodeDecodeError:
            text = piece.decode("utf-8", ODD)
            lines = enumerate(piece.split(b"\n"), number)
            odd += [n for n, line in lines if line.decode("utf-8", "ignore").encode() != line]
        yield number, text.removeprefix("\ufeff") if number == 1 else text
        number += piece.count(b"\n")
    if odd:
        warnings.warn(
            f"{path}: {len(set(odd))} line(s) are not UTF-8, the first is line {odd[0]}; read as cp1252", stacklevel=2
        )


CONTROLS = dict.fromkeys([*range(9), 11, 12, *range(14, 32), *range(127, 160)], " ")  # no tabs, no ends of lines


def clean(text: str) -> str:
    """Text to store and show, without outer blanks and control characters, which command a terminal."""
    return storable(text).translate(CONTROLS).strip()


def storable(text: str) -> str:
    """Text to store as UTF-8, without outer blanks; half a surrogate pair, which JSON allows, becomes `?`."""
    return text.encode("utf-8", "replace").decode("utf-8").strip()


def printable(text: str) -> str:
    """A name from anywhere, for a line of a message: its control characters are escaped."""
    return "".join(c if ord(c) > 31 and not 127 <= ord(c) < 160 else repr(c)[1:-1] for c in text)
