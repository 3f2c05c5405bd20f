"""Predictor-corrector sampling (Song et al., arXiv 2011.13456, Section 4.2 and Appendices E, F and G).

At each of N times a corrector makes Langevin steps at that time, then a predictor goes to the next. Every step is a
function of the noise it is given: of the state x (B, C, ...) at times t float64 (B,), and of the number N of steps of
the chain that the process is taken for. States and results are float64 for float64 states. Predictors and correctors
return (x, mean), the state after the step and the same without the step's noise.
"""

import math
from collections.abc import Callable, Sequence

import torch

from diffusion.continuous.chain import DiscreteProcess
from diffusion.continuous.process import ScoreFunction, drift, expand
from util.errors import UsageError

DENOISING_CHAIN = 1000
"""Steps of the chain one of which ends ODE sampling."""

States = tuple[torch.Tensor, torch.Tensor]
Predictor = Callable[[DiscreteProcess, ScoreFunction, torch.Tensor, torch.Tensor, torch.Tensor, int], States]
"""predictor(process, score, x, t, noise, n_steps); noise is standard normal, shape of x."""


def euler_maruyama(
    process: DiscreteProcess,
    score: ScoreFunction,
    x: torch.Tensor,
    t: torch.Tensor,
    noise: torch.Tensor,
    n_steps: int,
) -> States:
    """A step of length 1/N of the reverse-time equation."""
    diffusion = expand(process.diffusion_coefficient(t), x)
    mean = x - (drift(process, x, t) - diffusion**2 * score(x, t)) / n_steps
    return mean + diffusion * math.sqrt(1 / n_steps) * noise, mean


def reverse_diffusion(
    process: DiscreteProcess,
    score: ScoreFunction,
    x: torch.Tensor,
    t: torch.Tensor,
    noise: torch.Tensor,
    n_steps: int,
) -> States:
    """The step of the chain, reversed (Appendix E)."""
    step = process.discrete_step(t, n_steps)
    mean = x - expand(step.growth, x) * x + expand(step.noise**2, x) * score(x, t)
    return mean + expand(step.noise, x) * noise, mean


def probability_flow(
    process: DiscreteProcess,
    score: ScoreFunction,
    x: torch.Tensor,
    t: torch.Tensor,
    noise: torch.Tensor,  # noqa: ARG001
    n_steps: int,
) -> States:
    """The step of the chain reversed without noise, with half the score (Appendix E)."""
    step = process.discrete_step(t, n_steps)
    mean = x - expand(step.growth, x) * x + expand(step.noise**2 / 2, x) * score(x, t)
    return mean, mean


def ancestral(
    process: DiscreteProcess,
    score: ScoreFunction,
    x: torch.Tensor,
    t: torch.Tensor,
    noise: torch.Tensor,
    n_steps: int,
) -> States:
    """Ancestral sampling (Appendix F)."""
    step = process.discrete_step(t, n_steps)
    mean = (x + expand(step.noise**2, x) * score(x, t)) / (1 + expand(step.growth, x))
    return mean + expand(step.ancestral_noise, x) * noise, mean


PREDICTORS: dict[str, Predictor | None] = {
    "reverse_diffusion": reverse_diffusion,
    "euler_maruyama": euler_maruyama,
    "ancestral_sampling": ancestral,
    "probability_flow": probability_flow,
    "none": None,
}


def langevin_step_sizes(
    scale: torch.Tensor, snr: float, score: torch.Tensor, noise: torch.Tensor, *, of_the_batch: bool
) -> torch.Tensor:
    """Step sizes 2 alpha (snr |z| / |s|)^2 (Appendix G, Algorithms 4 and 5), float64 (B,).

    Args:
        scale: alpha, float64 (B,).
        snr: ratio of signal to noise.
        score, noise: (B, C, ...).
        of_the_batch: take the mean of the norms over the batch, as the public code does; a sample then depends on
            those it is drawn with.
    """
    score_norm, noise_norm = (values.double().flatten(1).norm(dim=1) for values in (score, noise))
    if of_the_batch:
        score_norm, noise_norm = score_norm.mean(), noise_norm.mean()
    return 2 * scale * (snr * noise_norm / score_norm) ** 2


def langevin(
    process: DiscreteProcess,
    score: ScoreFunction,
    x: torch.Tensor,
    t: torch.Tensor,
    noises: Sequence[torch.Tensor],
    n_steps: int,
    snr: float,
    *,
    published_behaviour: bool = False,
) -> States:
    """Langevin steps whose sizes follow from the norms of score and noise (Appendix G).

    Args:
        noises: standard normals of the shape of x, one for each step.
        n_steps: of the process's chain.
        snr: ratio of signal to noise.
        published_behaviour: step sizes from the mean norms of the batch.
    """
    scale = process.discrete_step(t, n_steps).langevin_scale
    mean = x
    for noise in noises:
        gradient = score(x, t)
        size = expand(langevin_step_sizes(scale, snr, gradient, noise, of_the_batch=published_behaviour), x)
        mean = x + size * gradient
        x = mean + (2 * size).sqrt() * noise
    return x, mean


