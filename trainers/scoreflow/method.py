"""Maximum-likelihood training of score-based models: ScoreFlow (Song et al., arXiv 2101.09258)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import cast

import torch

from diffusion.bits import PixelScale, in_bits_per_dimension
from diffusion.continuous.bound import BoundEstimator, variational_bound
from diffusion.continuous.importance import ClosedFormTimes
from diffusion.continuous.likelihood import negative_log_likelihood_terms
from diffusion.continuous.losses import scoreflow_loss
from diffusion.continuous.predictor_corrector import PredictorCorrector, denoising_chain_step, predictor_corrector
from diffusion.continuous.prior import prior_sample
from diffusion.continuous.process import ScoreFunction
from diffusion.continuous.processes import make_process
from diffusion.continuous.samplers import probability_flow
from diffusion.continuous.sub_vp import SubVariancePreserving
from diffusion.continuous.ve import VarianceExploding
from diffusion.continuous.vp import VariancePreserving
from diffusion.model import LogLikelihood, Samples, go_on, total
from trainers.method import Update
from trainers.networks import make_score_network, score_network_settings
from trainers.one_network import OneNetwork
from trainers.options import OptimizationOptions
from trainers.score_model import (
    draw_probe,
    flow_likelihood,
    in_precisions,
    labelled_score,
    rounded,
    sampling_solver,
)
from trainers.scoreflow.options import ScoreFlowOptions
from trainers.scoreflow.published import behaviour
from trainers.state import TrainingState
from trainers.update import make_scaler, make_updater
from util.config import Config
from util.data.options import DataOptions
from util.distributed import Distributed
from util.errors import UsageError
from util.noise import Noise
from util.run_options import RunOptions

SdeProcess = VariancePreserving | SubVariancePreserving | VarianceExploding

Dequantize = Callable[[torch.Tensor, Noise], tuple[torch.Tensor, torch.Tensor]]
"""From uint8 images (B, C, H, W) and noise to float data, and -log of the density of the noise that was added, in units
of a grey level: nats, float64 (B,)."""


def make_sde(config: Config) -> SdeProcess:
    """The forward process that the options describe."""
    options, chosen = config[ScoreFlowOptions], behaviour(config[RunOptions].published_behaviour)
    process = cast(SdeProcess, make_process(options.sde, options))
    if isinstance(process, VarianceExploding):
        return process
    return replace(process, linearised_start=chosen.linearised_start)


def check_scoreflow(config: Config) -> None:
    """Raise UsageError for options that contradict each other."""
    sde, objective, sampling = config[ScoreFlowOptions].sde, config[ScoreFlowOptions], config[ScoreFlowOptions]
    make_sde(config)
    if not config[DataOptions].is_image:
        raise UsageError("--system scoreflow is for images; use --system cld for points")
    n_channels = config[DataOptions].shape[0]
    score_network_settings(config, n_channels, n_channels)
    if objective.importance_sampling and objective.weighting != "likelihood":
        raise UsageError(f"--importance_sampling needs --weighting likelihood, not {objective.weighting}")
    if objective.importance_sampling and sde == "vesde":
        raise UsageError("--importance_sampling: the weight of vesde is the same at all times; leave it out")
    if sampling.sampling_method == "pc":
        _check_chain(config)


def _check_chain(config: Config) -> None:
    process, options = config[ScoreFlowOptions], config[ScoreFlowOptions]
    fewest = 2 if process.sde == "vesde" else max(2, int(max(process.beta0, process.beta0 + process.beta1)) + 1)
    if config[ScoreFlowOptions].n_discrete_steps < fewest:
        raise UsageError(
            f"--n_discrete_steps {process.n_discrete_steps}: --sampling_method pc needs at least {fewest}, more than "
            "the largest beta(t)"
        )
    if options.predictor == options.corrector == "none":
        raise UsageError("--predictor none --corrector none: nothing would be sampled; choose one of either")


class ScoreFlow(OneNetwork):
    """The ``scoreflow`` system; see ``trainers.method.Method``.

    Its likelihoods: "nelbo", the variational bound, and "negative_log_likelihood", by the probability-flow equation.
    """

    unit = "bits/dim"
    trajectory = None

    def __init__(self, config: Config, distributed: Distributed) -> None:
        self.config = config
        self.device = distributed.device
        self.scale = PixelScale(centered=config[DataOptions].center_image)
        self.data_shape = config[DataOptions].shape
        self.behaviour = behaviour(config[RunOptions].published_behaviour)
        self.process = make_sde(config)
        objective = config[ScoreFlowOptions]
        self._importance = (
            self.time_density(objective.loss_eps) if objective.importance_sampling else None
        )
        self.network = make_score_network(config, self.data_shape[0], self.data_shape[0], self.device)
        options = config[OptimizationOptions]
        self.updater = make_updater(self.network, options, config[ScoreFlowOptions].learning_rate, ema_warm_up=False)
        self.updaters = {"score": self.updater}
        self.updates = [Update("score", self.training_losses)]
        self.state = TrainingState.of(self.updaters, make_scaler(options, self.device))
        self.heed: Callable[[], None] = go_on
        self.likelihoods = {"nelbo": self.nelbo, "negative_log_likelihood": self.negative_log_likelihood}
        self.dequantize: Dequantize = self._dequantize_uniformly
        self.precisions = in_precisions(self.network, self.device, options).map(
            lambda called: labelled_score(self.process, called)
        )

    def time_density(self, smallest_time: float) -> ClosedFormTimes:
        return ClosedFormTimes(self.process, smallest_time, by_bisection=self.behaviour.by_bisection)

    def _dequantize_uniformly(self, batch: torch.Tensor, noise: Noise) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.scale.dequantize(batch, noise.uniform(*self.data_shape))
        return x, torch.zeros(len(batch), dtype=torch.float64, device=batch.device)

    def losses(self, score: ScoreFunction, batch: torch.Tensor, noise: Noise) -> torch.Tensor:
        """The objective for each sample, float64 (B,)."""
        if self.config[DataOptions].uniform_dequantization:
            x, _ = self._dequantize_uniformly(batch, noise)
        else:
            x = self.scale.to_data(batch)
        objective = self.config[ScoreFlowOptions]
        return scoreflow_loss(
            self.process,
            score,
            x,
            noise.uniform(dtype=torch.float64),
            noise.normal(*self.data_shape),
            weighting=objective.weighting,
            loss_eps=objective.loss_eps,
            importance=self._importance,
            reduce_mean=objective.reduce_mean,
        )

    def sample(self, noise: Noise) -> Samples:
        """Samples by ``--sampling_method``, one for each entry of ``noise``."""
        options, score = self.config[ScoreFlowOptions], self.precisions.sampling
        prior = prior_sample(self.process, noise.normal(*self.data_shape))
        with self.updater.averaged():
            if options.sampling_method == "pc":
                state, n_evaluations = predictor_corrector(
                    self.process, score, prior, self._chain(), lambda: noise.normal(*self.data_shape),
                    on_step=lambda _time, _state: self.heed(),
                )  # fmt: skip
            else:
                state, n_evaluations = probability_flow(
                    self.process, score, prior, sampling_eps=options.sampling_eps,
                    solver=sampling_solver(options), on_evaluation=lambda _number, _time: self.heed(),
                )  # fmt: skip
                if options.denoising:
                    state = denoising_chain_step(self.process, score, state, options.sampling_eps)
                    n_evaluations += 1
        return Samples(self.scale.to_unit_interval(state.float()), n_evaluations)

    def _chain(self) -> PredictorCorrector:
        options = self.config[ScoreFlowOptions]
        return PredictorCorrector(
            options.predictor, options.corrector, options.n_discrete_steps, options.snr, options.n_steps_each,
            options.sampling_eps, options.denoising, batch_step_sizes=self.behaviour.batch_step_sizes,
            counts_both=self.behaviour.counts_both,
        )  # fmt: skip

    def nelbo(self, batch: torch.Tensor, noise: Noise) -> LogLikelihood:
        """The variational bound at ``--bound_n_times`` times."""
        options = self.config[ScoreFlowOptions]
        estimator = BoundEstimator(
            options.likelihood_eps,
            options.bound_n_times,
            options.bound_form,
            options.bound_offset,
            stratified=self.behaviour.stratified,
            closed_forms=self.behaviour.closed_forms,
            weighs_length=self.behaviour.weighs_length,
        )
        importance = self.time_density(options.likelihood_eps) if options.bound_importance_sampling else None
        x, minus_log_density = self.dequantize(batch, noise)
        with self.updater.averaged():
            terms = variational_bound(
                self.process, self.precisions.exact, x, noise, estimator, importance, lambda _number: self.heed()
            )
        return self._in_bits(terms, minus_log_density, 0)

    def negative_log_likelihood(self, batch: torch.Tensor, noise: Noise) -> LogLikelihood:
        """-log p(x) by the probability-flow equation; the trace estimator's probe is drawn once."""
        options = self.config[ScoreFlowOptions]
        x, minus_log_density = self.dequantize(batch, noise)
        probe = draw_probe(noise, self.data_shape, options)
        smallest_time = rounded(options.likelihood_eps, self.behaviour.likelihood_start_dtype)
        with self.updater.averaged():
            likelihood = flow_likelihood(
                self.process, self.precisions.exact, x, probe, smallest_time, options, self.heed
            )
        terms = negative_log_likelihood_terms(self.process, likelihood)
        return self._in_bits(terms, minus_log_density, likelihood.n_evaluations)

    def _in_bits(
        self, terms: dict[str, torch.Tensor], minus_log_density: torch.Tensor, n_evaluations: int
    ) -> LogLikelihood:
        """The terms of -log p(x) and what dequantization takes off, in bits/dim."""
        terms = {**terms, "dequantization": -minus_log_density}
        in_bits = in_bits_per_dimension(terms, math.prod(self.data_shape), self.scale)
        return LogLikelihood(total(in_bits), in_bits, n_evaluations)
