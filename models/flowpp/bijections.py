"""The invertible maps of a Flow++ step other than its coupling.

Each gives the logarithm of the absolute Jacobian determinant per sample, float64 (B,); the inverse gives that of the
inverse.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from models.flowpp.layers import Sum, gain_and_bias

SMALLEST_GAIN = 1e-10
PUBLISHED_FLOOR = 1e-7
POINTWISE_DEVIATION = 0.001


def per_sample(log_derivatives: torch.Tensor) -> torch.Tensor:
    """Sum over everything but the batch, float64 (B,)."""
    return log_derivatives.flatten(1).sum(1, dtype=torch.float64)


def floored_log(values: torch.Tensor) -> torch.Tensor:
    """The logarithm in which the public code hides small arguments: of at least 1e-7."""
    return values.clamp(min=PUBLISHED_FLOOR).log()


def split_columns(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Even and odd columns of (B, C, H, W), each (B, C, H, W / 2)."""
    return x[..., 0::2], x[..., 1::2]


def merge_columns(even: torch.Tensor, odd: torch.Tensor) -> torch.Tensor:
    """The inverse of ``split_columns``."""
    return torch.stack([even, odd], dim=-1).flatten(-2)


def sigmoid(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The logistic function."""
    return x.sigmoid(), per_sample(F.logsigmoid(x) + F.logsigmoid(-x))


def logit(y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The inverse of ``sigmoid``."""
    return y.log() - (-y).log1p(), -per_sample(y.log() + (-y).log1p())


def floored_logit(y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The logit of the public code and the logarithm of its slope at each number, which has the shape of y.

    Its logarithms have a floor of ln 1e-7. Where that is reached, the second result is not what it is called.
    """
    return -floored_log(1 / y - 1), -floored_log(y) - floored_log(1 - y)


class ActivationNorm(nn.Module):
    """One gain and one bias for each pixel and channel, set on the first batch (Glow, arXiv 1807.03039, Section 3.1).

    Args:
        shape: (C, H, W).
        floored: take the logarithm of gains below 1e-7 for that of 1e-7.
    """

    def __init__(self, shape: tuple[int, int, int], floored: bool = False) -> None:
        super().__init__()
        self.floored = floored
        self.gain = nn.Parameter(torch.ones(shape))
        self.bias = nn.Parameter(torch.zeros(shape))

    def _gain(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gain = self.gain.clamp(min=SMALLEST_GAIN)
        log_gain = floored_log(self.gain) if self.floored else gain.log()
        return gain, log_gain.sum(dtype=torch.float64).expand(len(x))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gain, log_determinant = self._gain(x)
        return x * gain + self.bias, log_determinant

    def inverse(self, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gain, log_determinant = self._gain(y)
        return (y - self.bias) / gain, -log_determinant

    def initialize(self, x: torch.Tensor, total: Sum) -> None:
        """Mean 0 and deviation 1 at every pixel and channel over the batch; ``total`` makes sums over all its parts."""
        gain, bias = gain_and_bias(x, (0,), 1.0, total)
        self.gain.copy_(gain)
        self.bias.copy_(bias)


class PointwiseMap(nn.Module):
    """An invertible linear map of the channels, the same at every pixel (Glow, arXiv 1807.03039, Section 3.2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(channels) + POINTWISE_DEVIATION * torch.randn(channels, channels))

    def _log_determinant(self, x: torch.Tensor) -> torch.Tensor:
        return (x.shape[2] * x.shape[3] * torch.linalg.slogdet(self.weight.double())[1]).expand(len(x))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return F.conv2d(x, self.weight[:, :, None, None]), self._log_determinant(x)

    def inverse(self, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        inverse = torch.linalg.inv(self.weight.double()).to(y.dtype)
        return F.conv2d(y, inverse[:, :, None, None]), -self._log_determinant(y)
