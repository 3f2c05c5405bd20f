"""The kernel distance between two sets of features: unbiased squared maximum mean discrepancy."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch

from evaluators.metrics.blocks import check_features, read_rows

N_GROUPS = 20
"""Groups of the jackknife: enough for a standard error to within a sixth of itself, and few enough to hold the kernel's
sums of every pair of them."""


class KernelDistance(NamedTuple):
    """The estimate, which may be negative, and its standard error (NaN below three samples in a set)."""

    value: float
    standard_error: float


def kernel_distance(
    generated: np.ndarray, real: np.ndarray, block: int = 2500, device: torch.device | str = "cpu"
) -> KernelDistance:
    """Unbiased MMD^2 with the kernel (x . y / D + 1)^3, of all samples (Binkowski et al., ICLR 2018, section 4).

    mean k(x, x') + mean k(y, y') - 2 mean k(x, y), a sample never paired with itself (Gretton et al., JMLR 13, 2012,
    eq. 3, which holds for unequal numbers). No subsets are drawn. The standard error is a jackknife of groups of
    consecutive samples, which are left out one at a time, in each set on its own (Arvesen, Ann. Math. Statist. 40,
    1969, for U-statistics of several samples).

    Args:
        generated: (N, D), float32 or float64, N at least 2; may be a memory map.
        real: (M, D), M at least 2.
        block: rows of each set that are held at once; memory is about 8 (2 block D + block^2) bytes.
        device: where kernels are computed, in float64.

    Raises:
        ValueError: shapes that do not go together, fewer than 2 samples, or numbers that are not finite.
    """
    check_features(generated, real)
    if min(len(generated), len(real)) < 2:
        raise ValueError("the kernel distance needs at least two samples of each set")
    sums = (
        _sums_within(generated, block, device),
        _sums_within(real, block, device),
        _sums_between(generated, real, block, device),
    )
    sizes = (_group_sizes(len(generated)), _group_sizes(len(real)))
    variance = sum(_jackknife_variance(sums, sizes, which) for which in (0, 1))
    return KernelDistance(_value(sums, sizes), math.sqrt(variance))


_Sums = tuple[np.ndarray, np.ndarray, np.ndarray]
_Sizes = tuple[np.ndarray, np.ndarray]


def _group_edges(n: int) -> list[int]:
    n_groups = min(N_GROUPS, n)
    return [i * n // n_groups for i in range(n_groups + 1)]


def _group_sizes(n: int) -> np.ndarray:
    return np.diff(_group_edges(n))


def _tiles(n: int, block: int) -> list[tuple[int, int, int]]:
    """(group, start, stop) of about equal tiles of at most ``block`` rows, each within one group."""
    edges = _group_edges(n)
    tiles = []
    for group, (low, high) in enumerate(pairwise(edges)):
        n_parts = -(-(high - low) // block)
        cuts = [low + part * (high - low) // n_parts for part in range(n_parts + 1)]
        tiles += [(group, start, stop) for start, stop in pairwise(cuts)]
    return tiles


def _sums_within(features: np.ndarray, block: int, device: torch.device | str) -> np.ndarray:
    """Sums of the kernel over the pairs of each two groups of one set, none of a sample with itself."""
    tiles = _tiles(len(features), block)
    sums = np.zeros((tiles[-1][0] + 1, tiles[-1][0] + 1))
    for i, (row, start, stop) in enumerate(tiles):
        x = read_rows(features, start, stop, device)
        sums[row, row] += float(_kernel(x, x).fill_diagonal_(0.0).sum())
        for column, left, right in tiles[i + 1 :]:
            total = float(_kernel(x, read_rows(features, left, right, device)).sum())
            sums[row, column] += total
            sums[column, row] += total
    return sums


def _sums_between(first: np.ndarray, second: np.ndarray, block: int, device: torch.device | str) -> np.ndarray:
    """Sums of the kernel over the pairs of each group of one set and each group of another."""
    rows, columns = _tiles(len(first), block), _tiles(len(second), block)
    sums = np.zeros((rows[-1][0] + 1, columns[-1][0] + 1))
    for row, start, stop in rows:
        x = read_rows(first, start, stop, device)
        for column, left, right in columns:
            sums[row, column] += float(_kernel(x, read_rows(second, left, right, device)).sum())
    return sums


def _kernel(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (x @ y.T).div_(x.shape[1]).add_(1.0).pow_(3)


def _value(sums: _Sums, sizes: _Sizes) -> float:
    n, m = (int(size.sum()) for size in sizes)
    if min(n, m) < 2:
        return math.nan
    within_first, within_second, between = (float(part.sum()) for part in sums)
    return within_first / (n * (n - 1)) + within_second / (m * (m - 1)) - 2.0 * between / (n * m)


def _jackknife_variance(sums: _Sums, sizes: _Sizes, which: int) -> float:
    """Of groups of the generated (0) or the real (1) samples."""
    n_groups = len(sizes[which])
    values = []
    for group in range(n_groups):
        kept = np.arange(n_groups) != group
        parts, left = list(sums), list(sizes)
        parts[which] = sums[which][np.ix_(kept, kept)]
        parts[2] = sums[2].compress(kept, axis=which)
        left[which] = sizes[which][kept]
        values.append(_value((parts[0], parts[1], parts[2]), (left[0], left[1])))
    return (n_groups - 1) / n_groups * float(np.square(np.array(values) - np.mean(values)).sum())
