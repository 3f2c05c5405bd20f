"""Points in the plane from known densities: the toy data of CLD (Dockhorn et al., arXiv 2112.07068,
Appendix).

Sample i of a split is a function of (seed, split, i), so the sets have no end and need no storage. Because
the generating densities are known, so are their entropies: a model cannot have a negative log-likelihood
below them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.special import entr, logsumexp

from util.noise import Noise

# Nearest-neighbour histograms and folded statistics use these centres in this order.
ROLL_CENTRES = np.array([[0.0, 0.0], [0.8, 0.8], [0.8, -0.8], [-0.8, -0.8], [-0.8, 0.8]])
_ROLL_SCALE = 0.01
_ROLL_NOISE = 0.2
_ROLL_ANGLES = (1.5 * math.pi, 4.5 * math.pi)

_DIAMOND_GRID = np.array([-0.5, 0.0, 0.5])
_DIAMOND_DEVIATION = 0.04
_DIAMOND_ROTATION = np.array([[1.0, 1.0], [-1.0, 1.0]]) / math.sqrt(2.0)

# Bounds the memory of a density: points times quadrature nodes held at once.
_ENTRIES_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class ToyDistribution:
    """A density in the plane.

    Attributes:
        draw: one point for each entry of a Noise, float64 (B, 2).
        log_density: float64 (B, 2) to float64 (B,), nats.
        entropy: the differential entropy in nats.
    """

    name: str
    draw: Callable[[Noise], torch.Tensor]
    log_density: Callable[[np.ndarray], np.ndarray]
    entropy: Callable[[], float]


@dataclass(frozen=True)
class ToyDataset:
    """Endless points of one distribution; the two splits are independent of each other."""

    distribution: ToyDistribution
    split: str
    seed: int
    shape: tuple[int, ...] = field(default=(2,), init=False)
    is_image: bool = field(default=False, init=False)
    length: None = field(default=None, init=False)

    @property
    def name(self) -> str:
        return self.distribution.name

    def read(self, indices: np.ndarray) -> torch.Tensor:
        """float32 (B, 2)."""
        noise = Noise(self.seed, f"{self.name} {self.split}", torch.from_numpy(indices))
        return self.distribution.draw(noise).float()


def _draw_multimodal_swissroll(noise: Noise) -> torch.Tensor:
    centre = torch.from_numpy(ROLL_CENTRES)[noise.integers(len(ROLL_CENTRES))]
    first, last = _ROLL_ANGLES
    angle = first + (last - first) * noise.uniform(dtype=torch.float64)
    spiral = torch.stack([angle * angle.cos(), angle * angle.sin()], dim=1)
    return centre + _ROLL_SCALE * (spiral + _ROLL_NOISE * noise.normal(2, dtype=torch.float64))


def _roll_quadrature(n_panels: int, n_nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Points on the roll (K, 2) and log weights (K,): composite Gauss-Legendre quadrature over the angle."""
    nodes, weights = np.polynomial.legendre.leggauss(n_nodes)
    edges = np.linspace(*_ROLL_ANGLES, n_panels + 1)
    half_widths = np.diff(edges)[:, None] / 2.0
    angles = (edges[:-1, None] + half_widths * (nodes + 1.0)).ravel()
    log_weights = np.log((half_widths * weights).ravel() / (_ROLL_ANGLES[1] - _ROLL_ANGLES[0]))
    return _ROLL_SCALE * np.stack([angles * np.cos(angles), angles * np.sin(angles)], axis=1), log_weights


