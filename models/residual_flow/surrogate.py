"""A residual branch together with the training surrogate of its log-determinant, at the memory of its input alone."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from models.residual_flow.branch import TWO_PI, Branch, from_patches, patches, sine, sine_slope
from models.residual_flow.log_determinant import neumann


def branch_with_surrogate(
    branch: Branch, x: torch.Tensor, condition: torch.Tensor, probes: torch.Tensor, weights: list[float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """g(x) and the surrogate a^T J v of log|det(I + J)|, whose gradient is unbiased while its value is not.

    a is treated as a constant ("Neumann gradient series", arXiv 1906.02735, Section 3.2). Hidden values are not kept
    between the passes: the backward pass computes them anew, once for g and once for its directional derivative J v.

    Args:
        x: (B, C, H, W).
        condition: (B, n).
        probes: v, standard normal, (R, B, C, H, W).
        weights: w_0, w_1, ... of the series for a.

    Returns:
        g(x), and float64 (B,).
    """
    matrices = (branch.first, branch.first_bias, branch.middle, branch.middle_bias, branch.last, branch.last_bias)
    output, value = _BranchWithSurrogate.apply(
        x, condition, *matrices, probes.detach(), weights, branch.activates_input
    )
    return output, value


class _BranchWithSurrogate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, condition: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
        first, first_bias, middle, middle_bias, last, last_bias, probes, weights, activates_input = rest
        branch = Branch(first, first_bias, middle, middle_bias, last, last_bias, activates_input)
        output, jacobian = branch.linearize(x, condition)
        series, value = neumann(jacobian, probes, weights)
        ctx.save_for_backward(x, condition, first, first_bias, middle, middle_bias, last, probes, series)
        ctx.activates_input = activates_input
        return output, value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, output_gradient: torch.Tensor, value_gradient: torch.Tensor) -> tuple[Any, ...]:
        """The gradient of <output_gradient, g(x)> + <value_gradient, a^T J v> by the chain rule, J v being tangents.

        A name with ``_tangent`` is the directional derivative of the name without it; ``_gradient`` and
        ``_tangent_gradient`` are the derivatives of the objective by either.
        """
        x, condition, first, first_bias, middle, middle_bias, last, probes, series = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            size = (x.shape[-2], x.shape[-1])
            inputs = patches(sine(x) if ctx.activates_input else x)
            inputs_tangent = patches(sine_slope(x) * probes if ctx.activates_input else probes)
            angles = F.linear(inputs, first, first_bias).mul_(TWO_PI)
            first_slope = angles.cos()
            first_hidden = angles.sin_().div_(TWO_PI)
            first_tangent = inputs_tangent @ first.T
            conditioned = first_hidden + condition[:, None]
            conditioned_tangent = first_slope * first_tangent
            angles = F.linear(conditioned, middle, middle_bias).mul_(TWO_PI)
            middle_slope = angles.cos()
            middle_hidden = angles.sin_().div_(TWO_PI)
            middle_tangent = conditioned_tangent @ middle.T
            hidden_tangent = middle_slope * middle_tangent

            upstream = patches(output_gradient)
            factor = value_gradient.to(x.dtype).view(-1, 1, 1, 1) / len(probes)
            upstream_tangent = patches(series * factor)
            last_gradient = _outer(middle_hidden, upstream) + _outer(hidden_tangent, upstream_tangent)

            gradient = upstream @ last.T
            tangent_gradient = upstream_tangent @ last.T
            gradient = _through_sine(gradient, tangent_gradient, middle_slope, middle_hidden, middle_tangent)
            tangent_gradient.mul_(middle_slope)
            middle_gradient = _outer(gradient, conditioned) + _outer(tangent_gradient, conditioned_tangent)
            middle_bias_gradient = gradient.sum((0, 1))

            gradient = gradient @ middle
            tangent_gradient = tangent_gradient @ middle
            condition_gradient = gradient.sum(1)
            gradient = _through_sine(gradient, tangent_gradient, first_slope, first_hidden, first_tangent)
            tangent_gradient.mul_(first_slope)
            first_gradient = _outer(gradient, inputs) + _outer(tangent_gradient, inputs_tangent)
            first_bias_gradient = gradient.sum((0, 1))

            x_gradient = from_patches(gradient @ first, size)
            if ctx.activates_input:
                tangent_gradient = from_patches(tangent_gradient @ first, size)
                x_gradient = _through_sine(x_gradient, tangent_gradient, sine_slope(x), sine(x), probes)
        return (
            x_gradient,
            condition_gradient,
            first_gradient,
            first_bias_gradient,
            middle_gradient,
            middle_bias_gradient,
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
    value: torch.Tensor,
    tangent: torch.Tensor,
) -> torch.Tensor:
    """The derivative by the argument of ``sine``, whose second derivative is -(2 pi)^2 times its value.

    ``tangent`` is that of the argument; what comes from tangents is added up over the vectors of a point.
    """
    curvature = tangent_gradient * tangent
    total = curvature[0] if len(curvature) == 1 else curvature.sum(0)
    return (gradient * slope).sub_(total.mul_(value), alpha=TWO_PI**2)
