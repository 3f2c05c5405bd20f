"""Images in an LMDB database: the format, and reading it.

Key: the index as 8 bytes, big-endian. Value: CRC-32 of the rest (4 bytes, little-endian), then uint8
(H, W, C). Two more entries are JSON. "metadata" has version, shape, length, how far the source files have been
read, and whether they have been read to the end; it is written in the same transactions as the images, so it is
true at every instant, and a database that is not complete cannot be taken for one that is. "sources" lists the
source files with their sizes, apart because there may be a million of them and only a conversion needs to know.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zlib
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import torch

from util.errors import UsageError

METADATA_KEY = b"metadata"
SOURCES_KEY = b"sources"
_VERSION = 2
_CHECKSUM = struct.Struct("<I")
_SPLIT_FILES = {"train": ("train.lmdb",), "test": ("test.lmdb", "validation.lmdb")}


@dataclass(frozen=True)
class Metadata:
    """What a database says of itself.

    Attributes:
        shape: (H, W, C) of every image.
        length: images stored so far.
        n_source_bytes_read: how far into the source files, laid end to end, the stored images reach.
        complete: whether that is all of them.
        form: what the source files were read as; empty for a database from before that was recorded.
    """

    shape: tuple[int, int, int] | None
    length: int
    n_source_bytes_read: int
    complete: bool
    form: str = ""
    version: int = _VERSION

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self)).encode()


def image_key(index: int) -> bytes:
    """Big-endian, so that the order of keys is the order of images."""
    return index.to_bytes(8, "big")


def pack_image(image: np.ndarray) -> bytes:
    """uint8 (H, W, C) as a database holds it."""
    pixels = np.ascontiguousarray(image).tobytes()
    return _CHECKSUM.pack(zlib.crc32(pixels)) + pixels


def read_metadata(path: Path, transaction: Any) -> Metadata | None:
    """The metadata of an open database, or None where it has none.

    Raises:
        UsageError: metadata of another version of this format.
    """
    stored = transaction.get(METADATA_KEY)
    if stored is None:
        return None
    try:
        values = json.loads(bytes(stored))
        if values["version"] != _VERSION:
            raise ValueError(f"format version {values['version']} where {_VERSION} is known")
        shape = values["shape"]
        return Metadata(
            (int(shape[0]), int(shape[1]), int(shape[2])) if shape is not None else None,
            int(values["length"]),
            int(values["n_source_bytes_read"]),
            bool(values["complete"]),
            str(values.get("form", "")),
        )
    except (ValueError, KeyError, TypeError, IndexError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{path}: metadata cannot be read ({reason}): convert the images again") from None


def is_foreign(transaction: Any) -> bool:
    """Whether an open database holds something, and nothing of this format."""
    known = any(transaction.get(key) is not None for key in (METADATA_KEY, SOURCES_KEY, image_key(0)))
    return not known and transaction.stat()["entries"] > 0


def read_sources(path: Path, transaction: Any) -> list[tuple[str, int]]:
    """Name and size in bytes of every file that the images come from, in order; empty where none is recorded.

    Raises:
        UsageError: a record that cannot be read.
    """
    stored = transaction.get(SOURCES_KEY)
    if stored is None:
        return []
    try:
        return [(str(name), int(size)) for name, size in json.loads(bytes(stored))]
    except (ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{path}: its list of sources cannot be read ({reason}): convert the images again") from None


# Shared, as a process may not open the same LMDB environment twice.
_environments: dict[Path, lmdb.Environment] = {}


def _environment(path: Path) -> lmdb.Environment:
    resolved = path.resolve()
    if resolved not in _environments:
        _environments[resolved] = lmdb.open(
            str(resolved), readonly=True, lock=False, readahead=False, meminit=False, subdir=resolved.is_dir()
        )
    return _environments[resolved]


def _close_environments() -> None:
    while _environments:
        _environments.popitem()[1].close()


# LMDB environments must not be carried over a fork: a loader process opens its own when it first reads.
os.register_at_fork(after_in_child=_close_environments)


@dataclass(frozen=True)
class ImageDatabase:
    """A data set in a database of this format. Any number of processes may read it at once."""

    name: str
    path: Path
    shape: tuple[int, ...]
    length: int
    is_image: bool = field(default=True, init=False)

    @cached_property
    def digest(self) -> str:
        """Of the names and sizes of the files that the images come from."""
        with _environment(self.path).begin() as transaction:
            return hashlib.sha256(transaction.get(SOURCES_KEY) or b"").hexdigest()[:16]

    def read(self, indices: np.ndarray) -> torch.Tensor:
        """uint8 (B, C, H, W); raises UsageError for a record that is missing or damaged."""
        n_channels, height, width = self.shape
        images = np.empty((len(indices), height, width, n_channels), dtype=np.uint8)
        try:
            with _environment(self.path).begin(buffers=True) as transaction:
                for row, index in enumerate(indices):
                    stored = transaction.get(image_key(int(index)))
                    if stored is None or len(stored) != _CHECKSUM.size + images[row].size:
                        raise UsageError(f"{self.path}: image {index} is missing or cut short: convert again")
                    if zlib.crc32(stored[_CHECKSUM.size :]) != _CHECKSUM.unpack_from(stored)[0]:
                        raise UsageError(f"{self.path}: image {index} fails its checksum: convert again")
                    images[row].ravel()[:] = np.frombuffer(stored, dtype=np.uint8, offset=_CHECKSUM.size)
        except lmdb.Error as error:
            raise UsageError(f"{self.path}: cannot be read ({error}): convert the images again") from None
        return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def holds_image_database(data_location: Path) -> bool:
    """Whether there is a database of any split."""
    return any((data_location / file).exists() for files in _SPLIT_FILES.values() for file in files)


def open_image_database(
    name: str, split: str, data_location: Path, image_size: int, image_channels: int
) -> ImageDatabase:
    """Open ``data_location/train.lmdb``, or ``test.lmdb`` (else ``validation.lmdb``) for the split "test".

    Raises:
        UsageError: no such database, one that was not converted to the end, or images of another shape.
    """
    candidates = [data_location / file for file in _SPLIT_FILES[split]]
    path = next((candidate for candidate in candidates if candidate.exists()), None)
    if path is None:
        names = " or ".join(_SPLIT_FILES[split])
        raise UsageError(
            f"{name}: no {names} in {data_location}: make it with"
            f" python -m util.convert_to_lmdb {'folder' if name == 'lmdb' else name}"
        )
    database = open_database_as_it_is(name, path)
    n_channels, height, width = database.shape
    if (height, width, n_channels) != (image_size, image_size, image_channels):
        raise UsageError(
            f"{path}: its images are {height} x {width} with {n_channels} channels and"
            f" image_size {image_size} with image_channels {image_channels} was asked for: change one of them"
        )
    return database


def open_database_as_it_is(name: str, path: Path) -> ImageDatabase:
    """Open one database, whatever the shape of its images.

    Raises:
        UsageError: not a database of this format, or one that was not converted to the end.
    """
    try:
        with _environment(path).begin() as transaction:
            metadata = read_metadata(path, transaction)
            foreign = is_foreign(transaction)
    except lmdb.Error as error:
        raise UsageError(f"{path}: not a readable LMDB database ({error}): convert the images again") from None
    if foreign:
        _environments.pop(path.resolve()).close()
        raise UsageError(
            f"{path}: an LMDB database of another tool: make one of its images with python -m util.convert_to_lmdb,"
            " in another place"
        )
    if metadata is None or not metadata.complete or metadata.shape is None:
        _environments.pop(path.resolve()).close()
        stored = f"{metadata.length} images so far" if metadata is not None else "no record of its contents"
        raise UsageError(f"{path}: not complete ({stored}): give the same conversion command again to finish it")
    height, width, n_channels = metadata.shape
    return ImageDatabase(name, path, (n_channels, height, width), metadata.length)
