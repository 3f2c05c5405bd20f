"""The variational bound of discrete diffusion on images of 8 bits (Ho et al., arXiv 2006.11239, equation 5)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch

from diffusion.discrete.ddpm import PredictNoise, noised, posterior_mean, predicted_data, reverse_variances
from diffusion.discrete.schedule import DiscreteSchedule

HALF_LEVEL = 1 / 255
"""Half the distance of two grey levels on [-1, 1]."""


@torch.no_grad()
def discrete_variational_bound(
    predict_noise: PredictNoise,
    schedule: DiscreteSchedule,
    x: torch.Tensor,
    *,
    draw: Callable[[Literal["normal", "uniform"]], torch.Tensor],
    variance: str,
    clip: bool,
    n_labels: int | None = None,
) -> tuple[dict[str, torch.Tensor], int]:
    """An upper bound on -log p(x), p the probability of the grey levels under ancestral sampling.

    Args:
        predict_noise: the network.
        schedule: the whole one.
        x: grey levels on [-1, 1], 2 level / 255 - 1: (B, C, H, W).
        draw: the next standard-normal tensor of the shape of x ("normal"), once for each label that is evaluated, or
            the next float64 (B,) in [0, 1) ("uniform"), as often, but not for the first label.
        variance: of the reverse steps, "fixed-small" or "fixed-large".
        clip: clip predicted data to [-1, 1], as the sampler does.
        n_labels: evaluate the sum over labels at one label of each of so many ranges, drawn for each sample and
            counted as often as its range is long, which leaves the expectation as it is; None evaluates every label.

    Returns:
        Terms in nats, each float64 (B,), that add up to the bound: "prior", of the last state; "diffusion", of the
        steps between two noisy states; "decoder", of the grey levels given the first. Then the number of network
        evaluations.
    """
    n_steps = len(schedule) - 1
    variances = reverse_variances(schedule, variance)
    divergence = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    n_ranges = n_steps if n_labels is None else min(n_labels, n_steps)
    for number in range(n_ranges):
        first, end = (1 + n_steps * edge // n_ranges for edge in (number, number + 1))
        index = first + (draw("uniform") * (end - first)).long()
        state, data = _denoised(predict_noise, schedule, x, index, draw("normal"), clip)
        difference = posterior_mean(schedule, x, state, index) - posterior_mean(schedule, data, state, index)
        divergence += (end - first) * normal_divergence(
            difference, schedule.posterior_variances[index], variances[index]
        )
    index = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    _, data = _denoised(predict_noise, schedule, x, index, draw("normal"), clip)
    terms = {
        "prior": normal_divergence(
            schedule.alphas_bar[-1].sqrt() * x.double(),
            schedule.one_minus_alphas_bar[-1].expand(len(x)),
            torch.ones_like(divergence),
        ),
        "diffusion": divergence,
        "decoder": -grey_level_log_probability(x, data, variances[0].sqrt()),
    }
    return terms, n_ranges + 1


def _denoised(
    predict_noise: PredictNoise,
    schedule: DiscreteSchedule,
    x: torch.Tensor,
    index: torch.Tensor,
    noise: torch.Tensor,
    clip: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The state with this noise, as the network sees it, and the data predicted from it; float64."""
    state = noised(schedule, x, index, noise).float()
    predicted = predict_noise(state, schedule.labels[index])
    return state.double(), predicted_data(schedule, state, index, predicted, clip)


def normal_divergence(difference: torch.Tensor, variance: torch.Tensor, model_variance: torch.Tensor) -> torch.Tensor:
    """KL(N(m, variance) || N(m', model_variance)) summed over entries, in nats.

    Args:
        difference: m - m', float64 (B, ...).
        variance, model_variance: positive, float64 (B,).

    Returns:
        float64 (B,).
    """
    excess = variance / model_variance - 1
    of_variances = 0.5 * (excess - torch.log1p(excess)) * difference[0].numel()
    return of_variances + 0.5 * difference.flatten(1).square().sum(1) / model_variance


def grey_level_log_probability(x: torch.Tensor, mean: torch.Tensor, deviation: torch.Tensor) -> torch.Tensor:
    """Log-probability of grey levels under a normal density cut into levels (equation 13).

    The lowest and the highest level take the tails, so probabilities add up to 1.

    Args:
        x: grey levels on [-1, 1], (B, ...).
        mean: of the density, shape of x.
        deviation: its standard deviation, a scalar.

    Returns:
        float64 (B,), summed over entries; exact also far out, where probabilities are smaller than any float64.
    """
    x, mean = x.double(), mean.double()
    # By symmetry every interval can be put where the distribution function has no cancellation.
    distance = -(x - mean).abs()
    upper = (distance + HALF_LEVEL) / deviation
    lower = (distance - HALF_LEVEL) / deviation
    log_upper, log_lower = torch.special.log_ndtr(upper), torch.special.log_ndtr(lower)
    within = log_upper + torch.log1p(-(log_lower - log_upper).exp())
    open_ended = x.abs() > 1 - HALF_LEVEL
    tail = torch.special.log_ndtr(((mean - x) * x.sign() + HALF_LEVEL) / deviation)
    return torch.where(open_ended, tail, within).flatten(1).sum(1)
