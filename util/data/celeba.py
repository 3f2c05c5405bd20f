"""CelebA (Z. Liu et al., "Deep Learning Face Attributes in the Wild", ICCV 2015) at 64 x 64.

As is usual for score models: the central 140 x 140 pixels of the aligned 178 x 218 images, resized by an
antialiased bilinear (triangle) filter. The result is rounded back to 8 bits, so that a number of bits per
dimension is one of 8-bit images; the public code of INDM leaves it in floating point.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from util.data.image_file import BadImage, decode_image
from util.data.image_folder import ImageFolder, list_images, split_folder
from util.errors import UsageError

SIZE = 64
RELEASE = "img_align_celeba"
PARTITION = "list_eval_partition.txt"
_CROP = 140
_PARTS = {"train": "0", "validation": "1", "test": "2"}
_REMEDY = "fetch it again from https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"


def _require_size(path: Path, size: tuple[int, int], image_size: int) -> None:
    """Raise BadImage for an image, (width, height), that is too small for the cut."""
    width, height = size
    if size != (image_size, image_size) and min(size) < _CROP:
        raise BadImage(
            path, f"{height} x {width} is too small to cut {_CROP} x {_CROP} from", f"take from {RELEASE} or remove"
        )


def read_celeba_image(path: Path, image_size: int, image_channels: int) -> np.ndarray:
    """One image as uint8 (H, W, C): cut and resized, or as it is where it has the size already.

    Raises:
        BadImage: as ``decode_image`` and ``_require_size``.
    """
    image = decode_image(path, image_channels)
    if image.size == (image_size, image_size):
        return np.asarray(image).reshape(image_size, image_size, image_channels)
    _require_size(path, image.size, image_size)
    width, height = image.size
    left, top = (width - _CROP) // 2, (height - _CROP) // 2
    cut = np.array(image.crop((left, top, left + _CROP, top + _CROP)), dtype=np.float64)
    pixels = torch.from_numpy(cut.reshape(_CROP, _CROP, image_channels)).permute(2, 0, 1)[None]
    # Pillow would round twice, after each of the two directions.
    resized = torch.nn.functional.interpolate(pixels, (image_size, image_size), mode="bilinear", antialias=True)
    return resized[0].permute(1, 2, 0).round().clamp(0.0, 255.0).to(torch.uint8).numpy()


def celeba_sources(split: str, data_location: Path) -> list[Path]:
    """The image files of a part.

    Args:
        split: "train" (162,770 images), "validation" (19,867) or "test" (19,962).
        data_location: folder of the public release, which is ``img_align_celeba`` beside (or below ``Eval``)
            ``list_eval_partition.txt``; or a folder with one folder of images for each part, where "validation"
            stands in for a "test" that is not there.

    Raises:
        UsageError: neither is there, or the release is not whole.
    """
    release = data_location / RELEASE
    if release.is_dir():
        return _released_sources(split, data_location, release)
    folder = split_folder(data_location, split)
    if not folder.is_dir():
        raise UsageError(
            f"celeba_64: neither {RELEASE} with {PARTITION} nor the folder {split} in {data_location}: get the former"
            " from https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html and unpack it there"
        )
    return list_images(folder)


def _released_sources(split: str, data_location: Path, release: Path) -> list[Path]:
    candidates = (data_location / PARTITION, data_location / "Eval" / PARTITION)
    partition = next((path for path in candidates if path.is_file()), None)
    if partition is None:
        raise UsageError(f"celeba_64: no {PARTITION} in {data_location}, which says what is {split}: put it there")
    present = set(os.listdir(release))
    names = []
    for number, line in enumerate(partition.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        words = line.split()
        if len(words) != 2 or words[1] not in _PARTS.values():
            raise UsageError(f"{partition}, line {number}: not the name of an image and 0, 1 or 2: {_REMEDY}")
        if words[1] == _PARTS[split]:
            if words[0] not in present:
                raise UsageError(f"{release}: has no {words[0]}, which {partition.name} names: {_REMEDY}")
            names.append(words[0])
    if not names:
        raise UsageError(f"{partition}: names no image of part {split}: {_REMEDY}")
    return [release / name for name in names]


def open_celeba(split: str, data_location: Path) -> ImageFolder:
    """The images of a part, cut and resized each time that they are read; a database holds them ready.

    Raises:
        UsageError: as ``celeba_sources``.
    """
    return ImageFolder(
        data_location, celeba_sources(split, data_location), (3, SIZE, SIZE), read_celeba_image, "celeba_64",
        _require_size,
    )  # fmt: skip