def annealed_langevin(
    process: DiscreteProcess,
    score: ScoreFunction,
    x: torch.Tensor,
    t: torch.Tensor,
    noises: Sequence[torch.Tensor],
    n_steps: int,
    snr: float,
    *,
    published_behaviour: bool = False,  # noqa: ARG001
) -> States:
    """Langevin steps of the size 2 alpha (snr std(t))^2, std that of the kernel (Song and Ermon, arXiv 1907.05600).

    Arguments as those of ``langevin``.
    """
    deviation = process.kernel_factor(t)[..., 0, 0]
    size = expand(2 * process.discrete_step(t, n_steps).langevin_scale * (snr * deviation) ** 2, x)
    mean = x
    for noise in noises:
        mean = x + size * score(x, t)
        x = mean + (2 * size).sqrt() * noise
    return x, mean


CORRECTORS: dict[str, Callable[..., States] | None] = {
    "langevin": langevin,
    "ald": annealed_langevin,
    "none": None,
}


@torch.no_grad()
def denoise(process: DiscreteProcess, score: ScoreFunction, state: torch.Tensor, time: float) -> torch.Tensor:
    """The last step of ODE sampling: a step of the chain of DENOISING_CHAIN steps reversed without noise, from a state
    (B, C, ...) at ``time``."""
    t = torch.full((len(state),), time, dtype=torch.float64, device=state.device)
    return reverse_diffusion(process, score, state, t, torch.zeros_like(state), DENOISING_CHAIN)[1]


@torch.no_grad()
def predictor_corrector(
    process: DiscreteProcess,
    score: ScoreFunction,
    state: torch.Tensor,
    *,
    predictor: str,
    corrector: str,
    n_steps: int,
    snr: float | Sequence[float],
    n_corrector_steps: int,
    sampling_eps: float,
    denoise: bool,
    normal: Callable[[], torch.Tensor],
    published_behaviour: bool = False,
    on_step: Callable[[float, torch.Tensor], None] | None = None,
) -> tuple[torch.Tensor, int]:
    """Predictor-corrector sampling from the prior over ``n_steps`` equidistant times from 1 to sampling_eps.

    Args:
        state: (B, C, ...), a draw of the prior.
        predictor: a key of PREDICTORS.
        corrector: a key of CORRECTORS.
        n_steps: times, and steps of the chain; at least 2.
        snr: of the corrector, at all times or for each of them.
        n_corrector_steps: Langevin steps at each time.
        sampling_eps: last time.
        denoise: return the last predictor step without its noise; of no effect without a predictor.
        normal: gives the next standard normals of the shape of the state. At each time it is called for each Langevin
            step, then for the predictor, but not for steps that are left out.
        published_behaviour: Langevin step sizes from the norms of the batch, and network evaluations counted as though
            predictor and corrector were both there.
        on_step: called with each time and the state after the steps from it, without the predictor's noise.

    Returns:
        float64 state (B, C, ...), and the number of network evaluations.

    Raises:
        UsageError: unknown predictor or corrector, none of both, or less than two steps.
    """
    if predictor not in PREDICTORS or corrector not in CORRECTORS:
        raise UsageError(
            f"predictor {predictor!r} and corrector {corrector!r}: choose among {', '.join(PREDICTORS)} and "
            f"{', '.join(CORRECTORS)}"
        )
    predict, correct = PREDICTORS[predictor], CORRECTORS[corrector]
    if predict is None and correct is None:
        raise UsageError("predictor none and corrector none: nothing would be sampled; choose one of either")
    if n_steps < 2:
        raise UsageError(f"{n_steps} sampling steps: predictor-corrector sampling needs at least 2")
    snrs = [snr] * n_steps if isinstance(snr, (int, float)) else list(snr)
    x = mean = state.double()
    times = torch.linspace(1, sampling_eps, n_steps, dtype=torch.float64, device=x.device)
    for time, ratio in zip(times, snrs, strict=True):
        t = time.expand(len(x))
        if correct is not None:
            noises = [normal() for _ in range(n_corrector_steps)]
            x, _ = correct(process, score, x, t, noises, n_steps, ratio, published_behaviour=published_behaviour)
        mean = x
        if predict is not None:
            x, mean = predict(process, score, x, t, normal(), n_steps)
        if on_step is not None:
            on_step(time.item(), mean)
    per_time = (predict is not None) + (n_corrector_steps if correct is not None else 0)
    if published_behaviour:
        per_time = 1 + n_corrector_steps
    return mean if denoise else x, n_steps * per_time
