"""The Frechet distance between two Gaussians, and the mean and covariance it is computed from."""

import logging
from dataclasses import dataclass

import numpy as np

logger = logging.getLogger(__name__)

NEGATIVE_EIGENVALUE_TOLERANCE = 1e-5
"""Negative eigenvalues up to this part of the largest are taken for zero: files may hold float32 numbers."""

_ROWS = 4096


@dataclass(frozen=True)
class Statistics:
    """Mean float64 (F,) and covariance float64 (F, F) of features, and the number of samples they are from
    (None where that is not known)."""

    mean: np.ndarray
    covariance: np.ndarray
    n_samples: int | None


def compute_statistics(features: np.ndarray) -> Statistics:
    """Mean and unbiased covariance of features (N, F), N at least 2, summed in float64 in index order."""
    n, n_features = features.shape
    if n < 2:
        raise ValueError("a covariance needs at least two samples")
    if n <= n_features:
        logger.warning("%d samples of %d features: their covariance is singular", n, n_features)
    mean = features.mean(axis=0, dtype=np.float64)
    covariance = np.zeros((n_features, n_features))
    for start in range(0, n, _ROWS):
        centred = features[start : start + _ROWS] - mean
        covariance += centred.T @ centred
    return Statistics(mean, covariance / (n - 1), n)


def frechet_distance(first: Statistics, second: Statistics) -> float:
    """Squared Frechet (2-Wasserstein) distance between two Gaussians.

    |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1^(1/2) S2 S1^(1/2))^(1/2) (Dowson and Landau, J. Multivariate Anal.
    12, 1982; Heusel et al., NeurIPS 2017, eq. 6). With S = A A^T from a symmetric eigendecomposition, the
    last trace is the sum of the singular values of A1^T A2. Unlike a matrix square root of S1 S2, that needs
    no regularisation where covariances are singular, and takes no square roots of round-off.

    Returns:
        The distance, zero or more; NaN where a mean or covariance holds a number that is not finite.

    Raises:
        ValueError: the dimensions differ, or a covariance has a negative eigenvalue.
    """
    if first.mean.shape != second.mean.shape:
        raise ValueError(f"features of different dimensions: {first.mean.shape} and {second.mean.shape}")
    if not all(np.isfinite(s.mean).all() and np.isfinite(s.covariance).all() for s in (first, second)):
        return float("nan")
    factors = [_factor(s.covariance) for s in (first, second)]
    cross = float(np.linalg.svd(factors[0].T @ factors[1], compute_uv=False).sum())
    traces = float(np.trace(first.covariance) + np.trace(second.covariance))
    squared_means = float(np.square(first.mean - second.mean).sum())
    distance = squared_means + (traces - 2.0 * cross)
    # The three terms cancel for equal Gaussians, to within round-off of each.
    round_off = 10.0 * len(first.mean) * np.finfo(np.float64).eps * (squared_means + traces)
    return 0.0 if -round_off <= distance < 0.0 else distance


def smallest_and_largest_eigenvalue(covariance: np.ndarray) -> tuple[float, float]:
    """Of a symmetric float64 (F, F) matrix."""
    eigenvalues = np.linalg.eigvalsh(covariance)
    return float(eigenvalues[0]), float(eigenvalues[-1])


def _factor(covariance: np.ndarray) -> np.ndarray:
    """A with covariance = A A^T, float64 (F, rank)."""
    eigenvalues, vectors = np.linalg.eigh(covariance)
    largest = max(float(eigenvalues[-1]), 0.0)
    if eigenvalues[0] < -NEGATIVE_EIGENVALUE_TOLERANCE * largest:
        raise ValueError(f"a covariance has eigenvalues from {eigenvalues[0]:.3g} to {largest:.3g}")
    kept = eigenvalues > len(eigenvalues) * np.finfo(np.float64).eps * largest
    return vectors[:, kept] * np.sqrt(eigenvalues[kept])
