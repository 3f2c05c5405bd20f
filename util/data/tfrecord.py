"""TFRecord files and the protocol-buffer message in them, read without TensorFlow.

A record is: length (uint64), masked CRC-32C of the length, data, masked CRC-32C of the data, all
little-endian (https://www.tensorflow.org/tutorials/load_data/tfrecord). The data here is a
``tf.train.Example``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from util.data.crc32c import crc32c
from util.errors import UsageError

_HEADER = struct.Struct("<QI")
_FOOTER = struct.Struct("<I")
_MASK_DELTA = 0xA282EAD8

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def masked_crc32c(data: bytes) -> int:
    """The checksum as TFRecord stores it: rotated and offset, so that data may itself hold checksums."""
    crc = crc32c(data)
    return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF


def read_records(path: Path, offset: int) -> Iterator[tuple[bytes, int, int]]:
    """The records of a file from byte ``offset`` on.

    Yields:
        data, the offset of the record, and the offset after it.

    Raises:
        UsageError: a record is cut short or fails one of its checksums; names the file and the record's
            offset.
    """
    with open(path, "rb") as file:
        file.seek(0, 2)
        size = file.tell()
        file.seek(offset)
        while offset < size:
            place = f"{path}, record at byte {offset}"
            remedy = "fetch the file again"
            header = file.read(_HEADER.size)
            if len(header) < _HEADER.size:
                raise UsageError(f"{place}: cut short: {remedy}")
            length, length_crc = _HEADER.unpack(header)
            if masked_crc32c(header[:8]) != length_crc:
                raise UsageError(f"{place}: the checksum of its length is wrong: {remedy}")
            if offset + _HEADER.size + length + _FOOTER.size > size:
                raise UsageError(f"{place}: cut short: {remedy}")
            data = file.read(length)
            footer = file.read(_FOOTER.size)
            if masked_crc32c(data) != _FOOTER.unpack(footer)[0]:
                raise UsageError(f"{place}: the checksum of its data is wrong: {remedy}")
            after = offset + _HEADER.size + length + _FOOTER.size
            yield data, offset, after
            offset = after


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    """A base-128 integer and the offset after it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            break
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("an integer in the message has no end")


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field numbers and values of a protocol-buffer message (https://protobuf.dev/programming-guides/encoding)."""
    at = 0
    while at < len(message):
        key, at = _read_varint(message, at)
        number, wire_type = key >> 3, key & 7
        if wire_type == _VARINT:
            value, at = _read_varint(message, at)
            yield number, value
            continue
        if wire_type == _BYTES:
            length, at = _read_varint(message, at)
        elif wire_type in (_FIXED32, _FIXED64):
            length = 4 if wire_type == _FIXED32 else 8
        else:
            raise ValueError(f"the message has a field of unknown wire type {wire_type}")
        if at + length > len(message):
            raise ValueError("a field of the message has no end")
        yield number, message[at : at + length]
        at += length


def _submessages(message: bytes, number: int) -> Iterator[bytes]:
    for field_number, value in _fields(message):
        if field_number == number and isinstance(value, bytes):
            yield value


def _integers(message: bytes) -> list[int]:
    """An Int64List, packed (as proto3 writes it) or not."""
    values = []
    for number, value in _fields(message):
        if number != 1:
            continue
        if isinstance(value, int):
            values.append(value)
            continue
        at = 0
        while at < len(value):
            integer, at = _read_varint(value, at)
            values.append(integer)
    return values


def read_image_example(data: bytes) -> np.ndarray:
    """The image of a ``tf.train.Example`` with features "data" (raw bytes) and "shape" (height, width,
    channels).

    Other features ("label", "attr") are passed over.

    Returns:
        uint8 (H, W, C).

    Raises:
        ValueError: not such a message; says what is wrong with it.
    """
    content: bytes | None = None
    shape: list[int] = []
    for features in _submessages(data, 1):
        for entry in _submessages(features, 1):
            for name in _submessages(entry, 1):
                for feature in _submessages(entry, 2):
                    if name == b"data":
                        content = next(
                            (v for values in _submessages(feature, 1) for v in _submessages(values, 1)), None
                        )
                    elif name == b"shape":
                        shape = [v for values in _submessages(feature, 3) for v in _integers(values)]
    if content is None or len(shape) != 3:
        raise ValueError("it is not an image: features 'data' and 'shape' (height, width, channels) are needed")
    if len(content) != shape[0] * shape[1] * shape[2]:
        raise ValueError(f"its 'data' has {len(content)} bytes and its 'shape' is {shape}")
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)
