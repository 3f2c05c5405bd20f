"""The network of variational diffusion models (Kingma et al., arXiv 2107.00630, Appendix B) as i-DODE uses it.

A U-Net that never changes resolution. Names of parameters are those of the published Flax checkpoints with ``/`` for
``.`` and ``kernel``, ``scale`` for ``weight``.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from models.embeddings import positional_embedding
from models.vdm_unet_settings import N_GROUPS, VDMUNetSettings

_FREQUENCY_EXPONENTS = (6, 7)
_TIME_SCALE = 1000.0
# Standard deviation of a normal distribution truncated to two standard deviations.
_TRUNCATED_STANDARD_DEVIATION = 0.87962566103423978


def _initialize(layer: nn.Linear | nn.Conv2d, zero: bool) -> None:
    """LeCun normal, truncated at two standard deviations, or zero; biases zero."""
    if zero:
        nn.init.zeros_(layer.weight)
    else:
        fan_in = math.prod(layer.weight.shape[1:])
        std = 1 / math.sqrt(fan_in) / _TRUNCATED_STANDARD_DEVIATION
        nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def _linear(in_features: int, out_features: int, *, bias: bool = True, zero: bool = False) -> nn.Linear:
    layer = nn.Linear(in_features, out_features, bias=bias)
    _initialize(layer, zero)
    return layer


def _convolution(in_channels: int, out_channels: int, size: int = 3, *, zero: bool = False) -> nn.Conv2d:
    layer = nn.Conv2d(in_channels, out_channels, size, padding=size // 2)
    _initialize(layer, zero)
    return layer


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(N_GROUPS, channels, eps=1e-6)


def fourier_features(z: torch.Tensor) -> torch.Tensor:
    """sin and cos of 2 pi 2^k z for k = 6, 7: (B, C, H, W) to (B, 4 C, H, W), all sines first, then all cosines."""
    frequencies = torch.tensor([2 * math.pi * 2.0**k for k in _FREQUENCY_EXPONENTS], dtype=z.dtype, device=z.device)
    angle = (z[:, :, None] * frequencies[:, None, None]).flatten(1, 2)
    return torch.cat([angle.sin(), angle.cos()], dim=1)


class VDMResidualBlock(nn.Module):
    """Two convolutions with the conditioning added between them, and a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, conditioning_width: int, dropout: float) -> None:
        super().__init__()
        self.GroupNorm_0 = _group_norm(in_channels)
        self.conv1 = _convolution(in_channels, out_channels)
        self.cond_proj = _linear(conditioning_width, out_channels, bias=False, zero=True)
        self.GroupNorm_1 = _group_norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = _convolution(out_channels, out_channels, zero=True)
        self.nin_shortcut = _convolution(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: torch.Tensor, conditioning: torch.Tensor) -> torch.Tensor:
        h = self.conv1(F.silu(self.GroupNorm_0(x)))
        h = h + self.cond_proj(conditioning)[:, :, None, None]
        h = self.conv2(self.dropout(F.silu(self.GroupNorm_1(h))))
        return (x if self.nin_shortcut is None else self.nin_shortcut(x)) + h


class VDMAttention(nn.Module):
    """Self-attention over all pixels, one head, residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.GroupNorm_0 = _group_norm(channels)
        self.q = _linear(channels, channels)
        self.k = _linear(channels, channels)
        self.v = _linear(channels, channels)
        self.proj_out = _linear(channels, channels, zero=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.GroupNorm_0(x).flatten(2).transpose(1, 2)
        query, key, value = (layer(tokens)[:, None] for layer in (self.q, self.k, self.v))
        attended = F.scaled_dot_product_attention(query, key, value)[:, 0]
        return x + self.proj_out(attended).transpose(1, 2).reshape(x.shape)


class VDMUNet(nn.Module):
    """The network: z (B, C, H, W), gamma (B,) and conditioning (B,) to (B, C, H, W); the input is added to the output.

    ``conditioning`` is 1 for images that were augmented and 0 for all others. Works in any memory format and under
    autocast, where the embedding and the Fourier features, whose arguments reach thousands, stay in the dtype of z.
    """

    def __init__(self, settings: VDMUNetSettings) -> None:
        super().__init__()
        self.settings = settings
        n, channels = settings.n_channels, settings.n_image_channels

        def path(n_blocks: int, in_channels: int) -> nn.ModuleDict:
            modules: dict[str, nn.Module] = {}
            for i in range(n_blocks):
                modules[f"block_{i}"] = VDMResidualBlock(in_channels, n, 4 * n, settings.dropout)
                if settings.with_attention:
                    modules[f"attn_{i}"] = VDMAttention(n)
            return nn.ModuleDict(modules)

        self.dense0 = _linear(n + 1, 4 * n)
        self.dense1 = _linear(4 * n, 4 * n)
        self.conv_in = _convolution(channels * (5 if settings.with_fourier_features else 1), n)
        self.down = path(settings.n_resblocks, n)
        self.mid = nn.ModuleDict(
            {
                "block_1": VDMResidualBlock(n, n, 4 * n, settings.dropout),
                "attn_1": VDMAttention(n),
                "block_2": VDMResidualBlock(n, n, 4 * n, settings.dropout),
            }
        )
        self.up = path(settings.n_resblocks + 1, 2 * n)
        self.GroupNorm_0 = _group_norm(n)
        self.conv_out = _convolution(n, channels, zero=True)

    def forward(self, z: torch.Tensor, gamma: torch.Tensor, conditioning: torch.Tensor) -> torch.Tensor:
        settings = self.settings
        with torch.autocast(z.device.type, enabled=False):
            t = (gamma.to(z.dtype) - settings.gamma_min) / (settings.gamma_max - settings.gamma_min)
            embedding = positional_embedding(_TIME_SCALE * t, settings.n_channels)
            embedding = torch.cat([embedding, conditioning.to(z.dtype)[:, None]], dim=1)
            embedding = F.silu(self.dense1(F.silu(self.dense0(embedding))))
            inputs = torch.cat([z, fourier_features(z)], dim=1) if settings.with_fourier_features else z

        h = self.conv_in(inputs)
        skips = [h]
        for i in range(settings.n_resblocks):
            h = self._stage(self.down, i, h, embedding)
            skips.append(h)
        h = self.mid["block_1"](h, embedding)
        h = self.mid["attn_1"](h)
        h = self.mid["block_2"](h, embedding)
        for i in range(settings.n_resblocks + 1):
            h = self._stage(self.up, i, torch.cat([h, skips.pop()], dim=1), embedding)
        return z + self.conv_out(F.silu(self.GroupNorm_0(h)))

    def _stage(self, path: nn.ModuleDict, i: int, h: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        h = path[f"block_{i}"](h, embedding)
        return path[f"attn_{i}"](h) if self.settings.with_attention else h
