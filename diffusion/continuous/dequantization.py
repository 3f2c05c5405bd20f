"""The bound on grey levels that trains a variational dequantizer (Flow++, arXiv 1902.00275, Section 3.1, with the bound
of Song et al., arXiv 2101.09258, Theorem 3, in the place of the likelihood).

For grey levels k and noise u in (0, 1) from q(u | k), x being where k + u lies in data space:

    -log P(k) <= E[-log p(x) + log q(u | k)], up to the change of units that ``diffusion.bits`` makes.
"""

import torch

from diffusion.continuous.bound import (
    BoundEstimator,
    Draws,
    denoising_norms,
    drift_divergence,
    prior_cross_entropy,
    small_time_offset,
)
from diffusion.continuous.importance import ClosedFormTimes
from diffusion.continuous.losses import training_times
from diffusion.continuous.process import Process, ScoreFunction


def dequantization_bound(
    process: Process,
    score: ScoreFunction,
    x: torch.Tensor,
    minus_log_q: torch.Tensor,
    draws: Draws,
    estimator: BoundEstimator,
    importance: ClosedFormTimes | None,
) -> dict[str, torch.Tensor]:
    """An estimate of the bound at one time, differentiable in x and ``minus_log_q``.

    Args:
        process: without velocity.
        score: of the model, differentiable in the state.
        x: float (B, C, ...), dequantized data.
        minus_log_q: -log q(u | k) in nats, float64 (B,).
        draws: uniform numbers and normals for each sample.
        estimator: how, at one time; without ``closed_forms`` the drift is estimated at a time of its own.
        importance: the density of times, with the ``smallest_time`` of the estimator; None draws them evenly.

    Returns:
        Terms that add up to the bound in nats, float64 (B,) each: "prior", "score_matching", "drift", with ``offset``
        "reconstruction" and "small_time_entropy", and "dequantization".
    """
    shape = tuple(x.shape[1:])
    smallest_time = estimator.smallest_time
    length = 1 - smallest_time if estimator.weighs_length else 1.0
    uniform = draws.uniform(dtype=torch.float64)
    t = training_times(uniform, smallest_time) if importance is None else importance.times(uniform)
    difference, kernel_norm = denoising_norms(process, score, x, t, draws.normal(*shape))
    if importance is None:
        weight = length * process.diffusion_coefficient(t) ** 2
    else:
        weight = importance.total * process.kernel_factor(t)[..., 0, 0] ** 2
    score_matching = weight * (difference - kernel_norm) / 2

    if not estimator.closed_forms:
        prior = prior_cross_entropy(process, x, draws.normal(*shape))
        drift = -drift_divergence(process, x, training_times(draws.uniform(dtype=torch.float64), smallest_time))
    else:
        prior = prior_cross_entropy(process, x)
        ends = torch.tensor([smallest_time, 1.0], dtype=torch.float64)
        decay = process.transition(ends)[..., 0, 0].log().diff().item()
        drift = torch.full_like(prior, -x[0].numel() * decay)
    terms = {"prior": prior, "score_matching": score_matching, "drift": drift}
    if estimator.offset:
        terms |= small_time_offset(process, score, x, draws.normal(*shape), smallest_time)
    return {**terms, "dequantization": -minus_log_q}
