"""The coupling layer of Flow++: a mixture of logistics, a logit and an affine map (arXiv 1902.00275, Section 3.2)."""

from __future__ import annotations

import torch
from torch import nn

from models.flowpp import logistic_mixture
from models.flowpp.bijections import floored_logit, per_sample
from models.flowpp.layers import SECOND_LAYER_SCALE, MixedBlock, concat_elu, convolution, position_embedding
from models.flowpp.settings import DequantizerSettings

SMALLEST_LOG_SCALE = -7.0


class MixtureCoupling(nn.Module):
    """Transforms one half of a state by functions whose parameters a network computes from the other half.

    Args:
        shape: (C, H, W) of each half.
        settings: of the dequantizer; ``weight_norm`` puts a non-linearity before the last convolution, and ``floored``
            is as in ``models.flowpp.bijections.floored_logit``.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        settings: DequantizerSettings,
    ) -> None:
        super().__init__()
        channels, height, width = shape
        n_filters, weight_norm = settings.n_filters, settings.weight_norm
        n_components = settings.n_components
        self.n_components = n_components
        self.weight_norm = weight_norm
        self.floored = settings.floored
        self.input = convolution(channels, n_filters, weight_norm)
        self.position_embedding = position_embedding(n_filters, height, width)
        self.blocks = nn.ModuleList(
            MixedBlock(n_filters, settings.n_heads, weight_norm, settings.context_channels)
            for _ in range(settings.n_blocks)
        )
        in_channels = n_filters * (2 if weight_norm else 1)
        out_channels = channels * (2 + 3 * n_components)
        self.output = convolution(in_channels, out_channels, weight_norm, SECOND_LAYER_SCALE)

    def parameters_of_map(
        self, given: torch.Tensor, context: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, logistic_mixture.Mixture]:
        """Logarithm of the slope and offset of the affine map, (B, C, H, W), and the mixture, (B, C, H, W, K)."""
        h = self.input(given)
        for block in self.blocks:
            h = block(h, self.position_embedding, context)
        h = self.output(concat_elu(h) if self.weight_norm else h)
        # Mixed precision stops here: the map's own arithmetic has to be exact.
        parameters = h.to(given.dtype).unflatten(1, (given.shape[1], -1)).movedim(2, -1)
        log_slope, offset = parameters[..., 0].tanh(), parameters[..., 1]
        logits, means, log_scales = parameters[..., 2:].split(self.n_components, dim=-1)
        return log_slope, offset, (logits, means, log_scales.clamp(min=SMALLEST_LOG_SCALE))

    def forward(self, given: torch.Tensor, x: torch.Tensor, context: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The transformed x and the log-determinant.

        Args:
            given: (B, C, H, W), the half that is left as it is.
            x: (B, C, H, W), the other half.
            context: (B, context_channels, H, W).
        """
        log_slope, offset, mixture = self.parameters_of_map(given, context)
        if self.floored:
            log_odds, log_derivative = floored_log_odds(x, mixture)
        else:
            log_odds, log_derivative = logistic_mixture.log_odds(x, mixture)
        return log_odds * log_slope.exp() + offset, per_sample(log_derivative + log_slope)

    def inverse(self, given: torch.Tensor, y: torch.Tensor, context: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The x that ``forward`` took to y, and the log-determinant of the inverse."""
        log_slope, offset, mixture = self.parameters_of_map(given, context)
        x = logistic_mixture.inverse_log_odds((y - offset) * (-log_slope).exp(), mixture)
        _, log_derivative = logistic_mixture.log_odds(x, mixture)
        return x, -per_sample(log_derivative + log_slope)


def floored_log_odds(x: torch.Tensor, mixture: logistic_mixture.Mixture) -> tuple[torch.Tensor, torch.Tensor]:
    """``logistic_mixture.log_odds`` by way of the distribution function, which may round to 0 or 1."""
    below, _ = logistic_mixture.log_distribution(x, mixture)
    log_odds, log_derivative = floored_logit(below.exp())
    return log_odds, logistic_mixture.log_density(x, mixture) + log_derivative
