"""ImageNet at 32 x 32 and 64 x 64 in both public releases, which hold the same photographs with other pixels.

The old one, PNG files (A. van den Oord et al., arXiv 1601.06759), is what most results are reported on; the new
one, batches of rows (P. Chrabaszcz et al., arXiv 1707.08819), was resized without aliasing, is smoother, and gives
fewer bits per dimension. A result on one must not be compared with a result on the other.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch

from util.data.image_array import ImageArray
from util.data.image_file import read_image_as_it_is, require_size
from util.data.image_folder import VALIDATION_FOLDERS, ImageFolder, is_litter, list_images
from util.data.pickled_batch import read_pickled_batch
from util.errors import UsageError

SIZES = {"imagenet32": 32, "imagenet_64": 64}
_N_CHANNELS = 3
_LABELS = range(1, 1001)
_BATCHES = {"train": tuple(f"train_data_batch_{i}" for i in range(1, 11)), "test": ("val_data",)}
_FOLDERS = {"train": ("train_{size}x{size}", "train"), "test": ("valid_{size}x{size}", *VALIDATION_FOLDERS, "test")}
_REMEDY = "remove it and fetch it again"


def _find_batches(name: str, split: str, data_location: Path) -> list[Path]:
    """The batch files of the new release, in ``data_location`` or a folder in it; an empty list for none at all."""
    found, missing = [], []
    for batch in _BATCHES[split]:
        files = (batch, f"{batch}.npz")
        paths = [path for file in files for path in (data_location / file, *sorted(data_location.glob(f"*/{file}")))]
        paths = [p for p in paths if p.is_file() and not any(map(is_litter, p.relative_to(data_location).parts))]
        if len(paths) > 1:
            raise UsageError(f"{name}: {paths[0]} and {paths[1]} are the same batch: move one of them elsewhere")
        found += paths
        missing += [] if paths else [batch]
    if found and missing:
        raise UsageError(f"{name}: {missing[0]} (or {missing[0]}.npz) is missing beside {found[0]}: fetch it too")
    return found


def _find_folder(name: str, split: str, data_location: Path) -> Path | None:
    """The folder of images of the old release, or None."""
    names = [folder.format(size=SIZES[name]) for folder in _FOLDERS[split]]
    return next((data_location / folder for folder in names if (data_location / folder).is_dir()), None)


def imagenet_sources(name: str, split: str, data_location: Path) -> list[Path]:
    """The files that hold a split: ten batches or one, or image files.

    Args:
        name: "imagenet32" or "imagenet_64".
        split: "train" or "test", which is the validation part.
        data_location: folder of batches, or folder that holds folders of images.

    Raises:
        UsageError: neither release is there, or both are, or a batch is missing.
    """
    batches, folder = _find_batches(name, split, data_location), _find_folder(name, split, data_location)
    if batches and folder is not None:
        raise UsageError(
            f"{name}: {data_location} holds both releases, {batches[0].name} and {folder.name}, whose pixels differ:"
            " keep them in two places"
        )
    if folder is not None:
        return list_images(folder)
    if not batches:
        png = _FOLDERS[split][0].format(size=SIZES[name])
        raise UsageError(
            f"{name}: neither {_BATCHES[split][0]} (or .npz) nor the folder {png} in {data_location}: get one of them"
            " from https://image-net.org/download-images and unpack it there"
        )
    return batches


def is_batch(path: Path) -> bool:
    """Whether a source is a batch of the new release rather than an image."""
    return path.suffix in ("", ".npz")


def imagenet_folder(name: str, sources: list[Path], data_location: Path) -> ImageFolder:
    """The set whose sources are images."""
    shape = (_N_CHANNELS, SIZES[name], SIZES[name])
    return ImageFolder(data_location, sources, shape, read_image_as_it_is, name, require_size)


def read_imagenet_batch(path: Path, name: str) -> np.ndarray:
    """The images of a batch file, uint8 (N, 3, H, W). Nothing in the file is run, nor unpickled by NumPy.

    Raises:
        UsageError: damaged, or something else; names the file and where in it.
    """
    shape = (_N_CHANNELS, SIZES[name], SIZES[name])
    try:
        if path.suffix == ".npz":
            return _read_npz(path, shape)
        with open(path, "rb") as file:
            return read_pickled_batch(file, str(path), shape, _LABELS, _REMEDY)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}: {_REMEDY}") from None


def _read_npz(path: Path, shape: tuple[int, int, int]) -> np.ndarray:
    try:
        with zipfile.ZipFile(path) as archive:
            images = _read_member(archive, "data.npy")
            n_images = len(_read_member(archive, "labels.npy"))
    # A damaged archive or array can raise nearly anything; whatever it is, the file cannot be read.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"{path}: damaged ({reason}): {_REMEDY}") from None
    expected = (n_images, int(np.prod(shape)))
    if images.dtype != np.uint8 or images.shape != expected:
        raise UsageError(
            f"{path}: data.npy is {images.dtype} of shape {images.shape}, not uint8 of shape {expected}: {_REMEDY}"
        )
    return images.reshape(-1, *shape)


def _read_member(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(name) as member:
        array = np.lib.format.read_array(member, allow_pickle=False)
        # Only at its end is a member checked against its checksum.
        if member.read(1):
            raise ValueError(f"{name} holds more than its array")
    if array.ndim < 1:
        raise ValueError(f"{name} is a single number")
    return np.asarray(array)


def open_imagenet(name: str, split: str, data_location: Path) -> ImageArray | ImageFolder:
    """The 1,281,167 (old release: 1,281,149) training or 50,000 (49,999) validation images.

    Batches of 32 x 32 are held in memory, 3.9 GB in every rank; a database is shared between them.

    Args:
        name: "imagenet32" or "imagenet_64".
        split: "train" or "test".
        data_location: as for ``imagenet_sources``.

    Raises:
        UsageError: files missing or damaged, or batches of 64 x 64, which do not fit into memory.
    """
    sources = imagenet_sources(name, split, data_location)
    if not is_batch(sources[0]):
        return imagenet_folder(name, sources, data_location)
    if name != "imagenet32":
        raise UsageError(
            f"{name}: the batches in {data_location} would take 16 GB in every rank: convert them with"
            f" python -m util.convert_to_lmdb {name}"
        )
    batches = [read_imagenet_batch(path, name) for path in sources]
    images = np.empty((sum(map(len, batches)), _N_CHANNELS, SIZES[name], SIZES[name]), dtype=np.uint8)
    end = len(images)
    while batches:
        # Each is given back as soon as it is copied, so that memory holds the set once and not twice.
        batch = batches.pop()
        images[end - len(batch) : end] = batch
        end -= len(batch)
    return ImageArray(name, torch.from_numpy(images))
