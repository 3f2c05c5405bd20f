"""INDM: a normalizing flow and the diffusion of its latents, trained together (Kim et al., arXiv 2205.13699)."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import cast

import numpy as np
import torch

from diffusion.bits import PixelScale, in_bits_per_dimension
from diffusion.continuous.latent_loss import (
    end_log_density,
    implicit_bound_terms,
    perturb_latents,
    reconstruction_residual,
    weighted_times,
)
from diffusion.continuous.latent_sampling import (
    DenoisedPredictorCorrector,
    denoised_predictor_corrector,
    end_step,
    probability_flow_path,
)
from diffusion.continuous.predictor_corrector import PredictorCorrector, predictor_corrector
from diffusion.continuous.prior import prior_sample
from diffusion.continuous.processes import make_process
from diffusion.continuous.samplers import probability_flow
from diffusion.continuous.ve import VarianceExploding
from diffusion.continuous.vp import VariancePreserving
from diffusion.model import LogLikelihood, Samples, go_on, total
from models.residual_flow import FlowOutput, FlowSettings, InverseSettings, InvertibleFlow, draw_flow_noise
from trainers.indm.joint_step import Draws, JointObjective, JointStep, StepFunction, latents_alone
from trainers.indm.options import IndmOptions
from trainers.indm.published import behaviour
from trainers.method import Update
from trainers.networks import make_score_network, score_network_settings, seeded
from trainers.options import OptimizationOptions, TrainingOptions
from trainers.score_model import draw_probe, flow_likelihood, in_precisions, labelled_score, rounded, sampling_solver
from trainers.state import TrainingState
from trainers.update import ADAM_BETA1, Updater, make_scaler, make_updater
from util.config import Config
from util.data.dataset import open_dataset
from util.data.loader import MicroBatch
from util.data.options import DataOptions
from util.distributed import Distributed
from util.ema import ExponentialMovingAverage
from util.errors import UsageError
from util.noise import Noise, derive_seed
from util.optimization import make_optimizer, warmed_up_learning_rate
from util.run_options import RunOptions

N_FRAMES = 12
_DATA_MEAN_BATCH = 128


def flow_settings(config: Config) -> FlowSettings:
    """Settings of the flow; making them checks them.

    Raises:
        UsageError: settings that cannot work together.
    """
    data = config[DataOptions]
    return config.make(FlowSettings, image_channels=data.image_channels, image_size=data.image_size)


def check_indm(config: Config) -> None:
    """Raise UsageError for options that contradict each other."""
    objective, sampling, joint = config[IndmOptions], config[IndmOptions], config[IndmOptions]
    if not config[DataOptions].is_image:
        raise UsageError("--system indm: its flow is of images; choose an image data set")
    make_process(config[IndmOptions].sde, config[IndmOptions])
    n_channels = config[DataOptions].shape[0]
    score_network_settings(config, n_channels, n_channels)
    flow_settings(config)
    if objective.importance_sampling and objective.weighting != "likelihood":
        raise UsageError(f"--importance_sampling needs --weighting likelihood, not {objective.weighting}")
    if joint.pc_denoise and sampling.sampling_method != "pc":
        raise UsageError("--pc_denoise is a kind of --sampling_method pc; choose that, or leave it out")
    if sampling.sampling_method == "pc" and sampling.n_discrete_steps < 2:
        raise UsageError("--n_discrete_steps 1: predictor-corrector sampling needs at least 2")
    if joint.pc_denoise and joint.pc_denoise_time >= sampling.sampling_eps:
        raise UsageError(
            f"--pc_denoise_time {joint.pc_denoise_time} is not before --sampling_eps {sampling.sampling_eps}; give a "
            "smaller time"
        )


class JointDiffusion:
    """The ``indm`` system; see ``trainers.method.Method``.

    Evaluations use the averaged weights of both networks; or else the flow keeps its own (``averages_flow``).
    """

    unit = "bits/dim"

    def __init__(self, config: Config, distributed: Distributed) -> None:
        self.config = config
        self.device = distributed.device
        self.scale = PixelScale(centered=config[DataOptions].center_image)
        self.data_shape = config[DataOptions].shape
        options = config[IndmOptions]
        self.behaviour = behaviour(config[RunOptions].published_behaviour)
        self.process = cast(VarianceExploding | VariancePreserving, make_process(options.sde, options))
        channels = config[DataOptions].image_channels
        self.network = make_score_network(config, channels, channels, self.device)
        self.flow = cast(
            InvertibleFlow,
            seeded(
                partial(InvertibleFlow, flow_settings(config), distributed.sum),
                derive_seed(config[RunOptions].seed, "flow"),
                self.device,
                is_image=False,
            ),
        )
        self.score_updater = make_updater(
            self.network, config[OptimizationOptions], config[IndmOptions].learning_rate
        )
        self.flow_updater = _make_flow_updater(self.flow, config)
        self.updaters = {"score": self.score_updater, "flow": self.flow_updater}
        self.updates: list[Update] = []
        self.state = TrainingState.of(self.updaters, make_scaler(config[OptimizationOptions], self.device))
        self.heed: Callable[[], None] = go_on
        self.likelihoods: dict[str, Callable[[torch.Tensor, Noise], LogLikelihood]] = {
            "nelbo": self.nelbo,
            "nelbo_with_residual": partial(self.nelbo, with_residual=True),
            "negative_log_likelihood": self.negative_log_likelihood,
            "negative_log_likelihood_with_residual": partial(self.negative_log_likelihood, with_residual=True),
        }
        self._score = in_precisions(self.network, self.device, config[OptimizationOptions]).map(
            lambda called: labelled_score(self.process, called)
        )
        self.objective = JointObjective(
            self.process,
            config[IndmOptions].weighting,
            config[IndmOptions].importance_sampling,
            config[IndmOptions].loss_eps,
            config[IndmOptions].reduce_mean,
            config[IndmOptions].reconstruction_loss,
            self.behaviour.weighs_length,
            self.behaviour.means_add_up,
        )
        joint = config[IndmOptions]
        self._step = JointStep(
            self.objective,
            self._score.training,
            self.flow,
            self.score_updater,
            self.flow_updater,
            distributed,
            step_function=cast(StepFunction, joint.step_function),
            soft_truncation=joint.soft_truncation_exponent if joint.soft_truncation else None,
            scaler=self.state.scaler,
            gradient_compression=config[OptimizationOptions].gradient_compression,
        )
        self._data_mean: tuple[int, torch.Tensor] | None = None

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[None]:
        """Both networks in evaluation mode, with their averaged weights."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.score_updater.averaged())
            if not self.behaviour.averages_flow:
                self.flow.eval()
                stack.callback(self.flow.train)
            else:
                stack.enter_context(self.flow_updater.averaged())
            yield

    def _to_data(self, batch: torch.Tensor, noise: Noise) -> torch.Tensor:
        return self.scale.dequantize(batch, noise.uniform(*self.data_shape))

    def take_step(self, batches: list[tuple[MicroBatch, Noise]]) -> dict[str, torch.Tensor]:
        """One update of the flow and one of the score network."""
        data = [(self._to_data(batch.data, noise), Draws(noise, noise.shared())) for batch, noise in batches]
        return self._step(data, self.state.step, self.config[TrainingOptions].total_batch_size)

    def validation_loss(self, batch: torch.Tensor, noise: Noise) -> torch.Tensor:
        """The objective that the flow is trained on, its log-determinant estimated without bias; float64 (B,)."""
        options = self.config[IndmOptions]
        importance_sampling = options.importance_sampling or options.step_function == "fid"
        with self._averaged(), torch.no_grad():
            encoded = self._encode(batch, noise)
            terms = self.objective.terms(
                self._score.sampling,
                encoded,
                Draws(noise, noise.shared()),
                self.objective.smallest_time,
                importance_sampling,
            )
        return total(terms)

    def _encode(self, batch: torch.Tensor, noise: Noise) -> FlowOutput:
        """Latents of a batch, with the long series for their log-determinant; without gradient."""
        x = self._to_data(batch, noise)
        with torch.no_grad():
            return self.flow(x, draw_flow_noise(self.flow, noise, noise.shared()), log_determinant="series")

    def nelbo(self, batch: torch.Tensor, noise: Noise, with_residual: bool = False) -> LogLikelihood:
        """The bound on -log p(x) that diffusion and flow give together.

        Args:
            batch, noise: as in ``Method``.
            with_residual: add what the truncation at ``--likelihood_eps`` leaves out.
        """
        smallest = self.config[IndmOptions].likelihood_eps
        with self._averaged():
            encoded = self._encode(batch, noise)
            z = encoded.z
            times = weighted_times(
                self.process,
                noise.uniform(dtype=torch.float64),
                smallest,
                weighting="likelihood",
                importance_sampling=True,
            )
            diffusion = implicit_bound_terms(
                self.process, self._score.exact, z, times, self._normal(noise), self._probe(noise)
            )
            with torch.no_grad():
                diffusion["prior"] = -end_log_density(self.process, z, self._normal(noise))
                if with_residual:
                    diffusion["residual"] = self._residual(z, self._normal(noise), noise)
        return self._joint_likelihood(diffusion, encoded, 0)

    def negative_log_likelihood(self, batch: torch.Tensor, noise: Noise, with_residual: bool = False) -> LogLikelihood:
        """-log p(z) by the probability flow, and of that the bound on -log p(x) that the drawn code leaves.

        Args:
            batch, noise: as in ``Method``.
            with_residual: start from the latents diffused to ``--likelihood_eps``, and add what that leaves out;
                otherwise the latents themselves are taken for states at that time.
        """
        options = self.config[IndmOptions]
        with self._averaged():
            encoded = self._encode(batch, noise)
            start, residual = encoded.z, None
            probe = self._probe(noise)
            if with_residual:
                perturbation = self._normal(noise)
                t = torch.full((len(start),), options.likelihood_eps, dtype=torch.float64, device=self.device)
                start = perturb_latents(self.process, start, perturbation, t)
                with torch.no_grad():
                    residual = self._residual(encoded.z, perturbation, noise)
            smallest_time = rounded(options.likelihood_eps, self.behaviour.likelihood_start_dtype)
            likelihood = flow_likelihood(
                self.process, self._score.exact, start, probe, smallest_time, options, self.heed
            )
        diffusion = {"divergence": -likelihood.divergence, "prior": -likelihood.prior["x"]}
        if residual is not None:
            diffusion["residual"] = residual
        return self._joint_likelihood(diffusion, encoded, likelihood.n_evaluations)

    def _normal(self, noise: Noise) -> torch.Tensor:
        return noise.normal(*self.data_shape)

    def _probe(self, noise: Noise) -> torch.Tensor:
        probe = draw_probe(noise, self.data_shape, self.config[IndmOptions])
        assert probe is not None  # checked with the configuration
        return probe

    def _residual(self, latents: torch.Tensor, perturbation: torch.Tensor, noise: Noise) -> torch.Tensor:
        other = self._normal(noise) if self.behaviour.residual_noise_twice else None
        smallest = self.config[IndmOptions].likelihood_eps
        return reconstruction_residual(self.process, self._score.exact, latents, smallest, perturbation, other)

    def _joint_likelihood(
        self, diffusion: dict[str, torch.Tensor], encoded: FlowOutput, n_evaluations: int
    ) -> LogLikelihood:
        """From -log p(z), in nats and in parts, to -log p(x) in bits/dim."""
        n_dimensions = math.prod(self.data_shape)
        terms = {**diffusion, "log_determinant": -encoded.log_determinants.sum(1), "code": encoded.kl}
        converted = in_bits_per_dimension(terms, n_dimensions, self.scale)
        latent = torch.stack([converted[name] for name in diffusion]).sum(0)
        return LogLikelihood(total(converted), converted, n_evaluations, {"latent": latent})

    def sample(self, noise: Noise) -> Samples:
        """Latents by ``--sampling_method``, codes from their prior, and the flow's inverse."""
        with self._averaged():
            latents, n_evaluations = self._sample_latents(noise, None)
            return Samples(self._decode(latents, self._sample_codes(noise)), n_evaluations)

    def trajectory(self, noise: Noise) -> dict[str, torch.Tensor]:
        """The latents of samples along their diffusion, from noise on, and the data that the flow makes of each."""
        states: list[torch.Tensor] = []
        with self._averaged():
            latents, _ = self._sample_latents(noise, states)
            codes = self._sample_codes(noise)
            shown = [states[round(index)] for index in np.linspace(0, len(states) - 1, N_FRAMES - 1)] + [latents]
            data = torch.stack([self._decode(state, codes) for state in shown], dim=1)
        return {"latent": self.scale.to_unit_interval(torch.stack(shown, dim=1).float()), "data": data}

    def _sample_latents(self, noise: Noise, states: list[torch.Tensor] | None) -> tuple[torch.Tensor, int]:
        """Latents and network evaluations; states on the way go into ``states``."""
        options, score = self.config[IndmOptions], self._score.sampling
        state = prior_sample(self.process, self._normal(noise))
        if options.data_mean:
            state = state + self._mean_of_latents()
        if options.sampling_method == "ode":
            solver = sampling_solver(options)
            if states is not None:
                states += probability_flow_path(self.process, score, state, N_FRAMES, options.sampling_eps, solver)
            latents, n_evaluations = probability_flow(
                self.process, score, state, sampling_eps=options.sampling_eps, solver=solver,
                inputs_dtype=self.behaviour.sampling_dtype, on_evaluation=lambda _number, _time: self.heed(),
            )  # fmt: skip
            if options.denoising:
                with torch.no_grad():
                    latents = end_step(self.process, score, latents, options.sampling_eps)
                n_evaluations += 1
            return latents, n_evaluations

        def keep(_time: float, x: torch.Tensor) -> None:
            self.heed()
            if states is not None:
                states.append(x)

        normal = partial(self._normal, noise)
        if options.pc_denoise:
            steps = DenoisedPredictorCorrector(
                self._snrs(), options.sampling_eps, options.pc_denoise_time, self.behaviour.batch_step_sizes
            )
            return denoised_predictor_corrector(self.process, score, state, steps, normal, keep)
        chain = PredictorCorrector(
            options.predictor,
            options.corrector,
            options.n_discrete_steps,
            self._snrs(),
            options.n_steps_each,
            options.sampling_eps,
            options.denoising,
            batch_step_sizes=self.behaviour.batch_step_sizes,
            counts_both=self.behaviour.counts_both,
        )
        return predictor_corrector(self.process, score, state, chain, normal, keep)

    def _snrs(self) -> list[float]:
        """Of the Langevin steps at each time."""
        options = self.config[IndmOptions]
        snr, n_steps = options.snr, options.n_discrete_steps
        if options.snr_scheduling == "none":
            return [snr] * n_steps
        begin, end = options.begin_snr or snr, options.end_snr or snr
        return [begin + (end - begin) * index / n_steps for index in range(n_steps)]

    def _sample_codes(self, noise: Noise) -> torch.Tensor:
        return self.flow.sample_code(noise.normal(self.flow.code_size), self.behaviour.by_initial_weights)

    def _decode(self, latents: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """Images float32 (B, C, H, W) in [0, 1] of latents."""
        options = self.config[IndmOptions]
        settings = InverseSettings(options.flow_inverse_tolerance, stops_together=self.behaviour.stops_together)
        data = self.flow.inverse(options.temperature * latents, codes, settings)
        return self.scale.to_unit_interval(data.float())

    @torch.no_grad()
    def _mean_of_latents(self) -> torch.Tensor:
        """Mean over training images of what a latent becomes at t = 1, float64 (C, H, W).

        Every rank computes it for itself: the ranks draw samples at times of their own.
        """
        if self._data_mean is None or self._data_mean[0] != self.state.step:
            config, n_items = self.config, self.config[IndmOptions].data_mean_items
            data = config[DataOptions]
            run = config[RunOptions]
            dataset = open_dataset(
                data.dataset, "train", run.path(data.data_location), data.image_size, data.image_channels, run.seed
            )
            n_taken = min(n_items, dataset.length or n_items)
            divisor = n_taken
            if self.behaviour.whole_batches:
                # Whole batches, and the number that was meant.
                n_taken, divisor = -(-n_items // _DATA_MEAN_BATCH) * _DATA_MEAN_BATCH, n_items
            total = torch.zeros(self.data_shape, dtype=torch.float64, device=self.device)
            for first in range(0, n_taken, _DATA_MEAN_BATCH):
                indices = torch.arange(first, min(first + _DATA_MEAN_BATCH, n_taken))
                read = indices.numpy() if dataset.length is None else indices.numpy() % dataset.length
                batch = dataset.read(read).to(self.device)
                noise = Noise(config[RunOptions].eval_seed, "mean of latents", indices, device=self.device)
                total += latents_alone(self.flow, self._to_data(batch, noise), noise).sum(0, dtype=torch.float64)
            end = self.process.transition(torch.ones((), dtype=torch.float64)).item()
            self._data_mean = (self.state.step, end * total / divisor)
        return self._data_mean[1]


def _make_flow_updater(flow: InvertibleFlow, config: Config) -> Updater:
    """By the general options, but for the learning rate and the rate of the average."""
    options, joint = config[OptimizationOptions], config[IndmOptions]
    optimizer = make_optimizer(
        options.optimizer,
        flow.parameters(),
        joint.flow_learning_rate,
        options.weight_decay,
        betas=(ADAM_BETA1, options.adam_beta2),
    )
    return Updater(
        flow,
        optimizer,
        ExponentialMovingAverage(flow.named_parameters(), joint.flow_ema_rate),
        partial(warmed_up_learning_rate, joint.flow_learning_rate, options.n_warmup_iters),
        options.grad_clip,
    )
