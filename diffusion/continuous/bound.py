"""The variational bound on the log-likelihood of a score-based model (Song et al., arXiv 2101.09258, Theorem 3).

For a process of the data alone, with the score s of the model and the Gaussian kernel y = alpha x + std n on
[eps, 1], all in nats and for each sample:

    -log p(x) <= E[-log prior(y(1))] + 1/2 int (G^2 (|s + n/std|^2 - |n/std|^2) - 2 div f) dt
                 + E[-log q(x | y(eps))] - H(y(eps)).

The integral is estimated at random times; q is the Gaussian around what the score takes y(eps) for, and H an entropy.
Without the last two terms, the small-time offset, it is a bound for y(eps) in the place of x.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from diffusion.continuous.importance import ClosedFormTimes
from diffusion.continuous.kernel import perturb
from diffusion.continuous.losses import training_times
from diffusion.continuous.prior import prior_log_density
from diffusion.continuous.process import Process, ScoreFunction, apply
from diffusion.tensors import expand

FORMS = ("dsm", "ssm")


class Draws(Protocol):
    """Random numbers for a batch, as util.noise.Noise gives them; ``shape`` is without the batch axis."""

    def uniform(self, *shape: int, dtype: torch.dtype = ...) -> torch.Tensor: ...

    def normal(self, *shape: int, dtype: torch.dtype = ...) -> torch.Tensor: ...

    def rademacher(self, *shape: int, dtype: torch.dtype = ...) -> torch.Tensor: ...


def _coefficients(process: Process, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """alpha and std of the kernel, each like t."""
    return process.transition(t)[..., 0, 0], process.kernel_factor(t)[..., 0, 0]


def _squared_norm(values: torch.Tensor) -> torch.Tensor:
    return values.flatten(1).square().sum(1, dtype=torch.float64)


def prior_cross_entropy(process: Process, x: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
    """E[-log prior(y(1))], float64 (B,): the expectation itself, or its value at one draw where noise is given."""
    end = torch.ones(len(x), dtype=torch.float64, device=x.device)
    if noise is not None:
        return -prior_log_density(process, perturb(process, x, noise, end))["x"]
    mean = apply(process.transition(end), x)
    # The expectation of |y|^2 exceeds |mean|^2 by the kernel's variance in every dimension.
    (prior_deviation,) = process.prior_standard_deviations
    _, deviation = _coefficients(process, end)
    spread = x[0].numel() * deviation**2 / (2 * prior_deviation**2)
    return spread - prior_log_density(process, mean)["x"]


def drift_divergence(process: Process, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """div f at times t float64 (B,), float64 (B,): the same for all states."""
    return process.drift_matrix(t)[..., 0, 0] * x[0].numel()


def denoising_norms(
    process: Process, score: ScoreFunction, x: torch.Tensor, t: torch.Tensor, noise: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """|s + n/std|^2 and |n/std|^2 for one draw n of the kernel's noise at times t, float64 (B,) each.

    Differentiable in x and in the score's parameters.
    """
    kernel_score = noise.double() / expand(_coefficients(process, t)[1], noise)
    s = score(perturb(process, x, noise, t), t)
    return _squared_norm(s + kernel_score), _squared_norm(kernel_score)


def sliced_terms(
    process: Process,
    score: ScoreFunction,
    x: torch.Tensor,
    t: torch.Tensor,
    noise: torch.Tensor,
    probe: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The divergence of the score, estimated with a probe of random signs, and |s|^2, float64 (B,) each, at one draw of
    the kernel at times t (sliced score matching, Song et al., arXiv 1905.07088)."""
    with torch.enable_grad():
        y = perturb(process, x, noise, t).detach().requires_grad_()
        s = score(y, t)
        (product,) = torch.autograd.grad(s, y, probe.to(s.dtype))
    divergence = (product * probe).flatten(1).sum(1, dtype=torch.float64)
    return divergence, _squared_norm(s.detach())


