"""``launch logs``, ``cancel`` and ``requeue``."""

from __future__ import annotations

import os
import shutil
import sys
import time
from argparse import Namespace
from pathlib import Path

from launch.command import resolve
from launch.jobs.executor import executor_of, is_active, state_of
from launch.jobs.job_file import WAITING, JobFile, read_job_file, write_job_file
from launch.jobs.requeue import arguments_of_restart
from launch.jobs.submit import submit
from launch.options import LaunchOptions
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
    job, asked = read_job_file(workdir), 0.0
    with _log(workdir, job, rank).open("rb") as file:
        while True:
            if follow and time.monotonic() - asked > SECONDS_BETWEEN_STATES:
                asked = time.monotonic()
                ended = read_run_file(workdir).get("state") in ("finished", "failed", "preempted")
                follow = is_active(job) if job is not None else not ended
            shutil.copyfileobj(file, sys.stdout.buffer)
            sys.stdout.buffer.flush()
            if not follow:
                return
            time.sleep(POLL_SECONDS)


def _log(workdir: Path, job: JobFile | None, rank: int | None) -> Path:
    """The rank's log; without a rank the job's own output, which is rank 0's and what was said around it."""
    if rank is None and job is not None and job.folder:
        output = Path(job.folder) / f"{job.job_id}_0_log.out"
        if output.is_file():
            return output
    path = workdir / "logs" / f"rank_{rank or 0:04d}.log"
    if not path.is_file():
        ranks = sorted(int(file.stem.split("_")[1]) for file in path.parent.glob("rank_*.log"))
        present = f"there are ranks {ranks[0]} to {ranks[-1]}" if ranks else "no rank has started yet"
        raise UsageError(f"{path}: no such log; {present}")
    return path


def cancel_run(workdir: Path) -> str:
    """Stop a run with a snapshot, for good; what happened.

    Raises:
        UsageError: it has no job, or the scheduler refused.
    """
    job = _job_of(workdir)
    if not is_active(job):
        raise UsageError(f"{workdir}: job {job.job_id} is not in the queue; nothing to cancel")
    stopped = _stop(workdir, job)
    snapshot = read_run_file(workdir).get("last_snapshot") or {}
    saved = f"the last snapshot is step {snapshot['step']}" if "step" in snapshot else "there is no snapshot"
    return f"job {job.job_id} {'stopped' if stopped else 'did not stop in time and was killed'}; {saved}"


def requeue_run(workdir: Path, nodes: int | None) -> str:
    """Start a run again from a snapshot, now or when the scheduler lets it; what happened.

    A running job that keeps its number of nodes goes back into the queue under its id, where there is one. Otherwise
    it is stopped and submitted anew.

    Raises:
        UsageError: it has no job, was not submitted by ``launch submit`` where that is needed, or has finished.
    """
    job = _job_of(workdir)
    command, active = resolve(job.arguments), is_active(job)
    if command[RunOptions].trains and read_run_file(workdir).get("state") == "finished":
        raise UsageError(f"{workdir} holds a finished run; there is nothing left to do")
    if active and nodes is None and executor_of(job).KEEPS_ID:
        if state_of(job) == "PENDING":
            raise UsageError(f"{workdir}: job {job.job_id} is waiting in the queue already")
        _wish(workdir, job, "requeue")
        executor_of(job).stop(job)
        return f"job {job.job_id} takes a snapshot and goes back into the queue"
    if job.executor == "sbatch":
        raise UsageError(
            f"{workdir}: job {job.job_id} was started by sbatch; submit its script again with the same arguments "
            "(sbatch --nodes sets the number of nodes), after `launch cancel` if it still runs"
        )
    if active:
        _stop(workdir, job)
    options = Namespace(**{**job.options, "nodes": nodes or job.options["nodes"]})
    return f"submitted as job {submit(options, arguments_of_restart(command)).job_id}"


def _job_of(workdir: Path) -> JobFile:
    job = read_job_file(workdir)
    if job is None:
        raise UsageError(f"{workdir}: the run was not started as a job; stop it with SIGTERM to main.py")
    try:
        os.chdir(job.directory)  # where relative paths among its arguments start from
    except OSError as error:
        raise UsageError(f"{job.directory}: {error.strerror}; job {job.job_id} was started there") from None
    return job


def _wish(workdir: Path, job: JobFile, wish: str) -> None:
    job.wish = wish
    write_job_file(workdir, job)


def _stop(workdir: Path, job: JobFile) -> bool:
    """Have the job end with a snapshot, for good; False where it had to be killed."""
    _wish(workdir, job, "stop")
    executor, seconds = executor_of(job), resolve(job.arguments)[LaunchOptions].grace_seconds + MARGIN_SECONDS
    if state_of(job) in WAITING:
        executor.kill(job)
        return True
    executor.stop(job)
    if _ends(job, seconds):
        return True
    executor.kill(job)
    _ends(job, seconds)
    return False


def _ends(job: JobFile, seconds: float) -> bool:
    """Whether the job comes to its end in time."""
    deadline = time.monotonic() + seconds
    while (active := is_active(job)) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    return not active
