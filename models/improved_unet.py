"""The U-Net of improved-diffusion (Nichol and Dhariwal, arXiv 2102.09672, appendix A).

State_dict with the names, order and shapes of improved-diffusion's checkpoints, which are those of HSIVI's
network for ImageNet-64 (arXiv 2310.17153) too.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from models.embeddings import LabelEmbedding
from models.unet_settings import ImprovedUNetSettings, UNetSettings


def _group_norm(channels: int, settings: UNetSettings) -> nn.GroupNorm:
    return nn.GroupNorm(settings.n_groups, channels, eps=settings.group_norm_eps)


def _zero(layer: nn.Conv1d | nn.Conv2d) -> nn.Module:
    """The layer with weights and bias 0, so that its block begins as the identity."""
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


class _ResidualBlock(nn.Module):
    """x + two convolutions, conditioned at the second group norm; a 1x1 convolution where the width changes."""

    def __init__(self, in_channels: int, out_channels: int, settings: ImprovedUNetSettings) -> None:
        super().__init__()
        self.use_scale_shift_norm = settings.use_scale_shift_norm
        self.in_layers = nn.Sequential(
            _group_norm(in_channels, settings), nn.SiLU(), nn.Conv2d(in_channels, out_channels, 3, padding=1)
        )
        n_numbers = 2 * out_channels if settings.use_scale_shift_norm else out_channels
        # The activation is outside, but keeps its place in the numbering of the published names.
        self.emb_layers = nn.Sequential(nn.Identity(), nn.Linear(4 * settings.n_channels, n_numbers))
        self.out_layers = nn.Sequential(
            _group_norm(out_channels, settings),
            nn.SiLU(),
            nn.Dropout(settings.dropout),
            _zero(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        self.skip_connection = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        """x (B, in_channels, H, W); embedding (B, 4 n), the activation already applied."""
        h = self.in_layers(x)
        condition = self.emb_layers(embedding)[:, :, None, None]
        norm, activation, dropout, convolution = self.out_layers
        if self.use_scale_shift_norm:
            scale, shift = condition.chunk(2, dim=1)
            h = norm(h) * (1 + scale) + shift
        else:
            h = norm(h + condition)
        return self.skip_connection(x) + convolution(dropout(activation(h)))


class _AttentionBlock(nn.Module):
    """x + self-attention over all pixels."""

    def __init__(self, channels: int, settings: ImprovedUNetSettings) -> None:
        super().__init__()
        self.num_heads = settings.num_heads
        self.norm = _group_norm(channels, settings)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = _zero(nn.Conv1d(channels, channels, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pixels = self.qkv(self.norm(x).flatten(2))
        # The channels of one head are its query, key and value in turn.
        heads = pixels.unflatten(1, (self.num_heads, -1)).transpose(2, 3)
        query, key, value = heads.chunk(3, dim=-1)
        attended = F.scaled_dot_product_attention(query, key, value).transpose(2, 3).flatten(1, 2)
        return x + self.proj_out(attended).reshape(x.shape)


class _Downsampling(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.op(x)


class _Upsampling(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class _Stage(nn.ModuleList):
    """Modules in a row; residual blocks among them are given the embedding."""

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        for module in self:
            x = module(x, embedding) if isinstance(module, _ResidualBlock) else module(x)
        return x


class ImprovedUNet(nn.Module):
    """The network: images (B, C, H, W) and labels (B,) to the predicted noise (B, C, H, W).

    Labels are whole or fractional numbers of any dtype, used as they are. Works in any memory format and under
    autocast; the label embedding is computed in the dtype of the parameters even there.
    """

    def __init__(self, settings: ImprovedUNetSettings) -> None:
        super().__init__()
        self.settings = settings
        n, widths = settings.n_channels, settings.widths

        def blocks(in_channels: int, level: int) -> list[nn.Module]:
            found: list[nn.Module] = [_ResidualBlock(in_channels, widths[level], settings)]
            if settings.resolutions[level] in settings.attn_resolutions:
                found.append(_AttentionBlock(widths[level], settings))
            return found

        self.positions = LabelEmbedding(n, spacing=n // 2, cosines_first=True)
        self.time_embed = nn.Sequential(nn.Linear(n, 4 * n), nn.SiLU(), nn.Linear(4 * n, 4 * n))
        self.input_blocks = nn.ModuleList([_Stage([nn.Conv2d(settings.image_channels, n, 3, padding=1)])])
        skips, channels = [n], n
        for level, width in enumerate(widths):
            for _ in range(settings.n_resblocks):
                self.input_blocks.append(_Stage(blocks(channels, level)))
                channels = width
                skips.append(width)
            if level + 1 < len(widths):
                self.input_blocks.append(_Stage([_Downsampling(width)]))
                skips.append(width)
        self.middle_block = _Stage(
            [
                _ResidualBlock(channels, channels, settings),
                _AttentionBlock(channels, settings),
                _ResidualBlock(channels, channels, settings),
            ]
        )
        self.output_blocks = nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            for index in range(settings.n_resblocks + 1):
                stage = blocks(channels + skips.pop(), level)
                channels = width
                if level > 0 and index == settings.n_resblocks:
                    stage.append(_Upsampling(width))
                self.output_blocks.append(_Stage(stage))
        n_outputs = settings.image_channels * (2 if settings.learn_sigma else 1)
        self.out = nn.Sequential(
            _group_norm(channels, settings), nn.SiLU(), _zero(nn.Conv2d(channels, n_outputs, 3, padding=1))
        )

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            positions = self.positions(labels).to(self.out[2].weight.dtype)
            # Every block starts with the activation of the embedding, so it is applied once, here.
            embedding = F.silu(self.time_embed(positions))
        h, skips = x, []
        for stage in self.input_blocks:
            h = stage(h, embedding)
            skips.append(h)
        h = self.middle_block(h, embedding)
        for stage in self.output_blocks:
            h = stage(torch.cat([h, skips.pop()], dim=1), embedding)
        return self.out(h)[:, : self.settings.image_channels]
