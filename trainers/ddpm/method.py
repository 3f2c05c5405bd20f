"""Noise prediction in discrete steps (DDPM, arXiv 2006.11239), sampled by ancestral sampling or DDIM."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch

from diffusion.bits import PixelScale, in_bits_per_dimension
from diffusion.discrete.bound import discrete_variational_bound
from diffusion.discrete.ddim import OnLabel
from diffusion.discrete.ddpm import PredictNoise, noise_prediction_loss
from diffusion.discrete.schedule import choose_labels, make_schedule
from diffusion.model import LogLikelihood, Samples, go_on, total
from trainers.ddpm.options import DdpmOptions
from trainers.ddpm.published import behaviour
from trainers.method import Update
from trainers.networks import make_noise_network, noise_network_settings
from trainers.noise_model import sample_by
from trainers.one_network import OneNetwork
from trainers.options import OptimizationOptions
from trainers.score_model import Network, in_precisions
from trainers.state import TrainingState
from trainers.update import make_scaler, make_updater
from util.config import Config
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
    data, discrete = config[DataOptions], config[DdpmOptions]
    if not data.is_image:
        raise UsageError("--system ddpm needs images; use --system cld for points")
    if not data.center_image:
        raise UsageError("--system ddpm clips and counts grey levels on [-1, 1]; leave center_image true")
    if data.uniform_dequantization:
        raise UsageError("--uniform_dequantization: the bound of ddpm is on grey levels themselves; leave it out")
    make_schedule(discrete.noise_schedule, discrete.diffusion_steps)
    choose_labels(discrete.skip_type, discrete.n_discrete_steps, discrete.diffusion_steps)
    noise_network_settings(config)


def label_scale(config: Config) -> float:
    """What the network is told for step 1."""
    return LARGEST_LABEL / config[DdpmOptions].diffusion_steps if config[DdpmOptions].rescale_timesteps else 1.0


class NoisePrediction(OneNetwork):
    """The ``ddpm`` system; see ``trainers.method.Method``."""

    unit = "bits/dim"

    def __init__(self, config: Config, distributed: Distributed) -> None:
        self.config = config
        self.device = distributed.device
        data, discrete, optimization = config[DataOptions], config[DdpmOptions], config[OptimizationOptions]
        self.data_shape = (data.image_channels, data.image_size, data.image_size)
        self.scale = PixelScale(centered=True)
        self._schedule_on_host = make_schedule(
            discrete.noise_schedule,
            discrete.diffusion_steps,
            single_precision=behaviour(config[RunOptions].published_behaviour).single_precision,
        )
        self.schedule = self._schedule_on_host.to(self.device)
        self.network = make_noise_network(config, self.device)
        self.updater = make_updater(self.network, optimization, config[DdpmOptions].learning_rate)
        self.updaters = {"noise": self.updater}
        self.updates = [Update("noise", self.training_losses)]
        self.state = TrainingState.of(self.updaters, make_scaler(optimization, self.device))
        self.heed: Callable[[], None] = go_on
        self.likelihoods = {"nelbo": self.nelbo}
        scale = label_scale(config)

        def prediction(called: Network) -> PredictNoise:
            return lambda state, labels: called(state, labels.double() * scale).float()

        self.precisions = in_precisions(self.network, self.device, optimization).map(prediction)

    def losses(self, predict_noise: PredictNoise, batch: torch.Tensor, noise: Noise) -> torch.Tensor:
        """The objective for each sample, float64 (B,)."""
        labels = noise.integers(len(self.schedule))
        return noise_prediction_loss(
            predict_noise, self.schedule, _on_interval(batch), labels, noise.normal(*self.data_shape)
        )

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

    def _draw(self, noise: Noise, on_step: OnLabel | None = None) -> tuple[torch.Tensor, int]:
        options = self.config[DdpmOptions]
        labels = choose_labels(options.skip_type, options.n_discrete_steps, len(self.schedule))

        def heeding(step: int, state: torch.Tensor, data: torch.Tensor) -> None:
            self.heed()
            if on_step is not None:
                on_step(step, state, data)

        with self.updater.averaged():
            return sample_by(
                options.sampling_method, self.precisions.sampling, self._schedule_on_host.subset(labels),
                lambda: noise.normal(*self.data_shape), options, heeding,
            )  # fmt: skip

    def nelbo(self, batch: torch.Tensor, noise: Noise) -> LogLikelihood:
        """The variational bound on the grey levels, for ancestral sampling over all steps."""
        discrete = self.config[DdpmOptions]

        def draw(kind: Literal["normal", "uniform"]) -> torch.Tensor:
            self.heed()
            return noise.normal(*self.data_shape) if kind == "normal" else noise.uniform(dtype=torch.float64)

        with self.updater.averaged():
            nats, n_evaluations = discrete_variational_bound(
                self.precisions.exact,
                self.schedule,
                _on_interval(batch),
                draw=draw,
                variance=discrete.model_var_type,
                clip=discrete.clip_denoised,
                n_labels=discrete.bound_n_labels or None,
            )
        terms = in_bits_per_dimension(nats, batch[0].numel(), None)
        return LogLikelihood(total(terms), terms, n_evaluations)


def _on_interval(pixels: torch.Tensor) -> torch.Tensor:
    """Grey levels uint8 (B, C, H, W) on [-1, 1], float64."""
    return pixels.double() / 127.5 - 1
