"""Noise prediction in discrete steps (DDPM, arXiv 2006.11239), sampled by ancestral sampling or DDIM."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from diffusion.bits import PixelScale, probabilities_in_bits_per_dimension
from diffusion.discrete.bound import variational_bound
from diffusion.discrete.ddim import ancestral, ddim
from diffusion.discrete.ddpm import PredictNoise, noise_prediction_loss
from diffusion.discrete.schedule import choose_labels, make_schedule
from diffusion.model import LogLikelihood, Samples, go_on
from trainers.ddpm.options import DdpmOptions
from trainers.method import Update
from trainers.networks import make_noise_network, noise_network_settings
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

LARGEST_LABEL = 1000
"""To which ``--rescale_timesteps`` scales labels."""

N_STATES_OF_TRAJECTORY = 10


def check_ddpm(config: Config) -> None:
    """Raise UsageError for options that contradict each other."""
    data, discrete, sampling = config[DataOptions], config[DdpmOptions], config[DdpmOptions]
    if not data.is_image:
        raise UsageError("--system ddpm needs images; use --system cld for points")
    if not data.center_image:
        raise UsageError("--system ddpm clips and counts grey levels on [-1, 1]; leave center_image true")
    if data.uniform_dequantization:
        raise UsageError("--uniform_dequantization: the bound of ddpm is on grey levels themselves; leave it out")
    if sampling.sampling_method not in ("ancestral", "ddim"):
        raise UsageError(f"--sampling_method {sampling.sampling_method}: use ancestral or ddim with --system ddpm")
    make_schedule(discrete.noise_schedule, discrete.diffusion_steps)
    choose_labels(discrete.skip_type, sampling.n_discrete_steps, discrete.diffusion_steps)
    noise_network_settings(config)


def label_scale(config: Config) -> float:
    """What the network is told for step 1."""
    return LARGEST_LABEL / config[DdpmOptions].diffusion_steps if config[DdpmOptions].rescale_timesteps else 1.0


class NoisePrediction:
    """The ``ddpm`` system; see ``trainers.method.Method``.

    Args:
        config: checked.
        distributed: this process's place.
    """

    unit = "bits/dim"

    def __init__(self, config: Config, distributed: Distributed) -> None:
        self.config = config
        self.device = distributed.device
        data, discrete, optimization = config[DataOptions], config[DdpmOptions], config[OptimizationOptions]
        self.data_shape = (data.image_channels, data.image_size, data.image_size)
        self.scale = PixelScale(centered=True)
        self.schedule = make_schedule(
            discrete.noise_schedule, discrete.diffusion_steps, config[RunOptions].published_behaviour
        ).to(self.device)
        self.network = make_noise_network(config, self.device)
        self.updater = make_updater(self.network, optimization, config[DdpmOptions].learning_rate)
        self.updaters = {"noise": self.updater}
        self.updates = [Update("noise", self.training_losses)]
        self.state = TrainingState.of(self.updaters, make_scaler(optimization, self.device))
        self.heed: Callable[[], None] = go_on
        self.likelihoods = {"nelbo": self.nelbo}
        self._training_prediction = self._prediction(compiled(self.network, optimization), optimization.autocast_train)
        self._sampling_prediction = self._prediction(self.network, optimization.autocast_eval)
        self._exact_prediction = self._prediction(self.network, autocast=False)

    def _prediction(self, network: Callable[..., torch.Tensor], autocast: bool) -> PredictNoise:
        called = with_autocast(network, self.device, self.config[OptimizationOptions], autocast)
        scale = label_scale(self.config)
        return lambda state, labels: called(state, labels.double() * scale).float()

    def _loss(self, predict_noise: PredictNoise, batch: torch.Tensor, noise: Noise) -> torch.Tensor:
        """The objective for each sample, float64 (B,)."""
        labels = noise.integers(len(self.schedule))
        return noise_prediction_loss(
            predict_noise, self.schedule, _on_interval(batch), labels, noise.normal(*self.data_shape)
        )

    def training_losses(self, batch: MicroBatch, noise: Noise) -> torch.Tensor:
        """The objective for each sample, float64 (B,)."""
        return self._loss(self._training_prediction, batch.data, noise)

    def validation_loss(self, batch: torch.Tensor, noise: Noise) -> torch.Tensor:
        """The training objective with the averaged weights, float64 (B,)."""
        with self.updater.averaged(), torch.no_grad():
            return self._loss(self._sampling_prediction, batch, noise)

    def sample(self, noise: Noise) -> Samples:
        """Samples by ``--sampling_method``, one for each entry of ``noise``."""
        data, n_evaluations = self._draw(noise)
        return Samples(self.scale.to_unit_interval(data).float(), n_evaluations)

    def trajectory(self, noise: Noise) -> dict[str, torch.Tensor]:
        """States on their way to a sample, and the data predicted from them, at up to ten steps."""
        n_steps = self.config[DdpmOptions].n_discrete_steps
        n_shown = min(n_steps, N_STATES_OF_TRAJECTORY)
        shown = {n_steps - 1 - number * n_steps // n_shown for number in range(n_shown)}
        states: dict[str, list[torch.Tensor]] = {"state": [], "predicted data": []}

        def keep(step: int, state: torch.Tensor, data: torch.Tensor) -> None:
            if step in shown:
                states["state"].append(state)
                states["predicted data"].append(data)

        self._draw(noise, on_step=keep)
        return {name: self.scale.to_unit_interval(torch.stack(images, dim=1)) for name, images in states.items()}

    def _draw(
        self, noise: Noise, on_step: Callable[[int, torch.Tensor, torch.Tensor], None] | None = None
    ) -> tuple[torch.Tensor, int]:
        discrete, sampling = self.config[DdpmOptions], self.config[DdpmOptions]
        labels = choose_labels(discrete.skip_type, sampling.n_discrete_steps, len(self.schedule)).to(self.device)
        common: dict[str, Any] = {
            "normal": lambda: noise.normal(*self.data_shape),
            "clip": discrete.clip_denoised,
            "on_step": on_step,
        }
        arguments = (self._sampling_prediction, self.schedule.subset(labels), noise.normal(*self.data_shape))
        with self.updater.averaged():
            if sampling.sampling_method == "ddim":
                return ddim(*arguments, eta=discrete.ddim_eta, **common)
            return ancestral(*arguments, variance=discrete.model_var_type, **common)

    def nelbo(self, batch: torch.Tensor, noise: Noise) -> LogLikelihood:
        """The variational bound on the grey levels, for ancestral sampling over all steps."""
        discrete = self.config[DdpmOptions]
        with self.updater.averaged():
            nats, n_evaluations = variational_bound(
                self._exact_prediction,
                self.schedule,
                _on_interval(batch),
                normal=lambda: noise.normal(*self.data_shape),
                uniform=lambda: noise.uniform(dtype=torch.float64),
                variance=discrete.model_var_type,
                clip=discrete.clip_denoised,
                n_labels=discrete.bound_n_labels or None,
            )
        terms = probabilities_in_bits_per_dimension(nats, batch[0].numel())
        return LogLikelihood(torch.stack(list(terms.values())).sum(0), terms, n_evaluations)


def _on_interval(pixels: torch.Tensor) -> torch.Tensor:
    """Grey levels uint8 (B, C, H, W) on [-1, 1], float64."""
    return pixels.double() / 127.5 - 1
