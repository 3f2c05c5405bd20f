"""The Frechet distance between two Gaussians, the mean and covariance it is computed from, and its limit for
infinitely many samples."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from evaluators.metrics.blocks import ranges, read_rows

logger = logging.getLogger(__name__)

NEGATIVE_EIGENVALUE_TOLERANCE = 1e-5
"""Negative eigenvalues up to this part of the largest are taken for zero: files may hold float32 numbers."""

_ROWS = 4096
_COLUMNS = 512


@dataclass(frozen=True)
class Statistics:
    """Mean float64 (F,) and covariance float64 (F, F) of features, and the number of samples they are from
    (None where that is not known)."""

    mean: np.ndarray
    covariance: np.ndarray
    n_samples: int | None


class RunningStatistics:
    """Mean and covariance of features that come a few at a time, each read once.

    Float64 throughout; a block's scatter matrix about its own mean is joined with that of all before it (Chan, Golub
    and LeVeque, The American Statistician 37, 1983, eq. 2.1), so that nothing cancels where means are large.

    Attributes:
        n_samples: features so far.
    """

    def __init__(self, n_features: int) -> None:
        self.n_samples = 0
        self._mean = torch.zeros(n_features, dtype=torch.float64)
        self._scatter = torch.zeros((n_features, n_features), dtype=torch.float64)

    def add(self, features: np.ndarray) -> None:
        """Take in features (N, F), float32 or float64, in index order.

        Raises:
            ValueError: a number is not finite.
        """
        for start, stop in ranges(len(features), _ROWS):
            rows = read_rows(features, start, stop)
            mean = rows.mean(dim=0)
            rows -= mean
            n, total = len(rows), self.n_samples + len(rows)
            shift = mean - self._mean
            for left, right in ranges(len(mean), _COLUMNS):
                # The matrix is symmetric: only what is on and above its diagonal blocks is kept.
                above = self._scatter[left:right, left:]
                above += rows[:, left:right].T @ rows[:, left:]
                above += torch.outer(shift[left:right], shift[left:]) * (n * self.n_samples / total)
            self._mean += shift * (n / total)
            self.n_samples = total

    def statistics(self) -> Statistics:
        """Of the features so far, with the unbiased covariance.

        Raises:
            ValueError: there are fewer than two.
        """
        if self.n_samples < 2:
            raise ValueError("a covariance needs at least two samples")
        upper = self._scatter.triu()
        covariance = (upper + upper.triu(1).T) / (self.n_samples - 1)
        return Statistics(self._mean.numpy().copy(), covariance.numpy(), self.n_samples)


def compute_statistics(features: np.ndarray) -> Statistics:
    """Mean and unbiased covariance of features (N, F), N at least 2, in float64, read once in index order.

    Raises:
        ValueError: fewer than two samples, or a number that is not finite.
    """
    n, n_features = features.shape
    if n <= n_features:
        logger.warning("%d samples of %d features: their covariance is singular", n, n_features)
    running = RunningStatistics(n_features)
    running.add(features)
    return running.statistics()


def frechet_distance(first: Statistics, second: Statistics) -> float:
    """Squared Frechet (2-Wasserstein) distance between two Gaussians.

    |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1^(1/2) S2 S1^(1/2))^(1/2) (Dowson and Landau, J. Multivariate Anal.
    12, 1982; Heusel et al., NeurIPS 2017, eq. 6). With S = A A^T the last trace is the sum of the singular values of
    A1^T A2, square roots of the eigenvalues of its Gram matrix. A is a Cholesky factor; only where a covariance is
    singular it comes from an eigendecomposition, without the null space, whose round-off would have square roots a
    million times as large. Unlike a matrix square root of S1 S2, that needs no regularisation.

    Returns:
        The distance, zero or more; NaN where a mean or covariance holds a number that is not finite.

    Raises:
        ValueError: the dimensions differ, or a covariance has a negative eigenvalue.
    """
    if first.mean.shape != second.mean.shape:
        raise ValueError(f"features of different dimensions: {first.mean.shape} and {second.mean.shape}")
    if not all(np.isfinite(s.mean).all() and np.isfinite(s.covariance).all() for s in (first, second)):
        return float("nan")
    products = _factor(first.covariance).T @ _factor(second.covariance)
    gram = products @ products.T if len(products) <= products.shape[1] else products.T @ products
    # Empty where a covariance is zero. Below zero there is only round-off of zero.
    cross = float(torch.linalg.eigvalsh(gram).clamp(min=0.0).sqrt().sum()) if gram.numel() else 0.0
    traces = float(np.trace(first.covariance) + np.trace(second.covariance))
    squared_means = float(np.square(first.mean - second.mean).sum())
    distance = squared_means + (traces - 2.0 * cross)
    # The three terms cancel for equal Gaussians, to within round-off of each.
    round_off = 10.0 * len(first.mean) * np.finfo(np.float64).eps * (squared_means + traces)
    return 0.0 if -round_off <= distance < 0.0 else distance


def frechet_infinity(values_at_n: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """The Frechet distance of infinitely many samples, extrapolated: FID-infinity.

    The distance of n samples is biased by about a constant times 1/n; the intercept of the straight line that fits
    it against 1/n by least squares is free of that (Chong and Forsyth, CVPR 2020, section 3).

    Args:
        values_at_n: (n, distance of n samples), of at least two different n.

    Returns:
        The intercept, and its standard error from the residuals of the fit (NaN where there are only two points). Where
        the sets of samples contain each other, as the first n of one sequence do, residuals are not independent: then
        the error is that of the straight line, not that of drawing other samples.

    Raises:
        ValueError: fewer than two different n.
    """
    counts = np.array([n for n, _ in values_at_n], dtype=np.float64)
    values = np.array([value for _, value in values_at_n], dtype=np.float64)
    if len(set(counts)) < 2:
        raise ValueError("an extrapolation needs the distance at two different numbers of samples")
    inverse = 1.0 / counts
    centred = inverse - inverse.mean()
    spread = float(np.square(centred).sum())
    slope = float(centred @ (values - values.mean())) / spread
    intercept = float(values.mean() - slope * inverse.mean())
    if len(values) == 2:
        return intercept, math.nan
    residuals = values - intercept - slope * inverse
    variance = float(np.square(residuals).sum()) / (len(values) - 2)
    return intercept, math.sqrt(variance * (1.0 / len(values) + float(inverse.mean()) ** 2 / spread))


def smallest_and_largest_eigenvalue(covariance: np.ndarray) -> tuple[float, float]:
    """Of a symmetric float64 (F, F) matrix."""
    eigenvalues = np.linalg.eigvalsh(covariance)
    return float(eigenvalues[0]), float(eigenvalues[-1])


def _factor(covariance: np.ndarray) -> torch.Tensor:
    """A with covariance = A A^T, float64 (F, rank)."""
    matrix = torch.from_numpy(np.ascontiguousarray(covariance, dtype=np.float64))
    negligible = len(matrix) * np.finfo(np.float64).eps
    factor, failed = torch.linalg.cholesky_ex(matrix)
    pivots = factor.diagonal().square()
    if not failed and pivots.min() > negligible * pivots.max():
        return factor
    eigenvalues, vectors = torch.linalg.eigh(matrix)
    smallest, largest = float(eigenvalues[0]), max(float(eigenvalues[-1]), 0.0)
    if smallest < -NEGATIVE_EIGENVALUE_TOLERANCE * largest:
        raise ValueError(f"a covariance has eigenvalues from {smallest:.3g} to {largest:.3g}")
    kept = eigenvalues > negligible * largest
    return vectors[:, kept] * eigenvalues[kept].sqrt()
