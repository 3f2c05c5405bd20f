"""Jobs of Slurm, which is asked by its own commands. Every call is bounded in time."""

from __future__ import annotations

import re
import shutil
import subprocess
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch.jobs.job_file import JobFile, JobState
from util.errors import EXIT_PREEMPTED, UsageError

KEEPS_ID = True
COMMAND_SECONDS = 60.0
"""A controller that is busy may take long to answer; one that takes longer counts as unreachable."""


def prepare(folder: Path, options: Namespace, device: str, minutes: int) -> tuple[Any, dict[str, Any]]:
    if shutil.which("sbatch") is None:
        raise UsageError("sbatch: not found; submit where Slurm's commands are, or use --executor local")
    import submitit  # slow to import

    parameters = {
        "time": minutes, "nodes": options.nodes, "ntasks_per_node": 1, "job_name": options.name,
        "partition": options.partition, "gpus_per_node": options.gpus_per_node if device != "cpu" else None,
        "additional_parameters": {"requeue": True, **dict(options.slurm)},
    }  # fmt: skip
    return submitit.SlurmExecutor(folder), {name: value for name, value in parameters.items() if value}


def states(jobs: Sequence[JobFile]) -> dict[str, JobState]:
    """Those of the jobs that the controller or the accounting data base knows."""
    columns, ids = "JobID:24 ,State:24 ,RestartCnt:8 ,Reason:80 ", [job.job_id for job in jobs]
    found = {}
    for line in _ask("squeue", "--noheader", "--all", "--states=all", f"--jobs={','.join(ids)}", "-O", columns):
        if len(words := line.split(None, 3)) == 4:
            found[words[0]] = JobState(words[1], words[3].strip(), _count(words[2]))
    missing = ",".join(job_id for job_id in ids if job_id not in found)
    if missing and shutil.which("sacct") is not None:
        # Without accounting storage sacct fails, and what the controller has forgotten stays unknown.
        columns = "JobID,State,Restarts"
        for line in _ask("sacct", "--noheader", "--parsable2", "-X", "-o", columns, f"--jobs={missing}"):
            job_id, state, restarts = [*line.split("|"), "", ""][:3]
            if state:
                found[job_id] = JobState(state.split()[0], restarts=_count(restarts))
    return found


def stop(job: JobFile) -> None:
    """By its steps, not its batch script, which has to see them end."""
    _ask("scancel", "--signal=TERM", job.job_id, must=True)


def kill(job: JobFile) -> None:
    _ask("scancel", job.job_id, must=True)


def reason_against_restart(job: JobFile, _received: str) -> str:
    """By the state of the job.

    While a job is pre-empted with a grace time, or warned of its time limit, it is RUNNING. COMPLETING means that
    Slurm ends it: because a person cancelled it, which a requeue would undo, or because somebody requeued it already,
    or because the time limit has passed, which alone leaves it to the job to come back.
    """
    words = " ".join(_ask("scontrol", "show", "job", "-o", job.job_id)).split()
    fields = dict(word.split("=", 1) for word in words if "=" in word)
    state = fields.get("JobState", "unknown")
    used, limit = seconds_of(fields.get("RunTime", "")), seconds_of(fields.get("TimeLimit", ""))
    over = state in ("COMPLETING", "TIMEOUT") and used is not None and limit is not None and used >= limit
    return "" if over or state == "RUNNING" else f"the job is {state}: cancelled, or requeued by Slurm itself"


def restart(job: JobFile) -> int:
    _ask("scontrol", "requeue", job.job_id, must=True)
    return EXIT_PREEMPTED


def seconds_of(text: str) -> int | None:
    """Seconds of a time as Slurm takes and prints it; None for anything else, such as UNLIMITED.

    It is [days-]hours:minutes:seconds, days-hours[:minutes] or minutes[:seconds].
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    if match[1] is None and match[4] is None:
        hours, minutes, seconds = 0, hours, minutes
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def minutes_of(text: str) -> int:
    """Minutes, rounded up, of a time limit as sbatch takes it. Raises UsageError for anything else, and for zero."""
    seconds = seconds_of(text)
    if not seconds:
        problem = "not a time limit" if seconds is None else "a run needs some time"
        raise UsageError(f"--time {text}: {problem}; write minutes, hours:minutes:seconds or days-hours")
    return -(-seconds // 60)


def _count(text: str) -> int:
    return int(text) if text.isdigit() else 0


def _ask(*words: str, must: bool = False) -> list[str]:
    """The lines that one of Slurm's commands prints.

    Raises:
        UsageError: Slurm is not installed here or does not answer; it refuses what must be done.
    """
    if shutil.which(words[0]) is None:
        raise UsageError(f"{words[0]}: not found; run this where Slurm's commands are, or use --executor local")
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=COMMAND_SECONDS)
    except subprocess.TimeoutExpired:
        raise UsageError(f"{words[0]}: no answer within {COMMAND_SECONDS:g} s; is Slurm's controller up?") from None
    if must and done.returncode != 0:
        message = " ".join(f"{done.stderr} {done.stdout}".split()) or f"exit code {done.returncode}"
        raise UsageError(f"{' '.join(words)}: {message}")
    return done.stdout.splitlines()
