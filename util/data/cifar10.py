"""CIFAR-10 from its public Python archive (A. Krizhevsky, "Learning Multiple Layers of Features from Tiny
Images", 2009; https://www.cs.toronto.edu/~kriz/cifar.html)."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import io
import os
import pickle
import pickletools
import tarfile
import tempfile
import urllib.request
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from tqdm import tqdm

from util.data.image_array import ImageArray
from util.errors import UsageError

ARCHIVE = "cifar-10-python.tar.gz"
FOLDER = "cifar-10-batches-py"
URL = f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}"
MD5 = "c58f30108f718f92721af3b95e74349a"

_SHAPE = (3, 32, 32)
_N_CLASSES = 10
_BATCHES = {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}


class _StoredArray:
    """What a batch file says of its array, without running any of NumPy's own code on it."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.shape, _, _, self.content = state


class _StoredType:
    """The element type, which is always uint8; the length of the content is what is checked."""

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, state: tuple[Any, ...]) -> None: ...


def _new_array(*_: Any) -> _StoredArray:
    return _StoredArray()


class _BatchUnpickler(pickle.Unpickler):
    """Plain containers, numbers, bytes, and stand-ins for the three names by which NumPy stores an array."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return _new_array
        if (module, name) == ("numpy", "ndarray"):
            return _StoredArray
        if (module, name) == ("numpy", "dtype"):
            return _StoredType
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR-10 batch needs")


def _read_batch(file: IO[bytes], place: str) -> np.ndarray:
    """The images of one batch file, uint8 (N, 3, 32, 32)."""
    content = file.read()
    position = 0
    remedy = f"remove it and fetch {ARCHIVE} again"
    try:
        for opcode, argument, at in pickletools.genops(content):
            position = at or 0
            # The unpickler makes room for as many memorized objects as the largest number given to one.
            if opcode.name in ("PUT", "LONG_BINPUT") and argument is not None and argument > len(content):
                raise pickle.UnpicklingError(f"memorized object number {argument}")
        batch = _BatchUnpickler(io.BytesIO(content), encoding="bytes").load()
    # A damaged pickle can raise nearly anything; whatever it is, the file cannot be read.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"{place}: damaged at or after byte {position} ({reason}): {remedy}") from None
    if not isinstance(batch, dict):
        raise UsageError(f"{place}: not a CIFAR-10 batch, which is a dictionary: {remedy}")
    entries = {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in batch.items()}
    data, labels = entries.get("data"), entries.get("labels")
    if not isinstance(data, _StoredArray) or not isinstance(labels, list):
        raise UsageError(f"{place}: not a CIFAR-10 batch, which has 'data' and 'labels': {remedy}")
    row_size = int(np.prod(_SHAPE))
    if getattr(data, "shape", None) != (len(labels), row_size) or not isinstance(data.content, bytes):
        raise UsageError(f"{place}: 'data' is not an array of {len(labels)} rows by {row_size} bytes: {remedy}")
    if len(data.content) != len(labels) * row_size:
        row = len(data.content) // row_size
        raise UsageError(f"{place}: 'data' ends in row {row} of {len(labels)}: {remedy}")
    for row, label in enumerate(labels):
        if not isinstance(label, int) or not 0 <= label < _N_CLASSES:
            raise UsageError(f"{place}: row {row} has a label that is not 0 to {_N_CLASSES - 1}: {remedy}")
    return np.frombuffer(data.content, dtype=np.uint8).reshape(-1, *_SHAPE)


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


def open_cifar10(split: str, data_location: Path, image_size: int, image_channels: int) -> ImageArray:
    """The 50,000 training or 10,000 test images.

    The batches are pickles, which could run any code; they are read by an unpickler that knows no code at
    all.

    Raises:
        UsageError: files missing (they are not downloaded here) or damaged, or a size other than 3 x 32 x 32.
    """
    if (image_channels, image_size, image_size) != _SHAPE:
        raise UsageError(
            f"image_size {image_size} with image_channels {image_channels} does not fit data set cifar10:"
            " its images have size 32 and 3 channels"
        )
    location = find_cifar10(data_location)
    if location is None:
        raise UsageError(f"cifar10: neither {FOLDER} nor {ARCHIVE} in {data_location}: put it there, from {URL}")
    names = _BATCHES[split]
    if location.is_file():
        batches = _read_archive(location, names)
    else:
        batches = []
        for name in names:
            try:
                with open(location / name, "rb") as file:
                    batches.append(_read_batch(file, str(location / name)))
            except OSError as error:
                raise UsageError(f"{location / name}: {error.strerror}: fetch {ARCHIVE} again") from None
    return ImageArray("cifar10", torch.from_numpy(np.concatenate(batches)))


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
