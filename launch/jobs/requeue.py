"""Whether a job that stopped with a snapshot on disk is started again."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Sequence
from pathlib import Path

from launch.jobs import slurm
from launch.jobs.job_file import JobFile, read_job_file, write_job_file
from main import parse_config
from util.config import Config
from util.errors import UsageError
from util.run_file import read_run_file
from util.run_options import RunOptions

DEFAULT_MAX_REQUEUES = 20
MAX_FRUITLESS = 1
"""A job may be pre-empted before it has done a step. That happens, but not to the same job time after time."""


def arguments_of_restart(arguments: Sequence[str]) -> list[str]:
    """The arguments with which a run goes on: it must not delete what it has saved, nor go back to its beginning."""
    run = parse_config(arguments)[RunOptions]
    if not (run.overwrite or run.checkpoint):
        return list(arguments)
    return [*arguments, "--overwrite=false", "--checkpoint="]


def progress_mark(config: Config) -> str:
    """A text that changes whenever the run gets further: steps saved, and evaluation files finished."""
    snapshot = read_run_file(config[RunOptions].folder).get("last_snapshot") or {}
    digest = hashlib.sha256()
    for folder in ("evaluations", config.flat()["eval_folder"]):
        for path in sorted((config[RunOptions].folder / folder).rglob("*.npz")):
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
    job.mark = mark
    if wish == "stop":
        reason = "it was told to stop"
    elif against:
        reason = against
    elif wish == "requeue":
        reason, job.requeues, job.fruitless = "", 0, 0
    elif job.requeues >= job.max_requeues:
        reason = f"it was requeued {job.requeues} times, the most it may be (--max_requeues)"
    elif job.fruitless > MAX_FRUITLESS:
        reason = f"it was started {job.fruitless} times without getting further ({mark.split(',')[0]})"
    else:
        reason = ""
    if reason:
        job.note = f"not requeued: {reason}"
    else:
        job.requeues += 1
        job.note = f"requeued at {mark.split(',')[0]}"
    return reason


def job_started(config: Config, arguments: Sequence[str], max_requeues: int) -> None:
    """Note the Slurm job that this process belongs to as the job of the run.

    Raises:
        UsageError: not in a job, or no folder for the run.
    """
    if not config[RunOptions].workdir:
        raise UsageError("--workdir is missing: give a folder for (or of) the run that all nodes see")
    job_id = _own_job_id()
    earlier = read_job_file(config[RunOptions].folder)
    if earlier is not None and earlier.job_id == job_id:
        return
    directory, words = str(Path.cwd()), list(arguments)
    config[RunOptions].folder.mkdir(parents=True, exist_ok=True)
    job = JobFile(job_id, "sbatch", "", directory, words, {}, max_requeues, host=socket.gethostname())
    write_job_file(config[RunOptions].folder, job)


def job_stopped(config: Config) -> str:
    """Requeue the Slurm job that this process belongs to, if the rules allow; what was decided.

    Raises:
        UsageError: not in a job, or Slurm refused.
    """
    job = read_job_file(config[RunOptions].folder)
    job_id = _own_job_id()
    if job is None or job.job_id != job_id:
        raise UsageError(f"{config[RunOptions].folder}: job {job_id} is not the job of this run; it is not requeued")
    reason = decide(job, progress_mark(config), slurm.reason_against_requeue(job_id))
    write_job_file(config[RunOptions].folder, job)
    if not reason:
        slurm.requeue(job_id)
    return f"job {job_id}: {job.note}"


def _own_job_id() -> str:
    job_id = os.environ.get("SLURM_JOB_ID")
    if job_id is None:
        raise UsageError("SLURM_JOB_ID is not set: this command is for the script of a Slurm job")
    return job_id
