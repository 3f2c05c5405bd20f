"""Writes TFRecord files of image examples, by the format's description and apart from the code that reads them."""

import struct

import numpy as np


def crc32c(data: bytes) -> int:
    """Bit by bit, as RFC 3720 defines it."""
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = (register >> 1) ^ (0x82F63B78 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


def masked(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def varint(value: int) -> bytes:
    parts = []
    while value >= 128:
        parts.append(value % 128 + 128)
        value //= 128
    return bytes([*parts, value])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def bytes_feature(content: bytes) -> bytes:
    return field(1, field(1, content))


def integers_feature(values, packed: bool) -> bytes:
    if packed:
        return field(3, field(1, b"".join(map(varint, values))))
    return field(3, b"".join(b"\x08" + varint(value) for value in values))


def example(image: np.ndarray, packed: bool = True) -> bytes:
    """A tf.train.Example with the features of CelebA-HQ in the release of Glow."""
    features = {
        b"attr": integers_feature([0, 1, 1, 300], packed),
        b"data": bytes_feature(image.tobytes()),
        b"label": integers_feature([1], packed),
        b"shape": integers_feature(image.shape, packed),
    }
    entries = (field(1, field(1, name) + field(2, feature)) for name, feature in features.items())
    return field(1, b"".join(entries))


def record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + masked(length) + data + masked(data)


def make_images(n: int, size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(n, size, size, 3), dtype=np.uint8)


def write_tfrecords(folder, images: np.ndarray, n_files: int) -> list[list[int]]:
    """Spread images over files; returns the offset of each record in each file."""
    folder.mkdir(parents=True, exist_ok=True)
    offsets = []
    for number, part in enumerate(np.array_split(images, n_files)):
        records = [record(example(image)) for image in part]
        (folder / f"part-{number:04d}-of-{n_files:04d}.tfrecords").write_bytes(b"".join(records))
        offsets.append([sum(map(len, records[:row])) for row in range(len(records))])
    return offsets
