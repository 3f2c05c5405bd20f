"""Layers of the networks inside Flow++ (Ho et al., arXiv 1902.00275, Section 3.3 and appendix).

Images are (B, C, H, W). Layers with a method ``initialize`` have initial weights that depend on the first batch
(Salimans and Kingma, arXiv 1602.07868, Section 3); ``models.flowpp.initialization`` calls it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

WEIGHT_DEVIATION = 0.05
POSITION_DEVIATION = 0.01
SECOND_LAYER_SCALE = 0.1

Sum = Callable[[torch.Tensor], torch.Tensor]
"""Adds up a tensor over all the places that hold a part of the batch."""


def gain_and_bias(
    values: torch.Tensor, dims: tuple[int, ...], scale: float, total: Sum
) -> tuple[torch.Tensor, torch.Tensor]:
    """What brings values to mean 0 and standard deviation ``scale``: values * gain + bias.

    Args:
        values: this place's part of the batch.
        dims: axes over which moments are taken, the batch among them.
        scale: wanted deviation.
        total: sums over all parts.

    Returns:
        float64, of the shape of the axes that are left.
    """
    values = values.double()
    n = math.prod(values.shape[dim] for dim in dims)
    sums = total(torch.cat([values.sum(dims).flatten(), values.square().sum(dims).flatten(), values.new_tensor([n])]))
    mean, mean_square = (sums[:-1] / sums[-1]).chunk(2)
    # A mean that is zero but for rounding would be another number for every way of cutting up the batch.
    mean = mean * (mean.abs() > 1e-12 * mean_square.sqrt())
    gain = scale * (mean_square - mean.square() + 1e-6).rsqrt()
    shape = [size for dim, size in enumerate(values.shape) if dim not in dims]
    return gain.reshape(shape), (-mean * gain).reshape(shape)


class Convolution(nn.Module):
    """A convolution that keeps the image size; with ``size`` 1 the same linear map at every pixel.

    Args:
        in_channels, out_channels: channels.
        size: 3 or 1.
        init_scale: standard deviation of the output on the first batch.
    """

    def __init__(self, in_channels: int, out_channels: int, size: int, init_scale: float = 1.0) -> None:
        super().__init__()
        self.init_scale = init_scale
        self.weight = nn.Parameter(WEIGHT_DEVIATION * torch.randn(out_channels, in_channels, size, size))
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, self.weight, self.bias, padding=self.weight.shape[-1] // 2)

    def initialize(self, x: torch.Tensor, total: Sum, published_draw: torch.Tensor | None = None) -> None:
        """Scale the drawn weights for mean 0 and deviation ``init_scale`` of the output.

        Args:
            x: this place's part of the layer's input.
            total: sums over all parts.
            published_draw: the public code takes the bias from the statistics of a second draw of the weights, and both
                statistics with the kernel's axes exchanged; it does so where that draw is given.
        """

        def statistics(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            output = F.conv2d(x, weight, padding=weight.shape[-1] // 2)
            return gain_and_bias(output, (0, 2, 3), self.init_scale, total)

        if published_draw is None:
            gain, bias = statistics(self.weight)
        else:
            gain, bias = statistics(self.weight.mT)[0], statistics(published_draw.mT)[1]
        self.weight.mul_(gain[:, None, None, None])
        self.bias.copy_(bias)


class NormalizedConvolution(nn.Module):
    """A 3x3 convolution with weight normalisation: kernel = gain * direction / |direction|.

    Args:
        in_channels, out_channels: channels.
        init_scale: standard deviation of the output on the first batch.
    """

    def __init__(self, in_channels: int, out_channels: int, init_scale: float = 1.0) -> None:
        super().__init__()
        self.init_scale = init_scale
        self.direction = nn.Parameter(WEIGHT_DEVIATION * torch.randn(out_channels, in_channels, 3, 3))
        self.gain = nn.Parameter(torch.ones(out_channels))
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def _unit_kernel(self) -> torch.Tensor:
        return self.direction * self.direction.square().sum((1, 2, 3), keepdim=True).clamp(min=1e-12).rsqrt()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, self._unit_kernel() * self.gain[:, None, None, None], self.bias, padding=1)

    def initialize(self, x: torch.Tensor, total: Sum) -> None:
        """Gain and bias for mean 0 and deviation ``init_scale`` of the output; arguments as of ``Convolution``."""
        output = F.conv2d(x, self._unit_kernel(), padding=1)
        gain, bias = gain_and_bias(output, (0, 2, 3), self.init_scale, total)
        self.gain.copy_(gain)
        self.bias.copy_(bias)


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of each pixel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        last = F.layer_norm(x.movedim(1, -1), self.weight.shape, self.weight, self.bias, eps=1e-5)
        return last.movedim(-1, 1)


def concat_elu(x: torch.Tensor) -> torch.Tensor:
    """ELU of x and of -x, twice the channels."""
    return F.elu(torch.cat([x, -x], dim=1))


def gate(x: torch.Tensor) -> torch.Tensor:
    """One half of the channels times the sigmoid of the other."""
    values, gates = x.chunk(2, dim=1)
    return values * gates.sigmoid()


def convolution(in_channels: int, out_channels: int, weight_norm: bool, init_scale: float = 1.0) -> nn.Module:
    """A 3x3 convolution, with weight normalisation or without."""
    if weight_norm:
        return NormalizedConvolution(in_channels, out_channels, init_scale)
    return Convolution(in_channels, out_channels, 3, init_scale)


class GatedConvolution(nn.Module):
    """Residual block: x + gate(second(concat_elu(first(concat_elu(x)) + a map of the context))).

    Args:
        channels: of x.
        weight_norm: whether 3x3 convolutions have weight normalisation.
        context_channels: 0 for a block without context. One with context has a 1x1 convolution as its second layer, one
            without a 3x3 convolution.
    """

    def __init__(self, channels: int, weight_norm: bool, context_channels: int = 0) -> None:
        super().__init__()
        self.first = convolution(2 * channels, channels, weight_norm)
        self.context = Convolution(2 * context_channels, channels, 1) if context_channels else None
        if context_channels:
            self.second: nn.Module = Convolution(2 * channels, 2 * channels, 1, SECOND_LAYER_SCALE)
        else:
            self.second = convolution(2 * channels, 2 * channels, weight_norm, SECOND_LAYER_SCALE)

    def forward(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        """x (B, channels, H, W) and the context (B, context_channels, H, W) of a block that takes one."""
        h = self.first(concat_elu(x))
        if self.context is not None:
            assert context is not None
            h = h + self.context(concat_elu(context))
        return x + gate(self.second(concat_elu(h)))


class GatedAttention(nn.Module):
    """Self-attention over all pixels, residual: x + gate(attention(x + position embedding))."""

    def __init__(self, channels: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.project_in = Convolution(channels, 3 * channels, 1)
        self.project_out = Convolution(channels, 2 * channels, 1, SECOND_LAYER_SCALE)

    def forward(self, x: torch.Tensor, position_embedding: torch.Tensor) -> torch.Tensor:
        """x (B, C, H, W), position embedding (C, H, W)."""
        projected = self.project_in(x + position_embedding).flatten(2)
        query, key, value = projected.unflatten(1, (3, self.n_heads, -1)).mT.unbind(1)
        attended = F.scaled_dot_product_attention(query, key, value)
        return x + gate(self.project_out(attended.mT.flatten(1, 2).unflatten(2, x.shape[2:])))


class MixedBlock(nn.Module):
    """Gated convolution and gated attention, each followed by layer normalisation.

    Args:
        channels: of x.
        n_heads: attention heads.
        weight_norm, context_channels: of the gated convolution.
    """

    def __init__(self, channels: int, n_heads: int, weight_norm: bool, context_channels: int = 0) -> None:
        super().__init__()
        self.convolution = GatedConvolution(channels, weight_norm, context_channels)
        self.norm_1 = ChannelNorm(channels)
        self.attention = GatedAttention(channels, n_heads)
        self.norm_2 = ChannelNorm(channels)

    def forward(
        self, x: torch.Tensor, position_embedding: torch.Tensor, context: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Inputs as those of the two gated layers."""
        return self.norm_2(self.attention(self.norm_1(self.convolution(x, context)), position_embedding))


def position_embedding(channels: int, height: int, width: int) -> nn.Parameter:
    """A learnt vector for each pixel, (C, H, W)."""
    return nn.Parameter(POSITION_DEVIATION * torch.randn(channels, height, width))
