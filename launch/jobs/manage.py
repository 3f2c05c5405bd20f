"""``launch logs``, ``cancel`` and ``requeue``."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from launch.jobs import local_job, slurm
from launch.jobs.job_file import JobFile, read_job_file, write_job_file
from launch.jobs.submit import submit_again
from launch.options import LaunchOptions
from main import parse_config
from util.errors import UsageError
from util.run_file import read_run_file
from util.run_options import RunOptions

POLL_SECONDS = 0.5
SECONDS_BETWEEN_STATES = 5.0
"""How often the scheduler is asked while a log is followed."""
MARGIN_SECONDS = 15.0
"""What stopping takes beyond the ranks' grace time: signals on their way, and the scheduler's own end of a job."""


def show_log(workdir: Path, rank: int | None, follow: bool) -> None:
    """Copy the job's output, or a rank's log, to standard output; ``follow`` goes on until the run's job is over.

    Raises:
        UsageError: there is no such log.
    """
    path = _log(workdir, rank)
    job = read_job_file(workdir)
    with path.open("rb") as file:
        _copy(file)
        asked = 0.0
        while follow:
            if time.monotonic() - asked > SECONDS_BETWEEN_STATES:
                asked = time.monotonic()
                over = not _is_active(job) if job is not None else _has_ended(workdir)
                if over:
                    _copy(file)
                    return
            time.sleep(POLL_SECONDS)
            _copy(file)


def _log(workdir: Path, rank: int | None) -> Path:
    """The rank's log; without a rank the job's own output, which is rank 0's and what was said around it."""
    job = read_job_file(workdir)
    if rank is None and job is not None and job.folder:
        output = Path(job.folder) / f"{job.job_id}_0_log.out"
        if output.is_file():
            return output
    path = workdir / "logs" / f"rank_{rank or 0:04d}.log"
    if path.is_file():
        return path
    ranks = sorted(int(file.stem.split("_")[1]) for file in (workdir / "logs").glob("rank_*.log"))
    present = f"there are ranks {ranks[0]} to {ranks[-1]}" if ranks else "no rank has started yet"
    raise UsageError(f"{path}: no such log; {present}")


def _copy(file: IO[bytes]) -> None:
    while block := file.read(1 << 16):
        sys.stdout.buffer.write(block)
    sys.stdout.buffer.flush()


def _has_ended(workdir: Path) -> bool:
    return read_run_file(workdir).get("state") in ("finished", "failed", "preempted")


def _is_active(job: JobFile) -> bool:
    return local_job.is_active(job) if job.executor == "local" else slurm.is_active(job.job_id)


def cancel_run(workdir: Path) -> str:
    """Stop a run with a snapshot, for good; what happened.

    Raises:
        UsageError: it has no job, or the scheduler refused.
    """
    job = _job_of(workdir)
    if not _is_active(job):
        raise UsageError(f"{workdir}: job {job.job_id} is not in the queue; nothing to cancel")
    stopped = _stop(workdir, job, "stop")
    snapshot = read_run_file(workdir).get("last_snapshot") or {}
    saved = f"the last snapshot is step {snapshot['step']}" if "step" in snapshot else "there is no snapshot"
    return f"job {job.job_id} {'stopped' if stopped else 'did not stop in time and was killed'}; {saved}"


def requeue_run(workdir: Path, nodes: int | None) -> str:
    """Start a run again from a snapshot, now or when the scheduler lets it; what happened.

    A running job that keeps its number of nodes goes back into the queue under its id. Otherwise it is stopped and
    submitted anew.

    Raises:
        UsageError: it has no job, was not submitted by ``launch submit`` where that is needed, or has finished.
    """
    job = _job_of(workdir)
    config = parse_config(job.arguments)
    if config[RunOptions].trains and read_run_file(workdir).get("state") == "finished":
        raise UsageError(f"{workdir} holds a finished run; there is nothing left to do")
    active = _is_active(job)
    if active and nodes is None and job.executor != "local":
        if slurm.show_job(job.job_id).get("JobState") == "PENDING":
            raise UsageError(f"{workdir}: job {job.job_id} is waiting in the queue already")
        job.wish = "requeue"
        write_job_file(workdir, job)
        slurm.signal_steps(job.job_id, "TERM")
        return f"job {job.job_id} takes a snapshot and goes back into the queue"
    if job.executor == "sbatch":
        raise UsageError(
            f"{workdir}: job {job.job_id} was started by sbatch; submit its script again with the same arguments "
            "(sbatch --nodes sets the number of nodes), after `launch cancel` if it still runs"
        )
    if active:
        _stop(workdir, job, "stop")
    again = submit_again(job, nodes)
    return f"submitted as job {again.job_id}"


def _job_of(workdir: Path) -> JobFile:
    job = read_job_file(workdir)
    if job is None:
        raise UsageError(f"{workdir}: the run was not started as a job; stop it with SIGTERM to main.py")
    try:
        os.chdir(job.directory)  # where relative paths among its arguments start from
    except OSError as error:
        raise UsageError(f"{job.directory}: {error.strerror}; job {job.job_id} was started there") from None
    return job


def _stop(workdir: Path, job: JobFile, wish: str) -> bool:
    """Have the job end with a snapshot; False where it had to be killed."""
    job.wish = wish
    write_job_file(workdir, job)
    seconds = parse_config(job.arguments)[LaunchOptions].grace_seconds + MARGIN_SECONDS
    if job.executor == "local":
        controller = local_job.controller(job)
        if controller is None:
            return True
        controller.send_signal(signal.SIGTERM)
        if _wait(lambda: not local_job.is_active(job), seconds):
            return True
        for process in [*controller.children(recursive=True), controller]:
            process.kill()
        return False
    if slurm.show_job(job.job_id).get("JobState") in ("PENDING", "CONFIGURING"):
        slurm.cancel(job.job_id)
        return True
    slurm.signal_steps(job.job_id, "TERM")
    if _wait(lambda: not slurm.is_active(job.job_id), seconds):
        return True
    slurm.cancel(job.job_id)
    _wait(lambda: not slurm.is_active(job.job_id), seconds)
    return False


def _wait(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether the condition came true in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(POLL_SECONDS)
    return condition()
