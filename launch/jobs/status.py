"""``launch status``: one line for each run."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch.jobs.executor import executor_of
from launch.jobs.job_file import JobFile, JobState, read_job_file
from util.config_file import read_settings
from util.errors import UsageError
from util.run_file import read_run_file

HEAD = ("RUN", "JOB", "SCHEDULER", "STATE", "STEP", "STEP/S", "LEFT", "SNAPSHOT", "REQUEUES", "RANKS", "LAST ERROR")
ERROR_WIDTH = 60


def run_states(workdirs: Sequence[Path]) -> list[dict[str, Any]]:
    """What is known of each run; None where it is not known.

    ``job_id`` and ``scheduler`` say which job and how it is, ``state`` how the run is, ``rate`` is in steps a second,
    ``eta`` the seconds left at it while the run trains, ``snapshot_age`` in seconds, ``requeues`` counts all starts
    after the first, ``last_error`` says why the run ended and what was decided then.
    """
    jobs = {workdir: read_job_file(workdir) for workdir in workdirs}
    present = [job for job in jobs.values() if job is not None]
    known = {job.job_id: JobState() for job in present}
    for executor in set(map(executor_of, present)):
        asked = [job for job in present if executor_of(job) is executor]
        try:
            known |= executor.states(asked)
        except UsageError as error:  # no Slurm here: the runs' own files still say most of it
            known |= {job.job_id: JobState(reason=str(error).split(";")[0]) for job in asked}
    return [_state(workdir, job, known[job.job_id] if job else None) for workdir, job in jobs.items()]


def _state(workdir: Path, job: JobFile | None, scheduler: JobState | None) -> dict[str, Any]:
    run, total, eta, text = read_run_file(workdir), None, None, None
    with contextlib.suppress(KeyError, ValueError, UsageError):
        total = int(read_settings(workdir / "config.txt")["n_train_iters"].text)
    state, step, rate, saved = run.get("state"), run.get("step"), run.get("rate"), run.get("last_snapshot") or {}
    trains = state in ("training", "evaluating") and (scheduler is None or scheduler.name == "RUNNING")
    if trains and rate and total is not None and step is not None:
        eta = max(0.0, (total - step) / rate)
    if scheduler is not None:
        text = scheduler.name + (f" ({scheduler.reason})" if scheduler.reason not in ("None", "") else "")
    errors = [run.get("exit_reason"), job.note if job is not None and state != "finished" else None]
    return {
        "run": str(workdir),
        "job_id": job.job_id if job is not None else None,
        "scheduler": text,
        "state": state,
        "step": step,
        "total": total,
        "rate": rate,
        "eta": eta,
        "snapshot_age": time.time() - saved["time"] if "time" in saved else None,
        "requeues": max(job.requeues if job is not None else 0, scheduler.restarts if scheduler is not None else 0),
        "world_size": run.get("world_size"),
        "last_error": "; ".join(error for error in errors if error and error != "finished") or None,
    }


def table(states: Sequence[dict[str, Any]]) -> str:
    """The runs as lines of columns."""
    rows = [HEAD, *map(_row, states)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _row(state: dict[str, Any]) -> tuple[str, ...]:
    shown = {name: "-" if value is None else str(value) for name, value in state.items()}
    if state["step"] is not None:
        shown["step"] += f"/{'?' if state['total'] is None else state['total']}"
    if state["rate"] is not None:
        shown["rate"] = f"{state['rate']:.3g}"
    if state["eta"] is not None:
        shown["eta"] = _span(state["eta"])
    if state["snapshot_age"] is not None:
        shown["snapshot_age"] = f"{_span(state['snapshot_age'])} ago"
    if len(shown["last_error"]) > ERROR_WIDTH:
        shown["last_error"] = f"{shown['last_error'][: ERROR_WIDTH - 3]}..."
    return tuple(text for name, text in shown.items() if name != "total")


def _span(seconds: float) -> str:
    """A time span in its two largest units."""
    whole = max(0, round(seconds))
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days}d{hours:02d}h"
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{whole % 60:02d}s" if minutes else f"{whole}s"
