"""Jobs on this machine, which submitit's local controller runs."""

from __future__ import annotations

import contextlib
import socket

import psutil

from launch.jobs.job_file import JobFile


def controller(job: JobFile) -> psutil.Process | None:
    """The controller's process while the job runs, else None."""
    with contextlib.suppress(psutil.Error, ValueError):
        process = psutil.Process(int(job.job_id))
        # Process ids are used again: only a controller that is as old as the job is this job's.
        if any("submitit" in word for word in process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
            return process if process.create_time() <= job.submitted + 5.0 else None
    return None


def state(job: JobFile) -> str:
    """RUNNING, ENDED, or UNKNOWN where the job belongs to another machine."""
    if job.host != socket.gethostname():
        return "UNKNOWN"
    return "RUNNING" if controller(job) is not None else "ENDED"


def is_active(job: JobFile) -> bool:
    """Whether the job runs on this machine."""
    return state(job) == "RUNNING"
