"""The kernel distance against sums over every pair, and its standard error against repeated experiments."""

import math
from pathlib import Path

import numpy as np
import pytest

from evaluators.metrics import kernel_distance as module
from evaluators.metrics.kernel_distance import kernel_distance


def pair_by_pair(x: np.ndarray, y: np.ndarray) -> float:
    def k(a: np.ndarray, b: np.ndarray) -> float:
        return (float(a @ b) / len(a) + 1.0) ** 3

    n, m = len(x), len(y)
    within_x = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within_y = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return within_x + within_y - 2.0 * sum(k(a, b) for a in x for b in y) / (n * m)


def jackknife(x: np.ndarray, y: np.ndarray, n_groups: int) -> float:
    """Standard error, each group left out in turn and everything computed again."""
    variance = 0.0
    for which, features in enumerate((x, y)):
        values = []
        for group in np.array_split(np.arange(len(features)), n_groups):
            sets = [x, y]
            sets[which] = np.delete(features, group, axis=0)
            values.append(pair_by_pair(*sets))
        variance += (n_groups - 1) / n_groups * np.square(np.array(values) - np.mean(values)).sum()
    return math.sqrt(variance)


@pytest.mark.parametrize("block", [1, 3, 100])
def test_sums_over_pairs(block: int) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((40, 5)), rng.standard_normal((20, 5)) * 1.3
    value, error = kernel_distance(x, y, block=block)
    assert value == pytest.approx(pair_by_pair(x, y), rel=1e-12)
    assert error == pytest.approx(jackknife(x, y, module.N_GROUPS), rel=1e-9)


def test_a_set_and_itself() -> None:
    x = np.random.default_rng(1).standard_normal((30, 4))
    assert kernel_distance(x, x, block=8) == kernel_distance(x, x.copy(), block=8)
    assert kernel_distance(x, x).value == pytest.approx(pair_by_pair(x, x), rel=1e-10)


def test_standard_error_is_the_spread_of_repeated_experiments() -> None:
    rng = np.random.default_rng(2)
    estimates = [
        kernel_distance(rng.standard_normal((200, 3)) + 0.5, rng.standard_normal((300, 3))) for _ in range(200)
    ]
    values, errors = np.array(estimates).T
    # The spread of 200 values is known to 5 %, and so is the mean of errors that scatter by a fifth.
    assert errors.mean() == pytest.approx(values.std(ddof=1), rel=0.2)


def test_features_on_disk_in_half_the_precision(tmp_path: Path) -> None:
    x = np.random.default_rng(3).standard_normal((50, 6)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert kernel_distance(mapped, x[:30], block=16) == kernel_distance(x, x[:30], block=16)


def test_two_samples_have_a_value_and_no_error() -> None:
    x, y = np.eye(2, 3), np.ones((5, 3))
    value, error = kernel_distance(x, y)
    assert value == pytest.approx(pair_by_pair(x, y))
    assert math.isnan(error)


def test_what_cannot_be_compared() -> None:
    x = np.ones((5, 3))
    with pytest.raises(ValueError, match="at least two"):
        kernel_distance(x[:1], x)
    with pytest.raises(ValueError, match="different dimensions: 3 and 2"):
        kernel_distance(x, x[:, :2])
    with pytest.raises(ValueError, match="shape"):
        kernel_distance(x[0], x)
    broken = x.copy()
    broken[4, 1] = math.inf
    with pytest.raises(ValueError, match="sample 4 are not finite"):
        kernel_distance(x, broken, block=2)
