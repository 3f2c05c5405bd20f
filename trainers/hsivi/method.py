"""Hierarchical semi-implicit variational inference (HSIVI-SM, arXiv 2310.17153): few-step samplers of noise models.

A step of training draws its own chains from noise, so it needs no data.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import nn

from diffusion.bits import PixelScale
from diffusion.discrete.hsivi import (
    Depths,
    Hierarchy,
    Network,
    Networks,
    Transition,
    f_loss,
    log_gamma_shape,
    make_hierarchy,
    mirror,
    phi_loss,
    sampling_layers,
)
from diffusion.discrete.schedule import choose_labels, make_schedule, teacher_labels
from diffusion.model import LogLikelihood, Samples, go_on
from models.log_gamma import LOG_GAMMA, add_log_gamma
from trainers.hsivi.options import HsiviOptions
from trainers.hsivi.pretrained import Pretrained, read_pretrained
from trainers.hsivi.published import behaviour
from trainers.method import Update
from trainers.networks import make_noise_network, noise_network_settings
from trainers.noise_model import sample_by
from trainers.options import NetworkChoice, OptimizationOptions, TrainingOptions
from trainers.state import TrainingState
from trainers.update import ADAM_BETA1, Updater, make_scaler, with_autocast
from util.config import Config
from util.data.loader import MicroBatch
from util.data.options import DataOptions
from util.distributed import Distributed
from util.ema import ExponentialMovingAverage
from util.errors import UsageError
from util.named_shapes import describe_difference, shapes
from util.noise import Noise
from util.optimization import decaying_learning_rate, make_optimizer
from util.run_options import RunOptions

LARGEST_LABEL = 1000


def check_hsivi(config: Config) -> None:
    """Raise UsageError for options that contradict each other."""
    data, discrete, options = config[DataOptions], config[HsiviOptions], config[HsiviOptions]
    n_points = config[HsiviOptions].n_discrete_steps
    if not data.is_image:
        raise UsageError("--system hsivi needs images; use --system cld for points")
    if not data.center_image:
        raise UsageError("--system hsivi starts from networks for images on [-1, 1]; leave center_image true")
    settings = noise_network_settings(config)
    if settings.dropout > 0:
        raise UsageError(f"--dropout {settings.dropout:g}: hsivi trains without dropout; set dropout = 0")
    if config[RunOptions].mode == "train" and not options.pretrained_model:
        raise UsageError(
            "--system hsivi starts from a trained network; give --pretrained_model: a snapshot of --system ddpm or "
            "hsivi, or a published checkpoint"
        )
    if n_points < 2:
        raise UsageError(f"--n_discrete_steps {n_points}: hsivi joins its time points by layers; give at least 2")
    if options.f_pairs_per_chain > n_points - 1:
        raise UsageError(
            f"--f_pairs_per_chain {options.f_pairs_per_chain}: a chain of n_discrete_steps {n_points} has "
            f"{n_points - 1} pairs; give at most as many"
        )
    teacher_steps = options.teacher_diffusion_steps or discrete.diffusion_steps
    if teacher_steps % discrete.diffusion_steps:
        raise UsageError(
            f"--teacher_diffusion_steps {teacher_steps} is no multiple of --diffusion_steps "
            f"{discrete.diffusion_steps}; give the number of steps that the teacher was trained with"
        )
    if teacher_steps != discrete.diffusion_steps and discrete.noise_schedule != "cosine":
        raise UsageError(
            "--teacher_diffusion_steps: only cosine schedules of different steps share their noise levels; "
            "set diffusion_steps to the teacher's own"
        )
    make_hierarchy_of(config)


def network_labels(config: Config, labels: torch.Tensor) -> torch.Tensor:
    """What the networks are told for labels (B,) of the schedule: what their teacher saw at that noise level.

    The public code asks a teacher of 4,000 rescaled steps with the labels of 1,000 steps, 0.75 too small.
    """
    discrete = config[HsiviOptions]
    if not behaviour(config[RunOptions].published_behaviour).teacher_labels:
        return labels.double()
    n_teacher_steps = config[HsiviOptions].teacher_diffusion_steps or discrete.diffusion_steps
    largest_label = LARGEST_LABEL if discrete.rescale_timesteps else n_teacher_steps
    return teacher_labels(labels, discrete.diffusion_steps, n_teacher_steps, largest_label)


def make_hierarchy_of(config: Config, device: torch.device | str = "cpu") -> Hierarchy:
    """The time points that the options describe.

    Raises:
        UsageError: options that allow none.
    """
    options, single = config[HsiviOptions], behaviour(config[RunOptions].published_behaviour).single_precision
    labels = choose_labels(options.skip_type, options.n_discrete_steps, options.diffusion_steps)
    schedule = make_schedule(options.noise_schedule, options.diffusion_steps, single).subset(labels).to(device)
    variances = schedule.one_minus_alphas_bar
    return make_hierarchy(
        network_labels(config, schedule.labels), variances.float() if single else variances, options.eta
    )


@contextlib.contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    """What is computed within has no gradients for the network's parameters."""
    network.requires_grad_(False)
    try:
        yield
    finally:
        network.requires_grad_(True)


