"""What the dequantizer knows of the image whose noise it draws (Flow++, arXiv 1902.00275, appendix)."""

from __future__ import annotations

import torch
from torch import nn

from models.flowpp.layers import GatedConvolution, MixedBlock, convolution, position_embedding


class ShallowContext(nn.Module):
    """Gated convolutions: the network of the CIFAR-10 architecture.

    Args:
        in_channels: of the input.
        channels: of the context.
        n_blocks: gated convolutions.
    """

    def __init__(self, in_channels: int, channels: int, n_blocks: int) -> None:
        super().__init__()
        self.input = convolution(in_channels, channels, weight_norm=False)
        self.blocks = nn.ModuleList(GatedConvolution(channels, weight_norm=False) for _ in range(n_blocks))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_channels, H, W) to (B, channels, H, W)."""
        h = self.input(x)
        for block in self.blocks:
            h = block(h)
        return h


class DeepContext(nn.Module):
    """Gated convolutions with weight normalisation and attention: the network of the ImageNet-32 architecture.

    Args:
        in_channels: of the input.
        channels: of the context.
        n_blocks: blocks of both.
        n_heads: attention heads.
        size: (H, W).
    """

    def __init__(self, in_channels: int, channels: int, n_blocks: int, n_heads: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.input = convolution(in_channels, channels, weight_norm=True)
        self.position_embedding = position_embedding(channels, *size)
        self.blocks = nn.ModuleList(MixedBlock(channels, n_heads, weight_norm=True) for _ in range(n_blocks))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_channels, H, W) to (B, channels, H, W)."""
        h = self.input(x)
        for block in self.blocks:
            h = block(h, self.position_embedding)
        return h
