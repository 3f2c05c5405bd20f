"""``--mode train``, ``continue`` and ``train_deq``: from a configuration to the loop, and back to a tidy end.

And the model of a snapshot, for those who look at one.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from trainers.check import check_config, n_micro_batches, with_total_batch_size
from trainers.loop import Evaluation, Training, on_saved
from trainers.method import Method, StartsFromWeights
from trainers.options import TrainingOptions
from trainers.snapshot_interval import SnapshotInterval
from trainers.state import TrainingState
from trainers.system import load
from trainers.systems import build_method, find_system
from util.config import Config
from util.data.dataset import Dataset, open_dataset, prepare_dataset
from util.data.inspection import inspect_datasets, kept_contents
from util.data.loader import MicroBatch, Share, training_batches
from util.data.no_data import NoData, positions_without_data
from util.data.options import DataOptions
from util.distributed import Distributed
from util.errors import Preempted, UsageError
from util.files import wait_until_seen
from util.option_values import written
from util.pinned import Hold, in_place
from util.run_file import read_run_file, with_start
from util.run_folder import check_run_folder, take_run_folder
from util.run_log import RunLog
from util.run_options import RunOptions
from util.snapshot import SnapshotWriter, choose_snapshot, read_snapshot
from util.stop import StopRequest
from util.versions import versions

logger = logging.getLogger(__name__)


class MakesEvaluation(Protocol):
    """What knows how to evaluate a model now and then; ``evaluators.run.PeriodicEvaluation``."""

    def needs_data(self, config: Config, has_likelihood: bool) -> bool:
        """Whether samples are compared with the data set. Raises UsageError for evaluations that cannot be."""
        ...

    def __call__(
        self,
        config: Config,
        model: Method,
        datasets: Mapping[str, Dataset],
        distributed: Distributed,
        stop: StopRequest,
    ) -> Evaluation: ...


AgreesOnStart = Callable[[Path, Distributed], tuple[Mapping[str, Any], Mapping[str, Sequence[str]]]]
"""Says what a start that follows another one does not take from its command, and who may start it again."""


def train(
    evaluation: MakesEvaluation,
    agree_on_start: AgreesOnStart,
    config: Config,
    distributed: Distributed,
    stop: StopRequest,
) -> None:
    """Train from the beginning, or from the newest intact snapshot.

    Until the first step has been taken nothing changes in the folder of the run, but that an evaluation that was due
    goes on.

    Args:
        evaluation: makes what is evaluated during training.
        agree_on_start: for the folder of the run; who may start it again is kept in run.json.
        config: of the command.
        distributed: this process's place.
        stop: asked for by a signal.

    Raises:
        UsageError: bad settings, data or snapshots.
        Preempted, RunFailed: as the loop.
    """
    of_this_start, starters = agree_on_start(config[RunOptions].folder, distributed)
    config = config.with_values(**of_this_start)
    check_config(config)
    config = with_total_batch_size(config, distributed.world_size)
    system = find_system(config[RunOptions].system)
    needs_data = evaluation.needs_data(config, system.has_likelihood) or system.learns_from_data
    distributed.from_main(lambda: check_run_folder(config))
    asked, (config, _, chosen) = config, settled(config, distributed, in_place)
    run, options = config[RunOptions], config[TrainingOptions]
    datasets = open_datasets(config, distributed, needs_data)
    method = build_method(config, distributed)
    resumed = _resume(run, distributed, method.state)
    if not resumed and isinstance(method, StartsFromWeights):
        method.load_pretrained()

    first_step = method.state.step
    log = RunLog(run.folder, distributed.is_main)
    hosts = sorted(set(distributed.gather(socket.gethostname())))
    data = kept_contents(datasets, run.folder, resumed and distributed.is_main)
    place: dict[str, Any] = {"world_size": distributed.world_size, "hosts": hosts, "started": time.time()}
    before = read_run_file(run.folder) if resumed else {}
    starts = with_start(before, **place, step=first_step, versions=versions())
    log.status(**place, starts=starts, data=data, exit_reason=None, starters=dict(starters), **chosen)
    checkpoints = run.folder / "checkpoints"
    read_back = options.snapshot_verify == "read_back"
    snapshots = SnapshotWriter(checkpoints, on_saved(log), read_back) if distributed.is_main else None
    batches = _batches(config, distributed, datasets["train"], first_step)
    automatic = distributed.is_main and options.snapshot_freq == "auto"
    interval = SnapshotInterval(options.mtbf_hours * 3600) if automatic else None
    evaluates = evaluation(config, method, datasets, distributed, stop)

    def begin() -> None:
        take_run_folder(asked)
        log.begin(first_step)

    training = Training(method, batches, config, distributed, stop, log, snapshots, interval, evaluates, begin)
    stop.listen()  # from here on there is something to save, and the loop looks at the request
    try:
        training.run()
    except Preempted:
        reason = ", ".join(sorted({name for name in distributed.gather(stop.reason) if name}))
        log.status(state="preempted", step=method.state.step, exit_reason=reason)
        again = "the same command" if run.mode == "train_deq" else "--mode continue"
        logger.info("stopped by %s at step %d; %s goes on from here", reason, method.state.step, again)
        raise
    except Exception as error:
        log.status(state="failed", step=method.state.step, exit_reason=str(error))
        raise
    finally:
        batches.close()
        if snapshots is not None:
            snapshots.close()
        log.close()
    log.status(state="finished", step=method.state.step, exit_reason="finished")
    # Nobody leaves before the last snapshot is on disk: a rank that is gone looks like a rank that failed.
    distributed.barrier()
    logger.info("finished at step %d; snapshots are in %s", method.state.step, checkpoints)


@dataclass(frozen=True)
class LoadedModel:
    """See ``evaluators.run.LoadedModel``."""

    config: Config
    model: Method
    datasets: Mapping[str, Dataset]
    step: int
    digest: str
    path: Path


def load_model(
    config: Config, distributed: Distributed, ckpt_file: str, needs_data: Callable[[Config, bool], bool], hold: Hold
) -> LoadedModel:
    """The model of a snapshot, as the snapshot describes it, with its averaged weights.

    Args:
        config: of the command.
        distributed: this process's place.
        ckpt_file: names the snapshot; empty for the newest intact one.
        needs_data: checks what follows; whether it needs the data set also where the system does not.
        hold: has a snapshot stay as it is.

    Raises:
        UsageError: bad settings, data or snapshot; options that contradict the snapshot.
    """

    def choose() -> Path:
        run = config[RunOptions]
        path = choose_snapshot(run.folder / "checkpoints", ckpt_file, "--ckpt_file")
        if path is None:
            raise UsageError(
                f"--mode {run.mode}: no intact snapshot in {run.folder / 'checkpoints'}; name one with --ckpt_file"
            )
        return path

    held = distributed.from_main(lambda: hold("model", ckpt_file, choose))
    wait_until_seen(held.path)
    state, path = read_snapshot(held.path), held.source
    config = of_snapshot(config, state.get("config", {}), str(path))
    check_config(config)
    system = find_system(config[RunOptions].system)
    wanted = needs_data(config, system.has_likelihood)
    config, beside, _ = settled(config, distributed, hold)
    datasets = open_datasets(config, distributed, wanted or system.learns_from_data)
    method = build_method(config, distributed)
    method.state.load_networks(state, str(path))
    return LoadedModel(config, method, datasets, method.state.step, held.sha256 + beside, path)


def of_snapshot(config: Config, recorded: Mapping[str, object], where: str) -> Config:
    """The configuration with the values that a snapshot was trained with, wherever they define the model.

    Args:
        config: of the command.
        recorded: of the snapshot, by flag, as far as it says.
        where: the snapshot, for messages.

    Raises:
        UsageError: the command gives another value of such an option.
    """
    system = recorded.get("system", config[RunOptions].system)
    if system != config[RunOptions].system:
        raise UsageError(f"{where} is a snapshot of --system {system}; use that")
    values = {}
    for option in config.options():
        if not option.comes_from_snapshot or option.flag not in recorded:
            continue
        trained, now = recorded[option.flag], config.flat()[option.flag]
        if option.flag in config.given and trained != now:
            raise UsageError(
                f"--{option.flag} {written(now)}: {where} was trained with {option.flag} = {written(trained)}; leave "
                "the option out, or evaluate a model that was trained with it"
            )
        values[option.flag] = trained
    return config.with_values(**values)


def settled(config: Config, distributed: Distributed, hold: Hold) -> tuple[Config, str, dict[str, Any]]:
    """What ``System.settle`` chooses, the same on all ranks."""
    place = find_system(config[RunOptions].system).settle
    if not place:
        return config, "", {}

    def settle() -> tuple[dict[str, Any], str, dict[str, Any]]:
        chosen, *others = load(place)(config, hold)
        return chosen.flat(), *others

    values, beside, note = distributed.from_main(settle)
    return config.with_values(**values), beside, note


def _batches(
    config: Config, distributed: Distributed, dataset: Dataset, first_step: int
) -> Generator[list[MicroBatch], None, None]:
    run, data, training = config[RunOptions], config[DataOptions], config[TrainingOptions]
    world_size = distributed.world_size
    n_pieces = n_micro_batches(training, world_size)
    share = Share(first_step, training.total_batch_size, distributed.rank, world_size, n_pieces)
    if not find_system(run.system).learns_from_data:
        return positions_without_data(share, distributed.device)
    return training_batches(
        dataset,
        share,
        seed=run.seed,
        n_workers=data.n_workers,
        device=distributed.device,
        random_flip=data.random_flip,
        one_order=run.published_behaviour,
    )


def open_datasets(config: Config, distributed: Distributed, needed: bool) -> dict[str, Dataset]:
    """The "train" and "test" split of the data set that the options describe, downloaded once where it can be.

    Args:
        config: checked.
        distributed: this process's place.
        needed: else stand-ins of the same shape will do.

    Raises:
        UsageError: files are missing, damaged, or do not fit the options.
    """
    run, data = config[RunOptions], config[DataOptions]
    if not needed:
        shape = (data.image_channels, data.image_size, data.image_size)
        return {split: NoData(shape) for split in ("train", "test")}
    where = run.path(data.data_location)
    distributed.from_main(lambda: prepare_dataset(data.dataset, where))
    datasets = {
        split: open_dataset(data.dataset, split, where, data.image_size, data.image_channels, run.seed)
        for split in ("train", "test")
    }
    inspect_datasets(datasets, distributed, run.folder)
    return datasets


def _resume(run: RunOptions, distributed: Distributed, state: TrainingState) -> bool:
    """Load the snapshot to go on from, on every rank; whether there is one."""
    if run.starts_again:
        return False
    folder = run.folder / "checkpoints"
    path = distributed.from_main(lambda: choose_snapshot(folder, run.checkpoint, "--checkpoint"))
    if path is None and run.mode == "continue":
        raise UsageError(f"--mode continue: no intact snapshot in {folder}; start with --mode train")
    if path is None:
        return False
    state.load_state_dict(read_snapshot(path), str(path))
    if distributed.is_main:
        logger.info("continuing from %s (step %d)", path, state.step)
    return True
