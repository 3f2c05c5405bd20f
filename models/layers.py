"""Building blocks of NCSN++ (Song et al., arXiv 2011.13456, appendix H).

Parameters have the names that published checkpoints use.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from models.levels import n_groups
from models.resample import FIRFilter

SQRT_HALF = math.sqrt(0.5)


def initialize(weight: torch.Tensor, scale: float) -> None:
    """Uniform with variance scale / ((fan in + fan out) / 2); a scale of 0 stands for 1e-10."""
    receptive_field = math.prod(weight.shape[2:])
    mean_fan = receptive_field * (weight.shape[0] + weight.shape[1]) / 2
    bound = math.sqrt(3 * max(scale, 1e-10) / mean_fan)
    nn.init.uniform_(weight, -bound, bound)


def linear(in_features: int, out_features: int) -> nn.Linear:
    layer = nn.Linear(in_features, out_features)
    initialize(layer.weight, 1.0)
    nn.init.zeros_(layer.bias)
    return layer


def convolution(
    in_channels: int,
    out_channels: int,
    size: int = 3,
    scale: float = 1.0,
    stride: int = 1,
    padding: int | None = None,
) -> nn.Conv2d:
    """Keeps the image size unless a stride or padding is given."""
    layer = nn.Conv2d(in_channels, out_channels, size, stride, size // 2 if padding is None else padding)
    initialize(layer.weight, scale)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(n_groups(channels), channels, eps=1e-6)


class NIN(nn.Module):
    """The same linear map at every pixel, on tokens (..., C)."""

    def __init__(self, in_channels: int, out_channels: int, scale: float) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.empty(in_channels, out_channels))
        self.b = nn.Parameter(torch.zeros(out_channels))
        initialize(self.W, scale)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return F.linear(tokens, self.W.t(), self.b)


class AttentionBlock(nn.Module):
    """Self-attention over all pixels, one head, residual: (x + attention(x)) / sqrt(2).

    Args:
        channels: of input and output.
        init_scale: initial variance scale of the output map.
    """

    def __init__(self, channels: int, init_scale: float) -> None:
        super().__init__()
        self.GroupNorm_0 = group_norm(channels)
        self.NIN_0 = NIN(channels, channels, 0.1)
        self.NIN_1 = NIN(channels, channels, 0.1)
        self.NIN_2 = NIN(channels, channels, 0.1)
        self.NIN_3 = NIN(channels, channels, init_scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.GroupNorm_0(x).flatten(2).transpose(1, 2)
        query, key, value = (nin(tokens)[:, None] for nin in (self.NIN_0, self.NIN_1, self.NIN_2))
        attended = F.scaled_dot_product_attention(query, key, value)[:, 0]
        return (x + self.NIN_3(attended).transpose(1, 2).reshape(x.shape)) * SQRT_HALF


class ResidualBlock(nn.Module):
    """Two convolutions with the time embedding added between them (after BigGAN, arXiv 1809.11096).

    Output (shortcut + branch) / sqrt(2); where the resolution changes, both are resampled.

    Args:
        in_channels, out_channels: channels.
        embedding_width: of the time embedding.
        dropout: probability, before the second convolution.
        init_scale: initial variance scale of the second convolution.
        resample: doubles or halves the resolution of a (B, C, H, W) tensor, if given.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding_width: int,
        dropout: float,
        init_scale: float,
        resample: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.GroupNorm_0 = group_norm(in_channels)
        self.Conv_0 = convolution(in_channels, out_channels)
        self.Dense_0 = linear(embedding_width, out_channels)
        self.GroupNorm_1 = group_norm(out_channels)
        self.Dropout_0 = nn.Dropout(dropout)
        self.Conv_1 = convolution(out_channels, out_channels, scale=init_scale)
        has_projection = in_channels != out_channels or resample is not None
        self.Conv_2 = convolution(in_channels, out_channels, size=1) if has_projection else None
        self.resample = resample

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        """x (B, in_channels, H, W); embedding (B, embedding_width), the activation already applied."""
        h = F.silu(self.GroupNorm_0(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = self.Conv_0(h) + self.Dense_0(embedding)[:, :, None, None]
        h = self.Conv_1(self.Dropout_0(F.silu(self.GroupNorm_1(h))))
        if self.Conv_2 is not None:
            x = self.Conv_2(x)
        return (x + h) * SQRT_HALF


class PyramidDownsampling(nn.Module):
    """FIR filter and a strided 3x3 convolution: one step of the residual input pyramid."""

    def __init__(self, in_channels: int, out_channels: int, fir: FIRFilter) -> None:
        super().__init__()
        self.Conv2d_0 = convolution(in_channels, out_channels, stride=2, padding=0)
        self.fir = fir

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_channels, H, W) to (B, out_channels, H / 2, W / 2)."""
        return self.Conv2d_0(self.fir.before_strided_convolution(x))
