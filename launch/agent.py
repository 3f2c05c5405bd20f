"""One agent on each node starts the ranks, watches them, and ends all of them when one goes away."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO

from launch.reports import FOLDER_VARIABLE, read_reports
from launch.topology import Topology
from util.config import Config
from util.errors import EXIT_FAILED, EXIT_FINISHED, EXIT_PREEMPTED, EXIT_USAGE, UsageError
from util.progress import TERMINAL_VARIABLE
from util.run_file import update_run_file
from util.stop import STOP_SIGNALS

AGENT_VARIABLE = "SCOREFLEET_AGENT"
LISTEN_VARIABLE = "SCOREFLEET_LISTEN_DESCRIPTOR"
POLL_SECONDS = 0.05
FAILURE_GRACE_SECONDS = 4.0
"""How long the other ranks may take to notice that one failed (and to finish a snapshot) before they are killed."""


@dataclass
class _Rank:
    number: int
    process: subprocess.Popen[bytes]
    log: Path


class Agent:
    """Runs one command as the ranks of this node.

    Args:
        command: the program and its arguments, the same for every rank.
        topology: of the run.
        config: names the run's folder (log files go to ``logs`` in it, ``run.json`` gets the reason of a failure) and
            how long ranks may take to stop.

    Raises:
        UsageError: there is no folder for the run.
    """

    def __init__(self, command: Sequence[str], topology: Topology, config: Config) -> None:
        self.command = list(command)
        self.topology = topology
        self.workdir = config.workdir
        self.grace_seconds = config.launch.grace_seconds
        if not config.run.workdir:
            raise UsageError("--workdir is missing: give the folder for (or of) the run")
        if config.run.mode != "train" and not self.workdir.is_dir():
            raise UsageError(f"--mode {config.run.mode}: {self.workdir} is no folder; --workdir names an earlier run")
        self.reports = Path(tempfile.mkdtemp(prefix="scorefleet-"))
        self.ranks: list[_Rank] = []
        self.stop_time: float | None = None
        self.relay: threading.Thread | None = None

    def run(self) -> int:
        """Start the ranks and return the exit code of the run: 0, 1, 2 or 75."""
        earlier = {number: signal.signal(number, self._forward) for number in STOP_SIGNALS}
        try:
            self._start()
            return self._watch()
        finally:
            self._kill()
            for number, handler in earlier.items():
                signal.signal(number, handler)
            shutil.rmtree(self.reports, ignore_errors=True)

    def _start(self) -> None:
        topology = self.topology
        listener, port = None, topology.master_port
        if topology.node_rank == 0:
            listener = _listen(topology.master_address, port)
            port = listener.getsockname()[1]
        logs = self.workdir / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        for local_rank in range(topology.ranks_per_node):
            number = topology.node_rank * topology.ranks_per_node + local_rank
            environment = {
                **os.environ,
                "RANK": str(number),
                "LOCAL_RANK": str(local_rank),
                "WORLD_SIZE": str(topology.world_size),
                "LOCAL_WORLD_SIZE": str(topology.ranks_per_node),
                "MASTER_ADDR": topology.master_address,
                "MASTER_PORT": str(port),
                "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, _cores() // topology.ranks_per_node))),
                "PYTHONUNBUFFERED": "1",
                AGENT_VARIABLE: str(os.getpid()),
                FOLDER_VARIABLE: str(self.reports),
            }
            descriptors: tuple[int, ...] = ()
            # Rank 0 takes over the listening socket, so no other process can take the port in between.
            if number == 0 and listener is not None:
                descriptors = (listener.fileno(),)
                environment[LISTEN_VARIABLE] = str(listener.fileno())
            if number == 0 and sys.stderr.isatty():
                environment[TERMINAL_VARIABLE] = str(shutil.get_terminal_size().columns)
            log = logs / f"rank_{number:04d}.log"
            with log.open("ab") as output:
                process = subprocess.Popen(
                    self.command,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE if number == 0 else output,
                    stderr=subprocess.STDOUT,
                    pass_fds=descriptors,
                    start_new_session=True,  # its data-loader processes can be ended with it
                )
            self.ranks.append(_Rank(number, process, log))
            if number == 0:
                assert process.stdout is not None
                self.relay = threading.Thread(target=_relay, args=(process.stdout, log), daemon=True)
                self.relay.start()
        if listener is not None:
            listener.close()

    def _watch(self) -> int:
        """Wait for the ranks; the run's exit code."""
        deadline = None
        while any(rank.process.poll() is None for rank in self.ranks):
            failed = [rank for rank in self.ranks if _failed(rank.process.returncode)]
            if failed and deadline is None:
                deadline = time.monotonic() + FAILURE_GRACE_SECONDS
            if deadline is not None and time.monotonic() > deadline:
                break
            if self.stop_time is not None and time.monotonic() > self.stop_time + self.grace_seconds:
                self._show(f"ranks did not stop within {self.grace_seconds:g} s and are killed", "stop took too long")
                return EXIT_FAILED
            time.sleep(POLL_SECONDS)
        failed = [rank for rank in self.ranks if _failed(rank.process.poll())]
        stuck = self._kill()
        if self.relay is not None:
            self.relay.join(timeout=2.0)
        if not failed:
            codes = {rank.process.returncode for rank in self.ranks}
            return EXIT_PREEMPTED if EXIT_PREEMPTED in codes else EXIT_FINISHED
        return self._explain(failed, stuck)

    def _explain(self, failed: list[_Rank], stuck: set[int]) -> int:
        """Show the cause of a failure; the exit code."""
        host = socket.gethostname()
        reports = read_reports(self.reports)
        killed = [rank for rank in failed if rank.process.returncode < 0 and rank.number not in stuck]
        if killed:
            names = signal.Signals(-killed[0].process.returncode).name
            reason = f"rank {killed[0].number} on {host} was killed by {names}; its log is {killed[0].log}"
            self._show(reason, reason)
        elif reports:
            self._show(reports[0].text(), f"rank {reports[0].rank} on {reports[0].host}: {reports[0].message}")
            return EXIT_USAGE if reports[0].kind == "usage" else EXIT_FAILED
        else:
            first = failed[0]
            reason = f"rank {first.number} on {host} exited with {first.process.returncode}; its log is {first.log}"
            self._show(reason, reason)
        return EXIT_FAILED

    def _show(self, text: str, reason: str) -> None:
        print(text, file=sys.stderr, flush=True)
        with contextlib.suppress(OSError):  # a full disk must not hide the message
            update_run_file(self.workdir, state="failed", exit_reason=reason)

    def _forward(self, number: int, _frame: FrameType | None) -> None:
        """Hand a stop signal on to every rank; a second Ctrl-C kills."""
        if number == signal.SIGINT and self.stop_time is not None:
            self._kill()
            return
        if self.stop_time is None:
            self.stop_time = time.monotonic()
        for rank in self.ranks:
            if rank.process.poll() is None:
                rank.process.send_signal(signal.SIGTERM if number == signal.SIGINT else number)

    def _kill(self) -> set[int]:
        """End what still runs, data-loader processes included; the ranks that had to be killed."""
        stuck = {rank.number for rank in self.ranks if rank.process.poll() is None}
        for rank in self.ranks:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(rank.process.pid, signal.SIGKILL)
        for rank in self.ranks:
            rank.process.wait()
        return stuck


def _listen(address: str, port: int) -> socket.socket:
    try:
        return socket.create_server((address, port))
    except OSError as error:
        raise UsageError(f"--master_address {address} --master_port {port}: {error.strerror}; choose others") from None


def _failed(code: int | None) -> bool:
    return code is not None and code not in (EXIT_FINISHED, EXIT_PREEMPTED)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _relay(stream: IO[bytes], log: Path) -> None:
    """Copy rank 0's output to the console and to its log."""
    console = sys.stderr.buffer
    with log.open("ab") as file:
        while block := os.read(stream.fileno(), 1 << 16):
            with contextlib.suppress(OSError):  # a closed console or a full disk must not stop the run
                file.write(block)
                file.flush()
            with contextlib.suppress(OSError):
                console.write(block)
                console.flush()
