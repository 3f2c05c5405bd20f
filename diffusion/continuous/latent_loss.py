"""Score matching on latents that are trained themselves: on the scale of a bound, differentiable in the latents.

Kim et al. (INDM), arXiv 2205.13699, Section 4. The loss of the diffusion and the log-determinant of the flow are parts
of one bound on -log p(x), so factors that a loss of the score alone could leave out count here. Processes have no
velocity; latents z are (B, C, ...), and states made of them keep their dtype.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from diffusion.continuous.importance import ClosedFormTimes, WeightedProcess
from diffusion.continuous.prior import prior_log_density
from diffusion.continuous.process import Process, ScoreFunction
from diffusion.tensors import expand
from util.errors import UsageError

LATENT_WEIGHTINGS = ("likelihood", "reweightedv2")


@dataclass(frozen=True)
class WeightedTimes:
    """Training times and the weight that the loss has at them.

    Attributes:
        t: float64 (B,).
        weight: float64 (B,), of |sigma s + e|^2 / 2.
    """

    t: torch.Tensor
    weight: torch.Tensor


def weighted_times(
    process: WeightedProcess,
    uniform: torch.Tensor,
    smallest: float,
    *,
    weighting: str,
    importance_sampling: bool,
    weighs_length: bool = True,
) -> WeightedTimes:
    """Times on [smallest, 1] with the weights that make the loss an integral over them.

    Args:
        uniform: (B,) in [0, 1).
        smallest: in (0, 1).
        weighting: "likelihood", for which the expected loss is the integral of g^2 / 2 |s - grad log p|^2 up to a
            constant, or "reweightedv2", the mean of |sigma s + e|^2 / 2 over uniform times.
        importance_sampling: draw times in proportion to g^2 / sigma^2, with the weight "likelihood" (whatever
            ``weighting``).
        weighs_length: weight uniform times, for "likelihood", by the length 1 - smallest of their interval.

    Raises:
        UsageError: for an unknown weighting.
    """
    if weighting not in LATENT_WEIGHTINGS:
        raise UsageError(f"weighting {weighting!r} is unknown here: choose {' or '.join(LATENT_WEIGHTINGS)}")
    if importance_sampling:
        density = ClosedFormTimes(process, smallest)
        t = density.times(uniform)
        return WeightedTimes(t, torch.full_like(t, density.total))
    t = uniform.double() * (1 - smallest) + smallest
    if weighting == "reweightedv2":
        return WeightedTimes(t, torch.ones_like(t))
    _, sigma = signal_and_noise_scales(process, t)
    length = 1 - smallest if weighs_length else 1.0
    return WeightedTimes(t, length * (process.diffusion_coefficient(t) / sigma) ** 2)


def signal_and_noise_scales(process: Process, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """alpha(t) and sigma(t) of the perturbation kernel N(alpha z, sigma^2 I); float64 like t."""
    return process.transition(t)[..., 0, 0], process.kernel_factor(t)[..., 0, 0]


def perturb_latents(process: Process, latents: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """alpha(t) z + sigma(t) e for latents z and noise e (B, C, ...), t float64 (B,)."""
    alpha, sigma = (expand(scale.to(latents.dtype), latents) for scale in signal_and_noise_scales(process, t))
    return alpha * latents + sigma * noise


def latent_score_loss(
    process: Process, score: ScoreFunction, latents: torch.Tensor, times: WeightedTimes, noise: torch.Tensor
) -> torch.Tensor:
    """weight |sigma s + e|^2 / 2 of each sample, summed over its entries, float64 (B,).

    Args:
        latents: z, (B, C, ...).
        noise: e, standard normal, shape and dtype of z.
    """
    return times.weight * _missed_noise(process, score, latents, times.t, noise, noise) / 2


def reconstruction_residual(
    process: Process,
    score: ScoreFunction,
    latents: torch.Tensor,
    smallest: float,
    noise: torch.Tensor,
    score_noise: torch.Tensor | None = None,
) -> torch.Tensor:
    """What separates -log p(z) from -log p(y) at the smallest time, log q(y | z) - log p(z | y), in expectation over y.

    y = alpha z + sigma e; p(z | y) is the Gaussian around the denoised y, (y + sigma^2 s) / alpha, with standard
    deviation sigma / alpha (Kim et al., arXiv 2106.05527). Written out, the two variances cancel but for D log alpha,
    and what is left is |sigma s + e|^2 / 2 - D / 2 - D log alpha.

    Args:
        smallest: the time, in (0, 1).
        noise: e, standard normal, shape of z.
        score_noise: evaluate the score at a point of this other noise; the expectation is then too large by about
            |sigma s|^2.

    Returns:
        Nats, float64 (B,).
    """
    t = torch.full((len(latents),), smallest, dtype=torch.float64, device=latents.device)
    alpha, _ = signal_and_noise_scales(process, t)
    missed = _missed_noise(process, score, latents, t, noise, noise if score_noise is None else score_noise)
    n_dimensions = latents[0].numel()
    return missed / 2 - n_dimensions / 2 - n_dimensions * alpha.log()


def end_log_density(process: Process, latents: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """log density under the prior of the latents diffused to t = 1 with ``noise``; nats, float64 (B,)."""
    ones = torch.ones(len(latents), dtype=torch.float64, device=latents.device)
    return prior_log_density(process, perturb_latents(process, latents, noise, ones))["x"]


def implicit_bound_terms(
    process: Process,
    score: ScoreFunction,
    latents: torch.Tensor,
    times: WeightedTimes,
    noise: torch.Tensor,
    probe: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """What the diffusion adds to the bound on -log p(z), beside the prior at t = 1, in nats, float64 (B,) each.

    The form without the score of the kernel (Song et al., arXiv 2101.09258, Theorem 3, "ssm"), with
    importance-sampled times: the integrand g^2 / 2 |s|^2 + div(g^2 s - f) over the density of the times.

    Args:
        times: importance-sampled, so that their weight is the integral of g^2 / sigma^2.
        noise: standard normal, shape of the latents.
        probe: of Hutchinson's estimator, for example random signs; shape of the latents.

    Returns:
        "score_divergence" and "score_norm".
    """
    t = times.t
    _, sigma = signal_and_noise_scales(process, t)
    with torch.enable_grad():
        y = perturb_latents(process, latents, noise, t).detach().requires_grad_()
        s = score(y, t)
        (product,) = torch.autograd.grad(s, y, probe.to(s.dtype))
    # f = F(t) y is linear, so its divergence needs no differentiation.
    drift = process.drift_matrix(t)[..., 0, 0] * _sum(probe.square())
    share = (sigma / process.diffusion_coefficient(t)) ** 2
    return {
        "score_divergence": times.weight * (sigma**2 * _sum(product * probe) - share * drift),
        "score_norm": times.weight * sigma**2 * _sum(s.detach().square()) / 2,
    }


def _missed_noise(
    process: Process,
    score: ScoreFunction,
    latents: torch.Tensor,
    t: torch.Tensor,
    noise: torch.Tensor,
    score_noise: torch.Tensor,
) -> torch.Tensor:
    """|sigma s + e|^2, float64 (B,)."""
    _, sigma = signal_and_noise_scales(process, t)
    s = score(perturb_latents(process, latents, score_noise, t), t)
    return _sum((expand(sigma.to(s.dtype), s) * s + noise).square())


def _sum(values: torch.Tensor) -> torch.Tensor:
    return values.flatten(1).sum(1, dtype=torch.float64)
