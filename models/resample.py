"""Resampling of images by a factor of two: box filters, or FIR filters (Karras et al., arXiv 1912.04958)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn


class FIRFilter(nn.Module):
    """Convolves every channel with outer(taps, taps), normalised to sum 1.

    The number of taps has to be even, so that the image stays centred. Outside the image there are zeros.

    Args:
        taps: the one-dimensional filter, (1, 3, 3, 1) in the published models.
    """

    kernel: torch.Tensor

    def __init__(self, taps: Sequence[float]) -> None:
        super().__init__()
        tap = torch.tensor(taps, dtype=torch.float64)
        kernel = torch.outer(tap, tap) / tap.sum() ** 2
        self.padding = len(taps) // 2 - 1
        # Not in the state_dict, which has the published names only.
        self.register_buffer("kernel", kernel.to(torch.get_default_dtype())[None, None], persistent=False)

    def downsample(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) to (B, C, H / 2, W / 2)."""
        return F.conv2d(x, self._flipped(x), stride=2, padding=self.padding, groups=x.shape[1])

    def upsample(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) to (B, C, 2 H, 2 W), the mean kept."""
        kernel = (4 * self.kernel).expand(x.shape[1], -1, -1, -1)
        return F.conv_transpose2d(x, kernel, stride=2, padding=self.padding, groups=x.shape[1])

    def before_strided_convolution(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) to (B, C, H + 1, W + 1), which an unpadded 3x3 convolution of stride 2 halves."""
        return F.conv2d(x, self._flipped(x), padding=self.padding + 1, groups=x.shape[1])

    def _flipped(self, x: torch.Tensor) -> torch.Tensor:
        # conv2d correlates; a convolution has the kernel reversed.
        return self.kernel.flip(2, 3).expand(x.shape[1], -1, -1, -1)


class BoxFilter(nn.Module):
    """2x2 average pooling and nearest-neighbour doubling."""

    def downsample(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) to (B, C, H / 2, W / 2)."""
        return F.avg_pool2d(x, 2)

    def upsample(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) to (B, C, 2 H, 2 W)."""
        return F.interpolate(x, scale_factor=2.0, mode="nearest")
