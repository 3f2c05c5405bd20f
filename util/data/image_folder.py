"""A folder of image files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from util.data.image_file import MODES, read_image
from util.errors import UsageError

_EXTENSIONS = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
# What archives, network disks and systems put beside images, thumbnails of them included.
_LITTER = {"__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
VALIDATION_FOLDERS = ("validation", "val", "valid")


def is_litter(name: str) -> bool:
    """Whether a file or folder of this name is never data: hidden ones, and what systems leave lying about."""
    return name.startswith(".") or name in _LITTER


def list_images(folder: Path) -> list[Path]:
    """The image files in a folder and the folders below it, sorted by path. Litter is left out.

    Links are followed. Each folder is read once, however many links lead to it, so that a link to a folder above
    it makes no loop; of its names, one without a link counts.

    Raises:
        UsageError: no such folder, no image in it, a folder below it that cannot be read, or a link that leads nowhere.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder: put the images of this split there")
    paths: list[Path] = []
    seen: set[str] = set()
    linked = [str(folder)]
    try:
        while linked:
            pending = [linked.pop(0)]
            while pending:
                here = pending.pop()
                real = os.path.realpath(here)
                if real in seen:
                    continue
                seen.add(real)
                for entry in sorted(os.scandir(here), key=lambda entry: entry.name):
                    if is_litter(entry.name):
                        continue
                    if entry.is_dir():
                        (linked if entry.is_symlink() else pending).append(entry.path)
                    elif entry.is_file():
                        if os.path.splitext(entry.name)[1].lower() in _EXTENSIONS:
                            paths.append(Path(entry.path))
                    elif entry.is_symlink():
                        target = os.readlink(entry.path)
                        raise UsageError(f"{entry.path}: a link to {target}, where nothing is: mend or remove it")
    except OSError as error:
        raise UsageError(f"{error.filename}: cannot be read ({error.strerror}): mend or remove it") from None
    if not paths:
        raise UsageError(f"{folder}: no image in it (looked for {', '.join(sorted(_EXTENSIONS))})")
    return sorted(paths)


def split_folder(data_location: Path, split: str) -> Path:
    """The folder of a split below ``data_location``.

    Args:
        data_location: folder of the data set.
        split: "train", "validation", which may also be called ``val`` or ``valid``, or "test", which it stands in for.
    """
    names = {"train": ("train",), "validation": VALIDATION_FOLDERS, "test": ("test", *VALIDATION_FOLDERS)}[split]
    return next((data_location / name for name in names if (data_location / name).is_dir()), data_location / split)


@dataclass(frozen=True)
class ImageFolder:
    """A data set whose sample i is the i-th of the image files.

    Attributes:
        root: the folder that they are in or below.
        paths: the files.
        shape: (C, H, W).
        read_file: given a file, H (which is W) and C, its image as uint8 (H, W, C).
        name: of the data set.
        require_size: given a file, the (width, height) of its image, and H, raises BadImage where ``read_file`` would.
    """

    root: Path
    paths: list[Path]
    shape: tuple[int, ...]
    read_file: Callable[[Path, int, int], np.ndarray]
    name: str
    require_size: Callable[[Path, tuple[int, int], int], None] | None = None
    is_image: bool = field(default=True, init=False)

    @property
    def length(self) -> int:
        return len(self.paths)

    @cached_property
    def n_folders(self) -> int:
        """How many folders the files are in."""
        return len({os.path.dirname(path) for path in self.paths})

    @cached_property
    def digest(self) -> str:
        """Of the names of the files below ``root``, in their order."""
        start = len(str(self.root)) + 1
        names = "\0".join(str(path)[start:] for path in self.paths)
        return hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest()[:16]

    def read(self, indices: np.ndarray) -> torch.Tensor:
        """uint8 (B, C, H, W); raises UsageError for a file that is not a whole image."""
        images = [self.read_file(self.paths[index], self.shape[1], self.shape[0]) for index in indices]
        return torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2).copy())


def open_image_folder(split: str, data_location: Path, image_size: int, image_channels: int) -> ImageFolder:
    """The images below the folder of a split; see ``split_folder``.

    Raises:
        UsageError: no such folder, no image in it, or a number of channels other than 1 and 3.
    """
    if image_channels not in MODES:
        raise UsageError(f"image_channels {image_channels} does not fit data set folder: choose 1 or 3")
    if image_size < 1:
        raise UsageError(f"image_size {image_size} does not fit data set folder: choose 1 or more")
    folder = split_folder(data_location, split)
    return ImageFolder(folder, list_images(folder), (image_channels, image_size, image_size), read_image, "folder")
