"""``job.json``: the job that runs in a run's folder, and the list of runs that this user has started."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from util.errors import UsageError
from util.files import write_json

HOME_VARIABLE = "SCOREFLEET_HOME"
FILE_NAME = "job.json"
WAITING = ("PENDING", "CONFIGURING")
ACTIVE = (*WAITING, "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "REQUEUED", "STAGE_OUT")


class JobState(NamedTuple):
    """A job as its scheduler sees it: its state, why it is in it where that is said, and how often it was requeued."""

    name: str = "UNKNOWN"
    reason: str = "None"
    restarts: int = 0


@dataclass
class JobFile:
    """What is known of the job of a run.

    Attributes:
        job_id: Slurm's job id, or the process id of the local controller.
        executor: "slurm" or "local" (submitted by ``launch submit``), or "sbatch".
        folder: where the job's own output goes; empty for sbatch, which decides itself.
        directory: what the command was started in, and relative paths start from.
        arguments: of main.py.
        options: of ``launch submit``, to submit the run again.
        max_requeues, requeues: how often the job may ask to be started again, and has.
        mark, fruitless: how far the run was when the job last stopped, and how often in a row just there.
        wish: "stop" or "requeue" where a person asked for it, else empty. It overrides the rules.
        note: what was decided when the job last stopped, and why.
        host: where a local job runs.
    """

    job_id: str
    executor: str
    folder: str
    directory: str
    arguments: list[str]
    options: dict[str, Any] = field(default_factory=dict)
    max_requeues: int = 0
    requeues: int = 0
    mark: str = ""
    fruitless: int = 0
    wish: str = ""
    note: str = ""
    host: str = field(default_factory=socket.gethostname)
    submitted: float = field(default_factory=time.time)


def read_job_file(workdir: Path, job_id: str = "") -> JobFile | None:
    """The job of a run; None where there is none that can be read, or another one than ``job_id`` if that is given."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        content = json.loads((workdir / FILE_NAME).read_text())
        known = {item.name for item in dataclasses.fields(JobFile)}
        job = JobFile(**{name: value for name, value in content.items() if name in known})
        return job if job_id in ("", job.job_id) else None
    return None


def write_job_file(workdir: Path, job: JobFile) -> None:
    """Replace the job file of a run, and remember the run."""
    write_json(workdir / FILE_NAME, dataclasses.asdict(job))
    path = str(workdir.absolute())
    # A home folder that cannot be written to costs the overview, not the run.
    with contextlib.suppress(OSError):
        name = hashlib.sha256(path.encode()).hexdigest()[:16]
        write_json(_registry() / f"{name}.json", {"workdir": path, "job_id": job.job_id})


def known_runs() -> list[Path]:
    """The folders of all runs that were started as jobs and still exist, the newest first."""
    found: dict[Path, float] = {}
    for entry in _registry().glob("*.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            workdir = Path(json.loads(entry.read_text())["workdir"])
            if (workdir / FILE_NAME).is_file():
                found[workdir] = entry.stat().st_mtime
    return sorted(found, key=lambda workdir: -found[workdir])


def find_run(name: str) -> Path:
    """The folder of the run that a person names by its folder or job id. Raises UsageError where there is none."""
    if any((Path(name) / file).is_file() for file in ("run.json", FILE_NAME)):
        return Path(name).absolute()
    for workdir in known_runs():
        if read_job_file(workdir, name) is not None:
            return workdir
    raise UsageError(f"{name} is neither a run's folder nor a known job id; `python -m launch status` lists the runs")


def _registry() -> Path:
    return Path(os.environ.get(HOME_VARIABLE) or Path.home() / ".scorefleet") / "runs"
