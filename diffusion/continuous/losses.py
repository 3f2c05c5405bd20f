"""Score matching (Vincent 2011; hybrid score matching: Dockhorn et al., arXiv 2112.07068, Section 3.2)."""

import torch

from diffusion.continuous.importance import TimeDensity
from diffusion.continuous.kernel import loss_multiplier, noise_multiplier, perturb
from diffusion.continuous.process import Process, ScoreFunction, initial_state, split
from diffusion.tensors import expand
from util.errors import UsageError

WEIGHTINGS = ("likelihood", "reweightedv1", "reweightedv2")


def training_times(uniform: torch.Tensor, loss_eps: float) -> torch.Tensor:
    """Forward times float64 in [loss_eps, 1) from uniform numbers in [0, 1)."""
    return uniform.double() * (1 - loss_eps) + loss_eps


def score_matching_loss(
    process: Process,
    score: ScoreFunction,
    x0: torch.Tensor,
    uniform: torch.Tensor,
    noise: torch.Tensor,
    velocity_noise: torch.Tensor | None = None,
    *,
    weighting: str,
    loss_eps: float,
    importance: TimeDensity | None = None,
) -> torch.Tensor:
    """The score matching loss of each sample, summed over its entries.

    With z the noise of the last component, n the noise multiplier and lambda the loss multiplier:
        "likelihood" is
    lambda |s - n z|^2, "reweightedv1" lambda |s/n - z|^2 and "reweightedv2" |s/n - z|^2 (Dockhorn et al.,
    arXiv 2112.07068, Section 3).

    Args:
        x0: (B, C, ...), data; the score sees states of its dtype, float32 in training.
        uniform: (B,) in [0, 1), gives the times.
        noise: standard normal (B, k C, ...), dtype of x0.
        velocity_noise: standard normal, shape of x0; needed where ``process.conditions_on_velocity``, not
            looked at elsewhere.
        weighting: one of WEIGHTINGS.
        loss_eps: smallest time.
        importance: draw times from it instead of uniformly; for the weighting "likelihood", whose expectation stays
            the same.

    Returns:
        float64 (B,). Values that are not finite are passed on.

    Raises:
        UsageError: for an unknown weighting.
        ValueError: if a velocity noise is needed and not given.
    """
    if weighting not in WEIGHTINGS:
        raise UsageError(f"weighting {weighting!r} is unknown: choose {', '.join(WEIGHTINGS)}")
    if process.conditions_on_velocity and velocity_noise is None:
        raise ValueError("this process conditions on the initial velocity: velocity_noise is needed")
    if importance is not None and weighting != "likelihood":
        raise UsageError(f"importance-sampled times are for the weighting likelihood, not {weighting}")
    t = training_times(uniform, loss_eps) if importance is None else importance.times(uniform)
    u0 = initial_state(process, x0, velocity_noise if process.conditions_on_velocity else None)
    # What is given to the network is what the loss is about: one rounding, before the score.
    u = perturb(process, u0, noise, t).to(x0.dtype)
    s = score(u, t)
    z = split(process, noise)[-1]
    n = expand(noise_multiplier(process, t).to(x0.dtype), z)
    difference = s - z * n if weighting == "likelihood" and importance is None else s / n - z
    loss = difference.flatten(1).square().sum(1, dtype=torch.float64)
    if importance is not None:
        return loss * importance.normaliser
    if weighting == "reweightedv2":
        return loss
    return loss * loss_multiplier(process, t).to(x0.dtype)


def scoreflow_loss(
    process: Process,
    score: ScoreFunction,
    x0: torch.Tensor,
    uniform: torch.Tensor,
    noise: torch.Tensor,
    *,
    weighting: str,
    loss_eps: float,
    importance: TimeDensity | None,
    reduce_mean: bool,
) -> torch.Tensor:
    """The objective of ScoreFlow for each sample (Song et al., arXiv 2101.09258, Eqs. 7 and 8), for a process of the
    data alone.

    With std that of the kernel it is std^2 |s + z/std|^2 for the weighting "reweightedv2", G^2 |s + z/std|^2 for
    "likelihood", and std^2 |s + z/std|^2 again, at other times, where those are drawn by importance. The last is the
    second but for a constant, as published: a larger one would have more gradients clipped.

    Args:
        reduce_mean: mean over entries; False takes half their sum.

    The other arguments, result and errors are those of ``score_matching_loss``.
    """
    loss = score_matching_loss(
        process, score, x0, uniform, noise, weighting=weighting, loss_eps=loss_eps, importance=importance
    )
    if importance is not None:
        loss = loss / importance.normaliser
    elif weighting != "reweightedv2":
        loss = 2 * loss
    return loss / (x0[0].numel() if reduce_mean else 2)
