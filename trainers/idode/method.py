"""Maximum-likelihood training of diffusion ODEs: i-DODE (arXiv 2305.03935), which builds on VDM (arXiv 2107.00630)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffusion.bits import PixelScale, in_bits_per_dimension
from diffusion.importance_weighted import importance_weighted_terms
from diffusion.log_snr.bound import SecondOrder, diffusion_terms, prior_term, reconstruction_term
from diffusion.log_snr.dequantization import (
    UNIFORM_START_GAMMA,
    Dequantized,
    dequantize_uniformly,
    dequantize_variationally,
    dequantize_within_levels,
    truncated_normal,
    truncation,
)
from diffusion.log_snr.likelihood import decode, ode_drift, ode_likelihood_terms, ode_sample
from diffusion.log_snr.schedule import LogSnrSchedule, StraightPath, VariancePreservingPath, antithetic_times
from diffusion.log_snr.velocity import NoisePrediction, Parameterisation, Predict, VelocityPrediction
from diffusion.model import LogLikelihood, Samples, go_on, total
from models.vdm_unet import VDMUNet, VDMUNetSettings
from trainers.idode.augmentation import flip_and_rotate
from trainers.idode.options import IdodeOptions
from trainers.idode.published import behaviour
from trainers.method import Update
from trainers.networks import seeded
from trainers.options import OptimizationOptions, TrainingOptions
from trainers.score_model import draw_probe, in_precisions, likelihood_solver, sampling_solver
from trainers.state import TrainingState
from trainers.update import ADAM_BETA1, Updater, make_scaler
from util.config import Config
from util.data.loader import MicroBatch
from util.data.options import DataOptions
from util.distributed import Distributed
from util.ema import ExponentialMovingAverage
from util.errors import UsageError
from util.noise import Noise
from util.optimization import linear_learning_rate, make_optimizer
from util.run_options import RunOptions


def make_log_snr_schedule(config: Config) -> LogSnrSchedule:
    """The schedule that the options describe."""
    kind = StraightPath if config[IdodeOptions].sde == "sp" else VariancePreservingPath
    return kind(config[IdodeOptions].gamma_min, config[IdodeOptions].gamma_max)


def network_settings(config: Config) -> VDMUNetSettings:
    """Settings of the network; making them checks them."""
    options = config[IdodeOptions]
    return config.make(
        VDMUNetSettings,
        n_image_channels=config[DataOptions].image_channels,
        gamma_min=options.gamma_min,
        gamma_max=options.gamma_max,
    )


def check_idode(config: Config) -> None:
    """Raise UsageError for options that contradict each other."""
    data, options = config[DataOptions], config[IdodeOptions]
    if not data.is_image:
        raise UsageError("--system idode takes images; set is_image = true")
    if not data.center_image or data.uniform_dequantization:
        raise UsageError(
            "--system idode models grey levels on [-1, 1]; set center_image = true, uniform_dequantization = false"
        )
    if not options.velocity and (options.importance_sampling or options.second_order):
        raise UsageError("--importance_sampling and --second_order need --velocity true")
    if options.second_order and config[OptimizationOptions].compile:
        raise UsageError("--second_order differentiates twice, which --compile cannot; leave one of them out")
    if options.augmentation and data.random_flip:
        raise UsageError("--augmentation flips images already, and tells the network; leave --random_flip out")
    if options.dequantization == "uniform" and options.gamma_max <= UNIFORM_START_GAMMA:
        raise UsageError(
            f"--dequantization uniform starts at gamma {UNIFORM_START_GAMMA}; choose another, or a gamma_max above that"
        )
    make_log_snr_schedule(config)
    network_settings(config)


class DiffusionOde:
    """The ``idode`` system; see ``trainers.method.Method``."""

    unit = "bits/dim"
    trajectory = None

    def __init__(self, config: Config, distributed: Distributed) -> None:
        self.config = config
        self.device = distributed.device
        self.scale = PixelScale()
        self.data_shape = config[DataOptions].shape
        self.behaviour = behaviour(config[RunOptions].published_behaviour)
        self.schedule = make_log_snr_schedule(config)
        velocity = config[IdodeOptions].velocity
        self.parameterisation: Parameterisation = VelocityPrediction() if velocity else NoisePrediction()
        settings, optimization = network_settings(config), config[OptimizationOptions]
        self.network = seeded(lambda: VDMUNet(settings), config[RunOptions].seed, self.device)
        biases = [parameter for name, parameter in self.network.named_parameters() if name.endswith("bias")]
        self.updater = Updater(
            self.network,
            make_optimizer(
                optimization.optimizer,
                self.network.parameters(),
                config[IdodeOptions].learning_rate,
                optimization.weight_decay,
                (ADAM_BETA1, optimization.adam_beta2),
                without_decay=biases,
            ),
            ExponentialMovingAverage(self.network.named_parameters(), optimization.ema_rate, warm_up=False),
            partial(
                linear_learning_rate,
                config[IdodeOptions].learning_rate,
                optimization.n_warmup_iters,
                n_steps=config[TrainingOptions].n_train_iters if config[IdodeOptions].learning_rate_decay else None,
            ),
            optimization.grad_clip,
        )
        self.updaters = {"score": self.updater}
        self.updates = [Update("score", self.training_losses)]
        self.state = TrainingState.of(self.updaters, make_scaler(optimization, self.device))
        self.heed: Callable[[], None] = go_on
        self.likelihoods = {"nelbo": self.nelbo, "negative_log_likelihood": self.negative_log_likelihood}
        self._called = in_precisions(self.network, self.device, optimization)

    def _terms(
        self,
        network: Callable[..., torch.Tensor],
        levels: torch.Tensor,
        conditioning: torch.Tensor,
        t: torch.Tensor,
        noise: Noise,
        second_order: bool,
    ) -> dict[str, torch.Tensor]:
        """The terms of the bound and, where wanted, the second-order objective, in bits/dim, each float64 (B,)."""
        options, shape = self.config[IdodeOptions], self.data_shape
        x = self.scale.centers(levels)
        reconstruction = reconstruction_term(
            self.schedule,
            levels,
            noise.normal(*shape),
            self.scale,
            divisions_by_alpha=self.behaviour.divisions_by_alpha,
        )
        terms = {"reconstruction": reconstruction, "prior": prior_term(self.schedule, x)}
        terms |= diffusion_terms(
            self.schedule,
            self.parameterisation,
            _predict(network, conditioning),
            x,
            t,
            noise.normal(*shape),
            importance=self.config[IdodeOptions].importance_sampling,
            second_order=SecondOrder(noise.rademacher(*shape), options.second_order_weight) if second_order else None,
        )
        return in_bits_per_dimension(terms, x[0].numel(), None)

    def training_losses(self, batch: MicroBatch, noise: Noise) -> torch.Tensor:
        """The objective for each sample in bits/dim, float64 (B,)."""
        options, n_samples = self.config[IdodeOptions], self.config[TrainingOptions].total_batch_size
        levels, conditioning = batch.data, torch.zeros(len(batch.data), device=self.device)
        if options.augmentation:
            levels, conditioning = flip_and_rotate(levels, noise)
        if options.antithetic_time_sampling:
            t = antithetic_times(self._first_time(), batch.positions % n_samples, n_samples)
        else:
            t = noise.uniform(dtype=torch.float64)
        # Fused attention kernels have no second derivative.
        attention = sdpa_kernel(SDPBackend.MATH) if options.second_order else contextlib.nullcontext()
        with attention:
            terms = self._terms(self._called.training, levels, conditioning, t, noise, options.second_order)
        return sum(terms.values(), torch.zeros_like(t))

    def _first_time(self) -> torch.Tensor:
        """Where the evenly spread times of a step begin: one number for all of its samples, on the CPU."""
        run, step = self.config[RunOptions], self.state.step
        noise = Noise(run.seed, f"train times {run.cont_nbr}", torch.zeros(1), step)
        return noise.uniform(dtype=torch.float64)[0]

    def _evaluated_terms(
        self, network: Callable[..., torch.Tensor], batch: torch.Tensor, noise: Noise, second_order: bool
    ) -> dict[str, torch.Tensor]:
        t = noise.uniform(dtype=torch.float64)
        with self.updater.averaged(), torch.no_grad():
            conditioning = torch.zeros(len(batch), device=self.device)
            return self._terms(network, batch, conditioning, t, noise, second_order)

    def validation_loss(self, batch: torch.Tensor, noise: Noise) -> torch.Tensor:
        """The training objective with the averaged weights, float64 (B,), bits/dim."""
        terms = self._evaluated_terms(self._called.sampling, batch, noise, self.config[IdodeOptions].second_order)
        return total(terms)

    def sample(self, noise: Noise) -> Samples:
        """Images by the ODE, one for each entry of ``noise``."""
        options = self.config[IdodeOptions]
        with self.updater.averaged():
            z, n_evaluations = ode_sample(
                self.schedule,
                self._drift(self._called.sampling, len(noise)),
                noise.normal(*self.data_shape),
                sampling_solver(options),
                on_evaluation=lambda _number, _time: self.heed(),
            )
        levels = decode(self.schedule, z, self.scale, divisions_by_alpha=self.behaviour.divisions_by_alpha)
        return Samples(levels.float() / (self.scale.n_levels - 1), n_evaluations)

    def nelbo(self, batch: torch.Tensor, noise: Noise) -> LogLikelihood:
        """The variational bound on -log P(levels), at one draw."""
        terms = self._evaluated_terms(self._called.exact, batch, noise, second_order=False)
        return LogLikelihood(total(terms), terms, 0)

    def negative_log_likelihood(self, batch: torch.Tensor, noise: Noise) -> LogLikelihood:
        """-log P(levels) of the ODE, or rather the bound on it that dequantization gives, at one draw of it or K."""
        options = self.config[IdodeOptions]
        # One probe for all draws: were its error another in each, a mean of weights would favour the errors upwards.
        probe = draw_probe(noise, self.data_shape, options)
        draws, n_evaluations = [], 0
        with self.updater.averaged():
            drift = self._drift(self._called.exact, len(batch))
            for _ in range(options.n_importance_samples):
                terms, n = ode_likelihood_terms(
                    self.schedule,
                    drift,
                    self._dequantize(batch, noise),
                    probe,
                    likelihood_solver(options),
                    on_evaluation=lambda _number, _time: self.heed(),
                )
                draws.append(terms)
                n_evaluations += n
        terms = importance_weighted_terms(draws, of_the_sum=self.behaviour.of_the_sum)
        scale = self.scale if options.dequantization == "uniform" else None
        terms = in_bits_per_dimension(terms, batch[0].numel(), scale)
        return LogLikelihood(total(terms), terms, n_evaluations)

    def _dequantize(self, levels: torch.Tensor, noise: Noise) -> Dequantized:
        options, shape = self.config[IdodeOptions], self.data_shape
        if options.dequantization == "uniform":
            uniform = noise.uniform(*shape)
            return dequantize_uniformly(
                self.schedule, levels, uniform, self.scale, within_range=self.behaviour.within_range
            )
        common: dict[str, Any] = {"scale": self.scale, "mean_entropy": options.n_importance_samples == 1}
        if options.dequantization == "variational":
            normal = noise.normal(*shape)
            return dequantize_variationally(
                self.schedule, levels, normal, **common, divisions_by_alpha=self.behaviour.divisions_by_alpha
            )
        truncated = truncated_normal(noise.uniform(*shape, dtype=torch.float64), truncation(self.schedule, self.scale))
        return dequantize_within_levels(self.schedule, levels, truncated, **common)

    def _drift(
        self, network: Callable[..., torch.Tensor], n_samples: int
    ) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        predict = _predict(network, torch.zeros(n_samples, device=self.device))
        return ode_drift(self.schedule, self.parameterisation, predict)


def _predict(network: Callable[..., torch.Tensor], conditioning: torch.Tensor) -> Predict:
    """The network as a function of state and gamma, which it sees rounded to float32."""

    def predict(z: torch.Tensor, gamma: torch.Tensor) -> torch.Tensor:
        return network(z.float(), gamma.float(), conditioning).float()

    return predict
