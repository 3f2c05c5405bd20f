"""What a training run leaves for people to look at: metrics.jsonl, TensorBoard, run.json. Rank 0 alone writes."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from util.errors import RunFailed
from util.files import replacing, why_not_written, write_text
from util.run_file import update_run_file

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_STATUS = 5.0


class RunLog:
    """The log of one run, continued after an interruption without a step appearing twice.

    Nothing is written before ``begin``; what is logged until then follows.

    Args:
        workdir: the run's folder.
        active: False on ranks other than 0, where every call does nothing.
    """

    def __init__(self, workdir: Path, active: bool) -> None:
        self.workdir = workdir
        self.active = active
        self._logged_at_resume: set[str] = set()
        self._resumed_at = 0
        self._last_status = 0.0
        self._status_lock = threading.Lock()
        self._writer: Any = None
        self._metrics = workdir / "metrics.jsonl"
        self._early: list[Callable[[], None]] = []

    def begin(self, resumed_at: int) -> None:
        """Open the files, where the log is active.

        Args:
            resumed_at: number of completed steps; what was logged of later steps is taken back, because they will
                come again.
        """
        self._resumed_at = resumed_at
        if not self.active:
            return
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and needed on rank 0 only

        self._take_back(resumed_at)
        self._writer = SummaryWriter(str(self.workdir / "tensorboard"), purge_step=resumed_at + 1)
        for entry in self._early:
            entry()

    def _take_back(self, resumed_at: int) -> None:
        """Drop what was logged of steps that will be done again, and a line that a kill cut short."""
        for path in [*self.workdir.glob("evaluations/step_*"), *self.workdir.glob("samples/*_*.png")]:
            step = path.stem.rpartition("_")[2]
            if step.isdigit() and int(step) > resumed_at:
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
        kept = []
        with contextlib.suppress(FileNotFoundError):
            for line in self._metrics.read_text(encoding="utf-8", errors="replace").splitlines():
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    entry = json.loads(line)
                    if int(entry["step"]) <= resumed_at:
                        kept.append(line)
                        if int(entry["step"]) == resumed_at:
                            self._logged_at_resume |= set(entry)
        write_text(self._metrics, "".join(line + "\n" for line in kept))

    def _is_early(self, entry: Callable[[], None]) -> bool:
        """Whether nothing is to be written yet; ``entry`` then follows."""
        if self.active and self._writer is None:
            self._early.append(entry)
        return self._writer is None

    def _new(self, step: int, name: str) -> bool:
        return step != self._resumed_at or name not in self._logged_at_resume

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """One line in metrics.jsonl and a point for each scalar in TensorBoard."""
        if self._is_early(partial(self.scalars, step, values)):
            return
        values = {name: value for name, value in values.items() if self._new(step, name)}
        if not values:
            return
        try:
            with self._metrics.open("a") as file:
                file.write(json.dumps({"step": step, "time": time.time(), **values}) + "\n")
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
            self._writer.flush()
        except OSError as error:
            why = why_not_written(error)
            raise RunFailed(f"{self._metrics}: cannot be written: {why}; make room and continue") from None

    def picture(self, step: int, name: str, source: Path) -> None:
        """Show a PNG file in TensorBoard and copy it to samples/<name>_<step>.png, if it exists."""
        if not self._is_early(partial(self.picture, step, name, source)) and source.exists():
            target = self.workdir / "samples" / f"{name}_{step:08d}.png"
            if not target.exists():
                target.parent.mkdir(exist_ok=True)
                with replacing(target) as temporary:
                    shutil.copyfile(source, temporary)
                self._writer.add_image(name, np.atleast_3d(np.asarray(Image.open(source))), step, dataformats="HWC")
                self._writer.flush()

    def status(self, now: bool = True, **fields: Any) -> None:
        """Fields of run.json; with ``now=False`` at most every few seconds."""
        if self._is_early(partial(self.status, now, **fields)):
            return
        if now or time.monotonic() - self._last_status >= SECONDS_BETWEEN_STATUS:
            self._last_status = time.monotonic()
            try:
                with self._status_lock:  # the thread that writes snapshots reports too
                    update_run_file(self.workdir, **fields)
            except OSError as error:  # a full disk: what is reported may be old, the run is not to suffer
                logger.warning("run.json could not be written: %s", error)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
