"""``--mode train`` and ``continue``: from a configuration to the loop, and back to a tidy end."""

from __future__ import annotations

import logging
import socket
import time
from pathlib import Path

from trainers.build import build_method
from trainers.check import check_config, n_micro_batches
from trainers.loop import Training, on_saved
from trainers.state import TrainingState
from util.config import Config
from util.data.dataset import Dataset, open_dataset, prepare_dataset
from util.data.loader import training_batches
from util.distributed import Distributed
from util.errors import Preempted, UsageError
from util.run_folder import claim_run_folder
from util.run_log import RunLog
from util.snapshot import DamagedSnapshot, SnapshotWriter, find_snapshots, inspect_snapshot, read_snapshot
from util.stop import StopRequest

logger = logging.getLogger(__name__)


def train(config: Config, distributed: Distributed, stop: StopRequest) -> None:
    """Train from the beginning, or from the newest intact snapshot.

    Raises:
        UsageError: bad settings, data or snapshots.
        Preempted, RunFailed: as the loop.
    """
    check_config(config, distributed.world_size)
    distributed.from_main(lambda: claim_run_folder(config))
    datasets = open_datasets(config, distributed)
    method = build_method(config, distributed)
    _resume(config, distributed, method.state)

    log = RunLog(config.workdir, method.state.step, distributed.is_main)
    hosts = sorted(set(distributed.gather(socket.gethostname())))
    log.status(world_size=distributed.world_size, hosts=hosts, started=time.time(), exit_reason=None)
    snapshots = SnapshotWriter(config.workdir / "checkpoints", on_saved(log)) if distributed.is_main else None
    batches = training_batches(
        datasets["train"],
        seed=config.run.seed,
        first_step=method.state.step,
        total_batch_size=config.training.total_batch_size,
        rank=distributed.rank,
        world_size=distributed.world_size,
        n_micro_batches=n_micro_batches(config, distributed.world_size),
        n_workers=config.data.n_workers,
        device=distributed.device,
        random_flip=config.data.random_flip,
        published_behaviour=config.run.published_behaviour,
    )
    training = Training(method, datasets, batches, config, distributed, stop, log, snapshots)
    stop.listen()  # from here on there is something to save, and the loop looks at the request
    try:
        training.run()
    except Preempted:
        reason = ", ".join(sorted({name for name in distributed.gather(stop.reason) if name}))
        log.status(state="preempted", step=method.state.step, exit_reason=reason)
        logger.info("stopped by %s at step %d; --mode continue goes on from here", reason, method.state.step)
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
    logger.info("finished at step %d; snapshots are in %s", method.state.step, config.workdir / "checkpoints")


def open_datasets(config: Config, distributed: Distributed) -> dict[str, Dataset]:
    """The "train" and "test" split of the data set that the options describe, downloaded once where it can be.

    Raises:
        UsageError: files are missing, damaged, or do not fit the options.
    """
    data, where = config.data, config.data_location
    distributed.from_main(lambda: prepare_dataset(data.dataset, where))
    return {
        split: open_dataset(data.dataset, split, where, data.image_size, data.image_channels, config.run.seed)
        for split in ("train", "test")
    }


def choose_snapshot(folder: Path, name: str, flag: str) -> Path | None:
    """The snapshot that ``flag`` names, or the newest intact one; None where there is none.

    Raises:
        UsageError: the named file is missing or damaged.
    """
    if not name:
        newest = find_snapshots(folder, logger.warning)
        return newest.path if newest is not None else None
    path = next((path for path in (folder / name, Path(name)) if path.is_file()), None)
    if path is None:
        present = ", ".join(sorted(entry.name for entry in folder.glob("*.pth"))) or "nothing"
        raise UsageError(f"{flag} {name}: no such file; {folder} holds {present}")
    try:
        inspect_snapshot(path)
    except DamagedSnapshot as damage:
        raise UsageError(f"{flag} {path}: {damage}; leave {flag} out to use the newest intact snapshot") from None
    return path


def _resume(config: Config, distributed: Distributed, state: TrainingState) -> None:
    """Load the snapshot to start from, if there is one, on every rank."""
    folder = config.workdir / "checkpoints"
    path = distributed.from_main(lambda: choose_snapshot(folder, config.run.checkpoint, "--checkpoint"))
    if path is None and config.run.mode == "continue":
        raise UsageError(f"--mode continue: no intact snapshot in {folder}; start with --mode train")
    if path is None:
        return
    state.load_state_dict(read_snapshot(path), str(path))
    if distributed.is_main:
        logger.info("continuing from %s (step %d)", path, state.step)
