"""What submitit runs on each node of a job: main.py, until it ends or the job has to stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from launch.agents.restart import RESTART_VARIABLE, STARTER_VARIABLE
from launch.command import MAIN, resolve
from launch.jobs.job_file import read_job_file, write_job_file
from launch.jobs.requeue import stopped
from util.errors import EXIT_FINISHED, EXIT_PREEMPTED, RunFailed
from util.stop import STOP_SIGNALS, on_stop_signal


@dataclass
class MainTask:
    """A callable that submitit can start again.

    Attributes:
        arguments: of main.py.
        directory: what main.py is started in.
        workdir: of the run.
    """

    arguments: list[str]
    directory: str
    workdir: Path

    def __call__(self) -> None:
        """Run main.py on this node; where it stopped with a snapshot, task 0 sees to another start of the job.

        Raises:
            RunFailed: main.py failed, or the job does not start again; submitit keeps the message.
            SystemExit: the job starts again.
        """
        from submitit import JobEnvironment

        environment = JobEnvironment()
        job, main = read_job_file(self.workdir, environment.job_id), environment.global_rank == 0
        code, received = self._run(environment.job_id, 0 if job is None else job.requeues)
        if code == EXIT_FINISHED:
            return
        if code == EXIT_PREEMPTED or (received and -code in STOP_SIGNALS):  # which came before main.py took any
            again = stopped(resolve(self.arguments), environment.job_id, received) if main else EXIT_PREEMPTED
            if again is not None:
                # No result is left behind: the next start of the job would take it for its own.
                raise SystemExit(again)
            raise RunFailed("the run has stopped, and its job does not start again")
        reason = f"main.py failed with exit code {code}; `launch logs` shows what it said"
        if main and (job := read_job_file(self.workdir, environment.job_id)) is not None:
            write_job_file(self.workdir, replace(job, note=reason))
        raise RunFailed(reason)

    def _run(self, job_id: str, n_restarts: int) -> tuple[int, str]:
        """The exit code of main.py, and the name of the signal that told it to stop.

        The handlers stay: submitit's own would have the job start again without asking.
        """
        process: subprocess.Popen[bytes] | None = None
        received: list[str] = []

        def forward(number: int, _frame: FrameType | None) -> None:
            received.append(signal.Signals(number).name)
            if process is not None and process.poll() is None:
                process.send_signal(signal.SIGTERM)

        on_stop_signal(forward)
        environment = {**os.environ, RESTART_VARIABLE: str(n_restarts), STARTER_VARIABLE: f"job {job_id}"}
        process = subprocess.Popen([sys.executable, MAIN, *self.arguments], cwd=self.directory, env=environment)
        if received:  # it came before there was anything to hand it on to
            process.send_signal(signal.SIGTERM)
        return process.wait(), "".join(received[:1])
