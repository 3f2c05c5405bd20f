"""CIFAR-10 from its public Python archive (A. Krizhevsky, "Learning Multiple Layers of Features from Tiny
Images", 2009; https://www.cs.toronto.edu/~kriz/cifar.html)."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import os
import tarfile
import tempfile
import urllib.request
import zlib
from pathlib import Path
from typing import IO

import numpy as np
import torch
from tqdm import tqdm

from util.data.image_array import ImageArray
from util.data.pickled_batch import read_pickled_batch
from util.errors import UsageError

ARCHIVE = "cifar-10-python.tar.gz"
FOLDER = "cifar-10-batches-py"
URL = f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}"
MD5 = "c58f30108f718f92721af3b95e74349a"

_SHAPE = (3, 32, 32)
_LABELS = range(10)
_BATCHES = {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}


def _read_batch(file: IO[bytes], place: str) -> np.ndarray:
    """The images of one batch file, uint8 (N, 3, 32, 32)."""
    return read_pickled_batch(file, place, _SHAPE, _LABELS, f"remove it and fetch {ARCHIVE} again")


def _read_archive(path: Path, names: tuple[str, ...]) -> list[np.ndarray]:
    """Batches straight from the archive: nothing is written to disk under a name that the archive chose."""
    wanted = {f"{FOLDER}/{name}": name for name in names}
    batches: dict[str, np.ndarray] = {}
    try:
        with gzip.open(path) as stream:
            with tarfile.open(fileobj=stream, mode="r|") as archive:
                for member in archive:
                    file = archive.extractfile(member) if member.name in wanted else None
                    if file is not None:
                        batches[wanted[member.name]] = _read_batch(file, f"{path}, {member.name}")
            # The checksum of a gzip file stands at its end, after what the archive needs.
            while stream.read(1 << 20):
                pass
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise UsageError(f"{path}: damaged archive ({error}): remove it and fetch it again") from None
    missing = [name for name in names if name not in batches]
    if missing:
        raise UsageError(f"{path}: has no {FOLDER}/{missing[0]}: remove it and fetch it again")
    return [batches[name] for name in names]


def find_cifar10(data_location: Path) -> Path | None:
    """The folder of batches or the archive in ``data_location``, or None."""
    candidates = (data_location / FOLDER, data_location / ARCHIVE)
    return next((path for path in candidates if path.exists()), None)


def cifar10_sources(split: str, data_location: Path) -> list[Path]:
    """The files that hold a split: the archive, or batches in their order.

    Raises:
        UsageError: neither the archive nor the folder is there.
    """
    location = find_cifar10(data_location)
    if location is None:
        raise UsageError(f"cifar10: neither {FOLDER} nor {ARCHIVE} in {data_location}: put it there, from {URL}")
    return [location] if location.is_file() else [location / name for name in _BATCHES[split]]


def read_cifar10_source(path: Path, split: str) -> np.ndarray:
    """The images of a split that one of its sources holds, uint8 (N, 3, 32, 32).

    The batches are pickles, which could run any code; they are read by an unpickler that knows no code at
    all.

    Raises:
        UsageError: the file is missing or damaged.
    """
    if path.name == ARCHIVE:
        return np.concatenate(_read_archive(path, _BATCHES[split]))
    try:
        with open(path, "rb") as file:
            return _read_batch(file, str(path))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}: fetch {ARCHIVE} again") from None


def open_cifar10(split: str, data_location: Path) -> ImageArray:
    """The 50,000 training or 10,000 test images.

    Raises:
        UsageError: files missing (they are not downloaded here) or damaged.
    """
    images = [read_cifar10_source(path, split) for path in cifar10_sources(split, data_location)]
    return ImageArray("cifar10", torch.from_numpy(np.concatenate(images)))


def download_cifar10(data_location: Path, *, url: str = URL, md5: str = MD5) -> None:
    """Download the archive into ``data_location``; it appears there whole and checked, or not at all.

    Raises:
        UsageError: no connection, a wrong checksum, or a folder that cannot be written.
    """
    remedy = f"put {ARCHIVE} or the folder {FOLDER} into {data_location}"
    part = None
    try:
        data_location.mkdir(parents=True, exist_ok=True)
        digest = hashlib.md5(usedforsecurity=False)
        with (
            urllib.request.urlopen(url, timeout=30) as response,
            # A name of its own: nodes that share a file system may download at the same time.
            tempfile.NamedTemporaryFile(dir=data_location, prefix=ARCHIVE, suffix=".part", delete=False) as file,
            tqdm(
                total=int(response.headers["Content-Length"] or 0) or None,
                unit="B",
                unit_scale=True,
                desc=ARCHIVE,
                disable=None,
            ) as bar,
        ):
            part = file.name
            while block := response.read(1 << 20):
                digest.update(block)
                file.write(block)
                bar.update(len(block))
            file.flush()
            os.fsync(file.fileno())
        if digest.hexdigest() != md5:
            raise UsageError(f"cifar10: {url} came with MD5 {digest.hexdigest()} instead of {md5}: {remedy}")
        os.chmod(part, 0o644)
        os.replace(part, data_location / ARCHIVE)
    except (OSError, http.client.HTTPException) as error:
        raise UsageError(f"cifar10: cannot download {url} to {data_location} ({error}): {remedy}") from None
    finally:
        if part is not None:
            Path(part).unlink(missing_ok=True)
