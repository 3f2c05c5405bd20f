"""Types that a foreign checkpoint may hold beside tensors and plain containers: none runs code of the file.

Numbers and arrays of numpy are read by stand-ins, because numpy's own functions trust what a file says of its memory.
"""

from __future__ import annotations

import argparse
import codecs
import re
from pathlib import PosixPath
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch


class Dtype:
    """In place of numpy.dtype: a number, a boolean or text, of either byte order; ValueError for anything else."""

    def __init__(self, code: str, _align: bool = False, _copy: bool = True) -> None:
        if not re.fullmatch(r"b1|[iu][1248]|f[248]|U[0-9]{1,6}", str(code)):
            raise ValueError(f"numpy's dtype {str(code)[:40]!r} is not read")
        self.code, self.order = str(code), "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] not in ("<", ">", "|", "="):
            raise ValueError("numpy's dtype has an unknown byte order")
        self.order = state[1].replace("|", "<")
        if self.code.startswith("U"):
            self.code = f"U{int(state[5]) // 4}"

    def read(self, data: bytes) -> np.ndarray:
        """The numbers (N,) in some bytes."""
        return np.frombuffer(data, np.dtype(self.order + self.code))


class Array:
    """In place of numpy.ndarray: ``tensor`` has its values."""

    tensor: torch.Tensor

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, data = state
        values = dtype.read(data).reshape(shape, order="F" if is_fortran else "C")
        self.tensor = torch.from_numpy(np.array(values, dtype=values.dtype.newbyteorder("=")))


def _array(_kind: type, _shape: tuple[int, ...], _code: bytes) -> Array:
    return Array()


def _scalar(dtype: Dtype, data: bytes) -> Any:
    return dtype.read(data)[0].item()


def _plain_dict(_make_value: Any = None) -> dict[Any, Any]:
    """In place of a defaultdict: what it has been asked for before is in it, and no more is needed."""
    return {}


def _no_bytes() -> bytes:
    """What old pickles make empty bytes with."""
    return b""


SAFE_TYPES: list[Any] = [
    argparse.Namespace,
    SimpleNamespace,
    PosixPath,
    (_plain_dict, "collections.defaultdict"),
    (Dtype, "numpy.dtype"),
    (Array, "numpy.ndarray"),
    (codecs.encode, "_codecs.encode"),  # bytes in old pickles
    (_no_bytes, "builtins.bytes"),
    (_no_bytes, "__builtin__.bytes"),
    *(
        (stand_in, f"numpy.{core}.multiarray.{name}")  # numpy 1 and 2 call them so
        for core in ("core", "_core")
        for stand_in, name in ((_scalar, "scalar"), (_array, "_reconstruct"))
    ),
    *(
        (kind, f"{module}.{kind.__name__}")  # what defaultdict makes its values with
        for module in ("builtins", "__builtin__")
        for kind in (list, dict, set, tuple, int, float, bool, str)
    ),
]
"""For ``torch.serialization.safe_globals``."""
