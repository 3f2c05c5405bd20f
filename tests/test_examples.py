"""The programs of docs/examples do what they say. The system among them has tests of its own (tests/system)."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from docs.examples.samples_from_a_snapshot import draw
from tests.system.in_process import run_here
from util.images import to_uint8


@pytest.mark.slow
def test_cld_on_a_gaussian() -> None:
    found = runpy.run_module("docs.examples.cld_on_a_gaussian")
    samples, data = found["samples"], found["data"]
    torch.testing.assert_close(samples.mean(0), data.mean, rtol=0, atol=0.03)
    torch.testing.assert_close(samples.T.cov(), data.covariance, rtol=0, atol=0.02)


def test_exact_likelihood() -> None:
    error = runpy.run_module("docs.examples.exact_likelihood")["error"]
    assert error.abs().max() < 2e-3
    assert error.mean().abs() < 1e-4


@pytest.mark.slow
def test_samples_from_a_snapshot_are_those_of_mode_sample(tmp_path: Path) -> None:
    options = {"config": "configs/smoke/tiny.txt", "device": "cpu", "sampling_batch_size": 4, "eval_n_samples": 4}
    run_here(tmp_path, n_train_iters=2, **options)
    run_here(tmp_path, n_train_iters=2, mode="sample", eval_folder="drawn", **options)
    drawn = np.load(tmp_path / "drawn" / "samples.npz")["samples"]
    here = to_uint8(draw(tmp_path / "checkpoints" / "checkpoint.pth", n_samples=4)).permute(0, 2, 3, 1)
    np.testing.assert_array_equal(here.numpy(), drawn)
