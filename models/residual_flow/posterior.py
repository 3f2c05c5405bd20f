"""The code h of an image: Gaussian posterior and learned prior (Kim et al., arXiv 2205.13699)."""

from __future__ import annotations

import math

import torch
from torch import nn

from models.residual_flow.batch_norm import SumOverRanks
from models.residual_flow.encoder import Encoder, n_features
from models.residual_flow.prior import PriorFlow
from models.residual_flow.weight_normalized import WeightNormalizedLinear


class CodePosterior(nn.Module):
    """q(h | x) and p(h).

    Args:
        in_channels, image_size: of what the encoder sees.
        encoder_planes, encoder_out_planes, sum_over_ranks: as in Encoder.
        code_size: entries of h.
        prior_hidden_size, n_prior_steps: as in PriorFlow.
    """

    def __init__(
        self,
        in_channels: int,
        image_size: int,
        *,
        encoder_planes: tuple[int, ...],
        encoder_out_planes: int,
        code_size: int,
        prior_hidden_size: int,
        n_prior_steps: int,
        sum_over_ranks: SumOverRanks,
    ) -> None:
        super().__init__()
        self.encoder = Encoder(in_channels, encoder_planes, encoder_out_planes, sum_over_ranks)
        features = n_features(image_size, len(encoder_planes), encoder_out_planes)
        self.fc = WeightNormalizedLinear(features, 2 * code_size)
        self.prior = PriorFlow(code_size, prior_hidden_size, n_prior_steps)

    def moments(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log variance of q(h | x), (B, code_size) each, for x (B, C, H, W)."""
        mean, log_variance = self.fc(self.encoder(x)).chunk(2, dim=1)
        return mean, log_variance

    def forward(self, x: torch.Tensor, normal: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A code (B, code_size) from q(h | x) by standard normal numbers, and log q(h | x) - log p(h), float64 (B,)."""
        mean, log_variance = self.moments(x)
        code = mean + (log_variance / 2).exp() * normal
        return code, posterior_log_density(log_variance, normal) - self.prior.log_density(code)


def posterior_log_density(log_variance: torch.Tensor, normal: torch.Tensor) -> torch.Tensor:
    """log q at mean + exp(log_variance / 2) normal, float64 (B,) for (B, n) twice."""
    exponent = log_variance.double() + normal.double().square()
    return -exponent.sum(1) / 2 - normal.shape[1] / 2 * math.log(2 * math.pi)
