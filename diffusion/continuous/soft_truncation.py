"""Soft truncation: the smallest training time drawn anew for every step (Kim et al., arXiv 2106.05527, Section 4)."""

import math

import torch


def soft_truncated_time(uniform: torch.Tensor, smallest: float, exponent: float) -> torch.Tensor:
    """Draws of the smallest time on [smallest, 1], of density proportional to tau^-exponent.

    Args:
        uniform: float64 of any shape, in [0, 1).
        smallest: lower end of the range, in (0, 1).
        exponent: k of the paper, at least 1; larger ones keep closer to ``smallest``.

    Returns:
        float64, shape of ``uniform``. The inverse of the cumulative distribution,
        smallest / (1 - u (1 - smallest^(k-1)))^(1/(k-1)), is written so that it has its limit smallest^(1-u) at k = 1.
    """
    power = exponent - 1
    log_smallest = math.log(smallest)
    if power == 0:
        return ((1 - uniform) * log_smallest).exp()
    return (log_smallest - (uniform * math.expm1(power * log_smallest)).log1p() / power).exp()
