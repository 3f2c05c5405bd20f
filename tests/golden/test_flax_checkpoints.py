"""Flax training states: every recorded array, from the bytes of the file."""

import numpy as np
import pytest
import torch

from tests.golden import vectors
from util.errors import UsageError
from util.flax_checkpoint import flatten, parse_flax_checkpoint, read_flax_checkpoint

FILES = [
    ("scoreflow", "checkpoint_blob_score"),
    ("scoreflow", "checkpoint_blob_dequantizer"),
    ("idode", "checkpoint_blob_vdm"),
]


def recorded(system: str, name: str) -> tuple[bytes, dict[str, np.ndarray]]:
    arrays = vectors.load(system, name)
    expected = {key.removeprefix("expect/"): array for key, array in arrays.items() if key.startswith("expect/")}
    return arrays["blob"].tobytes(), expected


@pytest.mark.parametrize(("system", "name"), FILES)
def test_every_array(system, name, tmp_path):
    blob, expected = recorded(system, name)
    path = tmp_path / "checkpoint_1"
    path.write_bytes(blob)
    leaves = flatten(read_flax_checkpoint(path))
    arrays = {path: value for path, value in leaves.items() if isinstance(value, torch.Tensor | int | float)}
    assert set(arrays) == set(expected)
    for path, value in arrays.items():
        if isinstance(value, torch.Tensor):
            assert value.numpy().dtype == expected[path].dtype, path
        np.testing.assert_array_equal(np.asarray(value), expected[path], path)
        assert np.asarray(value).shape == expected[path].shape, path


@pytest.mark.parametrize(("system", "name"), FILES)
def test_a_truncated_file_is_refused_wherever_it_ends(system, name):
    blob, _ = recorded(system, name)
    for length in {0, 1, 2, len(blob) // 3, len(blob) // 2, len(blob) - 1}:
        with pytest.raises(UsageError, match="checkpoint_26: not a readable Flax checkpoint"):
            parse_flax_checkpoint(blob[:length], "checkpoint_26")
