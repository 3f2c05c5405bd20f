"""The U-Net of denoising diffusion models (Ho et al., arXiv 2006.11239, appendix B).

State_dict with the names, order and shapes of ddpm-torch's checkpoints and of the networks inside HSIVI
(arXiv 2310.17153) for CIFAR-10 and CelebA-64.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from models.embeddings import LabelEmbedding
from models.layers import convolution, linear
from models.unet_settings import DDPMUNetSettings, UNetSettings


class _ResidualBlock(nn.Module):
    """x + two convolutions, the embedding added between them; a 1x1 convolution where the width changes."""

    def __init__(self, in_channels: int, out_channels: int, settings: UNetSettings) -> None:
        super().__init__()
        self.norm1 = _group_norm(in_channels, settings)
        self.conv1 = convolution(in_channels, out_channels)
        self.fc = linear(4 * settings.n_channels, out_channels)
        self.norm2 = _group_norm(out_channels, settings)
        self.conv2 = convolution(out_channels, out_channels, scale=0.0)
        self.skip = convolution(in_channels, out_channels, size=1) if in_channels != out_channels else nn.Identity()
        self.dropout = settings.dropout

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        """x (B, in_channels, H, W); embedding (B, 4 n), the activation already applied."""
        h = self.conv1(F.silu(self.norm1(x))) + self.fc(embedding)[:, :, None, None]
        h = self.conv2(F.dropout(F.silu(self.norm2(h)), self.dropout, self.training))
        return h + self.skip(x)


class _AttentionBlock(nn.Module):
    """x + self-attention over all pixels, one head."""

    def __init__(self, channels: int, settings: UNetSettings) -> None:
        super().__init__()
        self.norm = _group_norm(channels, settings)
        self.project_in = convolution(channels, 3 * channels, size=1)
        self.project_out = convolution(channels, channels, size=1, scale=0.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.project_in(self.norm(x)).flatten(2).transpose(1, 2)[:, None]
        query, key, value = tokens.chunk(3, dim=-1)
        attended = F.scaled_dot_product_attention(query, key, value)[:, 0]
        return x + self.project_out(attended.transpose(1, 2).reshape(x.shape))


class _AttendedBlock(nn.ModuleList):
    """A residual block and the attention that follows it."""

    def __init__(self, in_channels: int, out_channels: int, settings: UNetSettings) -> None:
        super().__init__([_ResidualBlock(in_channels, out_channels, settings), _AttentionBlock(out_channels, settings)])

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        residual, attention = self
        return attention(residual(x, embedding))


def _group_norm(channels: int, settings: UNetSettings) -> nn.GroupNorm:
    return nn.GroupNorm(settings.n_groups, channels, eps=settings.group_norm_eps)


class DDPMUNet(nn.Module):
    """The network: images (B, C, H, W) and labels (B,) to the predicted noise (B, C, H, W).

    Labels are whole or fractional numbers of any dtype, used as they are. Works in any memory format and under
    autocast; the label embedding is computed in the dtype of the parameters even there.
    """

    def __init__(self, settings: DDPMUNetSettings) -> None:
        super().__init__()
        self.settings = settings
        n, widths = settings.n_channels, settings.widths

        def block(in_channels: int, level: int) -> nn.Module:
            attended = settings.resolutions[level] in settings.attn_resolutions
            return (_AttendedBlock if attended else _ResidualBlock)(in_channels, widths[level], settings)

        self.positions = LabelEmbedding(n, spacing=n // 2 - 1, cosines_first=False)
        self.embed = nn.Sequential(linear(n, 4 * n), nn.SiLU(), linear(4 * n, 4 * n))
        self.in_conv = convolution(settings.image_channels, n)
        self.downsamples = nn.ModuleDict()
        skips, channels = [n], n
        for level, width in enumerate(widths):
            down = nn.ModuleList()
            for _ in range(settings.n_resblocks):
                down.append(block(channels, level))
                channels = width
                skips.append(width)
            if level + 1 < len(widths):
                # Sizes are even, for which "same" padding of a strided convolution is all behind.
                padding = nn.ZeroPad2d((0, 1, 0, 1))
                down.append(nn.Sequential(padding, convolution(width, width, stride=2, padding=0)))
                skips.append(width)
            self.downsamples[f"level_{level}"] = down
        self.middle = nn.ModuleList(
            [
                _ResidualBlock(channels, channels, settings),
                _AttentionBlock(channels, settings),
                _ResidualBlock(channels, channels, settings),
            ]
        )
        up_levels = {}
        for level, width in reversed(list(enumerate(widths))):
            up = nn.ModuleList()
            for _ in range(settings.n_resblocks + 1):
                up.append(block(channels + skips.pop(), level))
                channels = width
            if level > 0:
                up.append(nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), convolution(width, width)))
            up_levels[f"level_{level}"] = up
        # The published order is from the finest level to the coarsest here too.
        self.upsamples = nn.ModuleDict({name: up_levels[name] for name in self.downsamples})
        self.out_conv = nn.Sequential(
            _group_norm(n, settings), nn.SiLU(), convolution(n, settings.image_channels, scale=0.0)
        )

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            positions = self.positions(labels).to(self.in_conv.weight.dtype)
            # Every block starts with the activation of the embedding, so it is applied once, here.
            embedding = F.silu(self.embed(positions))
        n_resblocks = self.settings.n_resblocks
        levels = [f"level_{level}" for level in range(len(self.settings.ch_mult))]

        h = self.in_conv(x)
        skips = [h]
        for level in levels:
            for index, module in enumerate(cast(nn.ModuleList, self.downsamples[level])):
                h = module(h, embedding) if index < n_resblocks else module(h)
                skips.append(h)
        first, attention, second = self.middle
        h = second(attention(first(h, embedding)), embedding)
        for level in reversed(levels):
            for index, module in enumerate(cast(nn.ModuleList, self.upsamples[level])):
                if index <= n_resblocks:
                    h = module(torch.cat([h, skips.pop()], dim=1), embedding)
                else:
                    h = module(h)
        return self.out_conv(h)
