"""``--mode train``, ``continue`` and ``train_deq``: from a configuration to the loop, and back to a tidy end."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Generator

from trainers.check import check_config, n_micro_batches
from trainers.loop import Training, on_saved
from trainers.method import StartsFromWeights
from trainers.scoreflow.dequantizer import choose_score_snapshot
from trainers.snapshot_interval import SnapshotInterval
from trainers.state import TrainingState
from trainers.systems import SYSTEMS, build_method
from util.config import Config
from util.data.dataset import Dataset, open_dataset, prepare_dataset
from util.data.loader import MicroBatch, training_batches
from util.data.no_data import NoData, positions_without_data
from util.distributed import Distributed
from util.errors import Preempted, UsageError
from util.run_folder import claim_run_folder
from util.run_log import RunLog
from util.snapshot import SnapshotWriter, choose_snapshot, read_snapshot
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
    if config.run.mode == "train_deq":
        config.dequantizer.score_checkpoint = str(distributed.from_main(lambda: choose_score_snapshot(config)))
    datasets = open_datasets(config, distributed)
    method = build_method(config, distributed)
    resumed = _resume(config, distributed, method.state)
    if not resumed and isinstance(method, StartsFromWeights):
        method.load_pretrained()

    log = RunLog(config.workdir, method.state.step, distributed.is_main)
    hosts = sorted(set(distributed.gather(socket.gethostname())))
    log.status(world_size=distributed.world_size, hosts=hosts, started=time.time(), exit_reason=None)
    snapshots = SnapshotWriter(config.workdir / "checkpoints", on_saved(log)) if distributed.is_main else None
    batches = _batches(config, distributed, datasets["train"], method.state.step)
    automatic = distributed.is_main and config.training.snapshot_freq == "auto"
    interval = SnapshotInterval(config.training.mtbf_hours * 3600) if automatic else None
    training = Training(method, datasets, batches, config, distributed, stop, log, snapshots, interval)
    stop.listen()  # from here on there is something to save, and the loop looks at the request
    try:
        training.run()
    except Preempted:
        reason = ", ".join(sorted({name for name in distributed.gather(stop.reason) if name}))
        log.status(state="preempted", step=method.state.step, exit_reason=reason)
        again = "the same command" if config.run.mode == "train_deq" else "--mode continue"
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
    logger.info("finished at step %d; snapshots are in %s", method.state.step, config.workdir / "checkpoints")


def _batches(
    config: Config, distributed: Distributed, dataset: Dataset, first_step: int
) -> Generator[list[MicroBatch], None, None]:
    share: dict[str, int] = {
        "first_step": first_step,
        "total_batch_size": config.training.total_batch_size,
        "rank": distributed.rank,
        "world_size": distributed.world_size,
        "n_micro_batches": n_micro_batches(config, distributed.world_size),
    }
    if not SYSTEMS[config.run.system].learns_from_data:
        return positions_without_data(**share)
    return training_batches(
        dataset,
        seed=config.run.seed,
        n_workers=config.data.n_workers,
        device=distributed.device,
        random_flip=config.data.random_flip,
        published_behaviour=config.run.published_behaviour,
        **share,
    )


def open_datasets(config: Config, distributed: Distributed) -> dict[str, Dataset]:
    """The "train" and "test" split of the data set that the options describe, downloaded once where it can be.

    A system that learns from no data needs none either, unless images are compared with it.

    Raises:
        UsageError: files are missing, damaged, or do not fit the options.
    """
    data, where = config.data, config.data_location
    if not SYSTEMS[config.run.system].learns_from_data and not _compares_with_data(config):
        shape = (data.image_channels, data.image_size, data.image_size)
        return {split: NoData(shape) for split in ("train", "test")}
    distributed.from_main(lambda: prepare_dataset(data.dataset, where))
    return {
        split: open_dataset(data.dataset, split, where, data.image_size, data.image_channels, config.run.seed)
        for split in ("train", "test")
    }


def _compares_with_data(config: Config) -> bool:
    """Whether a Frechet distance is asked for, and no file says to what."""
    evaluation = config.evaluation
    asked = config.training.fid_freq if config.run.trains else evaluation.eval_fid or evaluation.eval_compare
    return bool(asked) and not evaluation.fid_statistics


def _resume(config: Config, distributed: Distributed, state: TrainingState) -> bool:
    """Load the snapshot to go on from, on every rank; whether there is one."""
    folder = config.workdir / "checkpoints"
    path = distributed.from_main(lambda: choose_snapshot(folder, config.run.checkpoint, "--checkpoint"))
    if path is None and config.run.mode == "continue":
        raise UsageError(f"--mode continue: no intact snapshot in {folder}; start with --mode train")
    if path is None:
        return False
    state.load_state_dict(read_snapshot(path), str(path))
    if distributed.is_main:
        logger.info("continuing from %s (step %d)", path, state.step)
    return True
