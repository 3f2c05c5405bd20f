"""Whether a job that stopped with a snapshot on disk is started again."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Sequence
from pathlib import Path

from launch import slurm
from launch.job_file import JobFile, read_job_file, write_job_file
from util.config import Config
from util.errors import UsageError
from util.run_file import read_run_file

DEFAULT_MAX_REQUEUES = 20


def check_restartable(config: Config) -> None:
    """Refuse arguments that do harm when the same command is given again.

    Raises:
        UsageError: such an argument, or no folder for the run.
    """
    if not config.run.workdir:
        raise UsageError("--workdir is missing: give a folder for (or of) the run that all nodes see")
    for flag, given in (("--overwrite", config.run.overwrite), ("--checkpoint", config.run.checkpoint)):
        if given:
            raise UsageError(
                f"{flag}: a job that is requeued gives the same command again and would lose what it had done; "
                "use another --workdir, or prepare the folder before the job starts"
            )


def progress_mark(config: Config) -> str:
    """A text that changes whenever the run gets further: steps saved, and evaluation files finished."""
    snapshot = read_run_file(config.workdir).get("last_snapshot") or {}
    digest = hashlib.sha256()
    for folder in ("evaluations", config.evaluation.eval_folder):
        for path in sorted((config.workdir / folder).rglob("*.npz")):
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
    earlier, job.mark = job.mark, mark
    if wish == "stop":
        reason = "it was told to stop"
    elif against:
        reason = against
    elif wish == "requeue":
        reason, job.requeues = "", 0
    elif job.requeues >= job.max_requeues:
        reason = f"it was requeued {job.requeues} times, the most it may be (--max_requeues)"
    elif mark == earlier:
        reason = f"it got no further since it was last requeued ({mark.split(',')[0]})"
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
        UsageError: arguments that must not be given again, or not in a job.
    """
    check_restartable(config)
    job_id = _own_job_id()
    earlier = read_job_file(config.workdir)
    if earlier is not None and earlier.job_id == job_id:
        return
    directory, words = str(Path.cwd()), list(arguments)
    config.workdir.mkdir(parents=True, exist_ok=True)
    job = JobFile(job_id, "sbatch", "", directory, words, {}, max_requeues, host=socket.gethostname())
    write_job_file(config.workdir, job)


def job_stopped(config: Config) -> str:
    """Requeue the Slurm job that this process belongs to, if the rules allow; what was decided.

    Raises:
        UsageError: not in a job, or Slurm refused.
    """
    job = read_job_file(config.workdir)
    job_id = _own_job_id()
    if job is None or job.job_id != job_id:
        raise UsageError(f"{config.workdir}: job {job_id} is not the job of this run; it is not requeued")
    reason = decide(job, progress_mark(config), slurm.reason_against_requeue(job_id))
    write_job_file(config.workdir, job)
    if not reason:
        slurm.requeue(job_id)
    return f"job {job_id}: {job.note}"


def _own_job_id() -> str:
    job_id = os.environ.get("SLURM_JOB_ID")
    if job_id is None:
        raise UsageError("SLURM_JOB_ID is not set: this command is for the script of a Slurm job")
    return job_id
