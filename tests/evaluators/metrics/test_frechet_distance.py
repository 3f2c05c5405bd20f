"""The Frechet distance against closed forms and an independent matrix square root."""

import logging
import math

import numpy as np
import pytest
import scipy.linalg
import scipy.stats

from evaluators.metrics.frechet_distance import (
    RunningStatistics,
    Statistics,
    compute_statistics,
    frechet_distance,
    frechet_infinity,
)


def _gaussian(mean: np.ndarray, covariance: np.ndarray) -> Statistics:
    return Statistics(np.asarray(mean, float), np.asarray(covariance, float), None)


def _random(rng: np.random.Generator, n: int, rank: int) -> Statistics:
    root = rng.standard_normal((n, rank))
    return _gaussian(rng.standard_normal(n), root @ root.T)


def test_commuting_covariances() -> None:
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    a, b = rng.uniform(0.1, 5.0, 6), rng.uniform(0.1, 5.0, 6)
    mean = rng.standard_normal(6)
    first, second = _gaussian(mean, basis @ np.diag(a) @ basis.T), _gaussian(-mean, basis @ np.diag(b) @ basis.T)
    expected = 4.0 * np.square(mean).sum() + np.square(np.sqrt(a) - np.sqrt(b)).sum()
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-12)


def test_two_by_two_closed_form() -> None:
    # tr (S1 S2)^(1/2) = sqrt(tr S1 S2 + 2 sqrt(det S1 S2)) for 2x2 matrices.
    s1, s2 = np.array([[2.0, 0.7], [0.7, 1.0]]), np.array([[1.0, -0.4], [-0.4, 3.0]])
    cross = math.sqrt(np.trace(s1 @ s2) + 2.0 * math.sqrt(np.linalg.det(s1) * np.linalg.det(s2)))
    expected = 1.0 + np.trace(s1) + np.trace(s2) - 2.0 * cross
    assert frechet_distance(_gaussian([1, 0], s1), _gaussian([0, 0], s2)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("n", [3, 20, 100])
def test_agrees_with_a_matrix_square_root(n: int) -> None:
    rng = np.random.default_rng(n)
    first, second = _random(rng, n, 2 * n), _random(rng, n, 2 * n)
    root = scipy.linalg.sqrtm(first.covariance @ second.covariance)
    expected = (
        np.square(first.mean - second.mean).sum()
        + np.trace(first.covariance + second.covariance - 2.0 * root.real)
    )  # fmt: skip
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(second, first) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("rank", [0, 1, 7, 30])
def test_singular_covariances(rank: int) -> None:
    rng = np.random.default_rng(rank)
    root = rng.standard_normal((30, rank))
    first = _gaussian(np.zeros(30), root @ root.T)
    assert 0.0 <= frechet_distance(first, first) <= 1e-12 * max(1.0, np.trace(first.covariance))
    # Scaling by c^2 commutes: (1 - c)^2 tr S.
    scaled = _gaussian(np.zeros(30), 9.0 * first.covariance)
    assert frechet_distance(first, scaled) == pytest.approx(4.0 * np.trace(first.covariance), rel=1e-10, abs=1e-12)


def test_orthogonal_supports() -> None:
    first, second = np.diag([1.0, 2.0, 0.0, 0.0]), np.diag([0.0, 0.0, 3.0, 0.0])
    assert frechet_distance(_gaussian(np.zeros(4), first), _gaussian(np.zeros(4), second)) == pytest.approx(6.0)


def test_equal_gaussians_are_at_distance_zero() -> None:
    rng = np.random.default_rng(1)
    for n in (2, 50, 200):
        gaussian = _random(rng, n, 3 * n)
        distance = frechet_distance(gaussian, gaussian)
        assert 0.0 <= distance <= 1e-11 * np.trace(gaussian.covariance)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_not_hidden(value: float) -> None:
    good, bad = _gaussian(np.zeros(2), np.eye(2)), _gaussian(np.zeros(2), np.eye(2))
    bad.covariance[1, 1] = value
    assert math.isnan(frechet_distance(good, bad))
    bad = _gaussian([value, 0.0], np.eye(2))
    assert math.isnan(frechet_distance(bad, good))


def test_no_covariance() -> None:
    good = _gaussian(np.zeros(2), np.eye(2))
    with pytest.raises(ValueError, match=r"eigenvalues from -0\.5 to 1"):
        frechet_distance(good, _gaussian(np.zeros(2), np.diag([1.0, -0.5])))
    with pytest.raises(ValueError, match="different dimensions"):
        frechet_distance(good, _gaussian(np.zeros(3), np.eye(3)))


@pytest.mark.parametrize("n", [5, 4096, 10_001])
def test_statistics_agree_with_numpy(n: int) -> None:
    features = (np.random.default_rng(n).standard_normal((n, 7)) + 100.0).astype(np.float32)
    statistics = compute_statistics(features)
    np.testing.assert_allclose(statistics.mean, features.astype(float).mean(0), rtol=1e-13)
    expected = np.cov(features.astype(float), rowvar=False)
    np.testing.assert_allclose(statistics.covariance, expected, rtol=1e-10, atol=1e-12)
    assert statistics.n_samples == n


def test_few_samples_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        compute_statistics(np.eye(4, 6, dtype=np.float32))
    assert "singular" in caplog.text
    with pytest.raises(ValueError, match="at least two"):
        compute_statistics(np.ones((1, 3)))


def test_samples_of_known_gaussians() -> None:
    rng = np.random.default_rng(3)
    n = 200_000
    a, b = np.array([1.0, 2.0, 0.5]), np.array([1.5, 1.0, 0.5])
    first = compute_statistics((rng.standard_normal((n, 3)) * a).astype(np.float32))
    second = compute_statistics((rng.standard_normal((n, 3)) * b + 1.0).astype(np.float32))
    assert frechet_distance(first, second) == pytest.approx(3.0 + np.square(a - b).sum(), abs=0.05)


def test_statistics_of_features_that_come_a_few_at_a_time() -> None:
    features = np.random.default_rng(4).standard_normal((700, 600)).astype(np.float32) + 1000.0
    running = RunningStatistics(600)
    for start, stop in ((0, 1), (1, 300), (300, 700)):
        running.add(features[start:stop])
        if stop == 300:
            first = running.statistics()
    for statistics, n in ((first, 300), (running.statistics(), 700)):
        expected = np.cov(features[:n].astype(float), rowvar=False)
        np.testing.assert_allclose(statistics.covariance, expected, rtol=0, atol=1e-9)
        np.testing.assert_allclose(statistics.mean, features[:n].astype(float).mean(axis=0), rtol=1e-13)
        assert statistics.n_samples == n


def test_features_that_are_not_finite_are_named() -> None:
    features = np.zeros((5000, 3), np.float32)
    features[4500, 2] = math.nan
    with pytest.raises(ValueError, match="sample 4500 are not finite"):
        compute_statistics(features)


@pytest.mark.parametrize("ranks", [(8, 30), (30, 8), (8, 12), (29, 30)])
def test_covariances_of_different_ranks(ranks: tuple[int, int]) -> None:
    rng = np.random.default_rng(sum(ranks))
    roots = [rng.standard_normal((30, rank)) for rank in ranks]
    first, second = (_gaussian(np.zeros(30), root @ root.T) for root in roots)
    cross = np.linalg.svd(roots[0].T @ roots[1], compute_uv=False).sum()
    expected = np.trace(first.covariance) + np.trace(second.covariance) - 2.0 * cross
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-9)


