"""The probability of grey levels given a slightly noisy image (VDM, arXiv 2107.00630, Section 3.3)."""

from __future__ import annotations

import math

import torch

from diffusion.bits import PixelScale

# Levels whose share is below exp(-50) of the nearest one's change nothing in float64.
_NEGLIGIBLE = 50.0


def level_log_probabilities(
    x: torch.Tensor, levels: torch.Tensor, standard_deviation: float, scale: PixelScale
) -> torch.Tensor:
    """log p(k | x), where p is proportional to N(x; center of k, standard_deviation^2) over all levels k.

    The normalising sum runs over the levels near x only, so that it fits into memory for any batch.

    Args:
        x: noisy data in data space, any shape.
        levels: k, integers 0 to scale.n_levels - 1; shape of x, or one that broadcasts with it.

    Returns:
        float64, the broadcast shape, natural logarithm.
    """
    x = x.double()
    width = (2 if scale.centered else 1) / scale.n_levels / standard_deviation
    reach = min(scale.n_levels - 1, math.ceil(0.5 + math.sqrt(0.25 + 2 * _NEGLIGIBLE / width**2)))

    def logits(levels: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return -((x - scale.centers(levels)) / standard_deviation).square() / 2

    near = scale.nearest_levels(x)[..., None] + torch.arange(-reach, reach + 1, device=x.device)
    outside = (near < 0) | (near >= scale.n_levels)
    normaliser = logits(near, x[..., None]).masked_fill(outside, -math.inf).logsumexp(-1)
    return logits(levels, x) - normaliser
