"""Score matching with critically-damped Langevin diffusion (arXiv 2112.07068), or with the VP-SDE on the same code."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from diffusion.bits import PixelScale, in_bits_per_dimension
from diffusion.continuous.importance import ImportanceTimes
from diffusion.continuous.likelihood import negative_log_likelihood_terms
from diffusion.continuous.losses import score_matching_loss
from diffusion.continuous.prior import prior_sample
from diffusion.continuous.process import Process, initial_state, state_shape
from diffusion.continuous.processes import make_process
from diffusion.continuous.samplers import StepGrid, euler_maruyama, noise_free_end, probability_flow, sscs
from diffusion.continuous.score import make_score
from diffusion.model import LogLikelihood, Samples, go_on, total
from trainers.cld.options import CldOptions
from trainers.cld.published import behaviour
from trainers.method import Update
from trainers.networks import make_score_network, score_network_settings
from trainers.one_network import OneNetwork
from trainers.options import OptimizationOptions
from trainers.score_model import draw_probe, flow_likelihood, in_precisions, rounded, sampling_solver
from trainers.state import TrainingState
from trainers.update import make_scaler, make_updater
from util.config import Config
from util.data.options import DataOptions
from util.distributed import Distributed
from util.errors import UsageError
from util.noise import Noise
from util.run_options import RunOptions


def check_cld(config: Config) -> None:
    """Raise UsageError for options that contradict each other."""
    make_process(config[CldOptions].sde, config[CldOptions])
    n_channels = config[DataOptions].shape[0]
    score_network_settings(config, n_channels, n_channels)
    objective, sampling = config[CldOptions], config[CldOptions]
    if sampling.sampling_method in ("em", "sscs") and sampling.denoising and sampling.n_discrete_steps < 2:
        raise UsageError("--n_discrete_steps 1 leaves no step before the denoising one; give at least 2")
    if sampling.sampling_method == "sscs" and config[CldOptions].sde != "cld":
        raise UsageError(f"--sampling_method sscs needs a velocity; use em or ode with --sde {config[CldOptions].sde}")
    if objective.importance_sampling and objective.weighting != "likelihood":
        raise UsageError(f"--importance_sampling needs --weighting likelihood, not {objective.weighting}")


class ScoreMatching(OneNetwork):
    """The ``cld`` system; see ``trainers.method.Method``."""

    trajectory = None

    def __init__(self, config: Config, distributed: Distributed) -> None:
        self.config = config
        self.device = distributed.device
        self.is_image = config[DataOptions].is_image
        self.unit = "bits/dim" if self.is_image else "nats"
        self.scale = PixelScale(centered=config[DataOptions].center_image)
        self.data_shape = config[DataOptions].shape
        options = config[CldOptions]
        self.behaviour = behaviour(config[RunOptions].published_behaviour)
        self.process: Process = make_process(options.sde, options)
        repeat = self.behaviour.repeat_first_half
        self._sscs: Callable[..., tuple[torch.Tensor, int]] = partial(sscs, repeat_first_half=repeat)
        objective = config[CldOptions]
        self._importance = (
            ImportanceTimes(self.process, objective.loss_eps, self.device) if objective.importance_sampling else None
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
        self.precisions = in_precisions(self.network, self.device, config[OptimizationOptions]).map(
            lambda called: make_score(self.process, called, mixed=options.mixed_score)
        )

    def _to_data(self, batch: torch.Tensor, noise: Noise, dequantize: bool) -> torch.Tensor:
        """What the diffusion sees of a batch."""
        if not self.is_image:
            return batch
        if dequantize:
            return self.scale.dequantize(batch, noise.uniform(*self.data_shape))
        return self.scale.to_data(batch)

    def losses(
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

    def sample(self, noise: Noise) -> Samples:
        """Samples by ``--sampling_method``, one for each entry of ``noise``."""
        options = self.config[CldOptions]
        shape = state_shape(self.process, self.data_shape)
        prior = prior_sample(self.process, noise.normal(*shape))
        grid = StepGrid(options.n_discrete_steps, options.sampling_eps, options.striding, options.denoising)
        model = (self.process, self.precisions.sampling, prior)
        with self.updater.averaged():
            if options.sampling_method == "ode":
                state, n_evaluations = probability_flow(
                    *model, sampling_eps=options.sampling_eps, solver=sampling_solver(options),
                    inputs_dtype=self.behaviour.sampling_dtype,
                    on_evaluation=lambda _number, _time: self.heed(),
                )  # fmt: skip
                if options.denoising:
                    state = noise_free_end(self.process, self.precisions.sampling, state, options.sampling_eps)
                    n_evaluations += 1
            else:
                take_steps = euler_maruyama if options.sampling_method == "em" else self._sscs
                state, n_evaluations = take_steps(
                    *model, grid, lambda: noise.normal(*shape), on_step=lambda _step: self.heed()
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
        probe = draw_probe(noise, state_shape(self.process, self.data_shape), options)
        smallest_time = rounded(options.likelihood_eps, self.behaviour.likelihood_start_dtype)
        with self.updater.averaged():
            likelihood = flow_likelihood(
                self.process, self.precisions.exact, start, probe, smallest_time, options, self.heed
            )
        terms = negative_log_likelihood_terms(self.process, likelihood)
        if self.is_image:
            terms = in_bits_per_dimension(terms, x[0].numel(), self.scale)
        return LogLikelihood(total(terms), terms, likelihood.n_evaluations)
