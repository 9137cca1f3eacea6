"""Reads TFRecord files and tf.train.Example without TensorFlow.

    length   uint64, little endian      |
    crc      uint32 of the length       |  a record; the next one follows at once
    data     `length` bytes             |
    crc      uint32 of the data         |

Both sums are CRC-32C, rotated by 15 bits plus a constant, as `tensorflow/core/lib/io/record_writer.cc` writes them.
"""

import struct
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from tap_ray.errors import DataError

POLYNOMIAL = 0x82F63B78
"""The Castagnoli polynomial, reflected."""
LANE = 1024
"""Bytes of a lane: the lanes of a long record are summed side by side, then folded."""
AGAIN = "Download the file again."


@cache
def _tables() -> tuple[list[int], np.ndarray, np.ndarray]:
    """What a byte does to the sum, as a list and as an array; and what `LANE` zero bytes do, (4, 256): a row a byte."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(POLYNOMIAL), table >> 1)
    skip = np.arange(256, dtype=np.uint32) << (8 * np.arange(4, dtype=np.uint32)[:, None])
    for _ in range(LANE):
        skip = table[skip & 0xFF] ^ (skip >> 8)
    return table.tolist(), table, skip


def crc32c(data: bytes) -> int:
    """CRC-32C (RFC 3720)."""
    step, table, skip = _tables()
    lanes = len(data) // LANE
    state = 0xFFFFFFFF
    if lanes:
        columns = np.ascontiguousarray(np.frombuffer(data, np.uint8, lanes * LANE).reshape(lanes, LANE).T)
        sums = np.zeros(lanes, np.uint32)
        for column in columns:
            sums = table[(sums ^ column) & 0xFF] ^ (sums >> 8)
        a, b, c, d = skip.tolist()
        for each in sums.tolist():
            state = a[state & 0xFF] ^ b[state >> 8 & 0xFF] ^ c[state >> 16 & 0xFF] ^ d[state >> 24] ^ each
    for byte in data[lanes * LANE :]:
        state = step[(state ^ byte) & 0xFF] ^ (state >> 8)
    return state ^ 0xFFFFFFFF


def masked_crc(data: bytes) -> int:
    """The masked CRC-32C, as TFRecord stores it."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def index(file: Path) -> list[tuple[int, int]]:
    """Offset and length of each record's data, found by stepping from length to length; no data is read.

    Raises:
        DataError: the file ends inside a record, or a length does not match its checksum.
    """
    end, found, at = file.stat().st_size, [], 0
    with file.open("rb") as stream:
        while at < end:
            stream.seek(at)
            head = stream.read(12)
            if len(head) < 12:
                raise DataError(f"{file} ends inside record {len(found)}: the file is truncated. {AGAIN}")
            length, crc = struct.unpack("<QI", head)
            if masked_crc(head[:8]) != crc:
                raise DataError(
                    f"{file}: the length of record {len(found)} does not match its checksum: the file is damaged, or "
                    f"is not an uncompressed TFRecord. {AGAIN}"
                )
            if at + 16 + length > end:
                raise DataError(
                    f"{file} ends inside record {len(found)}: {at + 16 + length} bytes are needed, but it has {end}. "
                    f"The file is truncated. {AGAIN}"
                )
            found.append((at + 12, length))
            at += 16 + length
    return found


def read(file: Path, offset: int, length: int, number: int) -> bytes:
    """Read the data of record `number`.

    Raises:
        DataError: the data do not match their checksum.
    """
    with file.open("rb") as stream:
        stream.seek(offset)
        data, sum_ = stream.read(length), stream.read(4)
    if len(sum_) < 4 or masked_crc(data) != struct.unpack("<I", sum_)[0]:
        raise DataError(f"{file}: record {number} does not match its checksum: the file is damaged. {AGAIN}")
    return data


@cache
def example_class() -> Any:
    """The message class of tf.train.Example, as `tensorflow/core/example/{example,feature}.proto` declare it."""
    Field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="tap_ray/example.proto", package="tap_ray", syntax="proto3")

    def message(name: str, *fields: Any) -> Any:
        return file.message_type.add(name=name, field=fields)

    def field(name: str, number: int, kind: Any, of: str = "", repeated: bool = False, **more: Any) -> Any:
        label = Field.LABEL_REPEATED if repeated else Field.LABEL_OPTIONAL
        more |= {"type_name": f".tap_ray.{of}"} if of else {}
        return Field(name=name, number=number, type=kind, label=label, **more)

    for name, kind in (("Bytes", Field.TYPE_BYTES), ("Float", Field.TYPE_FLOAT), ("Int64", Field.TYPE_INT64)):
        message(f"{name}List", field("value", 1, kind, repeated=True))
    one = message(
        "Feature",
        field("bytes_list", 1, Field.TYPE_MESSAGE, "BytesList", oneof_index=0),
        field("float_list", 2, Field.TYPE_MESSAGE, "FloatList", oneof_index=0),
        field("int64_list", 3, Field.TYPE_MESSAGE, "Int64List", oneof_index=0),
    )
    one.oneof_decl.add(name="kind")
    several = message("Features", field("feature", 1, Field.TYPE_MESSAGE, "Features.FeatureEntry", repeated=True))
    entry = several.nested_type.add(
        name="FeatureEntry",
        field=[field("key", 1, Field.TYPE_STRING), field("value", 2, Field.TYPE_MESSAGE, "Feature")],
    )
    entry.options.map_entry = True
    message("Example", field("features", 1, Field.TYPE_MESSAGE, "Features"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)  # pyright: ignore[reportAttributeAccessIssue]  # protobuf ships no types
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tap_ray.Example"))


def values(data: bytes) -> dict[str, Any]:
    """A serialized tf.train.Example: feature -> its list of bytes, floats or integers.

    Raises:
        ValueError: it is not a serialized tf.train.Example.
    """
    try:
        features = example_class().FromString(data).features.feature
    except DecodeError as error:
        raise ValueError(f"it is not a tf.train.Example ({error})") from None
    found = {}
    for name, feature in features.items():
        kind = feature.WhichOneof("kind")
        found[name] = getattr(feature, kind).value if kind else ()
    return found
