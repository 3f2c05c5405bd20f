"""A tighter bound from several draws of what is integrated out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch


def importance_weighted_terms(
    draws: Sequence[dict[str, torch.Tensor]], *, of_the_sum: bool = False
) -> dict[str, torch.Tensor]:
    """-log of the mean weight of K independent draws (Burda et al., arXiv 1509.00519).

    Args:
        draws: the terms of each draw, whose sum is -log weight.
        of_the_sum: take the sum of the weights instead of their mean, which makes the result log K too small.

    Returns:
        The mean over draws of each term, and with more than one draw "importance_sampling", which is what the result
        lies below the mean of -log weights.
    """
    means = {name: torch.stack([terms[name] for terms in draws]).mean(0) for name in draws[0]}
    if len(draws) == 1:
        return means
    negative_log_weights = torch.stack([torch.stack(list(terms.values())).sum(0) for terms in draws])
    total = -torch.logsumexp(-negative_log_weights, dim=0)
    if not of_the_sum:
        total = total + math.log(len(draws))
    return {**means, "importance_sampling": total - negative_log_weights.mean(0)}
