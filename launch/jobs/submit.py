"""``launch submit``: hand a run to the scheduler through submitit, and come back at once."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from launch.jobs.job_file import JobFile, write_job_file
from launch.jobs.requeue import DEFAULT_MAX_REQUEUES, arguments_of_restart
from launch.jobs.slurm import minutes_of
from launch.options import LaunchOptions
from launch.places.topology import count_devices
from main import parse_config
from util.config import Config
from util.errors import UsageError
from util.run_file import read_run_file
from util.run_options import RunOptions

LOCAL_RESTARTS = 5
"""submitit's local controller starts a job six times at most."""


@dataclass(frozen=True)
class SubmitOptions:
    """How a run is handed to the scheduler.

    Attributes:
        executor: "slurm" or "local".
        nodes: number of nodes, one task each.
        gpus_per_node: GPUs to ask for and ranks to start on each node; None leaves both to the defaults.
        time: time limit as sbatch takes it.
        partition: empty for the cluster's default.
        max_requeues: how often the job may be started again.
        name: of the job; empty for the name of the run's folder.
        slurm: further options of sbatch, by their long names.
    """

    executor: str = "slurm"
    nodes: int = 1
    gpus_per_node: int | None = None
    time: str = "24:00:00"
    partition: str = ""
    max_requeues: int = DEFAULT_MAX_REQUEUES
    name: str = ""
    slurm: dict[str, str | bool] = field(default_factory=dict)


def submit(options: SubmitOptions, arguments: Sequence[str]) -> JobFile:
    """Submit main.py with these arguments.

    Raises:
        UsageError: bad options or arguments, or the scheduler refused.
    """
    words = _with_gpus(list(arguments), options)
    config = parse_config(words)
    if not config[RunOptions].workdir:
        raise UsageError("--workdir is missing: give a folder for (or of) the run that all nodes see")
    if options.executor == "local" and options.nodes > 1:
        raise UsageError(f"--nodes {options.nodes} --executor local: this machine is one node; use --executor slurm")
    if (
        config[RunOptions].mode in ("train", "train_deq")
        and not config[RunOptions].overwrite
        and read_run_file(config[RunOptions].folder).get("state") == "finished"
    ):
        raise UsageError(f"{config[RunOptions].folder} holds a finished run; use another --workdir")
    minutes = minutes_of(options.time)
    name = options.name or config[RunOptions].folder.name
    config[RunOptions].folder.mkdir(parents=True, exist_ok=True)
    jobs = config[RunOptions].folder.absolute() / "jobs"
    job_id = _submit(options, words, config, jobs, minutes, name)
    job = JobFile(job_id, options.executor, str(jobs), str(Path.cwd()), words, asdict(options), options.max_requeues)
    write_job_file(config[RunOptions].folder, job)
    return job


def submit_again(job: JobFile, nodes: int | None) -> JobFile:
    """Submit a run as it was submitted before, on another number of nodes if one is given.

    Raises:
        UsageError: as ``submit``.
    """
    options = SubmitOptions(**job.options)
    return submit(options if nodes is None else replace(options, nodes=nodes), arguments_of_restart(job.arguments))


def read_slurm_options(texts: Sequence[str]) -> dict[str, str | bool]:
    """``key=value`` or a bare ``key``, each an option of sbatch.

    Raises:
        UsageError: not of this form.
    """
    options: dict[str, str | bool] = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not re.fullmatch(r"[a-z][a-z-]*", key) or "\n" in value:
            raise UsageError(f"--slurm {text}: write an option of sbatch as key=value, e.g. --slurm account=physics")
        options[key] = value if separator else True
    return options


def _with_gpus(words: list[str], options: SubmitOptions) -> list[str]:
    """The arguments with ``--n_gpus_per_node``, so that as many ranks start as GPUs were asked for."""
    given = parse_config(words)[LaunchOptions].n_gpus_per_node
    if options.gpus_per_node is None or given == options.gpus_per_node:
        return words
    if given:
        raise UsageError(
            f"--gpus_per_node {options.gpus_per_node} contradicts --n_gpus_per_node {given}; give one of them"
        )
    return [*words, "--n_gpus_per_node", str(options.gpus_per_node)]


def _submit(options: SubmitOptions, words: list[str], config: Config, jobs: Path, minutes: int, name: str) -> str:
    """The job's id."""
    if options.executor == "slurm" and shutil.which("sbatch") is None:
        raise UsageError("sbatch: not found; submit where Slurm's commands are, or use --executor local")
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    from launch.jobs.task import MainTask

    # The warning comes early enough for the ranks to take all the time that they may.
    warning = int(min(config[LaunchOptions].grace_seconds, 60 * minutes - 1))
    parameters: dict[str, Any] = {}
    executor: Any
    if options.executor == "local":
        executor = submitit.LocalExecutor(jobs, max_num_timeout=min(options.max_requeues, LOCAL_RESTARTS))
        parameters["timeout_min"] = minutes
        parameters["gpus_per_node"] = options.gpus_per_node or count_devices(config[LaunchOptions].device)
        # As with nohup: the job outlives the terminal it was submitted from.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    else:
        executor = submitit.SlurmExecutor(jobs, max_num_timeout=options.max_requeues)
        parameters |= {"time": minutes, "nodes": options.nodes, "ntasks_per_node": 1, "job_name": name}
        if options.gpus_per_node is not None and config[LaunchOptions].device != "cpu":
            parameters["gpus_per_node"] = options.gpus_per_node
        if options.partition:
            parameters["partition"] = options.partition
        parameters["additional_parameters"] = {"requeue": True, **options.slurm}
    executor.update_parameters(signal_delay_s=warning, stderr_to_stdout=True, **parameters)
    try:
        with _quiet():
            job = executor.submit(MainTask(words, str(Path.cwd())))
    except (FailedJobError, FailedSubmissionError) as error:
        raise UsageError(f"the scheduler refused the job: {' '.join(str(error).split())}") from None
    return str(job.job_id)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No input and output for this process and those it starts.

    submitit prints what it raises as well, and a local job must not hold on to the terminal, or to a pipe that
    somebody waits for the end of.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    nothing = os.open(os.devnull, os.O_RDWR)
    earlier = [os.dup(descriptor) for descriptor in range(3)]
    try:
        for descriptor in range(3):
            os.dup2(nothing, descriptor)
        yield
    finally:
        for descriptor, saved in enumerate(earlier):
            os.dup2(saved, descriptor)
            os.close(saved)
        os.close(nothing)
