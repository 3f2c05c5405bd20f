"""Files of arrays: written in parts, read where they are used, and never taken for whole when they are not."""

from pathlib import Path

import numpy as np
import pytest

from evaluators.files import ArrayInParts, map_arrays, read_arrays, write_arrays

ARRAYS = {
    "features": np.random.default_rng(0).standard_normal((50, 7)).astype(np.float32),
    "numbers": np.arange(4),
    "words": np.array("text"),
    "nothing": np.empty((0, 3)),
}


def test_parts_and_the_whole_make_the_same_file(tmp_path: Path) -> None:
    write_arrays(tmp_path / "whole.npz", ARRAYS)
    features = ARRAYS["features"]
    parts = ArrayInParts(features.shape, features.dtype, (features[start : start + 8] for start in range(0, 50, 8)))
    write_arrays(tmp_path / "parts.npz", {**ARRAYS, "features": parts})
    assert (tmp_path / "whole.npz").read_bytes() == (tmp_path / "parts.npz").read_bytes()


@pytest.mark.parametrize("part", [np.zeros((2, 3)), np.zeros((1, 4)), np.zeros((2, 4), np.float32)])
def test_parts_that_do_not_make_the_whole_leave_no_file(tmp_path: Path, part: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"a part of|rows in parts"):
        write_arrays(tmp_path / "a.npz", {"a": ArrayInParts((2, 4), np.dtype(np.float64), [part])})
    assert list(tmp_path.iterdir()) == []


def test_mapped_arrays_are_those_that_were_written(tmp_path: Path) -> None:
    write_arrays(tmp_path / "a.npz", ARRAYS)
    np.savez(tmp_path / "b.npz", columns=np.asfortranarray(np.arange(6.0).reshape(2, 3)), **ARRAYS)
    for name in ("a", "b"):
        mapped = map_arrays(tmp_path / f"{name}.npz")
        assert mapped is not None
        for key, array in ARRAYS.items():
            np.testing.assert_array_equal(mapped[key], array)
            assert mapped[key].dtype == array.dtype
        assert isinstance(mapped["features"], np.memmap)
        assert not mapped["features"].flags.writeable
    np.testing.assert_array_equal(mapped["columns"], np.arange(6.0).reshape(2, 3))


def test_files_that_cannot_be_mapped(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    assert map_arrays(path) is None
    write_arrays(path, ARRAYS)
    whole = path.read_bytes()
    altered = bytearray(whole)
    altered[len(whole) // 4] ^= 1
    for content in (b"", b"text", whole[: len(whole) // 2], bytes(altered)):
        path.write_bytes(content)
        assert map_arrays(path) is None
    np.savez(path, objects=np.array([{}], dtype=object))
    assert map_arrays(path) is None
    np.savez_compressed(path, **ARRAYS)
    compressed = map_arrays(path)
    assert compressed is not None
    np.testing.assert_array_equal(compressed["features"], ARRAYS["features"])
    assert read_arrays(path, ["numbers"]).keys() == {"numbers"}
