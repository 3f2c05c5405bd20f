"""The prior p(h) of codes: a coupling flow between h and standard normal numbers (RealNVP, Glow; arXiv 1605.08803)."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from models.residual_flow.weight_normalized import INITIAL_DEVIATION, WeightNormalizedLinear


class ActNorm(nn.Module):
    """x exp(l) + b, for each entry of (B, n)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.randn(size) * INITIAL_DEVIATION)
        self.bias = nn.Parameter(torch.zeros(size))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The image and log|det| (B,)."""
        return x * self.log_scale.exp() + self.bias, self.log_scale.sum().expand(len(x))

    def inverse(self, y: torch.Tensor, by_initial_weights: bool = False) -> torch.Tensor:
        """x; ``by_initial_weights`` adds 1e-8 to the scale."""
        return (y - self.bias) / (self.log_scale.exp() + (1e-8 if by_initial_weights else 0.0))


class InvertibleLinear(nn.Module):
    """x W^T for any invertible W, orthogonal at first."""

    weight_inv: torch.Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.orthogonal_(torch.empty(size, size)))
        # Stays as it is at first, as in published checkpoints, where it is no inverse of the trained weight.
        self.register_buffer("weight_inv", self.weight.detach().T.contiguous())

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The image and log|det| (B,)."""
        return F.linear(x, self.weight), torch.linalg.slogdet(self.weight).logabsdet.expand(len(x))

    def inverse(self, y: torch.Tensor, by_initial_weights: bool = False) -> torch.Tensor:
        """x by W, or ``by_initial_weights`` by ``weight_inv``."""
        if by_initial_weights:
            return F.linear(y, self.weight_inv)
        return torch.linalg.solve(self.weight, y.T).T


class AffineCoupling(nn.Module):
    """One half of the entries scaled and shifted by a network of the other half.

    Args:
        size: entries, an even number.
        hidden_size: width of the network.
        split: "continuous" (first and second half) or "skip" (even and odd positions).
        transforms: which half changes: 1, the second ("up" in published names), or 0, the first ("down").
    """

    def __init__(
        self, size: int, hidden_size: int, split: Literal["continuous", "skip"], transforms: Literal[0, 1]
    ) -> None:
        super().__init__()
        half = size // 2
        first, second = nn.Linear(half, hidden_size), nn.Linear(hidden_size, hidden_size)
        for layer in (first, second):
            nn.init.zeros_(layer.bias)
        last = WeightNormalizedLinear(hidden_size, 2 * half)
        self._network = (first, second, last)
        self.net = nn.ModuleDict({"fc1": first, "fc2": second, "fc3": last})
        self.split = split
        self.transforms = transforms

    def _halves(self, x: torch.Tensor) -> list[torch.Tensor]:
        return list(x.chunk(2, dim=1)) if self.split == "continuous" else [x[:, 0::2], x[:, 1::2]]

    def _join(self, halves: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat(halves, dim=1) if self.split == "continuous" else torch.stack(halves, dim=2).flatten(1)

    def _scale_and_shift(self, condition: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        first, second, last = self._network
        shift, raw = last(F.elu(second(F.elu(first(condition))))).chunk(2, dim=1)
        return torch.sigmoid(raw + 2.0) + 1e-3, shift

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The image and log|det| (B,)."""
        halves = self._halves(x)
        scale, shift = self._scale_and_shift(halves[1 - self.transforms])
        halves[self.transforms] = scale * halves[self.transforms] + shift
        return self._join(halves), scale.log().sum(1)

    def inverse(self, y: torch.Tensor, by_initial_weights: bool = False) -> torch.Tensor:
        """x; ``by_initial_weights`` adds 1e-12 to the scale."""
        halves = self._halves(y)
        scale, shift = self._scale_and_shift(halves[1 - self.transforms])
        margin = 1e-12 if by_initial_weights else 0.0
        halves[self.transforms] = (halves[self.transforms] - shift) / (scale + margin)
        return self._join(halves)


class PriorFlow(nn.Module):
    """p(h) by a map of h to standard normal numbers.

    Args:
        size: entries of h.
        hidden_size: width of the couplings' networks.
        n_steps: an ActNorm, an InvertibleLinear and four couplings with an ActNorm in their middle, this many times.
    """

    def __init__(self, size: int, hidden_size: int, n_steps: int) -> None:
        super().__init__()

        # In the order in which h goes through them; the nested modules only give the names.
        self._layers: list[ActNorm | InvertibleLinear | AffineCoupling] = []

        def step() -> nn.Module:
            actnorm, linear = ActNorm(size), InvertibleLinear(size)
            unit: dict[str, ActNorm | AffineCoupling] = {
                "coupling1_up": AffineCoupling(size, hidden_size, "continuous", 1),
                "coupling1_dn": AffineCoupling(size, hidden_size, "continuous", 0),
                "actnorm": ActNorm(size),
                "coupling2_up": AffineCoupling(size, hidden_size, "skip", 1),
                "coupling2_dn": AffineCoupling(size, hidden_size, "skip", 0),
            }
            self._layers += [actnorm, linear, *unit.values()]
            return nn.ModuleDict({"actnorm": actnorm, "linear": linear, "unit": nn.ModuleDict(unit)})

        self.flow = nn.ModuleDict({"steps": nn.ModuleList(step() for _ in range(n_steps))})

    def forward(self, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Standard normal numbers of h (B, size), and log|det| float64 (B,)."""
        total = torch.zeros(len(h), dtype=torch.float64, device=h.device)
        for layer in self._layers:
            h, log_determinant = layer(h)
            total = total + log_determinant
        return h, total

    def log_density(self, h: torch.Tensor) -> torch.Tensor:
        """log p(h), float64 (B,)."""
        normal, log_determinant = self(h)
        squares = normal.double().square().sum(1)
        return log_determinant - squares / 2 - normal.shape[1] / 2 * math.log(2 * math.pi)

    def inverse(self, normal: torch.Tensor, by_initial_weights: bool = False) -> torch.Tensor:
        """h of standard normal numbers (B, size).

        Args:
            by_initial_weights: through the inverse of each linear map's *initial* weight, and with small margins that
                keep scales from 0, as the public code draws codes, which then do not have the density that
                ``log_density`` says.
        """
        for layer in reversed(self._layers):
            normal = layer.inverse(normal, by_initial_weights)
        return normal
