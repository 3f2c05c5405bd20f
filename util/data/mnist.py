"""MNIST from its IDX files (Y. LeCun, C. Cortes and C. J. C. Burges, "The MNIST Database of Handwritten Digits",
1998; the format stands at http://yann.lecun.com/exdb/mnist/)."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np
import torch

from util.data.image_array import ImageArray
from util.errors import UsageError

SIZE = 28
PADDED_SIZE = 32
_FILES = {"train": "train-images-idx3-ubyte", "test": "t10k-images-idx3-ubyte"}
_HEADER = struct.Struct(">IIII")
# Unsigned bytes in three dimensions.
_MAGIC = 0x00000803
_REMEDY = "remove it and fetch it again"


def mnist_source(split: str, data_location: Path) -> Path:
    """The file that holds the images of a split, plain or gzipped, there or in ``MNIST/raw``.

    Raises:
        UsageError: it is not there.
    """
    name = _FILES[split]
    for folder in (data_location, data_location / "MNIST" / "raw"):
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    raise UsageError(
        f"mnist: neither {name} nor {name}.gz in {data_location}: put it there, from"
        " https://ossci-datasets.s3.amazonaws.com/mnist/"
    )


def read_mnist_source(path: Path, image_size: int) -> np.ndarray:
    """The images of an IDX file; size 32 surrounds each with two rows and columns of zeros.

    Returns:
        uint8 (N, 1, H, W).

    Raises:
        UsageError: damaged, cut short, or an IDX file of something else; names the offset.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{path}: damaged or cut short ({error}): {_REMEDY}") from None
    if len(content) < _HEADER.size:
        raise UsageError(f"{path}: ends at byte {len(content)}, within its header: {_REMEDY}")
    magic, n_images, height, width = _HEADER.unpack_from(content)
    if magic != _MAGIC:
        raise UsageError(f"{path}: byte 0: not an IDX file of images, which begins with {_MAGIC:#010x}: {_REMEDY}")
    if (height, width) != (SIZE, SIZE):
        raise UsageError(f"{path}: byte 8: images of {height} x {width} where MNIST has {SIZE} x {SIZE}: {_REMEDY}")
    expected = _HEADER.size + n_images * SIZE * SIZE
    if len(content) != expected:
        row = (len(content) - _HEADER.size) // (SIZE * SIZE)
        what = f"in image {row} of {n_images}" if len(content) < expected else f"after its {n_images} images"
        raise UsageError(f"{path}: ends at byte {len(content)}, {what}: {_REMEDY}")
    images = np.frombuffer(content, dtype=np.uint8, offset=_HEADER.size).reshape(n_images, 1, SIZE, SIZE)
    margin = (image_size - SIZE) // 2
    return np.pad(images, ((0, 0), (0, 0), (margin, margin), (margin, margin)))


def open_mnist(split: str, data_location: Path, image_size: int) -> ImageArray:
    """The 60,000 training or 10,000 test images.

    Args:
        split: "train" or "test".
        data_location: folder of the IDX files.
        image_size: 28, or 32 with a border of zeros.

    Raises:
        UsageError: files missing or damaged.
    """
    images = read_mnist_source(mnist_source(split, data_location), image_size)
    return ImageArray("mnist", torch.from_numpy(images))
