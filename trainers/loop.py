"""The training loop. It knows steps, periodic actions and stopping; what a step is, the method knows."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import psutil
import torch

from trainers.agreement import Agreement
from trainers.method import Method
from trainers.options import OptimizationOptions, TrainingOptions
from trainers.snapshot_interval import SnapshotInterval
from trainers.step import TrainingStep
from trainers.update import float32_arithmetic
from util.config import Config
from util.data.loader import MicroBatch
from util.distributed import Distributed
from util.errors import Preempted, RunFailed
from util.noise import derive_seed
from util.overwritten import forget
from util.periodic import due
from util.progress import Progress
from util.run_log import RunLog
from util.run_options import RunOptions
from util.snapshot import SnapshotFile, SnapshotWriter
from util.stop import StopRequest

logger = logging.getLogger(__name__)


class Evaluation(Protocol):
    """What is evaluated now and then. The loop does not know how."""

    def due(self, step: int) -> bool:
        """Whether there is something to evaluate at ``step``."""
        ...

    def __call__(self, step: int) -> tuple[dict[str, float], dict[str, Path]]:
        """Evaluate it over all ranks; on rank 0 scalars and pictures by name."""
        ...


@dataclass
class Training:
    """One run of the loop.

    Attributes:
        method: the system; its state carries the step.
        batches: for every step from the state's on, this rank's micro-batches.
        log: active on rank 0.
        snapshots: on rank 0.
        interval: on rank 0, where ``snapshot_freq`` is "auto".
        evaluation: what is evaluated between steps.
        begin: on rank 0, once the first step has been taken, before anything in the run's folder changes.
    """

    method: Method
    batches: Iterator[list[MicroBatch]]
    config: Config
    distributed: Distributed
    stop: StopRequest
    log: RunLog
    snapshots: SnapshotWriter | None
    interval: SnapshotInterval | None
    evaluation: Evaluation
    begin: Callable[[], None]
    saved_step: int = -1
    _has_begun: bool = False
    _first_step: int = 0
    _since: tuple[float, int] = (0.0, 0)
    _recent: deque[tuple[int, list[MicroBatch]]] = field(default_factory=lambda: deque(maxlen=3))

    def run(self) -> None:
        """Train until ``n_train_iters``.

        Raises:
            Preempted: some rank was asked to stop; a snapshot is on disk.
            RunFailed: a loss was not finite, or a snapshot could not be written.
        """
        state, options = self.method.state, self.config[TrainingOptions]
        take_step = TrainingStep(
            self.method, self.distributed, seed=self.config[RunOptions].seed, cont_nbr=self.config[RunOptions].cont_nbr,
            total_batch_size=options.total_batch_size,
            gradient_compression=self.config[OptimizationOptions].gradient_compression,
        )  # fmt: skip
        agreement = Agreement(self.distributed, self.stop)
        progress = Progress("training", options.n_train_iters, state.step, "step", self.distributed.is_main)
        self._since = (time.perf_counter(), state.step)
        self._first_step = state.step
        self.log.status(state="training", step=state.step, n_train_iters=options.n_train_iters)
        try:
            if state.step > 0:
                self._evaluate()  # what was due when the run was interrupted
            while state.step < options.n_train_iters:
                micro_batches = next(self.batches)
                torch.manual_seed(self._dropout_seed(state.step))
                agreement.begin(self.interval is not None and self.interval.due())
                with float32_arithmetic(self.config[OptimizationOptions].tf32):
                    metrics = take_step(micro_batches)
                self._recent.append((state.step, micro_batches))
                stopped, failed, wanted = agreement.end(state.step, self._guarded(metrics))
                if failed:
                    self._fail(agreement)
                self._begin()
                if self.snapshots is not None:
                    self.snapshots.raise_failure()
                last = state.step == options.n_train_iters
                if due(state.step, options.log_freq) or last:
                    self._log(metrics, progress)
                keep = due(state.step, options.save_freq, options.save_threshold) or last
                if isinstance(options.snapshot_freq, int):
                    wanted = due(state.step, options.snapshot_freq, options.snapshot_threshold)
                if keep or stopped or wanted:
                    if agreement.settle():
                        self._fail(agreement)
                    self._snapshot(keep)
                if stopped:
                    raise Preempted("stopped at a step boundary")
                self._evaluate()
                progress.show(state.step)
            self._begin()
        except Preempted:
            if self._has_begun and self.saved_step != state.step:
                if agreement.settle():
                    self._fail(agreement)
                self._snapshot(keep=False)
            raise
        finally:
            progress.close()
            if self.snapshots is not None:
                self.snapshots.wait()

    def _begin(self) -> None:
        if not self._has_begun:
            self.distributed.from_main(self.begin)
            self._has_begun = True
            if self.snapshots is not None and self.method.state.step > self._first_step:
                self.snapshots.prepare(self._saved_state())

    def _dropout_seed(self, step: int) -> int:
        run = self.config[RunOptions]
        return derive_seed(run.seed, "dropout", run.cont_nbr, step, self.distributed.rank)

    def _guarded(self, metrics: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        # With loss scaling an overflowing gradient is an ordinary event: the step is skipped and the scale lowered.
        scaled = self.method.state.scaler is not None
        return {name: value for name, value in metrics.items() if not (scaled and name.endswith("gradient_norm"))}

    def _fail(self, agreement: Agreement) -> None:
        """Dump what is needed to look into a non-finite term, and end the run."""
        failures = agreement.failures()
        step, rank, terms = failures[0]
        name = next(name for name, value in terms.items() if value - value != 0.0)
        folder = self.config[RunOptions].folder / "diagnostics"
        path = folder / f"step_{step}_rank_{self.distributed.rank}.pt"
        if any(entry[1] == self.distributed.rank for entry in failures):
            folder.mkdir(parents=True, exist_ok=True)
            # The ranks learn of a failure up to two steps later; what is wanted is the batch of that step.
            micro_batches = dict(self._recent)[step]
            dump = {
                "step": step,
                "rank": self.distributed.rank,
                "failures": [list(entry) for entry in failures],
                "batch": [batch.data.cpu() for batch in micro_batches],
                "positions": [batch.positions.cpu() for batch in micro_batches],
                "networks": {name: net.state_dict() for name, net in self.method.state.networks.items()},
            }
            torch.save(dump, path)
        raise RunFailed(
            f"non-finite training term '{name}' = {terms[name]} at step {step} on rank {rank}; the last good snapshot "
            f"is step {max(self.saved_step, self._first_step)}, the diagnostic dump is in {folder}"
        )

    def _log(self, metrics: dict[str, torch.Tensor], progress: Progress) -> None:
        """Means over ranks of the step's terms, and how fast and how large the run is."""
        state, distributed = self.method.state, self.distributed
        values = torch.stack([value.detach().double().to(distributed.device) for value in metrics.values()])
        means = (distributed.sum(values) / distributed.world_size).tolist()
        scalars = dict(zip(metrics, means, strict=True))
        then, step_then = self._since
        now = time.perf_counter()
        scalars["steps_per_second"] = (state.step - step_then) / max(now - then, 1e-9)
        scalars["memory_gib"] = _memory_gib(distributed.device)
        self._since = (now, state.step)
        self.log.scalars(state.step, scalars)
        self.log.status(step=state.step, rate=scalars["steps_per_second"])
        note = ", ".join(f"{name} {scalars[name]:.4g}" for name in ("loss", "gradient_norm", "learning_rate"))
        progress.show(state.step, f"{note}, {scalars['memory_gib']:.2f} GiB")

    def _snapshot(self, keep: bool) -> None:
        self.saved_step = self.method.state.step
        if self.snapshots is not None:
            held_up = self.snapshots.save(self._saved_state(), keep)
            if self.interval is not None:
                self.interval.written(held_up)
            if keep or self.stop():
                self.snapshots.wait()

    def _saved_state(self) -> dict[str, Any]:
        return {**self.method.state.state_dict(), "config": self.config.flat()}

    def _evaluate(self) -> None:
        """The evaluations due at this step, spread over all ranks; one that was interrupted is finished."""
        step = self.method.state.step
        if not self.evaluation.due(step):
            return
        self.log.status(state="evaluating", step=step)
        started = time.perf_counter()
        values, pictures = self.evaluation(step)
        self.log.scalars(step, values)
        for name, path in pictures.items():
            self.log.picture(step, name, path)
        self._since = (self._since[0] + time.perf_counter() - started, self._since[1])
        self.log.status(state="training", step=step)


def _memory_gib(device: torch.device) -> float:
    """Peak GPU memory, or this process's memory on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return psutil.Process().memory_info().rss / 2**30


def on_saved(log: RunLog) -> Any:
    """What to do when a snapshot has reached the disk."""

    def note(snapshot: SnapshotFile) -> None:
        forget(log.workdir)
        log.status(last_snapshot={"step": snapshot.step, "path": str(snapshot.path), "time": time.time()})

    return note
