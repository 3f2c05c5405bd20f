"""Variational dequantization of a ScoreFlow model: training the dequantizer (``--mode train_deq``) and using it.

Flow++ (Ho et al., arXiv 1902.00275, Section 3.1); Song et al., arXiv 2101.09258, Section 6.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from diffusion.continuous.bound import BoundEstimator
from diffusion.continuous.dequantization import dequantization_bound
from diffusion.model import LogLikelihood, Samples, go_on, total
from models.flowpp.dequantizer import Dequantizer, DequantizerSettings
from models.flowpp.initialization import initialize_from_data
from trainers.method import Method, Update
from trainers.networks import seeded
from trainers.options import OptimizationOptions
from trainers.scoreflow.method import ScoreFlow, check_scoreflow
from trainers.scoreflow.options import DequantizerOptions, ScoreFlowOptions
from trainers.scoreflow.published import Behaviour, behaviour
from trainers.state import TrainingState
from trainers.update import compiled, make_scaler, make_updater
from util.config import Config
from util.data.loader import MicroBatch
from util.data.options import DataOptions
from util.distributed import Distributed
from util.ema import ExponentialMovingAverage
from util.errors import UsageError
from util.noise import Noise, derive_seed
from util.option_values import options_of
from util.pinned import Hold, in_place
from util.run_file import read_run_file
from util.run_options import RunOptions
from util.snapshot import RUNNING, choose_snapshot, inspect_snapshot, read_snapshot

NETWORK = "dequantizer"


def check_scoreflow_and_dequantizer(config: Config) -> None:
    """Raise UsageError for options that contradict each other."""
    check_scoreflow(config)
    if config[RunOptions].mode == "train_deq":
        _settings(config.flat(), behaviour(config[RunOptions].published_behaviour), "the configuration")


def build_scoreflow(config: Config, distributed: Distributed) -> Method:
    """A score model to train or evaluate, with the dequantizer of ``--eval_dequantizer``; or a dequantizer to train."""
    if config[RunOptions].mode == "train_deq":
        return DequantizerTraining(config, distributed)
    model = ScoreFlow(config, distributed)
    if config[DequantizerOptions].eval_dequantizer:
        network = _load_averaged(Path(config[DequantizerOptions].dequantizer_ckpt_file), config, distributed.device)
        model.dequantize = partial(_dequantize, network, model)
    return model


def choose_score_snapshot(config: Config) -> dict[str, Any]:
    """The snapshot of the score model that ``--mode train_deq`` trains for: always the one the run began with.

    Returns:
        Its path, step and SHA-256, which ``run.json`` of the dequantizer's folder remembers as ``score_snapshot``.

    Raises:
        UsageError: there is none, it is damaged, or it is not the one that the run began with.
    """
    run = config[RunOptions]
    before = None if run.starts_again else read_run_file(run.folder).get("score_snapshot")
    name = config[DequantizerOptions].score_checkpoint or (before["path"] if before else "")
    folder = run.model_folder / "checkpoints"
    path = choose_snapshot(folder, name, "--score_checkpoint")
    if path is None:
        raise UsageError(
            f"--mode train_deq: no intact snapshot in {folder}; train the score model first, or name one with "
            "--score_checkpoint"
        )
    found = inspect_snapshot(path)
    kept = path.with_name(f"checkpoint_{found.step}.pth")
    # The running one is replaced when the score model's training goes on.
    if path.name == RUNNING and kept.is_file() and inspect_snapshot(kept).sha256 == found.sha256:
        path = kept
    if before and before["sha256"] != found.sha256:
        raise UsageError(
            f"{path} (step {found.step}) is not the score model of step {before['step']} that this dequantizer is "
            "being trained for; give that one with --score_checkpoint, or start again with --overwrite"
        )
    return {"path": str(path.absolute()), "step": found.step, "sha256": found.sha256}


def settle_snapshots(config: Config, hold: Hold = in_place) -> tuple[Config, str, dict[str, Any]]:
    """Name the snapshots that are needed beside the model's; see ``trainers.system.System.settle``.

    Raises:
        UsageError: there is none, or it is damaged.
    """
    if config[RunOptions].mode == "train_deq":
        chosen = choose_score_snapshot(config)
        return config.with_values(score_checkpoint=chosen["path"]), "", {"score_snapshot": chosen}
    options = config[DequantizerOptions]
    if not options.eval_dequantizer:
        return config, "", {}
    folder = config[RunOptions].dequantizer_folder / "checkpoints"

    def choose() -> Path:
        path = choose_snapshot(folder, options.dequantizer_ckpt_file, "--dequantizer_ckpt_file")
        if path is None:
            raise UsageError(
                f"--eval_dequantizer: no intact snapshot in {folder}; train one with --mode train_deq, or name one "
                "with --dequantizer_ckpt_file"
            )
        return path

    held = hold(NETWORK, options.dequantizer_ckpt_file, choose)
    return config.with_values(dequantizer_ckpt_file=str(held.path)), f" with dequantizer {held.sha256}", {}


def _settings(options: Mapping[str, Any], chosen: Behaviour, where: str) -> DequantizerSettings:
    """Settings from options by their flags."""
    known = options_of(DequantizerSettings)
    for flag in ("image_channels", "image_size", *(option.flag for option in known)):
        if flag not in options:
            raise UsageError(f"{where}: it does not say '{flag}'; is it the snapshot of a dequantizer?")
    return DequantizerSettings(
        image_shape=(options["image_channels"], options["image_size"], options["image_size"]),
        floored=chosen.floored,
        **{option.field: options[option.flag] for option in known},
    )


def _load_averaged(path: Path, config: Config, device: torch.device) -> Dequantizer:
    """The dequantizer of a snapshot with its averaged weights, of the sizes that the snapshot says."""
    state, where = read_snapshot(path), str(path)
    settings = _settings(state.get("config", {}), behaviour(config[RunOptions].published_behaviour), where)
    shape = (config[DataOptions].image_channels, config[DataOptions].image_size, config[DataOptions].image_size)
    if settings.image_shape != shape:
        raise UsageError(
            f"{where}: its images have the shape {settings.image_shape}, those of the score model {shape}; give a "
            "dequantizer of the same data set"
        )
    network = Dequantizer(settings)
    ema = ExponentialMovingAverage(network.named_parameters(), 0.0)
    TrainingState({NETWORK: network}, {NETWORK: ema}, {}).load_networks(state, where)
    network.load_state_dict(ema.shadow)
    return network.to(device).requires_grad_(False).eval()


def _dequantize(
    network: Callable[..., tuple[torch.Tensor, torch.Tensor]], model: ScoreFlow, batch: torch.Tensor, noise: Noise
) -> tuple[torch.Tensor, torch.Tensor]:
    """Data with noise from the dequantizer, and -log of its density; see ``trainers.scoreflow.method.Dequantize``."""
    u, minus_log_q = network(noise.normal(*model.data_shape), batch.float() / 255)
    return model.scale.dequantize(batch, u), minus_log_q


class DequantizerTraining:
    """``--mode train_deq`` of the ``scoreflow`` system; see ``trainers.method.Method``.

    The objective is a bound on -log P of the grey levels in nats, times always drawn by importance and the small times
    always accounted for. The score model, of which the averaged weights are taken, does not change; likelihoods are
    those of the score model with the dequantizer as it is.

    Args:
        config: checked, with the path of the score model's snapshot as ``score_checkpoint``.
        distributed: this process's place.
    """

    unit = "bits/dim"
    trajectory = None

    def __init__(self, config: Config, distributed: Distributed) -> None:
        self.config = config
        self.distributed = distributed
        self.device = distributed.device
        self.model = ScoreFlow(config, distributed)
        checkpoint = config[DequantizerOptions].score_checkpoint
        self.model.state.load_networks(read_snapshot(Path(checkpoint)), checkpoint)
        self.model.network.load_state_dict(self.model.updater.ema.shadow, strict=False)
        self.model.network.requires_grad_(False)
        self.model.dequantize = self._averaged_dequantize
        self._importance = self.model.time_density(config[ScoreFlowOptions].likelihood_eps)

        settings = _settings(config.flat(), self.model.behaviour, "the configuration")
        self.network = seeded(lambda: Dequantizer(settings), config[RunOptions].seed, self.device)
        self.updater = make_updater(
            self.network, config[OptimizationOptions], config[ScoreFlowOptions].learning_rate, ema_warm_up=False)
        self.updaters = {NETWORK: self.updater}
        self.updates = [Update(NETWORK, self.training_losses, purpose="train dequantizer")]
        self.state = TrainingState.of(self.updaters, make_scaler(config[OptimizationOptions], self.device))
        self._called = compiled(self.network, config[OptimizationOptions])
        self.heed: Callable[[], None] = go_on

    @property
    def likelihoods(self) -> Mapping[str, Callable[[torch.Tensor, Noise], LogLikelihood]]:
        return self.model.likelihoods

    def _averaged_dequantize(self, batch: torch.Tensor, noise: Noise) -> tuple[torch.Tensor, torch.Tensor]:
        with self.updater.averaged(), torch.no_grad():
            return _dequantize(self.network, self.model, batch, noise)

    def initialise(self, micro_batches: list[MicroBatch]) -> None:
        """Weights from the first batch, of which every rank holds a part.

        The micro-batches of a rank are taken together: without gradients they need less memory than one with them.
        """
        seed = self.config[RunOptions].seed
        positions = torch.cat([batch.positions for batch in micro_batches])
        noise = Noise(seed, "initialise dequantizer", positions, 0, self.device)
        initialize_from_data(
            self.network,
            (noise.normal(*self.model.data_shape), torch.cat([batch.data for batch in micro_batches]).float() / 255),
            self.distributed.sum,
            seed=derive_seed(seed, "initialise dequantizer"),
            draws_twice=self.model.behaviour.draws_twice,
        )
        self.updater.ema.restart()

    def _loss(self, network: Callable[..., Any], batch: torch.Tensor, noise: Noise) -> torch.Tensor:
        """The objective for each sample in nats, float64 (B,)."""
        x, minus_log_q = _dequantize(network, self.model, batch, noise)
        self.model.network.eval()  # which its evaluations undo
        terms = dequantization_bound(
            self.model.process,
            self.model.precisions.training,
            x,
            minus_log_q,
            noise,
            BoundEstimator(
                self.config[ScoreFlowOptions].likelihood_eps,
                closed_forms=self.model.behaviour.closed_forms,
                weighs_length=self.model.behaviour.weighs_length,
            ),
            self._importance,
        )
        return total(terms)

    def training_losses(self, batch: MicroBatch, noise: Noise) -> torch.Tensor:
        """The objective for each sample in nats, float64 (B,)."""
        return self._loss(self._called, batch.data, noise)

    def report(self, metrics: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The loss once more, in bits/dim."""
        in_bits = metrics["loss"] / (math.prod(self.model.data_shape) * math.log(2)) + self.model.scale.offset
        return {"bits_per_dimension": in_bits}

    def validation_loss(self, batch: torch.Tensor, noise: Noise) -> torch.Tensor:
        """The objective with the averaged weights in nats, float64 (B,)."""
        with self.updater.averaged(), torch.no_grad():
            return self._loss(self.network, batch, noise)

    def sample(self, noise: Noise) -> Samples:
        """Samples of the score model."""
        return self.model.sample(noise)
