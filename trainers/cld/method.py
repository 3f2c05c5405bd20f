"""Score matching with critically-damped Langevin diffusion (arXiv 2112.07068), or with the VP-SDE on the same code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch

from diffusion.bits import PixelScale, in_bits_per_dimension, negative_log_likelihood_terms
from diffusion.continuous.cld import CriticallyDampedLangevin
from diffusion.continuous.importance import ImportanceTimes
from diffusion.continuous.likelihood import ode_log_likelihood
from diffusion.continuous.losses import score_matching_loss
from diffusion.continuous.noise_schedule import LinearBeta
from diffusion.continuous.prior import prior_sample
from diffusion.continuous.process import Process, initial_state, state_shape
from diffusion.continuous.samplers import euler_maruyama, probability_flow, sscs
from diffusion.continuous.score import make_score
from diffusion.continuous.vp import VariancePreserving
from diffusion.model import LogLikelihood, Samples, go_on, total
from trainers.cld.options import CldOptions
from trainers.method import Update
from trainers.networks import make_score_network, score_network_settings
from trainers.options import OptimizationOptions
from trainers.state import TrainingState
from trainers.update import compiled, make_scaler, make_updater, with_autocast
from util.config import Config
from util.data.loader import MicroBatch
from util.data.options import DataOptions
from util.distributed import Distributed
from util.errors import UsageError
from util.noise import Noise
from util.run_options import RunOptions


def make_process(config: Config) -> CriticallyDampedLangevin | VariancePreserving:
    """The forward process that the options describe."""
    options = config[CldOptions]
    schedule = LinearBeta(options.beta0, options.beta1)
    if options.sde == "vpsde":
        return VariancePreserving(schedule)
    objective: Literal["hsm", "dsm"] = "hsm" if options.cld_objective == "hsm" else "dsm"
    return CriticallyDampedLangevin(schedule, options.m_inv, options.gamma, options.numerical_eps, objective)


def check_cld(config: Config) -> None:
    """Raise UsageError for options that contradict each other."""
    make_process(config)
    n_channels = config[DataOptions].shape[0]
    score_network_settings(config, n_channels, n_channels)
    objective, sampling = config[CldOptions], config[CldOptions]
    if sampling.sampling_method in ("em", "sscs") and sampling.denoising and sampling.n_discrete_steps < 2:
        raise UsageError("--n_discrete_steps 1 leaves no step before the denoising one; give at least 2")
    if sampling.sampling_method == "sscs" and config[CldOptions].sde != "cld":
        raise UsageError(f"--sampling_method sscs needs a velocity; use em or ode with --sde {config[CldOptions].sde}")
    if objective.importance_sampling and objective.weighting != "likelihood":
        raise UsageError(f"--importance_sampling needs --weighting likelihood, not {objective.weighting}")


class ScoreMatching:
    """The ``cld`` system; see ``trainers.method.Method``.

    Args:
        config: checked.
        distributed: this process's place.
    """

    trajectory = None

    def __init__(self, config: Config, distributed: Distributed) -> None:
        self.config = config
        self.device = distributed.device
        self.is_image = config[DataOptions].is_image
        self.unit = "bits/dim" if self.is_image else "nats"
        self.scale = PixelScale(centered=config[DataOptions].center_image)
        self.data_shape = config[DataOptions].shape
        self.process: Process = make_process(config)
        objective = config[CldOptions]
        self._importance = (
            ImportanceTimes(self.process, objective.loss_eps) if objective.importance_sampling else None
        )
        factor = 2 if config[CldOptions].sde == "cld" else 1
        self.network = make_score_network(config, factor * self.data_shape[0], self.data_shape[0], self.device)
        self.updater = make_updater(self.network, config[OptimizationOptions], config[CldOptions].learning_rate)
        self.updaters = {"score": self.updater}
        self.updates = [Update("score", self.training_losses)]
        self.state = TrainingState.of(self.updaters, make_scaler(config[OptimizationOptions], self.device))
        self.heed: Callable[[], None] = go_on
        name = "nelbo" if self.process.velocity_variance is not None else "negative_log_likelihood"
        self.likelihoods = {name: self.negative_log_likelihood}
        optimization = config[OptimizationOptions]
        self._training_score = self._score(compiled(self.network, optimization), optimization.autocast_train)
        self._sampling_score = self._score(self.network, config[OptimizationOptions].autocast_eval)
        self._exact_score = self._score(self.network, autocast=False)

    def _score(
        self, network: Callable[..., torch.Tensor], autocast: bool
    ) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        called = with_autocast(network, self.device, self.config[OptimizationOptions], autocast)
        return make_score(self.process, called, mixed=self.config[CldOptions].mixed_score)

    def _to_data(self, batch: torch.Tensor, noise: Noise, dequantize: bool) -> torch.Tensor:
        """What the diffusion sees of a batch."""
        if not self.is_image:
            return batch
        if dequantize:
            return self.scale.dequantize(batch, noise.uniform(*self.data_shape))
        return self.scale.to_data(batch)

    def _loss(
        self, score: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], batch: torch.Tensor, noise: Noise
    ) -> torch.Tensor:
        """The objective for each sample, float64 (B,)."""
        x = self._to_data(batch, noise, self.config[DataOptions].uniform_dequantization)
        velocity_noise = noise.normal(*self.data_shape) if self.process.conditions_on_velocity else None
        return score_matching_loss(
            self.process,
            score,
            x,
            noise.uniform(dtype=torch.float64),
            noise.normal(*state_shape(self.process, self.data_shape)),
            velocity_noise,
            weighting=self.config[CldOptions].weighting,
            loss_eps=self.config[CldOptions].loss_eps,
            importance=self._importance,
        )

    def training_losses(self, batch: MicroBatch, noise: Noise) -> torch.Tensor:
        """The objective for each sample, float64 (B,)."""
        return self._loss(self._training_score, batch.data, noise)

    def validation_loss(self, batch: torch.Tensor, noise: Noise) -> torch.Tensor:
        """The training objective with the averaged weights, float64 (B,)."""
        with self.updater.averaged(), torch.no_grad():
            return self._loss(self._sampling_score, batch, noise)

    def sample(self, noise: Noise) -> Samples:
        """Samples by ``--sampling_method``, one for each entry of ``noise``."""
        options = self.config[CldOptions]
        shape = state_shape(self.process, self.data_shape)
        prior = prior_sample(self.process, noise.normal(*shape))
        common: dict[str, Any] = {"sampling_eps": options.sampling_eps, "denoise": options.denoising}
        steps: dict[str, Any] = {
            "n_evaluations": options.n_discrete_steps,
            "striding": options.striding,
            "normal": lambda: noise.normal(*shape),
        }
        published = self.config[RunOptions].published_behaviour
        with self.updater.averaged():
            if options.sampling_method == "ode":
                solver: dict[str, Any] = {
                    "solver": options.sampling_solver,
                    "rtol": options.sampling_rtol,
                    "atol": options.sampling_atol,
                    "n_steps": options.sampling_n_steps or None,
                }
                state, n_evaluations = probability_flow(
                    self.process, self._sampling_score, prior, **common, **solver, published_behaviour=published
                )
            elif options.sampling_method == "em":
                state, n_evaluations = euler_maruyama(self.process, self._sampling_score, prior, **common, **steps)
            else:
                assert isinstance(self.process, CriticallyDampedLangevin)  # checked with the configuration
                state, n_evaluations = sscs(
                    self.process, self._sampling_score, prior, **common, **steps, published_behaviour=published
                )
        data = state[:, : self.data_shape[0]].float()
        return Samples(self.scale.to_unit_interval(data) if self.is_image else data, n_evaluations)

    def negative_log_likelihood(self, batch: torch.Tensor, noise: Noise) -> LogLikelihood:
        """-log p(x), or with a velocity the bound on it, through the probability-flow equation.

        Images are dequantized uniformly; the velocity and the trace estimator's probe are drawn once.
        """
        options = self.config[CldOptions]
        x = self._to_data(batch, noise, dequantize=True)
        has_velocity = self.process.velocity_variance is not None
        start = initial_state(self.process, x, noise.normal(*self.data_shape) if has_velocity else None)
        draw = {"rademacher": noise.rademacher, "gaussian": noise.normal}.get(options.likelihood_hutchinson_type)
        with self.updater.averaged():
            likelihood = ode_log_likelihood(
                self.process,
                self._exact_score,
                start,
                draw(*state_shape(self.process, self.data_shape)) if draw is not None else None,
                start=options.likelihood_eps,
                solver=options.likelihood_solver,
                rtol=options.likelihood_rtol,
                atol=options.likelihood_atol,
                n_steps=options.likelihood_n_steps or None,
                published_behaviour=self.config[RunOptions].published_behaviour,
            )
        terms = negative_log_likelihood_terms(self.process, likelihood)
        if self.is_image:
            terms = in_bits_per_dimension(terms, x[0].numel(), self.scale)
        return LogLikelihood(total(terms), terms, likelihood.n_evaluations)
