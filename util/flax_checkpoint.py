"""Reads the msgpack files in which Flax programs keep their training state, without JAX.

Such a file is one msgpack map, nested, with names as keys. An array is an extension object of type 1 and a scalar one
of type 3; the payload of both is itself msgpack: (shape, name of the dtype, the numbers in C order, little-endian). An
array too large for one object is a map of ``__msgpack_chunked_array__``, its shape and its flattened pieces.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgpack
import torch

from util.errors import UsageError

ARRAY, SCALAR = 1, 3
CHUNKED = "__msgpack_chunked_array__"
LARGEST_MAP = 1_000_000
LARGEST_RANK = 32
_DEEPEST = 64
_DTYPES = {
    name: getattr(torch, name)
    for name in (
        "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
        "float16", "bfloat16", "float32", "float64", "complex64", "complex128",
    )
}  # fmt: skip


def read_flax_checkpoint(path: Path) -> dict[str, Any]:
    """A Flax training state as nested dictionaries.

    Nothing in the file can run code, and no more memory is taken than the file is large.

    Returns:
        By name, sub-dictionaries; arrays and scalars as CPU tensors of their own shape and dtype; plain numbers, texts
        and None as they are.

    Raises:
        UsageError: no such file, truncated, malformed, or not a map of names.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such file; give the checkpoint to convert")
    return parse_flax_checkpoint(path.read_bytes(), str(path))


def parse_flax_checkpoint(data: bytes, where: str) -> dict[str, Any]:
    """The contents of such a file; ``where`` names it in messages. Result and errors as ``read_flax_checkpoint``."""
    try:
        state = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            object_pairs_hook=_map,
            ext_hook=_extension,
            # Lists do not occur outside extension objects, and the parser would reserve room for as many entries as a
            # list claims to have.
            max_array_len=LARGEST_RANK,
            max_map_len=LARGEST_MAP,
        )
        if not isinstance(state, dict):
            raise ValueError("it does not hold a map of names")
        flatten(state)
    # The parser reports a truncated file as ValueError and much of what else can be wrong by classes of its own.
    except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(
            f"{where}: not a readable Flax checkpoint ({first_line[:160]}); the file is truncated, damaged or of "
            "another program"
        ) from None
    return state


def flatten(state: Mapping[str, Any]) -> dict[str, Any]:
    """What is not a dictionary, by its path of names joined with "/", in the order of the file.

    Raises:
        ValueError: nested more than 64 deep, or two entries with one path.
    """
    leaves: dict[str, Any] = {}

    def visit(mapping: Mapping[str, Any], path: tuple[str, ...]) -> None:
        if len(path) > _DEEPEST:
            raise ValueError(f"nested more than {_DEEPEST} deep")
        for name, value in mapping.items():
            if isinstance(value, Mapping):
                visit(value, (*path, name))
            elif (joined := "/".join((*path, name))) in leaves:
                raise ValueError(f"two entries with the path '{joined}'")
            else:
                leaves[joined] = value

    visit(state, ())
    return leaves


def _map(pairs: list[tuple[Any, Any]]) -> Any:
    mapping = {}
    for name, value in pairs:
        if not isinstance(name, str):
            raise ValueError(f"a name is a {type(name).__name__}, not a text")
        if name in mapping:
            raise ValueError(f"the name '{name}' occurs twice in one map")
        mapping[name] = value
    return _joined(mapping) if CHUNKED in mapping else mapping


def _extension(code: int, payload: bytes) -> torch.Tensor:
    if code not in (ARRAY, SCALAR):
        raise ValueError(f"unknown extension type {code}")
    content = msgpack.unpackb(payload, raw=False, max_array_len=LARGEST_RANK, max_map_len=0)
    if not isinstance(content, list) or len(content) != 3:
        raise ValueError("an array is not made of shape, dtype and numbers")
    shape, dtype_name, numbers = content
    if not isinstance(numbers, bytes):
        raise ValueError("the numbers of an array are not bytes")
    if not isinstance(dtype_name, str) or dtype_name not in _DTYPES:
        raise ValueError(f"unknown dtype {str(dtype_name)[:40]!r}")
    dtype = _DTYPES[dtype_name]
    shape = _checked_shape(shape)
    if math.prod(shape) * dtype.itemsize != len(numbers):
        raise ValueError(f"an array of shape {shape} and dtype {dtype_name} has {len(numbers)} bytes")
    if code == SCALAR and shape:
        raise ValueError(f"a scalar has the shape {shape}")
    if not numbers:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(numbers), dtype=dtype).reshape(shape)


def _checked_shape(shape: Any) -> tuple[int, ...]:
    sizes = shape if isinstance(shape, list) else [None]
    if not all(isinstance(size, int) and not isinstance(size, bool) and 0 <= size < 2**63 for size in sizes):
        raise ValueError(f"{str(shape)[:40]} is not the shape of an array")
    return tuple(sizes)


def _joined(mapping: dict[str, Any]) -> torch.Tensor:
    """An array that was written in pieces."""
    shape = _checked_shape(_listed(mapping.get("shape"), lambda size: isinstance(size, int)))
    pieces = _listed(mapping.get("chunks"), lambda piece: isinstance(piece, torch.Tensor))
    if not pieces or len({piece.dtype for piece in pieces}) > 1:
        raise ValueError("an array in pieces has none, or pieces of different dtypes")
    if sum(piece.numel() for piece in pieces) != math.prod(shape):
        raise ValueError(f"the pieces of an array do not add up to its shape {shape}")
    return torch.cat([piece.flatten() for piece in pieces]).reshape(shape)


def _listed(mapping: Any, accepts: Callable[[Any], bool]) -> list[Any]:
    """The entries "0", "1", ... of a map, which is how Flax writes a tuple."""
    entries = mapping if isinstance(mapping, dict) else {"": None}
    names = [str(index) for index in range(len(entries))]
    if set(names) != set(entries) or not all(map(accepts, entries.values())):
        raise ValueError("an array in pieces lacks its shape or one of its pieces")
    return [entries[name] for name in names]
