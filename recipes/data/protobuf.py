"""Protocol buffers without generated code: message classes made from the lines of a .proto file, and bare varints."""

import re
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

FIELD = re.compile(r"(?:(repeated|map) )?(\w+) (\w+) = (\d+)")
Field = descriptor_pb2.FieldDescriptorProto


def read_varint(data: bytes, position: int) -> tuple[int, int]:
    """The number of seven bits a byte at a position, and the position after it; an IndexError if the data end."""
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position


def message_classes(package: str, **messages: str) -> dict[str, Any]:
    """Makes message classes of fields as in a .proto file, separated by semicolons.

    A capitalised type is another message. `map Value field = 1` stands for map<string, Value>. The package has a name
    of its own, since TensorFlow registers its messages under `tensorflow`.
    """
    file = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package=package, syntax="proto3")
    for name, text in messages.items():
        message = file.message_type.add(name=name)
        for label, kind, field, number in FIELD.findall(text):
            if label == "map":
                entry = message.nested_type.add(name="Entry")
                entry.options.map_entry = True
                _add_field(entry, package, "", "string", "key", 1)
                _add_field(entry, package, "", kind, "value", 2)
                label, kind = "repeated", f"{name}.Entry"
            _add_field(message, package, label, kind, field, int(number))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    descriptors = {name: pool.FindMessageTypeByName(f"{package}.{name}") for name in messages}
    return {name: message_factory.GetMessageClass(descriptor) for name, descriptor in descriptors.items()}


def _add_field(message: Any, package: str, label: str, kind: str, name: str, number: int) -> None:
    field = message.field.add(name=name, number=number)
    field.label = Field.LABEL_REPEATED if label else Field.LABEL_OPTIONAL
    if kind[0].isupper():
        field.type, field.type_name = Field.TYPE_MESSAGE, f".{package}.{kind}"
    else:
        field.type = getattr(Field, f"TYPE_{kind.upper()}")
