"""Convolutions that cannot expand distances in the largest norm."""

import math

import torch
from torch import nn

LIPSCHITZ_BOUND = 0.98


class LipschitzConvolution(nn.Module):
    """The parameters of a 3x3 or 1x1 convolution whose kernel is bounded where it is used.

    The sum of the absolute values of one output channel's kernel bounds how much that output can change when no input
    value changes by more than 1: the l-infinity bound of Residual Flows (Chen et al., arXiv 1906.02735, Section 3.3).

    Args:
        in_channels, out_channels: channels.
        size: side of the kernel.
        code_size: where given, a linear map of the code is added to the input at every pixel.
    """

    scale: torch.Tensor

    def __init__(self, in_channels: int, out_channels: int, size: int, code_size: int | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, size, size))
        self.bias = nn.Parameter(torch.empty(out_channels))
        # Nothing reads it; published checkpoints have it.
        self.register_buffer("scale", torch.zeros(()))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        bound = 1 / math.sqrt(in_channels * size**2)
        nn.init.uniform_(self.bias, -bound, bound)
        if code_size is not None:
            self._code_map = [nn.Linear(code_size, in_channels)]
            self.h_net = nn.ModuleDict({"net": self._code_map[0]})

    def bounded_weight(self) -> torch.Tensor:
        """The kernel in use, (out_channels, in_channels, size, size): rows above the bound are scaled down to it."""
        norms = self.weight.abs().sum((1, 2, 3), keepdim=True)
        return self.weight / (norms / LIPSCHITZ_BOUND).clamp_min(1.0)

    def condition(self, code: torch.Tensor) -> torch.Tensor:
        """What the code (B, code_size) adds to the input, (B, in_channels)."""
        return self._code_map[0](code)
