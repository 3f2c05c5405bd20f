"""What is asked of Slurm, by its own commands. Every call is bounded in time."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from util.errors import UsageError

COMMAND_SECONDS = 60.0
"""A controller that is busy may take long to answer; one that takes longer counts as unreachable."""
ACTIVE_STATES = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "REQUEUED", "STAGE_OUT")
_SECONDS = (1, 60, 3600)


@dataclass(frozen=True)
class SlurmJob:
    """A job as Slurm sees it.

    Attributes:
        state: Slurm's name, e.g. RUNNING.
        reason: why it is in that state, as Slurm says; "None" where it does not.
        restarts: how often it was requeued.
    """

    state: str
    reason: str
    restarts: int


def _run(words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """One of Slurm's commands.

    Raises:
        UsageError: Slurm is not installed here, or does not answer.
    """
    if shutil.which(words[0]) is None:
        raise UsageError(f"{words[0]}: not found; run this where Slurm's commands are, or use --executor local")
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=COMMAND_SECONDS)
    except subprocess.TimeoutExpired:
        raise UsageError(f"{words[0]}: no answer within {COMMAND_SECONDS:g} s; is Slurm's controller up?") from None


def _checked(words: Sequence[str]) -> str:
    done = _run(words)
    if done.returncode != 0:
        message = " ".join(f"{done.stderr} {done.stdout}".split()) or f"exit code {done.returncode}"
        raise UsageError(f"{' '.join(words)}: {message}")
    return done.stdout


def show_job(job_id: str) -> dict[str, str]:
    """The fields of ``scontrol show job``; empty where Slurm has forgotten the job."""
    done = _run(["scontrol", "show", "job", "-o", job_id])
    return dict(word.split("=", 1) for word in done.stdout.split() if "=" in word) if done.returncode == 0 else {}


def job_states(job_ids: Sequence[str]) -> dict[str, SlurmJob]:
    """Those of the jobs that the controller or the accounting data base knows.

    Raises:
        UsageError: Slurm is not installed here, or does not answer.
    """
    if not job_ids:
        return {}
    columns = "JobID:24 ,State:24 ,RestartCnt:8 ,Reason:80 "
    done = _run(["squeue", "--noheader", "--all", "--states=all", f"--jobs={','.join(job_ids)}", "-O", columns])
    found = {}
    for line in done.stdout.splitlines():
        words = line.split(None, 3)
        if len(words) == 4:
            found[words[0]] = SlurmJob(words[1], words[3].strip(), int(words[2]) if words[2].isdigit() else 0)
    missing = [job_id for job_id in job_ids if job_id not in found]
    if missing and shutil.which("sacct") is not None:
        # Without accounting storage sacct fails, and what the controller has forgotten stays unknown.
        words = ["sacct", "--noheader", "--parsable2", "-X", "-o", "JobID,State,Restarts"]
        for line in _run([*words, f"--jobs={','.join(missing)}"]).stdout.splitlines():
            job_id, state, restarts = [*line.split("|"), "", ""][:3]
            if state:
                found[job_id] = SlurmJob(state.split()[0], "None", int(restarts) if restarts.isdigit() else 0)
    return found


def is_active(job_id: str) -> bool:
    """Whether the job waits, runs, or is coming to its end."""
    job = job_states([job_id]).get(job_id)
    return job is not None and job.state in ACTIVE_STATES


def signal_steps(job_id: str, name: str) -> None:
    """Send a signal to the job's steps, not to its batch script, which has to see them end."""
    _checked(["scancel", f"--signal={name}", job_id])


def cancel(job_id: str) -> None:
    """End the job; it is not started again."""
    _checked(["scancel", job_id])


def requeue(job_id: str) -> None:
    """End the job if it runs, and put it back into the queue under the same id."""
    _checked(["scontrol", "requeue", job_id])


def reason_against_requeue(job_id: str) -> str:
    """Why a job that has just stopped must not ask to be started again; empty where it may.

    While a job is pre-empted with a grace time, or warned of its time limit, it is RUNNING. COMPLETING means that
    Slurm ends it: because a person cancelled it, which a requeue would undo, or because somebody requeued it already,
    or because the time limit has passed, which alone leaves it to the job to come back.
    """
    fields = show_job(job_id)
    state = fields.get("JobState", "unknown")
    if state == "RUNNING":
        return ""
    used, limit = _duration(fields.get("RunTime", "")), _duration(fields.get("TimeLimit", ""))
    if state in ("COMPLETING", "TIMEOUT") and limit is not None and used is not None and used >= limit:
        return ""
    return f"the job is {state}: cancelled, or requeued by Slurm itself"


def _duration(text: str) -> int | None:
    """Seconds of Slurm's [days-]hours:minutes:seconds; None for UNLIMITED and the like."""
    days, _, clock = text.rpartition("-")
    parts = clock.split(":")
    if not all(part.isdigit() for part in parts) or len(parts) > len(_SECONDS) or (days and not days.isdigit()):
        return None
    return int(days or 0) * 86400 + sum(int(part) * unit for part, unit in zip(reversed(parts), _SECONDS, strict=False))


def minutes_of(text: str) -> int:
    """Minutes, rounded up, of a time limit as sbatch takes it.

    Accepts minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes and
    days-hours:minutes:seconds.

    Raises:
        UsageError: another form, or zero.
    """
    days, dash, clock = text.rpartition("-")
    parts = clock.split(":")
    numbers = [int(part) for part in parts if part.isdigit()]
    if len(numbers) != len(parts) or len(parts) > 3 or (dash and not days.isdigit()):
        raise UsageError(f"--time {text}: not a time limit; write minutes, hours:minutes:seconds or days-hours")
    if dash:
        hours, minutes, seconds = [*numbers, 0, 0][:3]
    elif len(numbers) == 3:
        hours, minutes, seconds = numbers
    else:
        hours, (minutes, seconds) = 0, [*numbers, 0][:2]
    total = (int(days or 0) * 24 + hours) * 3600 + minutes * 60 + seconds
    if total == 0:
        raise UsageError(f"--time {text}: a run needs some time; write minutes, hours:minutes:seconds or days-hours")
    return -(-total // 60)
