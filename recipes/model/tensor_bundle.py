"""TensorFlow's checkpoint format, the tensor bundle, read without TensorFlow.

`NAME.index` is a table of LevelDB's format, not compressed: from the name of a tensor to its type, shape and place in
`NAME.data-00000-of-0000N`, where its bytes lie, little-endian.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from recipes.data import storage
from recipes.data.layouts.tfrecord import masked_crc

MAGIC = 0xDB4775248B80FB57
FOOTER = 48  # bytes: places of two blocks, padding, the magic number
TRAILER = 5  # bytes after a block: its compression, and a checksum
TYPES = {1: "<f4", 2: "<f8", 3: "<i4", 9: "<i8", 19: "<f2"}  # of TensorFlow's DataType those that weights have
Field = descriptor_pb2.FieldDescriptorProto


class TensorBundle:
    """The tensors of a checkpoint, read one by one."""

    def __init__(self, prefix: str | Path):
        """
        Args:
            prefix: the path without `.index`.
        Raises:
            FileNotFoundError: there is no index.
            ValueError: the index is damaged or of another format.
        """
        self.prefix = Path(prefix)
        path = self.prefix.with_name(f"{self.prefix.name}.index")
        if not path.is_file():
            raise FileNotFoundError(f"{path}: there is no such file; expected the path of a checkpoint without .index")
        try:
            entries = dict(_table(path.read_bytes()))
            self.shards = HEADER.FromString(entries.pop(b"")).num_shards
            self.entries = {name.decode(): ENTRY.FromString(entry) for name, entry in entries.items()}
        except (struct.error, IndexError, KeyError, ValueError) as error:
            raise ValueError(f"{path}: not the index of a TensorFlow checkpoint, or damaged: {error}") from error

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes by name."""
        return {name: tuple(dim.size for dim in entry.shape.dim) for name, entry in self.entries.items()}

    def read(self, name: str) -> np.ndarray:
        """Reads a tensor.

        Raises:
            KeyError: there is none of this name.
            ValueError: another type, a part of a tensor, or bytes that do not match their checksum.
        """
        entry = self.entries[name]
        if entry.dtype not in TYPES or entry.slices:
            raise ValueError(f"{self.prefix}: {name} has the type {entry.dtype}, or is cut in slices: it is not read")
        shard = self.prefix.with_name(f"{self.prefix.name}.data-{entry.shard_id:05}-of-{self.shards:05}")
        with storage.open_bytes(shard) as file:
            file.seek(entry.offset)
            data = file.read(entry.size)
        if masked_crc(data) != entry.crc32c:
            raise ValueError(f"{shard}: the bytes of {name} do not match their checksum")
        return np.frombuffer(data, TYPES[entry.dtype]).reshape([dim.size for dim in entry.shape.dim])


def _table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a LevelDB table."""
    footer = data[-FOOTER:]
    if len(footer) < FOOTER or struct.unpack("<Q", footer[-8:])[0] != MAGIC:
        raise ValueError("it does not end with the mark of a table")
    position = 0
    for _ in range(2):  # past the place of the meta index
        _, position = _varint(footer, position)
    for _, handle in _block(data, *_handle(footer, position)):
        yield from _block(data, *_handle(handle, 0))


def _block(data: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a block; a key says how many bytes it shares with the one before."""
    block, trailer = data[offset : offset + size], data[offset + size : offset + size + TRAILER]
    if trailer[0] != 0:
        raise ValueError("it is compressed, which TensorFlow's checkpoints are not")
    if struct.unpack("<I", trailer[1:])[0] != masked_crc(block + trailer[:1]):
        raise ValueError(f"the block at byte {offset} does not match its checksum")
    restarts = struct.unpack("<I", block[-4:])[0]
    end, position, key = len(block) - 4 * (restarts + 1), 0, b""
    while position < end:
        shared, position = _varint(block, position)
        own, position = _varint(block, position)
        length, position = _varint(block, position)
        key = key[:shared] + block[position : position + own]
        position += own
        yield key, block[position : position + length]
        position += length


def _handle(data: bytes, position: int) -> tuple[int, int]:
    """Offset and size of a block."""
    offset, position = _varint(data, position)
    return offset, _varint(data, position)[0]


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """A number of seven bits a byte, and the position after it."""
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position


def _messages() -> tuple[Any, Any]:
    """BundleHeaderProto and BundleEntryProto, with TensorFlow's field numbers, in a pool and a package of their own."""
    package = "harmony.tensor_bundle"
    file = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package=package, syntax="proto3")

    def message(name: str, **fields: tuple[int, int, str]) -> None:
        added = file.message_type.add(name=name)
        for field, (number, kind, of) in fields.items():
            label = Field.LABEL_REPEATED if field in ("dim", "slices") else Field.LABEL_OPTIONAL
            added.field.add(
                name=field, number=number, type=kind, label=label, type_name=f".{package}.{of}" if of else None
            )

    message("Header", num_shards=(1, Field.TYPE_INT32, ""))
    message("Dim", size=(1, Field.TYPE_INT64, ""))
    message("Shape", dim=(2, Field.TYPE_MESSAGE, "Dim"))
    message(
        "Entry", dtype=(1, Field.TYPE_INT32, ""), shape=(2, Field.TYPE_MESSAGE, "Shape"),
        shard_id=(3, Field.TYPE_INT32, ""), offset=(4, Field.TYPE_INT64, ""), size=(5, Field.TYPE_INT64, ""),
        crc32c=(6, Field.TYPE_FIXED32, ""), slices=(7, Field.TYPE_BYTES, ""),
    )  # fmt: skip
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    header, entry = (pool.FindMessageTypeByName(f"{package}.{name}") for name in ("Header", "Entry"))
    return message_factory.GetMessageClass(header), message_factory.GetMessageClass(entry)


HEADER, ENTRY = _messages()
