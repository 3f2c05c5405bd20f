"""Predictor-corrector sampling (Song et al., arXiv 2011.13456, Section 4.2 and Appendices E, F and G).

At each of N times a corrector makes Langevin steps at that time, then a predictor goes to the next. Every step is a
function of the noise it is given: of the state x (B, C, ...) at times t float64 (B,), and of the number N of steps of
the chain that the process is taken for. States and results are float64 for float64 states. Predictors and correctors
return (x, mean), the state after the step and the same without the step's noise.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.continuous.chain import DiscreteProcess
from diffusion.continuous.process import ScoreFunction, drift
from diffusion.tensors import expand
from util.errors import UsageError

DENOISING_CHAIN = 1000
"""Steps of the chain one of which ends ODE sampling."""

States = tuple[torch.Tensor, torch.Tensor]
Predictor = Callable[[DiscreteProcess, ScoreFunction, torch.Tensor, torch.Tensor, torch.Tensor, int], States]
"""predictor(process, score, x, t, noise, n_steps); noise is standard normal, shape of x."""


def euler_maruyama_step(
    process: DiscreteProcess, score: ScoreFunction, x: Tensor, t: Tensor, noise: Tensor, n_steps: int
) -> States:
    """A step of length 1/N of the reverse-time equation."""
    diffusion = expand(process.diffusion_coefficient(t), x)
    mean = x - (drift(process, x, t) - diffusion**2 * score(x, t)) / n_steps
    return mean + diffusion * math.sqrt(1 / n_steps) * noise, mean


def reverse_diffusion_step(
    process: DiscreteProcess, score: ScoreFunction, x: Tensor, t: Tensor, noise: Tensor, n_steps: int
) -> States:
    """The step of the chain, reversed (Appendix E)."""
    step = process.discrete_step(t, n_steps)
    mean = x - expand(step.growth, x) * x + expand(step.noise**2, x) * score(x, t)
    return mean + expand(step.noise, x) * noise, mean


def probability_flow_step(
    process: DiscreteProcess, score: ScoreFunction, x: Tensor, t: Tensor, _noise: Tensor, n_steps: int
) -> States:
    """The step of the chain reversed without noise, with half the score (Appendix E)."""
    step = process.discrete_step(t, n_steps)
    mean = x - expand(step.growth, x) * x + expand(step.noise**2 / 2, x) * score(x, t)
    return mean, mean


def ancestral_step(
    process: DiscreteProcess, score: ScoreFunction, x: Tensor, t: Tensor, noise: Tensor, n_steps: int
) -> States:
    """Ancestral sampling (Appendix F)."""
    step = process.discrete_step(t, n_steps)
    mean = (x + expand(step.noise**2, x) * score(x, t)) / (1 + expand(step.growth, x))
    return mean + expand(step.ancestral_noise, x) * noise, mean


PREDICTORS: dict[str, Predictor | None] = {
    "reverse_diffusion": reverse_diffusion_step,
    "euler_maruyama": euler_maruyama_step,
    "ancestral_sampling": ancestral_step,
    "probability_flow": probability_flow_step,
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


@dataclass(frozen=True)
class LangevinSize:
    """What sizes of Langevin steps follow from.

    Attributes:
        n_steps: of the process's chain.
        snr: ratio of signal to noise.
        batch_step_sizes: take mean norms of the batch; a sample then depends on those it is drawn with.
    """

    n_steps: int
    snr: float
    batch_step_sizes: bool = False


def langevin(
    process: DiscreteProcess, score: ScoreFunction, x: Tensor, t: Tensor, noises: Sequence[Tensor], size: LangevinSize
) -> States:
    """Langevin steps whose sizes follow from the norms of score and noise (Appendix G).

    Args:
        noises: standard normals of the shape of x, one for each step.
        size: of the steps.
    """
    scale = process.discrete_step(t, size.n_steps).langevin_scale
    mean = x
    for noise in noises:
        gradient = score(x, t)
        length = expand(
            langevin_step_sizes(scale, size.snr, gradient, noise, of_the_batch=size.batch_step_sizes), x
        )
        mean = x + length * gradient
        x = mean + (2 * length).sqrt() * noise
    return x, mean


def annealed_langevin(
    process: DiscreteProcess, score: ScoreFunction, x: Tensor, t: Tensor, noises: Sequence[Tensor], size: LangevinSize
) -> States:
    """Langevin steps of the size 2 alpha (snr std(t))^2, std that of the kernel (Song and Ermon, arXiv 1907.05600).

    Arguments as those of ``langevin``.
    """
    deviation = process.kernel_factor(t)[..., 0, 0]
    length = expand(2 * process.discrete_step(t, size.n_steps).langevin_scale * (size.snr * deviation) ** 2, x)
    mean = x
    for noise in noises:
        mean = x + length * score(x, t)
        x = mean + (2 * length).sqrt() * noise
    return x, mean


CORRECTORS: dict[str, Callable[..., States] | None] = {
    "langevin": langevin,
    "ald": annealed_langevin,
    "none": None,
}


@torch.no_grad()
def denoising_chain_step(
    process: DiscreteProcess, score: ScoreFunction, state: torch.Tensor, time: float
) -> torch.Tensor:
    """The last step of ODE sampling: a step of the chain of DENOISING_CHAIN steps reversed without noise, from a state
    (B, C, ...) at ``time``."""
    t = torch.full((len(state),), time, dtype=torch.float64, device=state.device)
    return reverse_diffusion_step(process, score, state, t, torch.zeros_like(state), DENOISING_CHAIN)[1]


@dataclass(frozen=True)
class PredictorCorrector:
    """Settings of predictor-corrector sampling.

    Attributes:
        predictor: a key of PREDICTORS.
        corrector: a key of CORRECTORS.
        n_steps: times, and steps of the chain; at least 2.
        snr: of the corrector, at all times or for each of them.
        n_corrector_steps: Langevin steps at each time.
        sampling_eps: last time.
        denoise: return the last predictor step without its noise; of no effect without a predictor.
        batch_step_sizes: as in ``LangevinSize``.
        counts_both: count network evaluations as though predictor and corrector were both there.

    Raises:
        UsageError: unknown predictor or corrector, none of both, or less than two steps.
    """

    predictor: str
    corrector: str
    n_steps: int
    snr: float | Sequence[float]
    n_corrector_steps: int = 1
    sampling_eps: float = 1e-3
    denoise: bool = True
    batch_step_sizes: bool = False
    counts_both: bool = False

    def __post_init__(self) -> None:
        if self.predictor not in PREDICTORS or self.corrector not in CORRECTORS:
            raise UsageError(
                f"predictor {self.predictor!r} and corrector {self.corrector!r}: choose among {', '.join(PREDICTORS)} "
                f"and {', '.join(CORRECTORS)}"
            )
        if self.predictor == self.corrector == "none":
            raise UsageError("predictor none and corrector none: nothing would be sampled; choose one of either")
        if self.n_steps < 2:
            raise UsageError(f"{self.n_steps} sampling steps: predictor-corrector sampling needs at least 2")

    @property
    def n_evaluations(self) -> int:
        """Of the network, for a sample."""
        predicts = self.counts_both or self.predictor != "none"
        corrects = self.counts_both or self.corrector != "none"
        return self.n_steps * (predicts + self.n_corrector_steps * corrects)


@torch.no_grad()
def predictor_corrector(
    process: DiscreteProcess,
    score: ScoreFunction,
    state: torch.Tensor,
    settings: PredictorCorrector,
    normal: Callable[[], torch.Tensor],
    on_step: Callable[[float, torch.Tensor], None] | None = None,
) -> tuple[torch.Tensor, int]:
    """Predictor-corrector sampling from the prior over equidistant times from 1 to ``sampling_eps``.

    Args:
        state: (B, C, ...), a draw of the prior.
        settings: predictor, corrector and steps.
        normal: gives the next standard normals of the shape of the state. At each time it is called for each Langevin
            step, then for the predictor, but not for steps that are left out.
        on_step: called with each time and the state after the steps from it, without the predictor's noise; what it
            raises ends the sampling.

    Returns:
        float64 state (B, C, ...), and the number of network evaluations.
    """
    predict, correct = PREDICTORS[settings.predictor], CORRECTORS[settings.corrector]
    n_steps, snr = settings.n_steps, settings.snr
    snrs = [snr] * n_steps if isinstance(snr, (int, float)) else list(snr)
    x = mean = state.double()
    times = torch.linspace(1, settings.sampling_eps, n_steps, dtype=torch.float64)
    for time, on_device, ratio in zip(times.tolist(), times.to(x.device), snrs, strict=True):
        t = on_device.expand(len(x))
        if correct is not None:
            noises = [normal() for _ in range(settings.n_corrector_steps)]
            x, _ = correct(process, score, x, t, noises, LangevinSize(n_steps, ratio, settings.batch_step_sizes))
        mean = x
        if predict is not None:
            x, mean = predict(process, score, x, t, normal(), n_steps)
        if on_step is not None:
            on_step(time, mean)
    return mean if settings.denoise else x, settings.n_evaluations
