"""Samplers for discrete diffusion, over all labels or a few of them.

Each starts from a state at the last label of a schedule, normally standard-normal noise, evaluates the network once
at every label, and ends at the data. States are float64. ``normal()`` gives the next standard-normal tensor of the
state's shape; the last step draws nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from diffusion.discrete.ddpm import PredictNoise, posterior_mean, predicted_data, reverse_variances
from diffusion.discrete.schedule import DiscreteSchedule

Normal = Callable[[], torch.Tensor]
OnLabel = Callable[[int, torch.Tensor, torch.Tensor], None]
"""Told after each step: its index, counted from 0; the state at its end; the data predicted in it."""


@torch.no_grad()
def ancestral_sampling(
    predict_noise: PredictNoise,
    schedule: DiscreteSchedule,
    state: torch.Tensor,
    *,
    normal: Normal,
    variance: str,
    clip: bool,
    on_step: OnLabel | None = None,
) -> tuple[torch.Tensor, int]:
    """Draws from the reverse process (Ho et al., arXiv 2006.11239, algorithm 2).

    Args:
        predict_noise: the network.
        schedule: the labels to visit, on the CPU; ``DiscreteSchedule.subset`` of the whole.
        state: (B, C, H, W).
        normal: called once for each step but the last.
        variance: "fixed-small" or "fixed-large".
        clip: clip predicted data to [-1, 1].
        on_step: told of every step.

    Returns:
        float64 (B, C, H, W) and the number of network evaluations.
    """
    deviations = reverse_variances(schedule, variance).sqrt().tolist()
    schedule = schedule.to(state.device)

    def step(state: torch.Tensor, position: int, data: torch.Tensor) -> torch.Tensor:
        mean = posterior_mean(schedule, data, state, _everywhere(position, state))
        return mean + deviations[position] * normal() if position > 0 else mean

    return _reverse(predict_noise, schedule, state, step, clip, on_step)


@torch.no_grad()
def ddim(
    predict_noise: PredictNoise,
    schedule: DiscreteSchedule,
    state: torch.Tensor,
    *,
    normal: Normal,
    eta: float,
    clip: bool,
    on_step: OnLabel | None = None,
) -> tuple[torch.Tensor, int]:
    """Denoising diffusion implicit models (Song et al., arXiv 2010.02502, equation 12).

    Args:
        eta: share of the posterior's standard deviation that each step adds anew: 0 is deterministic, 1 is
            ancestral sampling with the variance "fixed-small".
        normal: called once for each step but the last, where ``eta`` is above 0.
        clip: clip predicted data to [-1, 1]; the direction to the noise is then that of the clipped data.

    The other arguments and the result are those of ``ancestral_sampling``.
    """
    before, one_minus_before = schedule.alphas_bar_before.tolist(), schedule.one_minus_alphas_bar_before.tolist()
    new_variances = (eta**2 * schedule.posterior_variances).tolist()
    schedule = schedule.to(state.device)

    def step(state: torch.Tensor, position: int, data: torch.Tensor) -> torch.Tensor:
        if position == 0:
            return data
        alpha_bar, one_minus = schedule.alphas_bar[position], schedule.one_minus_alphas_bar[position]
        direction = (state - alpha_bar.sqrt() * data) / one_minus.sqrt()
        kept = one_minus_before[position] - new_variances[position]
        end = before[position] ** 0.5 * data + kept**0.5 * direction
        return end + new_variances[position] ** 0.5 * normal() if eta > 0 else end

    return _reverse(predict_noise, schedule, state, step, clip, on_step)


def _everywhere(position: int, state: torch.Tensor) -> torch.Tensor:
    """int64 (B,)."""
    return torch.full((len(state),), position, device=state.device)


def _reverse(
    predict_noise: PredictNoise,
    schedule: DiscreteSchedule,
    state: torch.Tensor,
    step: Callable[[torch.Tensor, int, torch.Tensor], torch.Tensor],
    clip: bool,
    on_step: OnLabel | None,
) -> tuple[torch.Tensor, int]:
    """From the last label to the data by ``step(state, position, predicted data)``."""
    state = state.double()
    for count, position in enumerate(reversed(range(len(schedule)))):
        index = _everywhere(position, state)
        predicted = predict_noise(state.float(), schedule.labels[index])
        data = predicted_data(schedule, state, index, predicted, clip)
        state = step(state, position, data)
        if on_step is not None:
            on_step(count, state, data)
    return state, len(schedule)
