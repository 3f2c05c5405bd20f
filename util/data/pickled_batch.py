"""Batches of images that their publishers distribute as Python pickles, read without running what is in them."""

from __future__ import annotations

import io
import pickle
import pickletools
from typing import IO, Any

import numpy as np

from util.errors import UsageError


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


def _latin1(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes for Python 2 to read."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for bytes in {encoding!r}")
    return text.encode("latin1")


class _BatchUnpickler(pickle.Unpickler):
    """Plain containers, numbers, bytes, and stand-ins for the names by which NumPy stores an array."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return _new_array
        if (module, name) == ("numpy", "ndarray"):
            return _StoredArray
        if (module, name) == ("numpy", "dtype"):
            return _StoredType
        if (module, name) == ("_codecs", "encode"):
            return _latin1
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no batch of images needs")


def read_pickled_batch(
    file: IO[bytes], place: str, image_shape: tuple[int, int, int], labels_range: range, remedy: str
) -> np.ndarray:
    """The images of a pickled dictionary with 'data' (rows of uint8) and 'labels' (a list of integers).

    Args:
        file: open for reading.
        place: what errors call it.
        image_shape: (C, H, W) that a row is laid out in.
        labels_range: what labels may be.
        remedy: what errors advise.

    Returns:
        uint8 (N, C, H, W).

    Raises:
        UsageError: damaged, not such a dictionary, or one that asks for code; says where it is wrong.
    """
    content = file.read()
    position = 0
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
        raise UsageError(f"{place}: not a batch of images, which is a dictionary: {remedy}")
    entries = {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in batch.items()}
    data, labels = entries.get("data"), entries.get("labels")
    if not isinstance(data, _StoredArray) or not isinstance(labels, list):
        raise UsageError(f"{place}: not a batch of images, which has 'data' and 'labels': {remedy}")
    row_size = int(np.prod(image_shape))
    if getattr(data, "shape", None) != (len(labels), row_size) or not isinstance(data.content, bytes):
        raise UsageError(f"{place}: 'data' is not an array of {len(labels)} rows by {row_size} bytes: {remedy}")
    if len(data.content) != len(labels) * row_size:
        row = len(data.content) // row_size
        raise UsageError(f"{place}: 'data' ends in row {row} of {len(labels)}: {remedy}")
    for row, label in enumerate(labels):
        if not isinstance(label, int) or label not in labels_range:
            wanted = f"{labels_range.start} to {labels_range.stop - 1}"
            raise UsageError(f"{place}: row {row} has a label that is not {wanted}: {remedy}")
    return np.frombuffer(data.content, dtype=np.uint8).reshape(-1, *image_shape)
