"""Improved precision and recall: how much of one set of features is covered by the neighbourhoods of another."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from evaluators.metrics.blocks import check_features, ranges, read_rows

_PAIRS = 4096
"""Pairs whose differences are held at once."""


class PrecisionRecall(NamedTuple):
    """Parts between 0 and 1."""

    precision: float
    recall: float


def precision_recall(
    generated: np.ndarray, real: np.ndarray, k: int = 3, block: int = 2500, device: torch.device | str = "cpu"
) -> PrecisionRecall:
    """Improved precision and recall (Kynkaanniemi et al., NeurIPS 2019, eq. 1 to 3).

    A sample is covered by a set when its distance to some sample of that set is at most (<=) that sample's distance to
    its k-th nearest neighbour in the set, itself not counted. Precision is the part of the generated samples that the
    real ones cover, recall the part of the real samples that the generated ones cover.

    Distances come from scalar products; where round-off of those could decide, they are computed again from
    differences, so that copies of a sample and ties count as they should.

    Args:
        generated: (N, D), float32 or float64, N more than k; may be a memory map.
        real: (M, D), M more than k.
        k: the neighbour that gives the radius.
        block: rows of each set that are held at once; memory is about 8 (2 block D + 4 block^2) bytes.
        device: where distances are computed, in float64.

    Raises:
        ValueError: shapes that do not go together, no more than k samples, or numbers that are not finite.
    """
    check_features(generated, real)
    if k < 1 or min(len(generated), len(real)) <= k:
        raise ValueError(f"neighbour {k} needs at least {k + 1} samples of each set: {len(generated)} and {len(real)}")
    radii = [_radii(features, k, block, device) for features in (generated, real)]
    covered = [torch.zeros(len(features), dtype=torch.bool, device=device) for features in (generated, real)]
    for start, stop in ranges(len(generated), block):
        x = read_rows(generated, start, stop, device)
        for left, right in ranges(len(real), block):
            y = read_rows(real, left, right, device)
            squares, slack = _squared_distances(x, y)
            # Each sample lends its radius to the other set.
            covered[0][start:stop] |= _covered(x, y, squares, radii[1][left:right], slack)
            covered[1][left:right] |= _covered(y, x, squares.T, radii[0][start:stop], slack)
    precision, recall = (int(part.sum()) / len(part) for part in covered)
    return PrecisionRecall(precision, recall)


def _squared_distances(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, float]:
    """(N, M) from scalar products, and how far from the truth one may be."""
    squares_x, squares_y = x.square().sum(dim=1), y.square().sum(dim=1)
    squares = torch.addmm(squares_y, x, y.T, alpha=-2.0).add_(squares_x[:, None])
    # n products are summed with an error of at most n eps times the sum of their sizes (Higham, Accuracy and
    # Stability of Numerical Algorithms, 2002, section 3.1), here three such sums.
    largest = float(squares_x.max() + squares_y.max())
    return squares, 4.0 * (x.shape[1] + 4) * torch.finfo(torch.float64).eps * largest


def _exact_squares(x: torch.Tensor, y: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Squared distances of pairs (P,) from differences: the same in both orders, and 0 for copies."""
    parts = [
        (x[rows[start:stop]] - y[columns[start:stop]]).square().sum(dim=1) for start, stop in ranges(len(rows), _PAIRS)
    ]
    return torch.cat(parts) if parts else x.new_zeros(0)


def _radii(features: np.ndarray, k: int, block: int, device: torch.device | str) -> torch.Tensor:
    """Squared distance of each sample to its k-th nearest neighbour, float64 (N,)."""
    radii = []
    for start, stop in ranges(len(features), block):
        x = read_rows(features, start, stop, device)
        nearest = x.new_full((len(x), k), torch.inf)
        for left, right in ranges(len(features), block):
            y = read_rows(features, left, right, device)
            squares, _ = _squared_distances(x, y)
            if left == start:
                squares.fill_diagonal_(torch.inf)
            n_nearest = min(k, right - left)
            indices = squares.topk(n_nearest, dim=1, largest=False).indices
            rows = torch.arange(len(x), device=device).repeat_interleave(n_nearest)
            exact = _exact_squares(x, y, rows, indices.flatten()).reshape(len(x), n_nearest)
            if left == start:
                exact[indices == torch.arange(len(x), device=device)[:, None]] = torch.inf
            nearest = torch.cat([nearest, exact], dim=1).sort(dim=1).values[:, :k]
        radii.append(nearest[:, -1])
    return torch.cat(radii)


def _covered(
    x: torch.Tensor, y: torch.Tensor, squares: torch.Tensor, radii: torch.Tensor, slack: float
) -> torch.Tensor:
    """Which of x (N, D) are within the squared radius (M,) of some of y (M, D); bool (N,)."""
    margins = squares - radii
    covered = (margins <= -slack).any(dim=1)
    undecided = (margins <= slack) & ~covered[:, None]
    while (rows := undecided.any(dim=1).nonzero().flatten()).numel():
        columns = undecided[rows].int().argmax(dim=1)
        covered[rows] = _exact_squares(x, y, rows, columns) <= radii[columns]
        undecided[rows, columns] = False
        undecided &= ~covered[:, None]
    return covered
