"""Writes TFRecord shards of SequenceExamples byte by byte, by their specification and without code of the recipes."""

import struct
from pathlib import Path

import numpy as np


def crc32c(data: bytes) -> int:
    """Castagnoli's CRC, bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def record(data: bytes) -> bytes:
    """One record: length, masked checksum, data, masked checksum."""

    def masked(part: bytes) -> bytes:
        crc = crc32c(part)
        return struct.pack("<I", ((crc >> 15 | crc << 17 & 0xFFFFFFFF) + 0xA282EAD8) % 2**32)

    length = struct.pack("<Q", len(data))
    return length + masked(length) + data + masked(data)


def varint(number: int) -> bytes:
    """Seven bits per byte, lowest first."""
    return bytes([number]) if number < 0x80 else bytes([number & 0x7F | 0x80]) + varint(number >> 7)


def field(number: int, data: bytes) -> bytes:
    """A length-delimited field."""
    return varint(number << 3 | 2) + varint(len(data)) + data


def entry(key: str, value: bytes) -> bytes:
    """An entry of a map in field 1."""
    return field(1, field(1, key.encode()) + field(2, value))


def example(name: str, rgb: np.ndarray, audio: np.ndarray | None, labels: tuple[int, ...] = (3, 500)) -> bytes:
    """A SequenceExample as YouTube-8M has them: features uint8 (seconds, 1024) and (seconds, 128)."""
    ids = field(1, field(1, name.encode()))
    context = entry("id", ids) + entry("labels", field(3, field(1, b"".join(map(varint, labels)))))
    lists = {"rgb": rgb} | ({} if audio is None else {"audio": audio})
    feature_lists = b"".join(
        entry(key, b"".join(field(1, field(1, field(1, row.tobytes()))) for row in rows)) for key, rows in lists.items()
    )
    return field(1, context) + field(2, feature_lists)


def write(path: Path, *examples: bytes) -> list[int]:
    """Writes a shard; returns the offsets of its records."""
    data = [record(example) for example in examples]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(data))
    return [sum(map(len, data[:i])) for i in range(len(data))]
