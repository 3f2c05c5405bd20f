"""Batch normalisation by the statistics of all ranks, on any device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

SumOverRanks = Callable[[torch.Tensor], torch.Tensor]


def on_one_rank(tensor: torch.Tensor) -> torch.Tensor:
    """The sum over ranks where there is only one."""
    return tensor


class SynchronizedBatchNorm(nn.Module):
    """Batch normalisation of (B, C, H, W) (Ioffe and Szegedy, arXiv 1502.03167).

    In training every rank has to call it, with at least two values for each channel among them, and each backward pass
    that reaches it on one rank has to reach it on all. Statistics are added up in float64, so that they are the same on
    any number of ranks up to rounding.

    Args:
        channels: C.
        sum_over_ranks: replaces a float64 tensor by its sum over ranks.
        epsilon: added to the variance.
        momentum: weight of a batch in the running statistics.
    """

    running_mean: torch.Tensor
    running_var: torch.Tensor
    num_batches_tracked: torch.Tensor

    def __init__(
        self, channels: int, sum_over_ranks: SumOverRanks, epsilon: float = 1e-5, momentum: float = 0.1
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0))
        self.sum_over_ranks = sum_over_ranks
        self.epsilon = epsilon
        self.momentum = momentum

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.epsilon)
        y, mean, variance, count = _Normalize.apply(x, self.weight, self.bias, self.epsilon, self.sum_over_ranks)
        with torch.no_grad():
            self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
            self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var), self.momentum)
            self.num_batches_tracked += 1
        return y


class _Normalize(torch.autograd.Function):
    """x to the normalised x, the mean and biased variance (C,), and the number of values of each channel (1,)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        epsilon: float,
        sum_over_ranks: SumOverRanks,
    ) -> tuple[torch.Tensor, ...]:
        values = x.double()
        count = torch.full((1,), x.numel() // x.shape[1], dtype=torch.float64, device=x.device)
        totals = torch.cat([values.sum((0, 2, 3)), (values * values).sum((0, 2, 3)), count])
        total, total_square, count = sum_over_ranks(totals).split([len(weight), len(weight), 1])
        mean = total / count
        variance = (total_square / count - mean**2).clamp_min(0.0)
        inverse_deviation = (variance + epsilon).rsqrt()
        normalized = ((x - _per_channel(mean, x)) * _per_channel(inverse_deviation, x)).to(x.dtype)
        ctx.save_for_backward(normalized, weight, inverse_deviation, count)
        ctx.sum_over_ranks = sum_over_ranks
        ctx.mark_non_differentiable(mean, variance, count)
        return normalized * weight[:, None, None] + bias[:, None, None], mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor, *_: Any) -> tuple[Any, ...]:
        normalized, weight, inverse_deviation, count = ctx.saved_tensors
        own = torch.cat(
            [
                gradient.sum((0, 2, 3), dtype=torch.float64),
                (gradient * normalized).sum((0, 2, 3), dtype=torch.float64),
            ]
        )
        # The parameters' gradients are of this rank's values only: whoever sums gradients over ranks sums them too.
        bias_gradient, weight_gradient = own.to(weight.dtype).split(len(weight))
        mean, projection = (ctx.sum_over_ranks(own.clone()) / count).split(len(weight))
        centred = gradient - _per_channel(mean, gradient) - normalized * _per_channel(projection, gradient)
        return centred * _per_channel(weight * inverse_deviation, gradient), weight_gradient, bias_gradient, None, None


def _per_channel(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return values.to(like.dtype)[:, None, None]
