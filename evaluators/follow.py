"""``--mode eval --follow``: each kept snapshot of a run that trains elsewhere, evaluated once.

Of the run it reads ``run.json`` and ``checkpoints/checkpoint_<step>.pth``, which appear whole; it writes below its own
``--eval_folder`` alone, and nobody waits for it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from evaluators.options import EvaluationOptions
from evaluators.settings import check_evaluation
from util.config import Config
from util.distributed import Distributed
from util.errors import Preempted, RunFailed
from util.run_file import read_run_file
from util.run_options import RunOptions
from util.snapshot import DamagedSnapshot, SnapshotFile, inspect_snapshot, kept_snapshots
from util.stop import StopRequest

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_BETWEEN_LINES = 60.0
SECONDS_OF_FAILURE = 600.0
"""A run that failed may be started again by its scheduler; after so long it is taken for given up."""

EvaluateSnapshot = Callable[[Config, Distributed, StopRequest, str, Path], Mapping[str, Mapping[str, Any]]]
"""From configuration, place, stop, name of the snapshot and evaluation folder to the entries of ``results.json``."""


def follow(evaluate_snapshot: EvaluateSnapshot, config: Config, distributed: Distributed, stop: StopRequest) -> None:
    """Evaluate every kept snapshot once, into ``step_<n>`` of the evaluation folder, until the run has finished.

    What was evaluated is in ``metrics.jsonl`` there, and in TensorBoard: stopped or killed, the same command goes on,
    on any number of ranks.

    Raises:
        UsageError: bad settings or data.
        Preempted: some rank was asked to stop.
        RunFailed: the run failed and was not taken up again; all there was has been evaluated.
    """
    check_evaluation(config, has_likelihood=True)  # what needs no model, before any waiting
    run, options = config[RunOptions], config[EvaluationOptions]
    folder = run.folder / options.eval_folder
    record = _Record(folder)
    waiting = _Waiting(run.folder)
    stop.listen()
    while True:
        if distributed.any(stop()):
            raise Preempted("stopped between two snapshots")
        found = distributed.from_main(lambda: waiting.next(record, run.follow == "newest"))
        if isinstance(found, str):
            break
        if found is None:
            time.sleep(SECONDS_BETWEEN_LOOKS)
            continue
        place = folder / f"step_{found.step:08d}"
        entries = evaluate_snapshot(config, distributed, stop, found.path.name, place)
        if distributed.is_main:
            record.add(found, entries, place)
    if found:
        raise RunFailed(found)
    if distributed.is_main:
        logger.info("the run has finished, and every kept snapshot is evaluated; values are in %s", record.path)


class _Waiting:
    """Looks for what is to be evaluated next; on rank 0."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._passed_over: set[Path] = set()
        self._last_line = time.monotonic()

    def next(self, record: _Record, newest_first: bool) -> SnapshotFile | str | None:
        """A snapshot; None while there is none; at the end of it all a text, which is empty if the run finished."""
        status = read_run_file(self.folder)  # first: all that a finished run has kept is seen below
        left = [found for found in self._kept() if not record.has(found)]
        for found in reversed(left) if newest_first else left:
            try:
                return inspect_snapshot(found.path)
            except DamagedSnapshot as error:
                self._pass_over(found.path, str(error))
        state = status.get("state")
        if state == "finished":
            return ""
        if state == "failed" and time.time() - status.get("updated", 0.0) > SECONDS_OF_FAILURE:
            why = status.get("exit_reason")
            return f"the run failed at step {status.get('step')} ({why}); give this again when it goes on"
        if time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            logger.info(
                "waiting for the next kept snapshot: the run is %s at step %s", state or "not there yet",
                status.get("step", 0),
            )  # fmt: skip
        return None

    def _kept(self) -> list[SnapshotFile]:
        return kept_snapshots(self.folder / "checkpoints", self._pass_over)

    def _pass_over(self, path: Path, why: str) -> None:
        if path not in self._passed_over:
            self._passed_over.add(path)
            logger.warning("%s: %s; it is passed over", path, why)


class _Record:
    """What has been evaluated: a line for each snapshot in ``metrics.jsonl``, and TensorBoard."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "metrics.jsonl"
        self._done: set[tuple[int, str]] = set()
        with contextlib.suppress(FileNotFoundError):
            for line in self.path.read_bytes().splitlines():
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    entry = json.loads(line)
                    self._done.add((int(entry["step"]), str(entry["digest"])))

    def has(self, snapshot: SnapshotFile) -> bool:
        return (snapshot.step, snapshot.sha256) in self._done

    def add(self, snapshot: SnapshotFile, entries: Mapping[str, Mapping[str, Any]], place: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and needed on rank 0 only

        values = {f"evaluation/{name}": entry["value"] for name, entry in entries.items() if "value" in entry}
        with contextlib.closing(SummaryWriter(str(self.folder / "tensorboard"))) as writer:
            for name, value in values.items():
                writer.add_scalar(name, value, snapshot.step)
            for picture in sorted(place.glob("*.png")):
                image = np.asarray(Image.open(picture))
                writer.add_image(picture.stem, np.atleast_3d(image), snapshot.step, dataformats="HWC")
        line = json.dumps({"step": snapshot.step, "digest": snapshot.sha256, "time": time.time(), **values})
        torn = self.path.exists() and not self.path.read_bytes().endswith(b"\n")
        with self.path.open("a", encoding="utf-8") as file:  # last: what stands here is done
            file.write("\n" * torn + line + "\n")
        self._done.add((snapshot.step, snapshot.sha256))
        # Features of thousands of samples of each snapshot are only needed until their statistics are known.
        (place / "fid_features.npz").unlink(missing_ok=True)