def _isotropic_mixture_log_density(
    points: np.ndarray, means: np.ndarray, log_weights: np.ndarray, deviation: float
) -> np.ndarray:
    """log sum_k w_k N(x; m_k, deviation^2 I) in the plane, float64 (B,)."""
    points = np.asarray(points, dtype=np.float64)
    log_normalizer = math.log(2.0 * math.pi * deviation**2)
    rows = max(1, _ENTRIES_AT_ONCE // len(means))
    result = np.empty(len(points))
    for start in range(0, len(points), rows):
        chunk = points[start : start + rows]
        squared = (chunk[:, :1] - means[:, 0]) ** 2 + (chunk[:, 1:] - means[:, 1]) ** 2
        result[start : start + rows] = logsumexp(log_weights - squared / (2.0 * deviation**2), axis=1)
    return result - log_normalizer


def _multimodal_swissroll_log_density(points: np.ndarray) -> np.ndarray:
    """The roll is an integral over the angle of Gaussians along the spiral, here by quadrature.

    96 panels of 16 nodes put several nodes within a standard deviation of the noise everywhere on the spiral.
    Log densities are exact to 1e-10 within ten standard deviations of it and to 1e-3 of their value elsewhere.
    """
    spiral, log_weights = _roll_quadrature(n_panels=96, n_nodes=16)
    means = (ROLL_CENTRES[:, None] + spiral).reshape(-1, 2)
    log_weights = np.tile(log_weights - math.log(len(ROLL_CENTRES)), len(ROLL_CENTRES))
    return _isotropic_mixture_log_density(points, means, log_weights, _ROLL_SCALE * _ROLL_NOISE)


def _multimodal_swissroll_entropy() -> float:
    """That of one roll and of the choice among rolls, which do not overlap.

    The trapezoidal rule on a grid much finer than the noise, where it converges exponentially; a Gaussian
    factors over the axes, so the density on the whole grid is one matrix product.
    """
    spiral, log_weights = _roll_quadrature(n_panels=96, n_nodes=16)
    deviation = _ROLL_SCALE * _ROLL_NOISE
    line = np.arange(-90.0, 90.0, 0.125) * deviation
    factors = np.exp(-0.5 * ((line[:, None, None] - spiral) / deviation) ** 2)
    density = (factors[..., 0] * np.exp(log_weights)) @ factors[..., 1].T / (2.0 * math.pi * deviation**2)
    entropy_of_roll = float(entr(density).sum() * (line[1] - line[0]) ** 2)
    return entropy_of_roll + math.log(len(ROLL_CENTRES))


def _draw_diamond(noise: Noise) -> torch.Tensor:
    grid = torch.from_numpy(_DIAMOND_GRID)[noise.integers(len(_DIAMOND_GRID), 2)]
    centre = grid @ torch.from_numpy(_DIAMOND_ROTATION).T
    return centre + _DIAMOND_DEVIATION * noise.normal(2, dtype=torch.float64)


def _diamond_log_density(points: np.ndarray) -> np.ndarray:
    grid = np.stack(np.meshgrid(_DIAMOND_GRID, _DIAMOND_GRID, indexing="ij"), axis=-1).reshape(-1, 2)
    means = grid @ _DIAMOND_ROTATION.T
    log_weights = np.full(len(means), -math.log(len(means)))
    return _isotropic_mixture_log_density(points, means, log_weights, _DIAMOND_DEVIATION)


def _diamond_entropy() -> float:
    """Twice that of a mixture of three Gaussians on the line: rotated back, the coordinates are independent.

    The trapezoidal rule converges exponentially here, because everything vanishes at the ends.
    """
    line = np.linspace(-1.0, 1.0, 20_001)
    scaled = (line[:, None] - _DIAMOND_GRID) / _DIAMOND_DEVIATION
    normalizer = len(_DIAMOND_GRID) * _DIAMOND_DEVIATION * math.sqrt(2.0 * math.pi)
    density = np.exp(-0.5 * scaled**2).sum(axis=1) / normalizer
    return float(2.0 * entr(density).sum() * (line[1] - line[0]))


TOY_DISTRIBUTIONS = {
    distribution.name: distribution
    for distribution in (
        ToyDistribution(
            "multimodal_swissroll",
            _draw_multimodal_swissroll,
            _multimodal_swissroll_log_density,
            _multimodal_swissroll_entropy,
        ),
        ToyDistribution("diamond", _draw_diamond, _diamond_log_density, _diamond_entropy),
    )
}
