"""The inverse of y = x + g(x) for a contraction g."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from util.errors import RunFailed

PUBLISHED_MAX_ITERATIONS = 1000
N_ROUNDINGS = 16

Contraction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@torch.no_grad()
def invert(
    contraction: Contraction,
    y: torch.Tensor,
    condition: torch.Tensor,
    *,
    lipschitz_constant: float,
    tolerance: float,
    max_iterations: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Iterate x <- y - g(x) for each sample until it is certain to be within the tolerance.

    In the largest norm the distance to the fixed point is at most L / (1 - L) times the last change (Banach), so a
    sample ends when that is below ``tolerance * (1 + largest |x|)``. A change of a few roundings that no longer
    shrinks ends it too: it is as near as its dtype allows. It then leaves the batch, so that its result does not depend
    on what else is in it.

    Args:
        contraction: x and what belongs to it of ``condition`` to g(x).
        y: (B, C, H, W).
        condition: (B, ...), passed on.
        lipschitz_constant: L < 1, in the largest norm.
        tolerance: largest error of a value, relative to 1 + the largest value of its sample.
        max_iterations: for one sample.

    Returns:
        x, and int64 (B,), the iterations of each sample.

    Raises:
        RunFailed: if a sample is not finite or takes more iterations.
    """
    result = torch.empty_like(y)
    n_iterations = torch.zeros(len(y), dtype=torch.int64)
    remaining = torch.arange(len(y), device=y.device)
    factor = lipschitz_constant / (1 - lipschitz_constant)
    rounding = N_ROUNDINGS * torch.finfo(y.dtype).eps
    x = y
    previous_change = torch.full((len(y),), math.inf, dtype=torch.float64)
    for iteration in range(1, max_iterations + 1):
        following = y - contraction(x, condition)
        relative_change = (following - x).abs().flatten(1).amax(1) / (1 + following.abs().flatten(1).amax(1))
        x = following
        # The one transfer of an iteration says both which samples are done and whether one is not finite.
        change = relative_change.double().cpu()
        if not change.isfinite().all():
            raise RunFailed("inverse of the flow: a value is not finite; check the latents and the flow's weights")
        done = (factor * change <= tolerance) | ((change <= rounding) & (change >= previous_change))
        previous_change = change[~done]
        if done.any():
            ended, kept = (mask.nonzero()[:, 0].to(y.device) for mask in (done, ~done))
            n_iterations[remaining[ended].cpu()] = iteration
            result[remaining[ended]] = x[ended]
            remaining, x, y, condition = remaining[kept], x[kept], y[kept], condition[kept]
            if len(remaining) == 0:
                return result, n_iterations
    raise RunFailed(
        f"inverse of the flow: {len(remaining)} of {len(result)} samples are not within {tolerance:g} after "
        f"{max_iterations} iterations (error up to {factor * change.max().item():.1e}); "
        "loosen the tolerance or allow more iterations"
    )


@torch.no_grad()
def invert_together(
    contraction: Contraction, y: torch.Tensor, condition: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The public code's rule: all samples go on until every squared change is below 1e-5 + 1e-5 |y|.

    Returns:
        x, and int64 (B,), the updates after the first one, the same for all.
    """
    previous, x = y, y - contraction(y, condition)
    bound = 1e-5 + 1e-5 * y.abs()
    n_updates = 0
    while n_updates < PUBLISHED_MAX_ITERATIONS and not bool(((x - previous) ** 2 / bound < 1).all()):
        previous, x = x, y - contraction(x, condition)
        n_updates += 1
    return x, torch.full((len(y),), n_updates)
