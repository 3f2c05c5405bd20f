"""Image files that users have, made from numbers."""

import struct
import zlib

import numpy as np
from PIL import Image


def picture(height, width, channels=3, seed=0):
    values = np.random.default_rng(seed).integers(256, size=(height, width, channels), dtype=np.uint8)
    return Image.fromarray(values if channels != 1 else values[..., 0])


def save(path, image=None, **options):
    """Write an image, a small one by default, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or picture(8, 8)).save(path, **options)
    return path


def save_many(folder, n, first=0):
    for number in range(first, first + n):
        save(folder / f"{number:03}.png", picture(8, 8, seed=number))


def png(path, values, kind, depth, before_pixels=b""):
    """A PNG of (H, W, C) unsigned values, whatever its kind and depth; Pillow writes only some of them.

    Args:
        path: the file.
        values: whole numbers of ``depth`` bits.
        kind: 0 grey, 2 colour, 4 grey with alpha, 6 colour with alpha.
        depth: bits a channel.
        before_pixels: further chunks.
    """
    height, width, _ = values.shape
    if depth == 16:
        rows = [row.astype(">u2").tobytes() for row in values]
    else:
        bits = np.unpackbits(values.astype(np.uint8)[..., None], axis=-1)[..., 8 - depth :]
        rows = [np.packbits(row.ravel()).tobytes() for row in bits]
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before_pixels + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def deep_tiff(path):
    """Colour of 16 bits a channel."""
    pixels = np.arange(8 * 8 * 3, dtype="<u2").tobytes()
    entries = [(256, 4, 1, 8), (257, 4, 1, 8), (258, 3, 3, 122), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 128),
               (277, 3, 1, 3), (278, 4, 1, 8), (279, 4, 1, len(pixels))]  # fmt: skip
    content = b"II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(struct.pack("<HHII", *row) for row in entries)
    path.write_bytes(content + struct.pack("<IHHH", 0, 16, 16, 16) + pixels)


def deep_ppm(path):
    """Colour of 12 bits a channel."""
    path.write_bytes(b"P6\n8 8\n4095\n" + np.arange(8 * 8 * 3, dtype=">u2").tobytes())
