"""A folder of image files, read through Pillow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from util.errors import UsageError

_MODES = {1: "L", 3: "RGB"}
_EXTENSIONS = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}


def decode_image(path: Path, image_channels: int) -> Image.Image:
    """One image file, upright, in grey (1 channel) or colour (3).

    Raises:
        UsageError: a file that is not an image, is damaged, or has more than 8 bits a channel.
    """
    try:
        with Image.open(path) as opened:
            # Pillow would clip deeper images to 255 without a word.
            if opened.mode.startswith(("I", "F")):
                raise UsageError(f"{path}: more than 8 bits a channel: convert it to 8 bits")
            return ImageOps.exif_transpose(opened).convert(_MODES[image_channels])
    # Decoders of damaged files raise nearly anything; whatever it is, the file cannot be read.
    except (OSError, ValueError, SyntaxError, IndexError, EOFError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{path}: cannot be read as an image ({reason}): repair or remove it") from None


def read_image(path: Path, image_size: int, image_channels: int) -> np.ndarray:
    """One image as uint8 (H, W, C), its short side resized to ``image_size`` and its centre cut out.

    Raises:
        UsageError: as ``decode_image``.
    """
    image = decode_image(path, image_channels)
    if image.size != (image_size, image_size):
        image = ImageOps.fit(image, (image_size, image_size), Image.Resampling.BICUBIC)
    return np.asarray(image).reshape(image_size, image_size, image_channels)


def read_image_as_it_is(path: Path, image_size: int, image_channels: int) -> np.ndarray:
    """One image as uint8 (H, W, C), of a set whose images have the size already.

    Raises:
        UsageError: as ``decode_image``, or an image of another size.
    """
    image = decode_image(path, image_channels)
    if image.size != (image_size, image_size):
        width, height = image.size
        raise UsageError(f"{path}: an image of {height} x {width} in a set of {image_size} x {image_size}: replace it")
    return np.asarray(image).reshape(image_size, image_size, image_channels)


def list_images(folder: Path) -> list[Path]:
    """The image files in a folder and the folders below it, sorted by path.

    Raises:
        UsageError: no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder: put the images of this split there")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _EXTENSIONS and path.is_file())
    if not paths:
        raise UsageError(f"{folder}: no image in it (looked for {', '.join(sorted(_EXTENSIONS))})")
    return paths


@dataclass(frozen=True)
class ImageFolder:
    """A data set whose sample i is the i-th of the image files.

    Attributes:
        paths: the files.
        shape: (C, H, W).
        read_file: given a file, H (which is W) and C, its image as uint8 (H, W, C).
        name: of the data set.
    """

    paths: list[Path]
    shape: tuple[int, ...]
    read_file: Callable[[Path, int, int], np.ndarray]
    name: str
    is_image: bool = field(default=True, init=False)

    @property
    def length(self) -> int:
        return len(self.paths)

    def read(self, indices: np.ndarray) -> torch.Tensor:
        """uint8 (B, C, H, W); raises UsageError for a file that is not a whole image."""
        images = [self.read_file(self.paths[index], self.shape[1], self.shape[0]) for index in indices]
        return torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2).copy())


def open_image_folder(split: str, data_location: Path, image_size: int, image_channels: int) -> ImageFolder:
    """The images below ``data_location/train`` or ``data_location/test`` (or ``validation``).

    Raises:
        UsageError: no such folder, no image in it, or a number of channels other than 1 and 3.
    """
    if image_channels not in _MODES:
        raise UsageError(f"image_channels {image_channels} does not fit data set folder: choose 1 or 3")
    if image_size < 1:
        raise UsageError(f"image_size {image_size} does not fit data set folder: choose 1 or more")
    folder = data_location / split
    if split == "test" and not folder.is_dir() and (data_location / "validation").is_dir():
        folder = data_location / "validation"
    return ImageFolder(list_images(folder), (image_channels, image_size, image_size), read_image, "folder")
