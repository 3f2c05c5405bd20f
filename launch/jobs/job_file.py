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
from typing import Any

from util.errors import UsageError
from util.files import write_json

HOME_VARIABLE = "SCOREFLEET_HOME"
FILE_NAME = "job.json"


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
        max_requeues: how often the job may ask to be started again.
        requeues: how often it has.
        mark: how far the run was when the job last stopped.
        fruitless: how often in a row it has stopped at the same mark again.
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


def read_job_file(workdir: Path) -> JobFile | None:
    """The job of a run; None where there is none (or none that can be read)."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        content = json.loads((workdir / FILE_NAME).read_text())
        known = {item.name for item in dataclasses.fields(JobFile)}
        return JobFile(**{name: value for name, value in content.items() if name in known})
    return None


def write_job_file(workdir: Path, job: JobFile) -> None:
    """Replace the job file of a run, and remember the run."""
    write_json(workdir / FILE_NAME, dataclasses.asdict(job))
    path = workdir.absolute()
    entry = _registry() / f"{hashlib.sha256(str(path).encode()).hexdigest()[:16]}.json"
    # A home folder that cannot be written to costs the overview, not the run.
    with contextlib.suppress(OSError):
        write_json(entry, {"workdir": str(path), "job_id": job.job_id})


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
    """The folder of the run that a person names by its folder or by its job id.

    Raises:
        UsageError: there is no such run.
    """
    folder = Path(name)
    if (folder / "run.json").is_file() or (folder / FILE_NAME).is_file():
        return folder.absolute()
    for workdir in known_runs():
        job = read_job_file(workdir)
        if job is not None and job.job_id == name:
            return workdir
    raise UsageError(f"{name} is neither a run's folder nor a known job id; `python -m launch status` lists the runs")


def _registry() -> Path:
    return Path(os.environ.get(HOME_VARIABLE) or Path.home() / ".scorefleet") / "runs"
