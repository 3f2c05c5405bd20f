"""Sets of images, or of features of them, that a path names: what metrics compare without a model."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from evaluators.files import DamagedArrays, open_arrays
from util.data.dataset import Dataset
from util.data.image_database import open_database_as_it_is
from util.data.image_file import decode_image
from util.data.image_folder import list_images
from util.errors import UsageError

IMAGE_KEYS = ("arr_0", "samples", "images")
FEATURE_KEYS = ("features", "pool_3")
_ROWS = 4096
_GREY_MODES = ("1", "L", "LA")


@dataclass(frozen=True)
class ImageFiles:
    """Image files of one shape, as they are; sample i is the i-th by path.

    Attributes:
        paths: the files.
        shape: (C, H, W) of the first of them, which all have to have.
        name: of the set.
    """

    paths: list[Path]
    shape: tuple[int, ...]
    name: str
    is_image: bool = field(default=True, init=False)

    @property
    def length(self) -> int:
        return len(self.paths)

    def read(self, indices: np.ndarray) -> torch.Tensor:
        """uint8 (B, C, H, W). Raises UsageError for a damaged file, and one of another shape."""
        images = np.stack([self._read_file(self.paths[index]) for index in indices])
        return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())

    def _read_file(self, path: Path) -> np.ndarray:
        n_channels, height, width = self.shape
        image = decode_image(path, 3)
        pixels = np.asarray(image)
        if image.size != (width, height):
            raise UsageError(
                f"{path}: {image.height} x {image.width}, but {self.paths[0]} is {height} x {width}: "
                "images of one set have one size"
            )
        if n_channels == 3:
            return pixels
        if (pixels != pixels[:, :, :1]).any():
            raise UsageError(f"{path}: in colour, but {self.paths[0]} is grey: images of one set are either")
        return pixels[:, :, :1]


@dataclass(frozen=True)
class ImageArray:
    """Images in an array.

    Attributes:
        images: uint8 (N, H, W, C) or (N, C, H, W); may be a memory map.
        channels_last: which of them.
        name: of the set.
    """

    images: np.ndarray
    channels_last: bool
    name: str
    is_image: bool = field(default=True, init=False)

    @property
    def length(self) -> int:
        return len(self.images)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        _, first, second, third = self.images.shape
        return (third, first, second) if self.channels_last else (first, second, third)

    def read(self, indices: np.ndarray) -> torch.Tensor:
        """uint8 (B, C, H, W)."""
        images = self.images[indices]
        return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2) if self.channels_last else images))


def open_set(path: Path) -> Dataset | np.ndarray:
    """What a path names: a folder of images, an LMDB database of ours, an ``.npz`` of images or of features.

    Returns:
        images, or features float32 or float64 (N, F).

    Raises:
        UsageError: nothing of the kind is there.
    """
    if path.suffix == ".npz":
        return _open_array_file(path)
    if path.is_file() or (path / "data.mdb").is_file():
        return open_database_as_it_is(path.name, path)
    if not path.is_dir():
        raise UsageError(f"{path}: no such folder or file; give a folder of images, an LMDB database or an .npz file")
    paths = list_images(path)
    first = decode_image(paths[0], 3)
    with Image.open(paths[0]) as image:
        n_channels = 1 if image.mode in _GREY_MODES else 3
    return ImageFiles(paths, (n_channels, first.height, first.width), path.name)


def _open_array_file(path: Path) -> Dataset | np.ndarray:
    try:
        arrays = open_arrays(path)
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except DamagedArrays as error:
        raise UsageError(f"{path}: cannot be read ({error}): make it again") from None
    key = next((key for key in (*FEATURE_KEYS, *IMAGE_KEYS) if key in arrays), None)
    if key is None:
        found = ", ".join(sorted(arrays)) or "nothing"
        known = ", ".join((*IMAGE_KEYS, *FEATURE_KEYS))
        raise UsageError(f"{path}: holds {found}; images or features under one of {known} expected")
    array = arrays[key]
    if key in FEATURE_KEYS:
        if array.ndim != 2 or array.dtype.kind != "f" or len(array) < 2:
            raise UsageError(f"{path}: {key} is {array.dtype} {array.shape}; floats (N, F), N at least 2, expected")
        for start in range(0, len(array), _ROWS):
            if not np.isfinite(array[start : start + _ROWS]).all():
                raise UsageError(f"{path}: {key} holds numbers that are not finite; make it again")
        return array
    if array.ndim == 3:
        array = array[..., None]
    if array.dtype != np.uint8 or array.ndim != 4 or not {array.shape[1], array.shape[3]} & {1, 3}:
        raise UsageError(f"{path}: {key} is {array.dtype} {array.shape}; uint8 (N, H, W, C), C 1 or 3, expected")
    return ImageArray(array, array.shape[3] in (1, 3), path.name)


def set_fingerprint(path: Path, images: Dataset) -> dict[str, object]:
    """What tells sets apart: place, shape, length, a checksum of the first, middle and last image."""
    assert images.length is not None
    probe = images.read(np.array([0, (images.length - 1) // 2, images.length - 1]))
    checksum = zlib.crc32(probe.contiguous().numpy().tobytes())
    return {"path": str(path.absolute()), "shape": list(images.shape), "length": images.length, "crc": checksum}
