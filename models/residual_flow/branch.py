"""The residual branch g and products with its Jacobian, in closed form.

The 3x3 convolutions have few channels on their outer side, so they are matrix products with patches of 3x3 pixels, and
the 1x1 convolution between them is one with the pixels' hidden values. A product with the Jacobian is then three
matrix products with the slopes of the activations between them, which one forward pass provides for all products.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

TWO_PI = 2 * math.pi


def sine(v: torch.Tensor) -> torch.Tensor:
    """sin(2 pi v) / (2 pi), whose slope is at most 1."""
    return torch.sin(TWO_PI * v) / TWO_PI


def sine_slope(v: torch.Tensor) -> torch.Tensor:
    """The derivative of ``sine``."""
    return torch.cos(TWO_PI * v)


def patches(x: torch.Tensor) -> torch.Tensor:
    """The zero-padded 3x3 surroundings of every pixel: (..., C, H, W) to (..., H W, 9 C), ordered (C, 3, 3)."""
    windows = F.pad(x, (1, 1, 1, 1)).unfold(-2, 3, 1).unfold(-2, 3, 1)
    return windows.movedim(-5, -3).flatten(-3).flatten(-3, -2)


def from_patches(columns: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The transpose of ``patches``: (..., H W, 9 C) to (..., C, H, W), overlapping contributions added."""
    images = F.fold(columns.flatten(0, -3).transpose(1, 2), size, 3, padding=1)
    return images.unflatten(0, columns.shape[:-2])


@dataclass(frozen=True)
class Branch:
    """g with its bounded kernels as matrices; n hidden channels.

    The factors 2 pi of the activations are in the matrices: hidden values are plain sines of angles. What the code adds
    to the first hidden values is the same at every pixel, so it comes in as an offset of the second angles.

    Attributes:
        first: (n, 9 C), 2 pi times the convolution from patches to hidden values.
        first_bias: (n,), likewise.
        middle: (n, n), from first sines to second angles.
        last: (n, 9 C), from second sines to what each pixel adds to its surroundings.
        last_bias: (C,).
        activates_input: whether an activation comes first.
    """

    first: torch.Tensor
    first_bias: torch.Tensor
    middle: torch.Tensor
    last: torch.Tensor
    last_bias: torch.Tensor
    activates_input: bool

    def __call__(self, x: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
        """g(x), (B, C, H, W) like x, for the second angles' offset (B, n); differentiable."""
        hidden = _sine_of(self._first_angles(x))
        hidden = _sine_of(hidden @ self.middle.T + offset[:, None])
        return self._output(hidden, x)

    def linearize(self, x: torch.Tensor, offset: torch.Tensor) -> tuple[torch.Tensor, Linearization]:
        """g(x) and its Jacobian there; without gradient."""
        with torch.no_grad():
            angles = self._first_angles(x)
            first_slope = angles.cos()
            angles = (angles.sin_() @ self.middle.T).add_(offset[:, None])
            middle_slope = angles.cos()
            output = self._output(angles.sin_(), x)
            input_slope = sine_slope(x) if self.activates_input else torch.ones((), dtype=x.dtype, device=x.device)
        return output, Linearization(self, input_slope, first_slope, middle_slope)

    def _first_angles(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(patches(sine(x) if self.activates_input else x), self.first, self.first_bias)

    def _output(self, hidden: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return from_patches(hidden @ self.last, (x.shape[-2], x.shape[-1])) + self.last_bias[:, None, None]


def _sine_of(angles: torch.Tensor) -> torch.Tensor:
    """In place where no gradient needs the angles."""
    return angles.sin() if angles.requires_grad else angles.sin_()


@dataclass(frozen=True)
class Linearization:
    """The Jacobian J = dg/dx at one batch of points, as a linear map.

    Attributes:
        branch: whose Jacobian.
        input_slope: of the activation of the input, (B, C, H, W), or the number 1.
        first_slope, middle_slope: of the two activations of hidden values, (B, H W, n).
    """

    branch: Branch
    input_slope: torch.Tensor
    first_slope: torch.Tensor
    middle_slope: torch.Tensor

    @torch.no_grad()
    def transposed_product(self, u: torch.Tensor) -> torch.Tensor:
        """J^T u for u (R, B, C, H, W): R vectors for each point."""
        hidden = (patches(u) @ self.branch.last.T).mul_(self.middle_slope)
        hidden = (hidden @ self.branch.middle).mul_(self.first_slope)
        return from_patches(hidden @ self.branch.first, (u.shape[-2], u.shape[-1])) * self.input_slope

    @torch.no_grad()
    def stencils(self) -> Stencils:
        """The same map in another form: as dear as 9 C products, after which a product costs next to nothing."""
        columns = self.branch.last.shape[1]
        matrices = self.first_slope.new_empty(*self.first_slope.shape[:2], columns, columns)
        for index in range(columns):
            hidden = self.middle_slope * self.branch.last[:, index]
            hidden = (hidden @ self.branch.middle).mul_(self.first_slope)
            matrices[:, :, index] = hidden @ self.branch.first
        return Stencils(matrices, self.input_slope)


@dataclass(frozen=True)
class Stencils:
    """J^T at one batch of points, by what it makes of each pixel's patch.

    Attributes:
        matrices: (B, H W, 9 C, 9 C), from a patch (as a row) to contributions to the same surroundings.
        input_slope: as in Linearization.
    """

    matrices: torch.Tensor
    input_slope: torch.Tensor

    def of_sample(self, index: int) -> Stencils:
        """Those of one point, as a batch of one."""
        slope = self.input_slope[index : index + 1] if self.input_slope.dim() else self.input_slope
        return Stencils(self.matrices[index : index + 1], slope)

    @torch.no_grad()
    def transposed_product(self, u: torch.Tensor) -> torch.Tensor:
        """J^T u for u (R, B, C, H, W): R vectors for each point."""
        columns = patches(u).permute(1, 2, 0, 3) @ self.matrices
        return from_patches(columns.permute(2, 0, 1, 3), (u.shape[-2], u.shape[-1])) * self.input_slope