class HierarchicalMatching:
    """The ``hsivi`` system; see ``trainers.method.Method``."""

    unit = "bits/dim"

    def __init__(self, config: Config, distributed: Distributed) -> None:
        self.config = config
        self.device = distributed.device
        data, options, optimization = config[DataOptions], config[HsiviOptions], config[OptimizationOptions]
        self.data_shape = (data.image_channels, data.image_size, data.image_size)
        self.scale = PixelScale(centered=True)
        self.behaviour = behaviour(config[RunOptions].published_behaviour)
        self.hierarchy = make_hierarchy_of(config, self.device)
        self.likelihoods: dict[str, Callable[[torch.Tensor, Noise], LogLikelihood]] = {}

        self.teacher = make_noise_network(config, self.device).requires_grad_(False)
        self.phi, self.f = (make_noise_network(config, self.device) for _ in range(2))
        per_pixel, per_layer = options.image_gamma == "use", options.independent_log_gamma == "use"
        shape = log_gamma_shape(self.hierarchy.n_layers, self.data_shape, per_pixel, per_layer)
        self.log_gamma = add_log_gamma(self.phi, shape)

        self._phi_updater = self._make_updater(self.phi, options.phi_learning_rate)
        self._f_updater = self._make_updater(self.f, options.f_learning_rate)
        self.updaters = {"phi": self._phi_updater, "f": self._f_updater}
        self.updates = [
            Update("phi", self._phi_losses, "phi", "phi_", due=lambda step: (step + 1) % options.f_learning_times == 0),
            Update("f", self._f_losses, "f"),
        ]
        self.state = TrainingState.of(
            self.updaters, make_scaler(optimization, self.device), frozen={"teacher": self.teacher}
        )
        self.heed: Callable[[], None] = go_on
        networks = (self.phi, self.f, self.teacher)
        self._training = Networks(*(self._called(network, training=True) for network in networks))
        self._evaluating = Networks(*(self._called(network, training=False) for network in networks))

    def _make_updater(self, network: nn.Module, learning_rate: float) -> Updater:
        optimization, options = self.config[OptimizationOptions], self.config[HsiviOptions]
        parameters = list(network.parameters())
        optimizer = make_optimizer(
            optimization.optimizer, parameters, learning_rate, optimization.weight_decay,
            (ADAM_BETA1, optimization.adam_beta2), amsgrad=True,
        )  # fmt: skip
        rate = partial(
            decaying_learning_rate, learning_rate, optimization.n_warmup_iters,
            self.config[TrainingOptions].n_train_iters, options.cosine_lr_decay == "use",
        )  # fmt: skip
        ema = ExponentialMovingAverage(network.named_parameters(), optimization.ema_rate)
        return Updater(network, optimizer, ema, rate, optimization.grad_clip)

    def _called(self, network: nn.Module, training: bool) -> Network:
        optimization = self.config[OptimizationOptions]
        called: Callable[..., torch.Tensor] = network
        if training and optimization.compile:
            called = torch.compile(network, dynamic=True)  # the roll-out's batch shrinks
        autocast = optimization.autocast_train if training else optimization.autocast_eval
        return with_autocast(called, self.device, optimization, autocast)

    def load_pretrained(self) -> None:
        """Start from ``--pretrained_model``: a teacher for all three networks, or a whole model of HSIVI.

        Raises:
            UsageError: there is none, or it does not fit the options.
        """
        path = self.config[HsiviOptions].pretrained_model
        pretrained = read_pretrained(
            Path(self.config[RunOptions].root) / path, averaged=self.behaviour.starts_from_averages
        )
        self._check_teacher_steps(pretrained)
        gamma = {LOG_GAMMA: torch.zeros_like(self.log_gamma)}
        phi = pretrained.phi if pretrained.phi is not None else {**gamma, **pretrained.teacher}
        f = pretrained.f if pretrained.f is not None else pretrained.teacher
        for name, network, weights in (("teacher", self.teacher, pretrained.teacher), ("f", self.f, f)):
            self._load(name, network, weights, pretrained)
        self._check_gamma(phi[LOG_GAMMA], pretrained)
        self._load("phi", self.phi, phi, pretrained)
        for updater in (self._phi_updater, self._f_updater):
            averages = {name: parameter.detach() for name, parameter in updater.network.named_parameters()}
            updater.ema.load_state_dict({"decay": updater.ema.decay, "n_updates": 0, "shadow": averages})

    def _load(self, name: str, network: nn.Module, weights: dict[str, torch.Tensor], source: Pretrained) -> None:
        difference = describe_difference(shapes(network.state_dict()), shapes(weights))
        if difference:
            raise UsageError(
                f"--pretrained_model {source.path}: {source.kind} does not fit the network '{name}' that the options "
                f"describe (--name {self.config[NetworkChoice].name}): {difference}; use the settings that it was "
                "trained with"
            )
        network.load_state_dict(weights)

    def _check_gamma(self, given: torch.Tensor, source: Pretrained) -> None:
        if given.shape != self.log_gamma.shape:
            raise UsageError(
                f"--pretrained_model {source.path}: its {LOG_GAMMA} has shape {tuple(given.shape)}, not the "
                f"{tuple(self.log_gamma.shape)} of --n_discrete_steps {self.config[HsiviOptions].n_discrete_steps}, "
                f"--image_gamma and --independent_log_gamma; use its own settings, or start from its teacher"
            )

    def _check_teacher_steps(self, source: Pretrained) -> None:
        """Labels mean what they meant to the teacher, as far as its snapshot says."""
        discrete, options = self.config[HsiviOptions], self.config[HsiviOptions]
        ours = {
            "noise_schedule": discrete.noise_schedule,
            "rescale_timesteps": discrete.rescale_timesteps,
            "diffusion_steps": discrete.diffusion_steps,
        }
        if source.phi is None:
            ours["diffusion_steps"] = options.teacher_diffusion_steps or discrete.diffusion_steps
        for name, value in ours.items():
            given = source.settings.get(name, value)
            if given != value:
                flag = "teacher_diffusion_steps" if name == "diffusion_steps" and source.phi is None else name
                raise UsageError(
                    f"--pretrained_model {source.path}: {source.kind} was trained with {name} = {given}, not {value}; "
                    f"set --{flag} {str(given).lower()}"
                )

    def _depths(self, purpose: str, batch: MicroBatch, n_pairs: int) -> Depths:
        """How many layers the samples pass to each of their pairs, (B, n_pairs): drawn on the device and on the host,
        which both know the positions that they follow from."""
        run, n_layers = self.config[RunOptions], self.hierarchy.n_layers
        total = self.config[TrainingOptions].total_batch_size

        def draw(positions: torch.Tensor) -> torch.Tensor:
            places = positions % total
            source, mirrored = mirror(places, total, self.behaviour.by_halves)
            key = f"{purpose} depth {run.cont_nbr}"
            noise = Noise(run.seed, key, positions - places + source, self.state.step, positions.device)
            if n_pairs == 1:
                drawn = noise.integers(n_layers, 1) + 1
            else:
                # Stable, so that equal numbers are in one order everywhere.
                drawn = noise.uniform(n_layers).argsort(dim=1, stable=True)[:, :n_pairs] + 1
            return torch.where(mirrored[:, None], n_layers + 1 - drawn, drawn)

        return Depths(draw(batch.positions), draw(batch.host_positions))

    def _phi_losses(self, batch: MicroBatch, noise: Noise) -> torch.Tensor:
        """The loss of the sampler phi for each chain, (B,)."""
        start, normal = noise.normal(*self.data_shape), partial(noise.normal, *self.data_shape)
        depths = self._depths("phi", batch, 1).of_pair(0)
        layer_noise = noise.normal(*self.data_shape)
        with _frozen(self.f):
            return phi_loss(self.hierarchy, self._training, self.log_gamma, start, depths, layer_noise, normal)

    def _f_losses(self, batch: MicroBatch, noise: Noise) -> torch.Tensor:
        """The loss of the score network f for each chain, (B,)."""
        phi, f, _ = self._training
        start, normal = noise.normal(*self.data_shape), partial(noise.normal, *self.data_shape)
        depths = self._depths("f", batch, self.config[HsiviOptions].f_pairs_per_chain)
        return f_loss(self.hierarchy, phi, self.log_gamma, f, start, depths, normal)

    @contextlib.contextmanager
    def _sampling_weights(self) -> Iterator[None]:
        """Averaged weights of phi and f; the public code samples with the raw ones."""
        if not self.behaviour.samples_from_averages:
            yield
            return
        with self._phi_updater.ema.average_weights(), self._f_updater.ema.average_weights():
            yield

    def validation_loss(self, batch: torch.Tensor, noise: Noise) -> torch.Tensor:
        """The phi loss of fresh chains, float64 (B,): an estimate of the distance to the teacher. Of the batch only
        the length counts."""
        assert len(batch) == len(noise)
        on_device = 1 + noise.integers(self.hierarchy.n_layers)
        depths = Depths(on_device, on_device.cpu())
        start, layer_noise = noise.normal(*self.data_shape), noise.normal(*self.data_shape)
        with self._sampling_weights(), torch.no_grad():
            return phi_loss(
                self.hierarchy, self._evaluating, self.log_gamma, start, depths, layer_noise,
                partial(noise.normal, *self.data_shape),
            )  # fmt: skip

    def sample(self, noise: Noise) -> Samples:
        """One sample for each entry of ``noise``, with a network evaluation for every layer."""
        start = noise.normal(*self.data_shape)
        with self._sampling_weights():
            for transition in self._layers(start, noise):
                state = transition.state
                self.heed()
        return Samples(self.scale.to_unit_interval(state), self.hierarchy.n_layers)

    def trajectory(self, noise: Noise) -> dict[str, torch.Tensor]:
        """The clean images that each layer's prediction stands for, and the states from noise to sample."""
        start = noise.normal(*self.data_shape)
        with self._sampling_weights():
            transitions = list(self._layers(start, noise))
        images = {
            "predicted data": [transition.clean for transition in transitions],
            "state": [start, *(transition.state for transition in transitions)],
        }
        return {name: self.scale.to_unit_interval(torch.stack(states, dim=1)) for name, states in images.items()}

    def _layers(self, start: torch.Tensor, noise: Noise) -> Iterator[Transition]:
        phi = self._evaluating.phi
        return sampling_layers(self.hierarchy, phi, self.log_gamma, start, partial(noise.normal, *self.data_shape))

    @property
    def compared_samplers(self) -> dict[str, Callable[[Noise], Samples]]:
        """By name, this sampler and those of its teacher with as many network evaluations: on the steps that they would
        choose, and on those of this sampler, none of which is spent on states that are as good as clean."""
        discrete, n_layers = self.config[HsiviOptions], self.hierarchy.n_layers
        steps = {
            skip_type: choose_labels(skip_type, n_layers, discrete.diffusion_steps) for skip_type in ("quad", "uniform")
        }
        steps["same_steps"] = choose_labels(discrete.skip_type, n_layers + 1, discrete.diffusion_steps)[1:]
        samplers: dict[str, Callable[[Noise], Samples]] = {"hsivi": self.sample}
        for name in ("ddim", "ancestral"):
            for choice, labels in steps.items():
                samplers[f"{name}_{choice}"] = partial(self._sample_teacher, name, labels)
        return samplers

    def _sample_teacher(self, sampler: str, labels: torch.Tensor, noise: Noise) -> Samples:
        discrete = self.config[HsiviOptions]
        teacher = self._evaluating.teacher
        schedule = make_schedule(discrete.noise_schedule, discrete.diffusion_steps).subset(labels)

        def predict_noise(state: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return teacher(state, network_labels(self.config, labels)).float()

        data, n_evaluations = sample_by(
            sampler, predict_noise, schedule, partial(noise.normal, *self.data_shape), discrete,
            lambda _step, _state, _data: self.heed(),
        )  # fmt: skip
        return Samples(self.scale.to_unit_interval(data).float(), n_evaluations)
