"""Improved precision and recall against all distances at once, with ties, copies, and scarce memory."""

import math

import numpy as np
import pytest
import torch

from evaluators.metrics.precision_recall import precision_recall


def all_at_once(x: np.ndarray, y: np.ndarray, k: int) -> tuple[float, float]:
    """From differences of every pair."""

    def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.square(a[:, None].astype(float) - b[None].astype(float)).sum(axis=2)

    def radii(a: np.ndarray) -> np.ndarray:
        squares = distances(a, a)
        np.fill_diagonal(squares, np.inf)
        return np.sort(squares, axis=1)[:, k - 1]

    squares = distances(x, y)
    return (squares <= radii(y)).any(axis=1).mean(), (squares <= radii(x)[:, None]).any(axis=0).mean()


@pytest.mark.parametrize("block", [2, 13, 1000])
@pytest.mark.parametrize("k", [1, 3, 6])
def test_random_features(k: int, block: int) -> None:
    rng = np.random.default_rng(k)
    x, y = rng.standard_normal((61, 4)), 1.2 * rng.standard_normal((90, 4)).astype(np.float32)
    assert precision_recall(x, y, k, block) == pytest.approx(all_at_once(x, y, k), abs=1e-15)


@pytest.mark.parametrize("block", [3, 1000])
def test_whole_numbers_have_many_ties(block: int) -> None:
    rng = np.random.default_rng(5)
    x, y = rng.integers(0, 3, (50, 3)), rng.integers(1, 4, (70, 3))
    # Neither scale is a power of two, so that scalar products round.
    x, y = 0.1 * x, 0.1 * y
    assert precision_recall(x, y, 3, block) == pytest.approx(all_at_once(x, y, 3), abs=1e-15)


def test_copies_are_covered_though_their_radius_is_zero() -> None:
    collapsed = np.full((20, 8), 0.1)
    real = np.concatenate([collapsed[:5], np.random.default_rng(0).standard_normal((15, 8))])
    assert precision_recall(collapsed, real) == (1.0, 0.25)


def test_a_set_covers_itself() -> None:
    x = 100.0 + np.random.default_rng(1).standard_normal((40, 16))
    assert precision_recall(x, x.copy(), k=1, block=9) == (1.0, 1.0)


def test_distances_are_never_held_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    product = torch.addmm

    def addmm(*arguments: torch.Tensor, **options: float) -> torch.Tensor:
        shapes.append(arguments[1].shape[0] * arguments[2].shape[1])
        return product(*arguments, **options)

    monkeypatch.setattr(torch, "addmm", addmm)
    features = np.random.default_rng(2).standard_normal((500, 2)).astype(np.float32)
    precision_recall(features, features[::-1].copy(), block=50)
    assert max(shapes) == 50 * 50
    assert len(shapes) == 3 * 10 * 10


def test_what_cannot_be_compared() -> None:
    x = np.ones((5, 3))
    with pytest.raises(ValueError, match="neighbour 5 needs at least 6 samples"):
        precision_recall(x, x, k=5)
    with pytest.raises(ValueError, match="neighbour 0"):
        precision_recall(x, x, k=0)
    with pytest.raises(ValueError, match="different dimensions"):
        precision_recall(x, x[:, :2])
    broken = x.copy()
    broken[1, 1] = math.nan
    with pytest.raises(ValueError, match="sample 1 are not finite"):
        precision_recall(x, broken)
