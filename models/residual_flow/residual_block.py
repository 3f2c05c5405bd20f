"""One invertible residual block, conditioned on a code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from models.residual_flow.branch import TWO_PI, Branch
from models.residual_flow.fixed_point import invert, invert_together
from models.residual_flow.lipschitz import LIPSCHITZ_BOUND, LipschitzConvolution
from models.residual_flow.log_determinant import SURROGATE_EXACT_TERMS, exact, roulette_weights, series
from models.residual_flow.surrogate import branch_with_surrogate

LogDeterminant = Literal["surrogate", "series", "exact", "none"]

POISSON_RATE = 2.0
BLOCK_LIPSCHITZ_CONSTANT = LIPSCHITZ_BOUND**3


@dataclass(frozen=True)
class InverseSettings:
    """How the blocks are inverted.

    Attributes:
        tolerance: largest error of each block's inverse, relative to 1 + the largest value of a sample, as far as the
            dtype allows.
        max_iterations: of one block for one sample.
        stops_together: the public code's rule instead, which stops all samples together, compares squared changes and
            never fails.
    """

    tolerance: float = 1e-6
    max_iterations: int = 1000
    stops_together: bool = False


class ResidualBlock(nn.Module):
    """y = x + g_h(x) (arXiv 2205.13699; arXiv 1906.02735).

    g is a convolution 3x3, a sine, the code's contribution, a convolution 1x1, a sine and a convolution 3x3, with a
    sine before all that except in the flow's first block. Its Lipschitz constant in the largest norm is at most 0.98^3.

    Args:
        channels: C of x and y.
        hidden_channels: between the convolutions.
        code_size: numbers of a code.
        activates_input: whether a sine comes first.
    """

    last_n_samples: torch.Tensor
    last_firmom: torch.Tensor
    last_secmom: torch.Tensor

    def __init__(self, channels: int, hidden_channels: int, code_size: int, activates_input: bool) -> None:
        super().__init__()
        # Neither gets a gradient. They are parameters because optimiser states and averages of published checkpoints
        # count them.
        self.geom_p = nn.Parameter(torch.zeros(()))
        self.lamb = nn.Parameter(torch.tensor(POISSON_RATE))
        for name in ("last_n_samples", "last_firmom", "last_secmom"):
            self.register_buffer(name, torch.zeros(1))
        self._convolutions = (
            LipschitzConvolution(channels, hidden_channels, 3),
            LipschitzConvolution(hidden_channels, hidden_channels, 1, code_size),
            LipschitzConvolution(hidden_channels, channels, 3),
        )
        # The activations, which have no parameters, count too in the published names.
        offset = int(activates_input)
        self.nnet = nn.ModuleDict({str(offset + 2 * i): layer for i, layer in enumerate(self._convolutions)})
        self.activates_input = activates_input
        self.poisson_rate = POISSON_RATE

    def _load_from_state_dict(self, *arguments: Any, **options: Any) -> None:
        super()._load_from_state_dict(*arguments, **options)
        # Here once, so that no forward pass waits for the device to know how many terms to sum.
        self.poisson_rate = float(self.lamb.detach())

    def branch(self, code: torch.Tensor) -> tuple[Branch, torch.Tensor]:
        """g with its bounded kernels, and what the code (B, code_size) adds to its second angles, (B, n).

        Both are differentiable in the parameters and serve any number of evaluations.
        """
        first, middle, last = self._convolutions
        middle_matrix = middle.bounded_weight().flatten(1)
        branch = Branch(
            TWO_PI * first.bounded_weight().flatten(1),
            TWO_PI * first.bias,
            middle_matrix,
            last.bounded_weight().flip(2, 3).transpose(0, 1).flatten(1) / TWO_PI,
            last.bias,
            self.activates_input,
        )
        return branch, TWO_PI * F.linear(middle.condition(code), middle_matrix, middle.bias)

    def forward(
        self, x: torch.Tensor, code: torch.Tensor, probes: torch.Tensor, count: int, log_determinant: LogDeterminant
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """y and what ``log_determinant`` asks for, float64 (B,), 0 for "none".

        Args:
            x: (B, C, H, W).
            code: (B, code_size).
            probes: standard normal, (R, B, C, H, W); unused by "exact" and "none".
            count: Poisson number of rate ``poisson_rate``; likewise.
            log_determinant: as in ``InvertibleFlow``.
        """
        branch, offset = self.branch(code)
        if log_determinant == "surrogate":
            n_terms = count + SURROGATE_EXACT_TERMS
            weights = roulette_weights(n_terms, SURROGATE_EXACT_TERMS, self.poisson_rate)
            output, value = branch_with_surrogate(branch, x, offset, probes, weights)
            return x + output, value
        if log_determinant == "none":
            return x + branch(x, offset), torch.zeros(len(x), dtype=torch.float64, device=x.device)
        if torch.is_grad_enabled():
            _, jacobian = branch.linearize(x, offset)
            output = branch(x, offset)
        else:
            output, jacobian = branch.linearize(x, offset)
        if log_determinant == "series":
            return x + output, series(jacobian, probes, count, self.poisson_rate, BLOCK_LIPSCHITZ_CONSTANT)
        return x + output, exact(jacobian, (x.shape[-2], x.shape[-1]))

    @torch.no_grad()
    def inverse(
        self, y: torch.Tensor, code: torch.Tensor, settings: InverseSettings
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """x of y (B, C, H, W), and the iterations of each sample, int64 (B,).

        Raises:
            RunFailed: as ``fixed_point.invert``.
        """
        branch, offset = self.branch(code)
        if settings.stops_together:
            return invert_together(branch, y, offset)
        return invert(
            branch,
            y,
            offset,
            lipschitz_constant=BLOCK_LIPSCHITZ_CONSTANT,
            tolerance=settings.tolerance,
            max_iterations=settings.max_iterations,
        )
