"""The code h of an image: Gaussian posterior and learned prior (Kim et al., arXiv 2205.13699)."""

from __future__ import annotations

import math

import torch
from torch import nn

from models.flow_settings import FlowSettings
from models.residual_flow.batch_norm import SumOverRanks
from models.residual_flow.encoder import Encoder, n_features
from models.residual_flow.prior import PriorFlow
from models.residual_flow.weight_normalized import WeightNormalizedLinear


class CodePosterior(nn.Module):
    """q(h | x) and p(h).

    Args:
        in_channels, image_size: of what the encoder sees.
        settings: of the flow; those of encoder, code and prior count.
        sum_over_ranks: as in Encoder.
    """

    def __init__(
        self,
        in_channels: int,
        image_size: int,
        settings: FlowSettings,
        sum_over_ranks: SumOverRanks,
    ) -> None:
        super().__init__()
        planes, out_planes = settings.encoder_planes, settings.encoder_out_planes
        self.encoder = Encoder(in_channels, planes, out_planes, sum_over_ranks)
        self.fc = WeightNormalizedLinear(n_features(image_size, len(planes), out_planes), 2 * settings.code_size)
        self.prior = PriorFlow(settings.code_size, settings.prior_hidden_size, settings.n_prior_steps)

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
