"""TFRecord files without TensorFlow: length (8 bytes, little-endian), checksum (4), data, checksum (4)."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import google_crc32c

from recipes.data import storage
from recipes.data.decode import BrokenClip

HEADER = struct.Struct("<QI")
CHECKSUM = struct.Struct("<I")


def masked_crc(data: bytes) -> int:
    """CRC-32C, rotated right by 15 bits and shifted by a constant, as TFRecord files store it."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def records(path: Path, head: int) -> Iterator[tuple[int, bytes]]:
    """Offset and first `head` bytes of each record; a BrokenClip, after those before it, if a length is damaged."""
    size, offset = path.stat().st_size, 0
    with storage.open_bytes(path) as file:
        while offset < size:
            length = _length(path, offset, file)
            end = offset + HEADER.size + length + CHECKSUM.size
            if end > size:
                raise BrokenClip(path, f"truncated: the record at byte {offset} ends at {end}, the file at {size}")
            yield offset, file.read(min(head, length))
            offset = end


def read_record(path: Path, offset: int) -> bytes:
    """The data of the record at an offset; a BrokenClip if there is no such file, or its checksum is wrong."""
    try:
        with storage.open_bytes(path) as file:
            length = _length(path, offset, file)
            if offset + HEADER.size + length + CHECKSUM.size > path.stat().st_size:
                raise BrokenClip(path, f"the record at byte {offset} is truncated")
            data, checksum = file.read(length), file.read(CHECKSUM.size)
    except OSError as error:
        raise BrokenClip(path, error.strerror or str(error)) from error
    if len(checksum) < CHECKSUM.size or CHECKSUM.unpack(checksum)[0] != masked_crc(data):
        raise BrokenClip(path, f"the record at byte {offset} is corrupt: its data do not match their checksum")
    return data


def part(path: Path, offset: int) -> str:
    """The locator of the data of the record at an offset, see `recipes.data.storage`; a BrokenClip or an OSError."""
    with storage.open_bytes(path) as file:
        length = _length(path, offset, file)
    return f"{path}#{offset + HEADER.size}:{length}"


def _length(path: Path, offset: int, file: BinaryIO) -> int:
    file.seek(offset)
    header = file.read(HEADER.size)
    if len(header) < HEADER.size:
        raise BrokenClip(path, f"truncated in the header of the record at byte {offset}")
    length, checksum = HEADER.unpack(header)
    if checksum != masked_crc(header[:8]):
        raise BrokenClip(path, f"the length at byte {offset} does not match its checksum: corrupt, or not a TFRecord")
    return int(length)
