"""``launch status``: one line for each run."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.jobs import local_job, slurm
from launch.jobs.job_file import JobFile, read_job_file
from launch.jobs.slurm import SlurmJob
from util.config_file import read_settings
from util.errors import UsageError
from util.run_file import read_run_file

ERROR_WIDTH = 60


@dataclass(frozen=True)
class RunStatus:
    """What is known of a run; None where it is not known.

    Attributes:
        run: its folder.
        job_id: of its job.
        scheduler: the job's state, and the reason where it waits.
        state: of the run: training, evaluating, preempted, finished, failed.
        step, total: completed and wanted.
        rate: steps per second.
        eta: seconds left at this rate; only while it trains.
        snapshot_age: seconds since the last snapshot.
        requeues: how often the job was started again.
        world_size: number of ranks.
        last_error: why it ended, or what was decided when it stopped.
    """

    run: str
    job_id: str | None
    scheduler: str | None
    state: str | None
    step: int | None
    total: int | None
    rate: float | None
    eta: float | None
    snapshot_age: float | None
    requeues: int
    world_size: int | None
    last_error: str | None


def run_states(workdirs: Sequence[Path]) -> list[RunStatus]:
    """The status of each run."""
    jobs = {workdir: read_job_file(workdir) for workdir in workdirs}
    ids = [job.job_id for job in jobs.values() if job is not None and job.executor != "local"]
    try:
        known = slurm.job_states(ids)
    except UsageError as error:  # no Slurm here: the runs' own files still say most of it
        known = {job_id: SlurmJob("UNKNOWN", str(error).split(";")[0], 0) for job_id in ids}
    return [_status(workdir, job, known) for workdir, job in jobs.items()]


def _status(workdir: Path, job: JobFile | None, known: Mapping[str, SlurmJob]) -> RunStatus:
    run = read_run_file(workdir)
    scheduler, requeues = None, job.requeues if job is not None else 0
    active = True
    if job is not None and job.executor == "local":
        scheduler = local_job.state(job)
        active = scheduler == "RUNNING"
    elif job is not None:
        slurm_job = known.get(job.job_id, SlurmJob("UNKNOWN", "None", 0))
        waiting = slurm_job.reason not in ("None", "")
        scheduler = f"{slurm_job.state} ({slurm_job.reason})" if waiting else slurm_job.state
        requeues = max(requeues, slurm_job.restarts)
        active = slurm_job.state == "RUNNING"
    total = None
    with contextlib.suppress(KeyError, ValueError, UsageError):
        total = int(read_settings(workdir / "config.txt")["n_train_iters"].text)
    step, rate, snapshot = run.get("step"), run.get("rate"), run.get("last_snapshot") or {}
    eta = None
    if active and run.get("state") in ("training", "evaluating") and rate and total is not None and step is not None:
        eta = max(0.0, (total - step) / rate)
    error = run.get("exit_reason")
    if error in (None, "finished"):
        error = None
    if job is not None and job.note and run.get("state") != "finished":
        error = f"{error}; {job.note}" if error else job.note
    return RunStatus(
        str(workdir), job.job_id if job is not None else None, scheduler, run.get("state"), step, total, rate, eta,
        time.time() - snapshot["time"] if "time" in snapshot else None, requeues, run.get("world_size"), error,
    )  # fmt: skip


def table(states: Sequence[RunStatus]) -> str:
    """The runs as lines of columns."""
    head = ("RUN", "JOB", "SCHEDULER", "STATE", "STEP", "STEP/S", "LEFT", "SNAPSHOT", "REQUEUES", "RANKS", "LAST ERROR")
    rows = [head]
    for status in states:
        total = "?" if status.total is None else str(status.total)
        rows.append(
            (
                status.run,
                status.job_id or "-",
                status.scheduler or "-",
                status.state or "-",
                "-" if status.step is None else f"{status.step}/{total}",
                "-" if status.rate is None else f"{status.rate:.3g}",
                _span(status.eta),
                "-" if status.snapshot_age is None else f"{_span(status.snapshot_age)} ago",
                str(status.requeues),
                "-" if status.world_size is None else str(status.world_size),
                _shortened(status.last_error or "-"),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _shortened(text: str) -> str:
    return text if len(text) <= ERROR_WIDTH else f"{text[: ERROR_WIDTH - 3]}..."


def _span(seconds: float | None) -> str:
    """A time span in its two largest units."""
    if seconds is None:
        return "-"
    whole = max(0, round(seconds))
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days}d{hours:02d}h"
    if hours:
        return f"{hours}h{minutes:02d}m"
    if minutes:
        return f"{minutes}m{whole % 60:02d}s"
    return f"{whole}s"
