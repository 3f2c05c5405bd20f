"""``--mode eval`` and ``sample``: a snapshot, and everything asked of it; and what training evaluates now and then."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from diffusion.model import GenerativeModel
from evaluators.compare import ComparesSamplers
from evaluators.detectors import open_detector
from evaluators.evaluate import run_evaluations
from evaluators.follow import follow
from evaluators.likelihood import check_likelihoods
from evaluators.options import EvaluationOptions, PeriodicEvaluationOptions
from evaluators.reference import reference_of_file
from evaluators.sample_metrics import STATISTICS
from evaluators.settings import check_evaluation, check_folder, compares_with_data, settings_due, settings_from
from evaluators.subject import EvaluationSettings
from util.config import Config
from util.data.dataset import Dataset
from util.distributed import Distributed
from util.errors import Preempted, UsageError
from util.pinned import Hold, Pins
from util.run_options import RunOptions
from util.stop import StopRequest

logger = logging.getLogger(__name__)


class LoadedModel(Protocol):
    """A snapshot, ready to be evaluated.

    Attributes:
        config: of the snapshot, as far as that defines the model; else of the command.
        model: on this rank's device.
        datasets: "train" and "test".
        step: of the snapshot.
        digest: what tells snapshots of the same step apart.
        path: of the snapshot.
    """

    @property
    def config(self) -> Config: ...
    @property
    def model(self) -> GenerativeModel: ...
    @property
    def datasets(self) -> Mapping[str, Dataset]: ...
    @property
    def step(self) -> int: ...
    @property
    def digest(self) -> str: ...
    @property
    def path(self) -> Path: ...


Load = Callable[[Config, Distributed, str, Callable[[Config, bool], bool], Hold], LoadedModel]
"""From configuration, place, ``--ckpt_file``, ``needs_data`` and what holds snapshots to the model of one."""


def needs_data(config: Config, has_likelihood: bool) -> bool:
    """Check what is asked for, before any work; whether it compares samples with the data set.

    Raises:
        UsageError: evaluations that make no sense together, or of a likelihood that the system does not have.
    """
    check_evaluation(config, has_likelihood)
    return compares_with_data(config)


def evaluate(load: Load, config: Config, distributed: Distributed, stop: StopRequest) -> None:
    """Evaluate the snapshot that ``--ckpt_file`` names, or the newest intact one, or with ``--follow`` all to come.

    Its run may go on meanwhile. One that was interrupted goes on with the snapshot that it began with.

    Args:
        load: makes the model of a snapshot.
        config: of the command.
        distributed: this process's place.
        stop: asked for by a signal.

    Raises:
        UsageError: bad settings, data or snapshot.
        Preempted: some rank was asked to stop; finished chunks are kept.
        RunFailed: as ``evaluators.follow.follow``.
    """
    if distributed.device.type == "cpu":
        # How sums are split among threads shows in the last bits, which an adaptive solver amplifies; the number of
        # threads follows the number of ranks, but values must not.
        torch.set_num_threads(1)
    check_folder(config)
    run, options = config[RunOptions], config[EvaluationOptions]
    try:
        if run.follow:
            follow(partial(evaluate_snapshot, load), config, distributed, stop)
        else:
            folder = run.folder / options.eval_folder
            evaluate_snapshot(load, config, distributed, stop, options.ckpt_file, folder)
    except Preempted as stopped:
        logger.info("%s; the same command goes on from here", stopped)
        raise


def evaluate_snapshot(
    load: Load, config: Config, distributed: Distributed, stop: StopRequest, ckpt_file: str, folder: Path
) -> dict[str, dict[str, Any]]:
    """Evaluate one snapshot into ``folder``, and say what came out.

    Args:
        load, config, distributed, stop: as ``evaluate``.
        ckpt_file: names the snapshot; empty for the newest intact one.
        folder: for ``results.json``.

    Returns:
        The entries of ``results.json``.

    Raises:
        UsageError, Preempted: as ``evaluate``.
    """
    pins = Pins(folder)
    try:
        entries = _evaluate(load, config, distributed, stop, ckpt_file, folder, pins)
    except UsageError:
        if distributed.is_main:
            pins.undo()
        raise
    if distributed.is_main:
        pins.let_go()
    return entries


def _evaluate(
    load: Load,
    config: Config,
    distributed: Distributed,
    stop: StopRequest,
    ckpt_file: str,
    folder: Path,
    pins: Pins,
) -> dict[str, dict[str, Any]]:
    loaded = load(config, distributed, ckpt_file, needs_data, pins.hold)
    if distributed.is_main:
        pins.tidy()
        logger.info("evaluating %s (step %d)", loaded.path, loaded.step)
    run, options = config[RunOptions], config[EvaluationOptions]
    settings = settings_from(loaded.config)
    if run.mode == "sample" and isinstance(loaded.model, ComparesSamplers):
        # Samplers of a few steps: how they come about is always worth a look.
        settings = replace(settings, eval_trajectory=True)
    stop.listen()  # from here on there is something to keep, and every chunk looks at the request
    results = run_evaluations(
        loaded.model, loaded.datasets["train"], loaded.datasets[options.eval_split], settings, folder,
        distributed, stop, loaded.step, loaded.digest,
    )  # fmt: skip
    if distributed.is_main:
        for name, entry in results.items():
            if "value" in entry:
                error = entry.get("standard_error")
                spread = f" +- {error:.4g}" if error is not None else ""
                value = f"{entry['value']:.6g}{spread} {entry['unit']}"
                logger.info("%s = %s (%d samples)", name, value, entry["n_samples"])
        logger.info("results are in %s", folder / "results.json")
    return results


@dataclass
class PeriodicEvaluation:
    """What a training run evaluates of its model now and then.

    Attributes:
        config: checked.
        model: in training.
        datasets: "train" and "test".
        distributed: this process's place.
        stop: asked for by a signal.

    Raises:
        UsageError: an evaluation will not be possible. It is said now, not when the first one is due.
    """

    config: Config
    model: GenerativeModel
    datasets: Mapping[str, Dataset]
    distributed: Distributed
    stop: StopRequest

    needs_data = staticmethod(needs_data)

    def __post_init__(self) -> None:
        settings = settings_from(self.config)
        check_likelihoods(self.model, settings)
        if self.config[PeriodicEvaluationOptions].fid_freq:
            dataset = self.datasets["train"]
            detector = open_detector(settings.detector, dataset.shape, self.distributed)
            if settings.fid_statistics is not None:
                reference_of_file(settings.fid_statistics, detector, dataset, self.distributed, {STATISTICS})

    def due(self, step: int) -> bool:
        """Whether there is something to evaluate at ``step``."""
        return self._settings(step) is not None

    def __call__(self, step: int) -> tuple[dict[str, float], dict[str, Path]]:
        """What is due at ``step``, spread over all ranks; one that was interrupted is finished.

        Returns:
            On rank 0 scalars and pictures by name; both empty elsewhere.

        Raises:
            Preempted: some rank was asked to stop; finished chunks are kept.
        """
        settings = self._settings(step)
        assert settings is not None
        folder = self.config[RunOptions].folder / "evaluations" / f"step_{step:08d}"
        results = run_evaluations(
            self.model, self.datasets["train"], self.datasets["test"], settings, folder, self.distributed, self.stop,
            step, "training",
        )  # fmt: skip
        if not self.distributed.is_main:
            return {}, {}
        # Features of thousands of samples are only needed until their statistics are known.
        (folder / "fid_features.npz").unlink(missing_ok=True)
        values = {f"evaluation/{name}": entry["value"] for name, entry in results.items() if "value" in entry}
        return values, {name: folder / f"{name}.png" for name in ("samples", "histogram")}

    def _settings(self, step: int) -> EvaluationSettings | None:
        return settings_due(self.config, step, self.datasets["test"].length)
