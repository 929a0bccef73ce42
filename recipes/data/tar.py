"""The headers of a tar file. Nothing is trusted: Python's `tarfile` goes backwards after a negative size, takes a
damage for the end of the file, and reads extended headers of any size.
"""

import os
import tarfile
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from recipes.data.encoding import ODD

BLOCK = tarfile.BLOCKSIZE
PADDING = tarfile.RECORDSIZE + 2 * BLOCK  # bytes of zeros that writers leave at the end, at most
ZEROS = 1 << 24  # bytes after the last file that are looked at
EXTENDED = 1 << 20  # bytes of an extended header, at most
LONG_NAME, LONG_LINK = tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK
PAX, GLOBAL = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE), tarfile.XGLTYPE


class Member(NamedTuple):
    """A file in a tar file: `size` bytes from `offset` on."""

    name: str
    offset: int
    size: int


class _Damage(Exception):
    """Why a tar file ends too early."""


class Tar:
    """The files in an open tar file, in order. Afterwards `damage` says why and where it ended too early; "": no."""

    def __init__(self, file: BinaryIO):
        self.file, self.damage = file, ""
        self.end = file.seek(0, os.SEEK_END)

    def __iter__(self) -> Iterator[Member]:
        try:
            yield from self._members()
        except _Damage as damage:
            self.damage = str(damage)

    def _members(self) -> Iterator[Member]:
        place = 0
        extended: dict[str, str] = {}
        while (header := self.read(place, BLOCK)).strip(b"\0"):
            info, start = self._parsed(header, place), place + BLOCK
            extension = info.type in (LONG_NAME, LONG_LINK, *PAX, GLOBAL)
            size = _number(info.size if extension else extended.get("size", info.size), place)
            if not (extension or info.isreg() or info.type not in tarfile.SUPPORTED_TYPES):
                size = 0  # folders and links may declare another, but have no bytes
            if start + size > self.end:
                raise _Damage(f"{info.name} ends at byte {start + size} of {self.end}")
            if extension:
                extended |= self._extended(info.type, start, size)
            else:
                if info.type == tarfile.GNUTYPE_SPARSE or any(key.startswith("GNU.sparse") for key in extended):
                    raise _Damage(f"{info.name} at byte {place} is sparse, which is not read: pack it anew")
                if info.isreg():
                    yield Member(extended.get("path", info.name), start, size)
                extended = {}
            place = start + -(-size // BLOCK) * BLOCK
        self._check_end(place, header)

    def _parsed(self, header: bytes, place: int) -> tarfile.TarInfo:
        try:
            return tarfile.TarInfo.frombuf(header, "utf-8", ODD)
        except (tarfile.HeaderError, ValueError) as error:
            raise _Damage(f"no header at byte {place}: {error}") from error

    def _extended(self, kind: bytes, start: int, size: int) -> dict[str, str]:
        """The fields of the next file in an extended header."""
        if size > EXTENDED:
            raise _Damage(f"an extended header of {size} bytes at byte {start}")
        data = self.read(start, size)
        if kind == LONG_NAME:
            return {"path": data.partition(b"\0")[0].decode("utf-8", ODD)}
        return dict(_records(data, start)) if kind in PAX else {}

    def _check_end(self, place: int, header: bytes) -> None:
        """Files may be missing if no zeros end the tar file, or more of them than a writer leaves."""
        if not header:
            raise _Damage(f"it ends at byte {self.end} without the blocks of zeros that end a tar file")
        zeros = self.read(place, ZEROS)
        if data := zeros.lstrip(b"\0"):
            after = place + len(zeros) - len(data)
            raise _Damage(f"a block of zeros at byte {place}, and data after it at byte {after}")
        if self.end - place > PADDING:
            raise _Damage(f"zeros from byte {place} on, up to its end at byte {self.end}: was it written to its end?")

    def read(self, place: int, size: int) -> bytes:
        """Some bytes of the file; fewer at its end."""
        self.file.seek(place)
        return self.file.read(size)


def _number(size: int | str, place: int) -> int:
    try:
        number = int(size)
    except ValueError:
        number = -1
    if number < 0:
        raise _Damage(f"a file of {size} bytes at byte {place}")
    return number


def _records(data: bytes, start: int) -> Iterator[tuple[str, str]]:
    """The records of a pax header: lines of `LENGTH KEY=VALUE`."""
    while data.strip(b"\0"):
        length, _, _ = data.partition(b" ")
        size = int(length) if length.isdigit() and len(length) < 8 else 0
        key, equals, value = data[len(length) + 1 : size - 1].partition(b"=")
        if not equals or data[size - 1 : size] != b"\n":
            raise _Damage(f"a wrong extended header at byte {start}")
        yield key.decode("utf-8", ODD), value.decode("utf-8", ODD)
        data = data[size:]
