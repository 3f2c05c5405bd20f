"""What submitit runs on each node of a job: main.py, until it ends or the job has to stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from submitit import JobEnvironment
from submitit.core.utils import DelayedSubmission

from launch.jobs import slurm
from launch.jobs.job_file import read_job_file, write_job_file
from launch.jobs.requeue import arguments_of_restart, decide, progress_mark
from main import parse_config
from util.errors import EXIT_FINISHED, EXIT_PREEMPTED, RunFailed
from util.run_options import RunOptions
from util.stop import STOP_SIGNALS

MAIN = Path(__file__).parents[2] / "main.py"


@dataclass
class MainTask:
    """A callable that submitit can start again.

    Attributes:
        arguments: of main.py.
        directory: what main.py is started in.
    """

    arguments: list[str]
    directory: str
    received: str = ""
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def __call__(self) -> None:
        """Run main.py on this node; has submitit requeue the job where it stopped with a snapshot.

        Raises:
            RunFailed: main.py failed; submitit keeps the message.
            SystemExit: the run has stopped, and this is not the task that asks for another start.
        """
        code = self._run()
        stopped = self.received and code in (-number for number in STOP_SIGNALS)  # before main.py could take signals
        if code == EXIT_FINISHED:
            return
        if code != EXIT_PREEMPTED and not stopped:
            raise RunFailed(self._note_failure(code))
        environment = JobEnvironment()
        if environment.global_rank == 0:
            # Its handler calls checkpoint() below, then requeues and leaves, or raises where checkpoint() says no.
            os.kill(os.getpid(), getattr(signal, f"SIG{environment.USR_SIG}"))
        # Another task leaves no result behind: the next start of the job would take it for its own.
        raise SystemExit(EXIT_PREEMPTED)

    def checkpoint(self) -> DelayedSubmission | None:
        """Called by submitit in task 0: what is to run after a requeue, or None for no requeue."""
        config = parse_config(self.arguments)
        job = read_job_file(config[RunOptions].folder)
        environment = JobEnvironment()
        if job is None or job.job_id != environment.job_id:
            folder = config[RunOptions].folder
            print(f"{folder}: job {environment.job_id} is not the job of this run; not requeued", flush=True)
            return None
        if environment.cluster == "slurm":
            against = slurm.reason_against_requeue(job.job_id)
        else:
            # On one's own machine nobody pre-empts: only the time limit, which has a signal of its own, is no wish.
            against = "" if self.received == f"SIG{environment.USR_SIG}" or job.wish else f"it got {self.received}"
        reason = decide(job, progress_mark(config), against)
        write_job_file(config[RunOptions].folder, job)
        print(f"job {job.job_id}: {job.note}", flush=True)
        return None if reason else DelayedSubmission(MainTask(arguments_of_restart(self.arguments), self.directory))

    def _note_failure(self, code: int) -> str:
        """What to say of a main.py that failed; noted for ``launch status`` by task 0."""
        workdir = parse_config(self.arguments)[RunOptions].folder
        reason = f"main.py failed with exit code {code}; `launch logs` shows what it said"
        job, environment = read_job_file(workdir), JobEnvironment()
        if environment.global_rank == 0 and job is not None and job.job_id == environment.job_id:
            job.note = reason
            write_job_file(workdir, job)
        return reason

    def _run(self) -> int:
        earlier = {number: signal.getsignal(number) for number in STOP_SIGNALS}

        def forward(number: int, _frame: FrameType | None) -> None:
            self.received = self.received or signal.Signals(number).name
            if self._process is not None and self._process.poll() is None:
                self._process.send_signal(signal.SIGTERM)

        for number in STOP_SIGNALS:
            signal.signal(number, forward)
        try:
            self._process = subprocess.Popen([sys.executable, str(MAIN), *self.arguments], cwd=self.directory)
            if self.received:  # it came before there was anything to hand it on to
                self._process.send_signal(signal.SIGTERM)
            return self._process.wait()
        finally:
            self._process = None
            for number, handler in earlier.items():
                signal.signal(number, handler)