def test_straight_line_against_the_inverse_number_of_samples() -> None:
    value, error = frechet_infinity([(n, 3.0 + 500.0 / n) for n in (1000, 2000, 5000)])
    assert (value, error) == (pytest.approx(3.0, rel=1e-12), pytest.approx(0.0, abs=1e-12))
    value, error = frechet_infinity([(100, 7.0), (200, 6.0)])
    assert value == pytest.approx(5.0)
    assert math.isnan(error)
    with pytest.raises(ValueError, match="two different"):
        frechet_infinity([(100, 7.0), (100, 7.5)])


def test_intercept_and_its_error_are_those_of_a_linear_regression() -> None:
    counts = np.array([1000, 2000, 3000, 5000, 9000])
    values = 4.0 + 800.0 / counts + np.array([0.1, -0.2, 0.05, 0.15, -0.1])
    expected = scipy.stats.linregress(1.0 / counts, values)
    value, error = frechet_infinity(list(zip(counts.tolist(), values.tolist(), strict=True)))
    assert (value, error) == pytest.approx((expected.intercept, expected.intercept_stderr), rel=1e-9)


def test_extrapolation_is_near_the_distance_of_the_gaussians_themselves() -> None:
    rng = np.random.default_rng(6)
    generated = rng.standard_normal((4000, 40)) + 0.1
    truth = Statistics(np.zeros(40), np.eye(40), None)
    running, points = RunningStatistics(40), []
    for start in range(0, 4000, 500):
        running.add(generated[start : start + 500])
        points.append((start + 500, frechet_distance(running.statistics(), truth)))
    value, _ = frechet_infinity(points[1:])
    assert abs(value - 0.4) < 0.05
    assert points[1][1] - 0.4 > 0.3
