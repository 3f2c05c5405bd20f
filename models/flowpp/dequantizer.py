"""Variational dequantization by a conditional flow (Flow++, arXiv 1902.00275, Section 3.1)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from models.flowpp.bijections import ActivationNorm, PointwiseMap, logit, merge_columns, sigmoid, split_columns
from models.flowpp.context import DeepContext, ShallowContext
from models.flowpp.coupling import MixtureCoupling
from models.flowpp.settings import DequantizerSettings


class FlowStep(nn.Module):
    """Normalisation of both halves, maps of their channels, a coupling, and the exchange of the halves.

    Args:
        shape: (C, H, W) of each half.
        settings: of the dequantizer.
    """

    def __init__(self, shape: tuple[int, int, int], settings: DequantizerSettings) -> None:
        super().__init__()
        plain = settings.architecture == "cifar10"
        self.norms = nn.ModuleList(ActivationNorm(shape, settings.floored) for _ in range(2))
        self.pointwise = nn.ModuleList(PointwiseMap(shape[0]) for _ in range(2 if plain else 0))
        self.coupling = MixtureCoupling(shape, settings)

    def _maps(self) -> list[tuple[Any, Any]]:
        """The maps of the first and of the second half, in their order."""
        return [(maps[0], maps[1]) for maps in (self.norms, self.pointwise) if len(maps)]

    def forward(
        self, halves: tuple[torch.Tensor, torch.Tensor], context: torch.Tensor
    ) -> tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor]:
        first, second = halves
        total = first.new_zeros(len(first), dtype=torch.float64)
        for map_of_first, map_of_second in self._maps():
            first, log_determinant_1 = map_of_first(first)
            second, log_determinant_2 = map_of_second(second)
            total = total + log_determinant_1 + log_determinant_2
        second, log_determinant = self.coupling(first, second, context)
        return (second, first), total + log_determinant

    def inverse(
        self, halves: tuple[torch.Tensor, torch.Tensor], context: torch.Tensor
    ) -> tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor]:
        second, first = halves
        second, total = self.coupling.inverse(first, second, context)
        for map_of_first, map_of_second in reversed(self._maps()):
            first, log_determinant_1 = map_of_first.inverse(first)
            second, log_determinant_2 = map_of_second.inverse(second)
            total = total + log_determinant_1 + log_determinant_2
        return (first, second), total


class Dequantizer(nn.Module):
    """A distribution q(u | image) of noise in (0, 1) for every grey level of an image.

    Its weights are drawn at random; ``models.flowpp.initialization.initialize_from_data`` has to scale them on the
    first batch before anything else is done with them.
    """

    def __init__(self, settings: DequantizerSettings) -> None:
        super().__init__()
        self.settings = settings
        channels, height, width = settings.image_shape
        half = (channels, height, width // 2)
        sizes = (2 * channels, settings.context_channels, settings.n_context_blocks)
        if settings.architecture == "cifar10":
            self.context: nn.Module = ShallowContext(*sizes)
        else:
            self.context = DeepContext(*sizes, settings.n_context_heads, half[1:])
        self.steps = nn.ModuleList(FlowStep(half, settings) for _ in range(settings.n_couplings))

    def _steps(self) -> list[Any]:
        return list(self.steps)

    def _context(self, image: torch.Tensor) -> torch.Tensor:
        return self.context(torch.cat(split_columns(image - 0.5), dim=1))

    def forward(self, noise: torch.Tensor, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw u from q(u | image).

        Args:
            noise: standard normal, (B, C, H, W).
            image: grey levels divided by the largest one, (B, C, H, W) in [0, 1].

        Returns:
            u (B, C, H, W) and -log q(u | image) in nats, float64 (B,).
        """
        context = self._context(image)
        minus_log_q = _log_normal(noise).neg()
        halves = split_columns(noise)
        for step in self.steps:
            halves, log_determinant = step(halves, context)
            minus_log_q = minus_log_q + log_determinant
        u, log_determinant = sigmoid(merge_columns(*halves))
        return u, minus_log_q + log_determinant

    def inverse(self, u: torch.Tensor, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The noise that ``forward`` turns into u in (0, 1), and -log q(u | image); not differentiable."""
        context = self._context(image)
        state, log_determinant = logit(u)
        halves, total = split_columns(state), -log_determinant
        for step in reversed(self._steps()):
            halves, log_determinant = step.inverse(halves, context)
            total = total - log_determinant
        noise = merge_columns(*halves)
        return noise, total - _log_normal(noise)


def _log_normal(noise: torch.Tensor) -> torch.Tensor:
    """Log density of standard normals in nats, float64 (B,)."""
    squares = noise.double().square().flatten(1)
    return -0.5 * (squares.sum(1) + squares.shape[1] * math.log(2 * math.pi))
