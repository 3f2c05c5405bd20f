"""Mixtures of logistic distributions as monotone maps of the real line (Flow++, arXiv 1902.00275, equation 7).

All functions take ``x`` of any shape and, with one more axis at the end, the logits of the K weights, the means and the
logarithms of the scales. The logarithms of the distribution function and of its complement are sums of logarithms of
sigmoids, so both tails keep their relative accuracy where the distribution function itself has rounded to 0 or 1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

Mixture = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Logits, means and log-scales, each (..., K)."""


def _standardised(x: torch.Tensor, mixture: Mixture) -> tuple[torch.Tensor, torch.Tensor]:
    """Logarithms of the weights, and x in units of each component."""
    logits, means, log_scales = mixture
    return F.log_softmax(logits, dim=-1), (x.unsqueeze(-1) - means) * (-log_scales).exp()


def log_density(x: torch.Tensor, mixture: Mixture) -> torch.Tensor:
    """Logarithm of the density, shape of x."""
    log_weights, z = _standardised(x, mixture)
    return torch.logsumexp(log_weights + F.logsigmoid(z) + F.logsigmoid(-z) - mixture[2], dim=-1)


def log_distribution(x: torch.Tensor, mixture: Mixture) -> tuple[torch.Tensor, torch.Tensor]:
    """Logarithms of P(X <= x) and of P(X > x), each of the shape of x."""
    log_weights, z = _standardised(x, mixture)
    below = torch.logsumexp(log_weights + F.logsigmoid(z), dim=-1)
    above = torch.logsumexp(log_weights + F.logsigmoid(-z), dim=-1)
    return below, above


def log_odds(x: torch.Tensor, mixture: Mixture) -> tuple[torch.Tensor, torch.Tensor]:
    """logit P(X <= x), and the logarithm of its derivative in x; both of the shape of x."""
    below, above = log_distribution(x, mixture)
    return below - above, log_density(x, mixture) - below - above


@torch.no_grad()
def inverse_log_odds(target: torch.Tensor, mixture: Mixture) -> torch.Tensor:
    """The x at which the log-odds are ``target``, to the precision of its dtype.

    The log-odds of a mixture lie between those of its components, which are linear in x: the solution lies between the
    smallest and the largest solution for one component. That interval is halved until it cannot shrink further.

    Args:
        target: any shape; infinite targets have infinite solutions.
        mixture: with that shape and one more axis.
    """
    _, means, log_scales = mixture
    solutions = means + target.unsqueeze(-1) * log_scales.exp()
    lower, upper = solutions.amin(-1), solutions.amax(-1)
    while True:
        middle = lower + (upper - lower) / 2
        open_ = (middle > lower) & (middle < upper)
        if not open_.any():
            return middle
        below, above = log_distribution(middle, mixture)
        too_large = below - above > target
        upper = torch.where(open_ & too_large, middle, upper)
        lower = torch.where(open_ & ~too_large, middle, lower)
