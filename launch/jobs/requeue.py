"""Whether a job that stopped with a snapshot on disk is started again."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

from launch.agents.restart import OF_RESTART
from launch.command import Command
from launch.jobs.executor import executor_of
from launch.jobs.job_file import JobFile, read_job_file, write_job_file
from util.errors import UsageError
from util.option_values import written
from util.run_file import read_run_file

MAX_FRUITLESS = 1
"""A job may be pre-empted before it has done a step. That happens, but not to the same job time after time."""


def arguments_of_restart(command: Command) -> list[str]:
    """The arguments with which a run goes on: it must not delete what it has saved, nor go back to its beginning."""
    texts = {flag: written(value) for flag, value in OF_RESTART.items()}
    return [*command.arguments, *(f"--{flag}={text}" for flag, text in texts.items() if command.settings[flag] != text)]


def progress_mark(command: Command) -> str:
    """A text that changes whenever the run gets further: steps saved, and evaluation files finished."""
    snapshot = read_run_file(command.folder).get("last_snapshot") or {}
    digest = hashlib.sha256()
    for folder in ("evaluations", command.settings["eval_folder"]):
        for path in sorted((command.folder / folder).rglob("*.npz")):
            digest.update(f"{path} {path.stat().st_size}\n".encode())
    return f"step {snapshot.get('step', 0)}, evaluations {digest.hexdigest()[:12]}"


def decide(job: JobFile, mark: str, against: str) -> str:
    """Why the job is not started again; empty where it is. Updates the job's record.

    Args:
        job: changed in place: wish fulfilled, requeues counted, mark and note set.
        mark: how far the run is now.
        against: what the scheduler has against it.
    """
    wish, job.wish = job.wish, ""
    job.fruitless = job.fruitless + 1 if mark == job.mark else 0
    job.mark, reason, reached = mark, "", mark.split(",")[0]
    if wish == "stop":
        reason = "it was told to stop"
    elif against:
        reason = against
    elif wish == "requeue":
        job.requeues = job.fruitless = 0
    elif job.requeues >= job.max_requeues:
        reason = f"it was requeued {job.requeues} times, the most it may be (--max_requeues)"
    elif job.fruitless > MAX_FRUITLESS:
        reason = f"it was started {job.fruitless} times without getting further ({reached})"
    job.requeues += not reason
    job.note = f"not requeued: {reason}" if reason else f"requeued at {reached}"
    return reason


def stopped(command: Command, job_id: str, received: str = "") -> int | None:
    """In a job that has stopped, by a signal of that name: have it start again, if the rules allow.

    Returns the exit code that it has to end with; None where it does not start again.

    Raises:
        UsageError: it is not the job of this run, or is refused its restart.
    """
    job = read_job_file(command.folder, job_id)
    if job is None:
        raise UsageError(f"{command.folder}: job {job_id} is not the job of this run; it is not requeued")
    executor = executor_of(job)
    reason = decide(job, progress_mark(command), executor.reason_against_restart(job, received))
    write_job_file(command.folder, job)
    print(f"job {job_id}: {job.note}", file=sys.stderr, flush=True)
    return executor.restart(job) if not reason else None


def script(event: str, command: Command, max_requeues: int) -> None:
    """``launch job`` in the batch script of a Slurm job: note the job when it starts, see to its restart when it stops.

    Raises:
        UsageError: not in a job; no folder for the run; or as ``stopped``.
    """
    job_id, workdir = os.environ.get("SLURM_JOB_ID"), command.folder
    if job_id is None:
        raise UsageError("SLURM_JOB_ID is not set: this command is for the script of a Slurm job")
    if event == "stopped":
        stopped(command, job_id)
    elif read_job_file(workdir, job_id) is None:
        workdir.mkdir(parents=True, exist_ok=True)
        job = JobFile(job_id, "sbatch", "", str(Path.cwd()), list(command.arguments), max_requeues=max_requeues)
        write_job_file(workdir, job)
