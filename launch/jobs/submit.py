"""``launch submit``: hand a run to a scheduler through submitit, and come back at once."""

from __future__ import annotations

import contextlib
import os
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path

from launch.command import resolve
from launch.jobs.executor import EXECUTORS
from launch.jobs.job_file import JobFile, write_job_file
from launch.jobs.slurm import minutes_of
from launch.options import LaunchOptions
from util.errors import UsageError
from util.run_file import read_run_file
from util.run_options import RunOptions


def submit(options: Namespace, arguments: Sequence[str]) -> JobFile:
    """Submit main.py with these arguments and the options of ``launch submit``.

    Raises:
        UsageError: bad options or arguments, or the scheduler refused.
    """
    command, words = resolve(arguments), list(arguments)
    launch, run, workdir = command[LaunchOptions], command[RunOptions], command.folder.absolute()
    # As many ranks start as GPUs are asked for.
    wanted, given = options.gpus_per_node, launch.n_gpus_per_node
    if wanted and given not in (0, wanted):
        raise UsageError(f"--gpus_per_node {wanted} contradicts --n_gpus_per_node {given}; give one of them")
    if wanted and not given:
        words += ["--n_gpus_per_node", str(wanted)]
    finished = read_run_file(workdir).get("state") == "finished"
    if finished and run.mode in ("train", "train_deq") and not run.overwrite:
        raise UsageError(f"{command.folder} holds a finished run; use another --workdir")
    minutes, folder = minutes_of(options.time), workdir / "jobs"
    options.name = options.name or workdir.name
    executor, parameters = EXECUTORS[options.executor].prepare(folder, options, launch.device, minutes)
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    from launch.jobs.task import MainTask

    # The warning comes early enough for the ranks to take all the time that they may.
    warning = int(min(launch.grace_seconds, 60 * minutes - 1))
    executor.update_parameters(signal_delay_s=warning, stderr_to_stdout=True, **parameters)
    workdir.mkdir(parents=True, exist_ok=True)
    here = str(Path.cwd())
    try:
        with _quiet():
            job_id = str(executor.submit(MainTask(words, here, workdir)).job_id)
    except (FailedJobError, FailedSubmissionError) as error:
        raise UsageError(f"the scheduler refused the job: {' '.join(str(error).split())}") from None
    job = JobFile(job_id, options.executor, str(folder), here, words, vars(options), options.max_requeues)
    write_job_file(workdir, job)
    return job


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No input and output for this process and those it starts.

    submitit prints what it raises as well, and a local job must not hold on to the terminal, or to a pipe that
    somebody waits for the end of.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    earlier = [os.dup(descriptor) for descriptor in range(3)]
    with open(os.devnull, "r+b") as nothing:
        for descriptor in range(3):
            os.dup2(nothing.fileno(), descriptor)
    try:
        yield
    finally:
        for descriptor, saved in enumerate(earlier):
            os.dup2(saved, descriptor)
            os.close(saved)
