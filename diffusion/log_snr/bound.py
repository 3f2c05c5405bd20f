"""The variational bound of diffusion in log-SNR time, term by term (VDM, arXiv 2107.00630, Section 4; i-DODE, arXiv
2305.03935, Sections 3 and 4). Terms are float64 (B,), in nats."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from diffusion.bits import PixelScale
from diffusion.log_snr.levels import level_log_probabilities
from diffusion.log_snr.schedule import (
    LogSnrSchedule,
    end_point,
    importance_gammas,
    importance_normaliser,
    uniform_gammas,
)
from diffusion.log_snr.velocity import Parameterisation, Predict, VelocityPrediction
from diffusion.tensors import expand


def reconstruction_term(
    schedule: LogSnrSchedule,
    levels: torch.Tensor,
    noise: torch.Tensor,
    scale: PixelScale,
    *,
    divisions_by_alpha: int = 1,
) -> torch.Tensor:
    """-log p(k | z_0) at one draw of z_0 = alpha x + sigma noise, gamma = gamma_min.

    Args:
        levels: uint8 (B, C, ...).
        noise: standard normal, same shape.
        divisions_by_alpha: how often z_0 is divided by alpha; once takes it to the scale of data.
    """
    alpha, _ = end_point(schedule, schedule.gamma_min)
    # sigma / alpha from gamma alone.
    standard_deviation = math.exp(schedule.gamma_min / 2)
    x = scale.centers(levels) + standard_deviation * noise.double()
    x = x / alpha ** (divisions_by_alpha - 1)
    return -level_log_probabilities(x, levels, standard_deviation, scale).flatten(1).sum(1)


def prior_term(schedule: LogSnrSchedule, x: torch.Tensor) -> torch.Tensor:
    """The divergence of q(z_1 | x) from N(0, I) for data x (B, C, ...)."""
    alpha, sigma = end_point(schedule, schedule.gamma_max)
    excess = sigma**2 - 1
    per_dimension = (alpha * x.double()).square() + (excess - math.log1p(excess))
    return per_dimension.flatten(1).sum(1) / 2


def loss_weight(
    schedule: LogSnrSchedule, parameterisation: Parameterisation, gamma: torch.Tensor, *, importance: bool
) -> torch.Tensor:
    """The weight of the squared error over the density of gamma, float64 (B,)."""
    weight = parameterisation.weight(schedule, gamma)
    if importance:
        # The density alpha^2 / Z is divided out before it can underflow.
        return weight / schedule.alpha(gamma) ** 2 * importance_normaliser(schedule)
    return weight * (schedule.gamma_max - schedule.gamma_min)


@dataclass(frozen=True)
class SecondOrder:
    """The second-order objective of ``diffusion_terms``.

    Attributes:
        probe: signs, shape of the data, that estimate tr J.
        weight: of the objective beside the bound.
    """

    probe: torch.Tensor
    weight: float


def diffusion_terms(
    schedule: LogSnrSchedule,
    parameterisation: Parameterisation,
    predict: Predict,
    x: torch.Tensor,
    t: torch.Tensor,
    noise: torch.Tensor,
    *,
    importance: bool,
    second_order: SecondOrder | None = None,
) -> dict[str, torch.Tensor]:
    """The diffusion term of the bound at one gamma for each sample, and the second-order objective.

    The second-order objective bounds the error of the divergence by which the ODE's likelihood changes (arXiv
    2305.03935, Section 4.3). With D the dimension, e the squared error, J the Jacobian of the velocity, s the
    schedule's velocity scale and k its state share it is
    w weight r^2 / D with w its own weight, r = sigma tr J - D (1 - k sigma) / (s alpha) + s alpha e, where e is a
    constant to the gradient.

    Args:
        x: data (B, C, ...).
        t: uniform numbers in [0, 1), (B,), that gamma is made from.
        noise: standard normal, shape of x, in the dtype in which ``predict`` is called.
        importance: gamma of density proportional to alpha^2 instead of uniform; for a velocity the weight is then a
            constant.
        second_order: for a velocity only; None leaves the second-order objective out.

    Returns:
        "diffusion" and, with a probe, "second_order". Values that are not finite are passed on. Where gradients
        are switched off, the second-order objective switches them on for its own derivative alone.

    Raises:
        ValueError: a probe without a velocity.
    """
    probe = second_order.probe if second_order is not None else None
    if probe is not None and not isinstance(parameterisation, VelocityPrediction):
        raise ValueError("the second-order objective is for networks that predict a velocity")
    gamma = (importance_gammas if importance else uniform_gammas)(schedule, t)
    alpha, sigma = schedule.alpha(gamma), schedule.sigma(gamma)
    z = (expand(alpha, noise) * x.double() + expand(sigma, noise) * noise.double()).to(noise.dtype)
    weight = loss_weight(schedule, parameterisation, gamma, importance=importance)

    in_training = torch.is_grad_enabled()
    with torch.set_grad_enabled(in_training or probe is not None):
        z = z.requires_grad_(probe is not None)
        prediction = predict(z, gamma)
    target = parameterisation.target(schedule, z.detach(), noise, gamma)
    squared_error = (target - prediction).flatten(1).square().sum(1, dtype=torch.float64)
    terms = {"diffusion": weight * squared_error}
    if second_order is not None and probe is not None:
        (product,) = torch.autograd.grad(prediction, z, probe.to(prediction.dtype), create_graph=in_training)
        trace = (product * probe).flatten(1).sum(1, dtype=torch.float64)
        n_dimensions = x[0].numel()
        residual = (
            sigma * trace
            - n_dimensions * schedule.isotropic_divergence(gamma)
            + schedule.velocity_scale * alpha * squared_error.detach()
        )
        terms["second_order"] = second_order.weight * weight * residual.square() / n_dimensions
    return terms
