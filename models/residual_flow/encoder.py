"""The encoder of an image: a small residual network with batch normalisation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from models.residual_flow.batch_norm import SumOverRanks, SynchronizedBatchNorm


class Encoder(nn.Module):
    """(B, C, H, W) to features (B, n), n as ``n_features`` says.

    Args:
        in_channels: C.
        planes: channels of each level; a level halves the resolution.
        out_planes: channels of the features before they are flattened.
        sum_over_ranks: as in SynchronizedBatchNorm.
    """

    def __init__(
        self, in_channels: int, planes: tuple[int, ...], out_planes: int, sum_over_ranks: SumOverRanks
    ) -> None:
        super().__init__()
        levels: dict[str, nn.Module] = {}
        self._blocks: list[nn.Module] = []
        channels = in_channels
        for index, width in enumerate(planes):
            blocks = [_Block(channels, width, 1, sum_over_ranks), _Block(width, width, 2, sum_over_ranks)]
            levels[f"resnet{index}"] = nn.ModuleDict({"main": nn.ModuleList(blocks)})
            self._blocks += blocks
            channels = width
        self.net = nn.ModuleDict({**levels, "top": nn.Conv2d(channels, out_planes, 1)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self._blocks:
            x = block(x)
        return F.elu(self.net["top"](x)).flatten(1)


def n_features(image_size: int, n_levels: int, out_planes: int) -> int:
    """Features of an image of ``image_size`` squared."""
    for _ in range(n_levels):
        image_size = (image_size + 1) // 2
    return out_planes * image_size**2


class _Block(nn.Module):
    """Two 3x3 convolutions beside the identity, or beside a 1x1 convolution where the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, sum_over_ranks: SumOverRanks) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = SynchronizedBatchNorm(out_channels, sum_over_ranks)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = SynchronizedBatchNorm(out_channels, sum_over_ranks)
        self.downsample = (
            nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                SynchronizedBatchNorm(out_channels, sum_over_ranks),
            )
            if stride != 1 or in_channels != out_channels
            else None
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        return F.elu(self.bn2(self.conv2(F.elu(self.bn1(self.conv1(x))))) + shortcut)
