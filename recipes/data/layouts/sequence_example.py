"""tf.train.SequenceExample without TensorFlow: its message classes, made by protobuf from a descriptor.

The fields and their numbers are those of TensorFlow's `feature.proto` and `example.proto`.
"""

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE = "harmony.sequence_example"  # a name of its own: TensorFlow, where it is imported too, registers `tensorflow`
Field = descriptor_pb2.FieldDescriptorProto


def _message(name: str, *fields: tuple[str, int, str], repeated: bool = False) -> descriptor_pb2.DescriptorProto:
    """A message of (name, number, type) fields; a capitalised type is another message of the package."""
    message = descriptor_pb2.DescriptorProto(name=name)
    for field, number, kind in fields:
        added = message.field.add(name=field, number=number)
        added.label = Field.LABEL_REPEATED if repeated else Field.LABEL_OPTIONAL
        if kind[0].isupper():
            added.type, added.type_name = Field.TYPE_MESSAGE, f".{PACKAGE}.{kind}"
        else:
            added.type = getattr(Field, f"TYPE_{kind.upper()}")
    return message


def _map(name: str, value: str) -> descriptor_pb2.DescriptorProto:
    """A message whose field 1, `entry`, is map<string, value>."""
    message = _message(name, ("entry", 1, f"{name}.Entry"), repeated=True)
    entry = _message("Entry", ("key", 1, "string"), ("value", 2, value))
    entry.options.map_entry = True
    message.nested_type.append(entry)
    return message


def _sequence_example() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name=f"{PACKAGE}.proto", package=PACKAGE, syntax="proto3")
    feature = _message("Feature", ("bytes_list", 1, "BytesList"), ("int64_list", 3, "Int64List"))
    feature.oneof_decl.add(name="kind")
    for field in feature.field:
        field.oneof_index = 0
    file.message_type.extend(
        [
            _message("BytesList", ("value", 1, "bytes"), repeated=True),
            _message("Int64List", ("value", 1, "int64"), repeated=True),
            feature,
            _map("Features", "Feature"),
            _message("FeatureList", ("feature", 1, "Feature"), repeated=True),
            _map("FeatureLists", "FeatureList"),
            _message("SequenceExample", ("context", 1, "Features"), ("feature_lists", 2, "FeatureLists")),
        ]
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.SequenceExample"))


SequenceExample = _sequence_example()
