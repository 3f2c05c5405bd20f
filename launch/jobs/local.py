"""Jobs on this machine, which submitit's local controller runs in the background."""

from __future__ import annotations

import contextlib
import signal
import socket
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from launch.jobs.job_file import JobFile, JobState
from launch.places.topology import count_devices
from util.errors import UsageError

KEEPS_ID = False
RESTARTS = 5
"""The controller starts a job six times at most."""


def prepare(folder: Path, options: Namespace, device: str, minutes: int) -> tuple[Any, dict[str, Any]]:
    if options.nodes > 1:
        raise UsageError(f"--nodes {options.nodes} --executor local: this machine is one node; use --executor slurm")
    import submitit  # slow to import

    # As with nohup: the job outlives the terminal it was submitted from.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    parameters = {"timeout_min": minutes, "gpus_per_node": options.gpus_per_node or count_devices(device)}
    options.max_requeues = min(options.max_requeues, RESTARTS)
    return submitit.LocalExecutor(folder), parameters


def states(jobs: Sequence[JobFile]) -> dict[str, JobState]:
    """RUNNING, ENDED, or UNKNOWN where the job belongs to another machine."""
    mine = [job for job in jobs if job.host == socket.gethostname()]
    return {job.job_id: JobState("RUNNING" if _controller(job) else "ENDED") for job in mine}


def stop(job: JobFile) -> None:
    if controller := _controller(job):
        controller.send_signal(signal.SIGTERM)


def kill(job: JobFile) -> None:
    if controller := _controller(job):
        for process in [*controller.children(recursive=True), controller]:
            process.kill()


def reason_against_restart(job: JobFile, received: str) -> str:
    """On one's own machine nobody pre-empts: only the time limit, which has a signal of its own, is no wish."""
    from submitit import JobEnvironment

    return "" if received == f"SIG{JobEnvironment().USR_SIG}" or job.wish else f"it got {received}"


def restart(_job: JobFile) -> int:
    from submitit.local.local import LOCAL_REQUEUE_RETURN_CODE

    return LOCAL_REQUEUE_RETURN_CODE


def _controller(job: JobFile) -> psutil.Process | None:
    """The controller's process while the job runs, else None."""
    with contextlib.suppress(psutil.Error, ValueError):
        process = psutil.Process(int(job.job_id))
        # Process ids are used again: only a controller that is as old as the job is this job's.
        if any("submitit" in word for word in process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
            return process if process.create_time() <= job.submitted + 5.0 else None
    return None
