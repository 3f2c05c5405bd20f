"""Score matching (Vincent 2011; hybrid score matching: Dockhorn et al., arXiv 2112.07068, Section 3.2)."""

import torch

from diffusion.importance import ImportanceTimes
from diffusion.kernel import loss_multiplier, noise_multiplier, perturb
from diffusion.process import Process, ScoreFunction, expand, initial_state, split
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
    importance: ImportanceTimes | None = None,
) -> torch.Tensor:
    """The score matching loss of each sample, summed over its entries.

    With z the noise of the last component, n the noise multiplier and lambda the loss multiplier:
        "likelihood" is
    lambda |s - n z|^2, "reweightedv1" lambda |s/n - z|^2 and "reweightedv2" |s/n - z|^2 (Dockhorn et al.,
    arXiv 2112.07068, Section 3).

    Args:
        x0: float32 (B, C, ...), data.
        uniform: (B,) in [0, 1), gives the times.
        noise: standard normal float32 (B, k C, ...).
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
    u = perturb(process, u0, noise, t).float()
    s = score(u, t)
    z = split(process, noise)[-1]
    n = expand(noise_multiplier(process, t).float(), z)
    difference = s - z * n if weighting == "likelihood" and importance is None else s / n - z
    loss = difference.flatten(1).square().sum(1, dtype=torch.float64)
    if importance is not None:
        return loss * importance.normaliser
    if weighting == "reweightedv2":
        return loss
    return loss * loss_multiplier(process, t).float()