def small_time_offset(
    process: Process, score: ScoreFunction, x: torch.Tensor, noise: torch.Tensor, smallest_time: float
) -> dict[str, torch.Tensor]:
    """What the bound needs besides for x itself: terms "reconstruction" and "small_time_entropy", float64 (B,) each.

    Args:
        noise: standard normal, shape of x, of which y(smallest_time) is made.
    """
    n_dimensions = x[0].numel()
    t = torch.full((len(x),), smallest_time, dtype=torch.float64, device=x.device)
    alpha, deviation = _coefficients(process, t)
    y = perturb(process, x, noise, t)
    reconstructed = (y + expand(deviation**2, y) * score(y, t)) / expand(alpha, y)
    variance = (deviation / alpha) ** 2
    log_normaliser = n_dimensions / 2 * (2 * torch.pi * variance).log()
    entropy = n_dimensions / 2 * (1 + (2 * torch.pi * deviation**2).log())
    return {
        "reconstruction": log_normaliser + _squared_norm(x - reconstructed) / (2 * variance),
        "small_time_entropy": -entropy,
    }


@dataclass(frozen=True)
class BoundEstimator:
    """How the bound is estimated.

    Attributes:
        smallest_time: eps.
        n_times: times at which the integrand is evaluated, for every sample its own.
        form: "dsm", denoising score matching, or "ssm", sliced score matching; the expectation is the same.
        offset: add the small-time offset.
        stratified: draw time j of n from the j-th n-th of the distribution of times, rather than from all of it.
        closed_forms: take prior and drift in closed form, rather than at random draws.
        weighs_length: weight times that are drawn evenly by the length 1 - eps of their interval, rather than by 1.
    """

    smallest_time: float
    n_times: int = 1
    form: str = "dsm"
    offset: bool = True
    stratified: bool = True
    closed_forms: bool = True
    weighs_length: bool = True


@torch.no_grad()
def variational_bound(
    process: Process,
    score: ScoreFunction,
    x: torch.Tensor,
    draws: Draws,
    estimator: BoundEstimator,
    importance: ClosedFormTimes | None,
    on_time: Callable[[int], None] | None = None,
) -> dict[str, torch.Tensor]:
    """The bound, in its terms.

    Args:
        process: without velocity.
        score: of the model; differentiable in the state for the form "ssm".
        x: float (B, C, ...), data.
        draws: uniform numbers, normals and, for "ssm", signs, for each sample.
        estimator: how; by default what has a closed form is not estimated, and times are stratified.
        importance: the density of times, with the ``smallest_time`` of the estimator; None draws them evenly.
        on_time: called after each time with their number so far; what it raises ends the evaluation.

    Returns:
        Terms that add up to the bound in nats, float64 (B,) each: "prior"; "score_matching" and "drift", or "integral",
        their sum, without ``closed_forms``; with ``offset`` "reconstruction" and "small_time_entropy".
    """
    shape = tuple(x.shape[1:])
    n_dimensions = x[0].numel()
    total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    n_times, smallest_time = estimator.n_times, estimator.smallest_time
    for index in range(n_times):
        uniform = draws.uniform(dtype=torch.float64)
        if estimator.stratified:
            uniform = (index + uniform) / n_times
        t = training_times(uniform, smallest_time) if importance is None else importance.times(uniform)
        noise = draws.normal(*shape)
        if estimator.form == "dsm":
            difference, kernel_norm = denoising_norms(process, score, x, t, noise)
            value = difference - kernel_norm
        else:
            divergence, norm = sliced_terms(process, score, x, t, noise, draws.rademacher(*shape))
            value = 2 * divergence + norm
        strength = process.diffusion_coefficient(t) ** 2
        value = strength * value
        if not estimator.closed_forms:
            value = value - 2 * drift_divergence(process, x, t)
        if importance is not None:
            value = value * importance.total * _coefficients(process, t)[1] ** 2 / strength
        elif estimator.weighs_length:
            value = value * (1 - smallest_time)
        total += value
        if on_time is not None:
            on_time(index + 1)
    integral = total / n_times / 2

    if not estimator.closed_forms:
        terms = {"prior": prior_cross_entropy(process, x, draws.normal(*shape)), "integral": integral}
    else:
        ends = torch.tensor([smallest_time, 1.0], dtype=torch.float64)
        decay = process.transition(ends)[..., 0, 0].log().diff().item()
        terms = {
            "prior": prior_cross_entropy(process, x),
            "score_matching": integral,
            "drift": torch.full_like(integral, -n_dimensions * decay),
        }
    if estimator.offset:
        terms |= small_time_offset(process, score, x, draws.normal(*shape), smallest_time)
    return terms
