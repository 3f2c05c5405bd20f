"""Embeddings of the time, or of another conditioning number, of each sample."""

from __future__ import annotations

import math

import torch
from torch import nn


class FourierEmbedding(nn.Module):
    """sin and cos of 2 pi w ln(t) with random, untrained frequencies w (Song et al., arXiv 2011.13456).

    Args:
        n_frequencies: number of frequencies; the embedding is twice as wide.
        scale: standard deviation of the frequencies.
    """

    def __init__(self, n_frequencies: int, scale: float) -> None:
        super().__init__()
        # A parameter, not a buffer: published checkpoints hold it among the parameters, and first.
        self.W = nn.Parameter(scale * torch.randn(n_frequencies), requires_grad=False)

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        """t (B,), positive; returns (B, 2 n_frequencies) in the dtype of the frequencies."""
        angle = t.to(self.W.dtype).log()[:, None] * self.W * (2 * math.pi)
        return torch.cat([angle.sin(), angle.cos()], dim=1)


def positional_embedding(t: torch.Tensor, width: int) -> torch.Tensor:
    """sin and cos of t times width / 2 frequencies from 1 down to 1e-4 (Vaswani et al., arXiv 1706.03762).

    Args:
        t: (B,), used as it is: whoever trains with discrete time steps scales it.
        width: even, at least 4.

    Returns:
        (B, width), dtype of t.
    """
    n_frequencies = width // 2
    exponent = torch.arange(n_frequencies, dtype=t.dtype, device=t.device) / (n_frequencies - 1)
    angle = t[:, None] * torch.exp(-math.log(10000.0) * exponent)
    return torch.cat([angle.sin(), angle.cos()], dim=1)


class LabelEmbedding(nn.Module):
    """sin and cos of the label of a discrete diffusion step (Ho et al., arXiv 2006.11239, appendix B).

    Published networks were trained on angles rounded to float32, so these are too, whatever the network's dtype.

    Args:
        width: of the embedding; even.
        spacing: frequency k is 10000^(-k / spacing), k = 0 to width / 2 - 1.
        cosines_first: order of the two halves.
    """

    def __init__(self, width: int, spacing: int, cosines_first: bool) -> None:
        super().__init__()
        self.width, self.spacing, self.cosines_first = width, spacing, cosines_first

    def forward(self, labels: torch.Tensor) -> torch.Tensor:
        """labels (B,), whole or fractional, used as they are; returns float32 (B, width)."""
        index = torch.arange(self.width // 2, dtype=torch.float32, device=labels.device)
        frequencies = torch.exp(index * -(math.log(10000.0) / self.spacing))
        angle = labels.float()[:, None] * frequencies
        halves = [angle.cos(), angle.sin()] if self.cosines_first else [angle.sin(), angle.cos()]
        return torch.cat(halves, dim=1)
