"""TensorFlow's checkpoint format, the tensor bundle, read without TensorFlow.

`NAME.index` is a table of LevelDB's format, not compressed: from the name of a tensor to its type, shape and place in
`NAME.data-00000-of-0000N`, where its bytes lie, little-endian.
"""

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from recipes.data import storage
from recipes.data.protobuf import message_classes, read_varint
from recipes.data.tfrecord import masked_crc

MAGIC = 0xDB4775248B80FB57
FOOTER = 48  # bytes: places of two blocks, padding, the magic number
TRAILER = 5  # bytes after a block: its compression, and a checksum
TYPES = {1: "<f4", 2: "<f8", 3: "<i4", 9: "<i8", 19: "<f2"}  # of TensorFlow's DataType those that weights have
MESSAGES = message_classes(  # BundleHeaderProto and BundleEntryProto, with TensorFlow's field numbers
    "harmony.tensor_bundle",
    Header="int32 num_shards = 1",
    Dim="int64 size = 1",
    Shape="repeated Dim dim = 2",
    Entry="int32 dtype = 1; Shape shape = 2; int32 shard_id = 3; int64 offset = 4; int64 size = 5; "
    "fixed32 crc32c = 6; repeated bytes slices = 7",
)
HEADER, ENTRY = MESSAGES["Header"], MESSAGES["Entry"]


class TensorBundle:
    """The tensors of a checkpoint, read one by one."""

    def __init__(self, prefix: str | Path):
        """Read the index `PREFIX.index`; a ValueError if it is damaged or of another format."""
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

    def tensor(self, name: str) -> np.ndarray:
        """Read a tensor; a KeyError if there is none of this name, a ValueError if it cannot be read."""
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
    _, _, *index, _ = _varints(footer, 0, 4)  # behind the place of the meta index
    for _, place in _block(data, *index):
        yield from _block(data, *_varints(place, 0, 2)[:2])


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
        shared, own, length, position = _varints(block, position, 3)
        key = key[:shared] + block[position : position + own]
        position += own
        yield key, block[position : position + length]
        position += length


def _varints(data: bytes, position: int, count: int) -> list[int]:
    """So many numbers, and the position after them."""
    numbers = []
    for _ in range(count):
        number, position = read_varint(data, position)
        numbers.append(number)
    return [*numbers, position]
