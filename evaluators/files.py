"""Results on disk: arrays written whole or not at all, and reading what may be damaged."""

from __future__ import annotations

import json
import logging
import math
import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from util.files import replacing

logger = logging.getLogger(__name__)

_LOCAL_HEADER = 30
_LENGTHS = struct.Struct("<26xHH")
"""Of the name and of the extra fields in the header before each entry of an archive (PKWARE's APPNOTE, 4.3.7)."""


@dataclass(frozen=True)
class ArrayInParts:
    """An array that is written part by part, so that no more than one part of it is held.

    Attributes:
        shape: of the whole.
        dtype: of all parts.
        parts: along the first dimension, in order; iterated over once.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    parts: Iterable[np.ndarray]


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray | ArrayInParts]) -> None:
    """Write an uncompressed ``.npz`` whose bytes depend on the arrays alone: entries carry no time stamp.

    Raises:
        OSError: the disk is full, or the folder cannot be written to; ``path`` is as it was.
    """
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            with archive.open(entry, "w", force_zip64=True) as member:
                if isinstance(array, np.ndarray):
                    np.lib.format.write_array(member, array, allow_pickle=False)
                else:
                    _write_parts(member, array)


def _write_parts(member: IO[bytes], array: ArrayInParts) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False, "shape": array.shape}
    np.lib.format.write_array_header_1_0(member, header)
    n_rows = 0
    for part in array.parts:
        if part.dtype != array.dtype or part.shape[1:] != array.shape[1:]:
            raise ValueError(f"a part of {array.shape} {array.dtype} has shape {part.shape} and is {part.dtype}")
        member.write(np.ascontiguousarray(part).tobytes())
        n_rows += len(part)
    if n_rows != array.shape[0]:
        raise ValueError(f"{n_rows} rows in parts of an array of {array.shape[0]}")


class DamagedArrays(Exception):
    """A file of arrays that cannot be read.

    Attributes:
        name: of the array that it is for; empty where the file is no ``.npz`` file at all.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(reason)
        self.name = name


def open_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an ``.npz`` file, read from disk where they are used, so that memory holds none whole.

    Those that are compressed are read into memory. The file is read once to compare it with the CRC-32 of its entries.

    Returns:
        Read-only arrays.

    Raises:
        FileNotFoundError: there is none.
        DamagedArrays: it is truncated or altered, or holds other things than arrays of numbers and text.
    """
    name = ""
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
            if damaged is not None:
                raise ValueError(f"{damaged} does not have its checksum")
            arrays = {}
            for entry in archive.infolist():
                name = entry.filename.removesuffix(".npy")
                arrays[name] = _open_entry(path, file, archive, entry)
            return arrays
    except FileNotFoundError:
        raise
    except (
        OSError, ValueError, EOFError, KeyError, TypeError, AttributeError, NotImplementedError, struct.error,
        zipfile.BadZipFile, zlib.error,
    ) as error:  # fmt: skip
        raise DamagedArrays(name, " ".join(str(error).split())) from None


def map_arrays(path: Path) -> dict[str, np.ndarray] | None:
    """``open_arrays``; None when the file is absent, truncated or altered."""
    try:
        return open_arrays(path)
    except FileNotFoundError:
        return None
    except DamagedArrays as error:
        logger.warning("%s cannot be read and is not used: %s", path, error)
        return None


def _open_entry(path: Path, file: IO[bytes], archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    if entry.compress_type != zipfile.ZIP_STORED:
        with archive.open(entry) as member:
            return np.lib.format.read_array(member, allow_pickle=False)
    # The entry's own header may have other extra fields than the archive's list of entries.
    file.seek(entry.header_offset)
    name_length, extra_length = _LENGTHS.unpack_from(file.read(_LOCAL_HEADER))
    file.seek(entry.header_offset + _LOCAL_HEADER + name_length + extra_length)
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran_order, dtype = read_header(file)
    if dtype.hasobject:
        raise ValueError(f"{entry.filename} holds Python objects")
    if math.prod(shape) == 0:
        return np.empty(shape, dtype)
    order: Literal["F", "C"] = "F" if fortran_order else "C"
    return np.memmap(path, dtype, "r", file.tell(), shape, order)


def read_arrays(path: Path, names: Iterable[str] | None = None) -> dict[str, np.ndarray] | None:
    """All arrays of an ``.npz`` file, or those named; None when absent, truncated or altered (by its CRC-32)."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in (archive.files if names is None else names)}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError, KeyError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        logger.warning("%s cannot be read and is not used: %s", path, error)
        return None


def read_json(path: Path) -> Any:
    """The contents of a JSON file; None when it is absent or is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        logger.warning("%s cannot be read and is not used: %s", path, error)
        return None
