"""What a data set is, and opening one by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from util.data.celeba import open_celeba
from util.data.cifar10 import download_cifar10, find_cifar10, open_cifar10
from util.data.digits import open_digits
from util.data.downsampled_imagenet import open_imagenet
from util.data.image_database import holds_image_database, open_image_database
from util.data.image_folder import open_image_folder
from util.data.mnist import open_mnist
from util.data.toy import TOY_DISTRIBUTIONS, ToyDataset
from util.errors import UsageError

SPLITS = ("train", "test")


class Dataset(Protocol):
    """A set of images or points, read by index. Reading the same index always gives the same sample."""

    @property
    def name(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample: (C, H, W) for images, (D,) for points."""
        ...

    @property
    def is_image(self) -> bool: ...

    @property
    def length(self) -> int | None:
        """Number of samples; None for a generated set, which has no end."""
        ...

    def read(self, indices: np.ndarray) -> torch.Tensor:
        """The samples with the given int64 (B,) indices: uint8 (B, C, H, W) images or float32 (B, D) points.

        Raises:
            UsageError: a sample is damaged on disk; names the file and the place in it.
        """
        ...


@dataclass(frozen=True)
class _PublishedImages:
    """A set of images that comes in one shape.

    Attributes:
        sizes: the image sizes that it can be read at.
        n_channels: 1 or 3.
        open: from its published form, given split, folder and image size.
    """

    sizes: tuple[int, ...]
    n_channels: int
    open: Callable[[str, Path, int], Dataset]


_PUBLISHED = {
    "mnist": _PublishedImages((28, 32), 1, open_mnist),
    "cifar10": _PublishedImages((32,), 3, lambda split, location, _: open_cifar10(split, location)),
    "imagenet32": _PublishedImages((32,), 3, lambda split, location, _: open_imagenet("imagenet32", split, location)),
    "imagenet_64": _PublishedImages((64,), 3, lambda split, location, _: open_imagenet("imagenet_64", split, location)),
    "celeba_64": _PublishedImages((64,), 3, lambda split, location, _: open_celeba(split, location)),
}
DATASET_NAMES = (*TOY_DISTRIBUTIONS, "digits", *_PUBLISHED, "celeba_256", "lmdb", "folder")


def open_dataset(
    name: str, split: str, data_location: str | Path, image_size: int, image_channels: int, seed: int
) -> Dataset:
    """Open a data set that is on this machine; nothing is downloaded (see ``prepare_dataset``).

    Args:
        name: one of ``DATASET_NAMES``. The published sets of images are read from databases where
            ``data_location`` holds any, else in the forms in which they are published.
        split: "train" or "test". Where a set comes with "validation" instead of "test", that is read.
        data_location: folder that holds the files; unused by the toy sets and ``digits``.
        image_size: height and width in pixels; unused by the toy sets.
        image_channels: 1 or 3; unused by the toy sets.
        seed: of generated sets; unused by the others.

    Raises:
        UsageError: no such set or split, files missing or damaged, or images of another size than asked for.
    """
    if split not in SPLITS:
        raise UsageError(f"no split {split!r} of data set {name!r}: choose one of {', '.join(SPLITS)}")
    if name in TOY_DISTRIBUTIONS:
        return ToyDataset(TOY_DISTRIBUTIONS[name], split, seed)
    if name == "digits":
        return open_digits(split, image_size, image_channels)
    location = Path(data_location)
    if name == "folder":
        return open_image_folder(split, location, image_size, image_channels)
    if name in ("celeba_256", "lmdb"):
        return open_image_database(name, split, location, image_size, image_channels)
    if name not in _PUBLISHED:
        raise UsageError(f"no data set {name!r}: choose one of {', '.join(DATASET_NAMES)}")
    published = _PUBLISHED[name]
    if image_size not in published.sizes or image_channels != published.n_channels:
        sizes = " or ".join(map(str, published.sizes))
        raise UsageError(
            f"image_size {image_size} with image_channels {image_channels} does not fit data set {name}:"
            f" set image_size {sizes} and image_channels {published.n_channels}"
        )
    # A database of either split stands for the set, so that no two releases of it are mixed.
    if holds_image_database(location):
        return open_image_database(name, split, location, image_size, image_channels)
    return published.open(split, location, image_size)


def prepare_dataset(name: str, data_location: str | Path) -> None:
    """Fetch what the set needs and this machine lacks. To be called once on a node, before its ranks start.

    Raises:
        UsageError: files are missing and cannot be downloaded; says where to put them.
    """
    location = Path(data_location)
    if name == "cifar10" and find_cifar10(location) is None and not holds_image_database(location):
        download_cifar10(location)
