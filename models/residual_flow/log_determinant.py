"""log|det(I + J)| of a residual block: the unbiased series of Residual Flows (Chen et al., arXiv 1906.02735), or exact.

log|det(I + J)| = sum over k >= 1 of (-1)^(k+1) tr(J^k) / k. The trace is that of v v^T J^k for a standard normal v, and
the sum ends at a random term ("Russian roulette"), every term being divided by the probability that it is reached.
"""

from __future__ import annotations

import math

import torch

from models.residual_flow.branch import Linearization

SURROGATE_EXACT_TERMS = 2
SERIES_EXACT_TERMS = 20
BASIS_CHUNK = 256


def poisson_counts(uniforms: torch.Tensor, rates: list[float]) -> list[int]:
    """Poisson numbers by inversion of their distribution function, from uniforms on [0, 1), one for each rate."""
    counts = []
    for uniform, rate in zip(uniforms.tolist(), rates, strict=True):
        count, probability = 0, math.exp(-rate)
        cumulative = probability
        # Rounding may keep the sum below the uniform for ever; by then the probability has vanished.
        while uniform >= cumulative and probability > 0.0:
            count += 1
            probability *= rate / count
            cumulative += probability
        counts.append(count)
    return counts


def reach_probability(n: int, rate: float) -> float:
    """The probability that a Poisson number is at least n, without cancellation for large n."""
    if n <= 0:
        return 1.0
    if n <= rate:
        return -math.expm1(math.log(sum(math.exp(-rate) * rate**i / math.factorial(i) for i in range(n))))
    term = math.exp(n * math.log(rate) - rate - math.lgamma(n + 1))
    total, i = 0.0, n
    while total + term != total:
        total += term
        i += 1
        term *= rate / i
    return total


def roulette_weights(n_terms: int, n_exact_terms: int, rate: float) -> list[float]:
    """w_0 to w_n_terms: 1 / P(N + n_exact_terms >= k) for the k-th term, N Poisson of the given rate."""
    return [1.0 / reach_probability(k - n_exact_terms, rate) for k in range(n_terms + 1)]


def inner(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Inner products over (C, H, W), averaged over vectors: (R, B, C, H, W) twice to float64 (B,)."""
    return (u * v).flatten(2).sum(2, dtype=torch.float64).mean(0)


def series(
    jacobian: Linearization,
    probes: torch.Tensor,
    count: int,
    rate: float,
    lipschitz_constant: float,
    n_exact_terms: int = SERIES_EXACT_TERMS,
) -> torch.Tensor:
    """The unbiased estimate of log|det(I + J)| for each point, float64 (B,), without gradient.

    The sum ends early where the rest is certain to be below its rounding: the absolute values of J^T u add up to no
    more than those of u times the Lipschitz constant of g in the largest norm.

    Args:
        probes: standard normal, (R, B, C, H, W); the estimate is the mean over the R vectors of a point.
        count: Poisson number; ``count + n_exact_terms`` terms are summed.
        rate: of the Poisson distribution.
        lipschitz_constant: of g in the largest norm.
        n_exact_terms: terms that are always summed.
    """
    weights = roulette_weights(count + n_exact_terms, n_exact_terms, rate)
    n_terms = len(weights) - 1
    remainders = [0.0] * (n_terms + 1)
    for k in reversed(range(n_terms)):
        remainders[k] = lipschitz_constant * (weights[k + 1] / (k + 1) + remainders[k + 1])
    linear_map = jacobian.stencils() if _stencils_pay(jacobian, len(probes) * n_terms) else jacobian
    rounding = torch.finfo(probes.dtype).eps
    largest = probes.abs().flatten(2).amax(2)
    total = torch.zeros(probes.shape[1], dtype=torch.float64, device=probes.device)
    vector = probes
    for k in range(1, n_terms + 1):
        vector = linear_map.transposed_product(vector)
        total = total + (-1) ** (k + 1) * weights[k] / k * inner(vector, probes)
        rest = remainders[k] * (largest * vector.abs().flatten(2).sum(2)).mean(0)
        if bool((rest <= rounding * total.abs()).all()):
            break
    return total


def _stencils_pay(jacobian: Linearization, n_products: int) -> bool:
    """Whether this many products for each point are cheaper after ``stencils``, by counting multiplications."""
    n_hidden, n_columns = jacobian.branch.last.shape
    direct = n_products * (n_hidden**2 + 2 * n_hidden * n_columns)
    # Small matrices, one for each pixel, are multiplied at a fraction of the speed of large ones.
    by_stencils = n_columns * (n_hidden**2 + n_hidden * n_columns) + n_products * 4 * n_columns**2
    return by_stencils < direct


def neumann(jacobian: Linearization, probes: torch.Tensor, weights: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """a = sum over k of (-1)^k w_k (J^T)^k v, shape of ``probes``, and the mean over vectors of a^T J v, float64 (B,).

    In expectation a^T is v^T (I + J)^-1, and d log|det(I + J)| = tr((I + J)^-1 dJ) (arXiv 1906.02735, Section 3.2).
    """
    total = torch.zeros_like(probes)
    value = torch.zeros(probes.shape[1], dtype=torch.float64, device=probes.device)
    vector = probes
    for k, weight in enumerate(weights):
        factor = (-1) ** k * weight
        total.add_(vector, alpha=factor)
        vector = jacobian.transposed_product(vector)
        value = value + factor * inner(vector, probes)
    return total, value


def exact(jacobian: Linearization, size: tuple[int, int]) -> torch.Tensor:
    """log|det(I + J)| for each point, float64 (B,), without gradient.

    J is built from every pixel's own matrix, a few columns at a time, and factorised in float64: (C H W)^2 numbers for
    each point.

    Args:
        size: H and W.
    """
    stencils = jacobian.stencils()
    device, dtype = stencils.matrices.device, stencils.matrices.dtype
    n_channels = stencils.matrices.shape[-1] // 9
    n_values = n_channels * size[0] * size[1]
    result = []
    for index in range(len(stencils.matrices)):
        sample = stencils.of_sample(index)
        matrix = torch.eye(n_values, dtype=torch.float64, device=device)
        for rows in torch.arange(n_values, device=device).split(BASIS_CHUNK):
            basis = torch.zeros(len(rows), n_values, dtype=dtype, device=device).scatter_(1, rows[:, None], 1.0)
            # J^T makes a row of J of each unit vector.
            matrix[rows] += sample.transposed_product(basis.view(-1, 1, n_channels, *size)).flatten(1)
        result.append(torch.linalg.slogdet(matrix).logabsdet)
    return torch.stack(result)
