"""Types that a foreign checkpoint may hold beside tensors and plain containers: none runs code of the file."""

from __future__ import annotations

import argparse
import codecs
from pathlib import PosixPath
from types import SimpleNamespace
from typing import Any

import numpy as np

_SCALAR = np.float64(0).__reduce__()[0]  # what numpy makes its scalars and arrays again with; both have private names
_ARRAY = np.empty(0).__reduce__()[0]


def _plain_dict(_make_value: Any = None) -> dict[Any, Any]:
    """In place of a defaultdict: what it has been asked for before is in it, and no more is needed."""
    return {}


_CODES = "?bBhHiIlLqQefdU"

SAFE_TYPES: list[Any] = [
    argparse.Namespace,
    SimpleNamespace,
    (_plain_dict, "collections.defaultdict"),
    PosixPath,
    *{type(np.dtype(code)) for code in _CODES},
    np.dtype,
    np.ndarray,
    (codecs.encode, "_codecs.encode"),  # bytes of numpy's scalars in old pickles
    *(
        (function, f"numpy.{core}.multiarray.{name}")  # numpy 1 and 2 call them so
        for core in ("core", "_core")
        for function, name in ((_SCALAR, "scalar"), (_ARRAY, "_reconstruct"))
    ),
    *(
        (kind, f"{module}.{kind.__name__}")  # what defaultdict makes its values with
        for module in ("builtins", "__builtin__")
        for kind in (list, dict, set, tuple, int, float, bool, str)
    ),
]
"""For ``torch.serialization.safe_globals``."""
