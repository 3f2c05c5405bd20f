"""A residual branch together with the training surrogate of its log-determinant, at the memory of its input alone."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from models.residual_flow.branch import TWO_PI, Branch, from_patches, patches, sine, sine_slope
from models.residual_flow.log_determinant import neumann


def branch_with_surrogate(
    branch: Branch, x: torch.Tensor, offset: torch.Tensor, probes: torch.Tensor, weights: list[float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """g(x) and the surrogate a^T J v of log|det(I + J)|, whose gradient is unbiased while its value is not.

    a is treated as a constant ("Neumann gradient series", arXiv 1906.02735, Section 3.2). Hidden values are not kept
    between the passes: the backward pass computes them anew, once for g and once for its directional derivative J v.

    Args:
        x: (B, C, H, W).
        offset: (B, n).
        probes: v, standard normal, (R, B, C, H, W).
        weights: w_0, w_1, ... of the series for a.

    Returns:
        g(x), and float64 (B,).
    """
    matrices = (branch.first, branch.first_bias, branch.middle, branch.last, branch.last_bias)
    output, value = _BranchWithSurrogate.apply(x, offset, *matrices, probes.detach(), weights, branch.activates_input)
    return output, value


class _BranchWithSurrogate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, offset: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
        first, first_bias, middle, last, last_bias, probes, weights, activates_input = rest
        output, jacobian = Branch(first, first_bias, middle, last, last_bias, activates_input).linearize(x, offset)
        series, value = neumann(jacobian, probes, weights)
        ctx.save_for_backward(x, offset, first, first_bias, middle, last, probes, series)
        ctx.activates_input = activates_input
        return output, value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, output_gradient: torch.Tensor, value_gradient: torch.Tensor) -> tuple[Any, ...]:
        """The gradient of <output_gradient, g(x)> + <value_gradient, a^T J v> by the chain rule, J v being tangents.

        A name with ``_tangent`` is the directional derivative of the name without it; ``gradient`` and
        ``tangent_gradient`` are the derivatives of the objective by either.
        """
        x, offset, first, first_bias, middle, last, probes, series = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            size = (x.shape[-2], x.shape[-1])
            inputs = patches(sine(x) if ctx.activates_input else x)
            inputs_tangent = patches(sine_slope(x) * probes if ctx.activates_input else probes)
            angles = F.linear(inputs, first, first_bias)
            angles_tangent = inputs_tangent @ first.T
            first_slope, first_sine = angles.cos(), angles.sin_()
            first_sine_tangent = first_slope * angles_tangent
            middle_angles = (first_sine @ middle.T).add_(offset[:, None])
            middle_angles_tangent = first_sine_tangent @ middle.T
            middle_slope, middle_sine = middle_angles.cos(), middle_angles.sin_()

            upstream = patches(output_gradient)
            factor = value_gradient.to(x.dtype).view(-1, 1, 1, 1) / len(probes)
            upstream_tangent = patches(series * factor)
            last_gradient = _outer(middle_sine, upstream)
            last_gradient += _outer(middle_slope * middle_angles_tangent, upstream_tangent)

            tangent_gradient = upstream_tangent @ last.T
            gradient = _through_sine(
                upstream @ last.T, tangent_gradient, middle_slope, middle_sine, middle_angles_tangent
            )
            tangent_gradient.mul_(middle_slope)
            middle_gradient = _outer(gradient, first_sine) + _outer(tangent_gradient, first_sine_tangent)
            offset_gradient = gradient.sum(1)

            tangent_gradient = tangent_gradient @ middle
            gradient = _through_sine(gradient @ middle, tangent_gradient, first_slope, first_sine, angles_tangent)
            tangent_gradient.mul_(first_slope)
            first_gradient = _outer(gradient, inputs) + _outer(tangent_gradient, inputs_tangent)
            first_bias_gradient = gradient.sum((0, 1))

            x_gradient = from_patches(gradient @ first, size)
            if ctx.activates_input:
                tangent_gradient = from_patches(tangent_gradient @ first, size)
                # The second derivative of this activation is -(2 pi)^2 times its value.
                curvature = TWO_PI**2 * sine(x)
                x_gradient = _through_sine(x_gradient, tangent_gradient, sine_slope(x), curvature, probes)
        return (
            x_gradient,
            offset_gradient,
            first_gradient,
            first_bias_gradient,
            middle_gradient,
            last_gradient,
            output_gradient.sum((0, 2, 3)),
            None,
            None,
            None,
        )


def _outer(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """The sum over pixels of left times right: (..., H W, m) and (..., H W, n) to (m, n)."""
    return left.flatten(0, -2).T @ right.flatten(0, -2)


def _through_sine(
    gradient: torch.Tensor,
    tangent_gradient: torch.Tensor,
    slope: torch.Tensor,
    curvature: torch.Tensor,
    tangent: torch.Tensor,
) -> torch.Tensor:
    """The derivative of the objective by the argument of an activation, from those by its value and its tangent.

    ``gradient`` is overwritten.

    Args:
        slope: first derivative of the activation.
        curvature: minus its second derivative.
        tangent: of the argument; what comes from the R vectors of a point is added up.
    """
    products = tangent_gradient * tangent
    total = products[0] if len(products) == 1 else products.sum(0)
    return gradient.mul_(slope).sub_(total.mul_(curvature))
