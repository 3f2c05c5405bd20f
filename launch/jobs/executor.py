"""Where jobs run: a module for each way, and the table in which a job finds its own."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from launch.jobs import local, slurm
from launch.jobs.job_file import ACTIVE, JobFile, JobState


class Executor(Protocol):
    """What runs jobs. Each method raises UsageError where it cannot be done here, or is refused."""

    KEEPS_ID: bool
    """Whether a job that runs can go back into a queue under its id."""

    def prepare(self, folder: Path, options: Namespace, device: str, minutes: int, /) -> tuple[Any, dict[str, Any]]:
        """The executor of submitit that leaves its files in ``folder``, and its parameters."""

    def states(self, jobs: Sequence[JobFile], /) -> dict[str, JobState]:
        """The state of each job that is known, by its id."""

    def stop(self, job: JobFile, /) -> None:
        """Tell a job that runs to end with a snapshot."""

    def kill(self, job: JobFile, /) -> None:
        """End a job; it does not start again."""

    def reason_against_restart(self, job: JobFile, received: str, /) -> str:
        """Why a job that has just stopped, by a signal of that name, must not start again; empty where it may."""

    def restart(self, job: JobFile, /) -> int:
        """From within a job that has stopped: have it start again. The exit code that it has to end with."""


EXECUTORS: dict[str, Executor] = {"slurm": slurm, "sbatch": slurm, "local": local}


def executor_of(job: JobFile) -> Executor:
    """What runs this job."""
    return EXECUTORS.get(job.executor, slurm)


def state_of(job: JobFile) -> str:
    """The name of a job's state. Raises UsageError where nobody answers."""
    return executor_of(job).states([job]).get(job.job_id, JobState()).name


def is_active(job: JobFile) -> bool:
    """Whether a job waits, runs, or is coming to its end. Raises UsageError where nobody answers."""
    return state_of(job) in ACTIVE
