"""Denoising diffusion in discrete steps (Ho et al., arXiv 2006.11239): states, training objective, reverse steps."""

from __future__ import annotations

from collections.abc import Callable

import torch

from diffusion.discrete.schedule import DiscreteSchedule

PredictNoise = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From states float32 (B, C, H, W) and labels int64 (B,) of the whole schedule to the noise in them, same shape."""

VARIANCES = ("fixed-small", "fixed-large")


def at(values: torch.Tensor, index: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """``values`` (M,) at ``index`` (B,), shaped (B, 1, ...) to multiply ``like``."""
    return values[index].reshape(-1, *[1] * (like.ndim - 1))


def noised(schedule: DiscreteSchedule, x: torch.Tensor, index: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """The state at a label given the data (equation 4).

    Args:
        schedule: float64, on the device of x.
        x: (B, ...), data.
        index: int64 (B,), positions in the schedule.
        noise: standard normal, shape of x.

    Returns:
        float64, shape of x.
    """
    return (
        at(schedule.alphas_bar, index, x).sqrt() * x.double()
        + at(schedule.one_minus_alphas_bar, index, x).sqrt() * noise.double()
    )


def predicted_data(
    schedule: DiscreteSchedule, state: torch.Tensor, index: torch.Tensor, predicted_noise: torch.Tensor, clip: bool
) -> torch.Tensor:
    """The data that a state would come from with this noise; float64, on [-1, 1] where ``clip``."""
    noise = at(schedule.one_minus_alphas_bar, index, state).sqrt() * predicted_noise.double()
    x = (state.double() - noise) / at(schedule.alphas_bar, index, state).sqrt()
    return x.clamp(-1, 1) if clip else x


def posterior_mean(
    schedule: DiscreteSchedule, x: torch.Tensor, state: torch.Tensor, index: torch.Tensor
) -> torch.Tensor:
    """Mean of the state one label before given the state and the data (equation 7).

    Args:
        schedule: whose labels are visited.
        x, state: (B, ...), the data and the state at ``index``.
        index: int64 (B,), positions in the schedule.

    Returns:
        float64, shape of x; at index 0 the data.
    """
    weight_of_data = schedule.alphas_bar_before.sqrt() * schedule.betas / schedule.one_minus_alphas_bar
    weight_of_state = (1 - schedule.betas).sqrt() * schedule.one_minus_alphas_bar_before / schedule.one_minus_alphas_bar
    return at(weight_of_data, index, x) * x.double() + at(weight_of_state, index, x) * state.double()


def reverse_variances(schedule: DiscreteSchedule, kind: str) -> torch.Tensor:
    """Variances of the model's reverse steps, float64 (M,).

    "fixed-small" is the posterior's, optimal for data that are one point; "fixed-large" is that of the forward step,
    optimal for normal data (section 3.2). Both are positive at the first label, where the posterior's is 0, and which
    matters to the bound only: there both are the posterior's of the second label, as published.

    Raises:
        ValueError: no such kind.
    """
    if kind not in VARIANCES:
        raise ValueError(f"variance {kind!r}: one of {', '.join(VARIANCES)} expected")
    small = schedule.posterior_variances
    # A schedule of one label has no second one.
    first = small[1:2] if len(schedule) > 1 else schedule.betas[:1]
    return torch.cat([first, (small if kind == "fixed-small" else schedule.betas)[1:]])


def noise_prediction_loss(
    predict_noise: PredictNoise, schedule: DiscreteSchedule, x: torch.Tensor, index: torch.Tensor, noise: torch.Tensor
) -> torch.Tensor:
    """The simplified objective (equation 14): squared error of the predicted noise, averaged over entries.

    Args:
        predict_noise: differentiable in its parameters.
        schedule: the whole one.
        x: (B, C, H, W), data.
        index: int64 (B,), labels.
        noise: standard normal, shape of x.

    Returns:
        float64 (B,). Values that are not finite are passed on.
    """
    predicted = predict_noise(noised(schedule, x, index, noise).float(), index)
    return (predicted - noise).flatten(1).square().mean(1, dtype=torch.float64)
