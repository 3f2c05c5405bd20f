"""The rank processes of one agent: started, heard, ended."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from launch.agents.beat import AGENT_VARIABLE, DESCRIPTOR_VARIABLE, LOG_VARIABLE, Beat
from launch.agents.reports import FOLDER_VARIABLE, FailureReport, read_reports, report_of_exit
from launch.agents.restart import RESTART_VARIABLE
from launch.places.open_mpi import without_mpi
from launch.places.topology import Topology
from launch.places.torchrun import without_torchrun
from util.errors import EXIT_FINISHED, EXIT_PREEMPTED
from util.progress import TERMINAL_VARIABLE
from util.stop import STOP_SIGNALS

LISTEN_VARIABLE = "SCOREFLEET_LISTEN_DESCRIPTOR"
OWN_AGENT_VARIABLE = "SCOREFLEET_RANK_OF_ITS_OWN"
"""Set for a rank whose node has an agent for each rank."""
INTERFACE_VARIABLE = "GLOO_SOCKET_IFNAME"


@dataclass(frozen=True)
class Start:
    """What the ranks of one start have in common.

    Attributes:
        first_rank: rank of this agent's first one.
        world_size: ranks of all agents.
        address, port: where they meet.
        interface: the network interface for it; None leaves the choice to the libraries.
        n_restarts: how often the group was started before.
    """

    first_rank: int
    world_size: int
    address: str
    port: int
    interface: str | None
    n_restarts: int


@dataclass
class _Rank:
    number: int
    process: subprocess.Popen[bytes]
    beat: Beat
    log: Path


class Ranks:
    """The ranks that this agent started.

    Args:
        command: of every rank.
        topology: of the run.
        start: of this start.
        logs: folder for ``rank_<number>.log``.
        reports: folder where ranks leave the reason of a failure.
        listener: for rank 0, the socket at which all ranks meet; it is closed here.

    Raises:
        OSError: no process, or no log file, can be made.
    """

    def __init__(
        self,
        command: Sequence[str],
        topology: Topology,
        start: Start,
        logs: Path,
        reports: Path,
        listener: socket.socket | None,
    ) -> None:
        self.topology = topology
        self._reports = reports
        self._ranks: list[_Rank] = []
        self._relay: threading.Thread | None = None
        self._hung: dict[int, str] = {}
        try:
            shutil.rmtree(reports, ignore_errors=True)
            reports.mkdir(parents=True)
            logs.mkdir(parents=True, exist_ok=True)
            for index in range(topology.n_ranks):
                self._spawn(command, start, index, logs, listener)
        except BaseException:
            self.kill()
            raise
        finally:
            if listener is not None:
                listener.close()

    def _spawn(
        self, command: Sequence[str], start: Start, index: int, logs: Path, listener: socket.socket | None
    ) -> None:
        number = start.first_rank + index
        log = logs / f"rank_{number:04d}.log"
        ours, theirs = socket.socketpair()
        environment = self._environment(start, index)
        environment |= {DESCRIPTOR_VARIABLE: str(theirs.fileno()), LOG_VARIABLE: str(log.resolve())}
        descriptors = [theirs.fileno()]
        # Rank 0 takes over the listening socket, so no other process can take the port in between.
        if number == 0 and listener is not None:
            descriptors.append(listener.fileno())
            environment[LISTEN_VARIABLE] = str(listener.fileno())
        if number == 0 and sys.stderr.isatty():
            environment[TERMINAL_VARIABLE] = str(shutil.get_terminal_size().columns)
        with log.open("ab") as output, theirs:
            process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if number == 0 else output,
                stderr=subprocess.STDOUT,
                pass_fds=descriptors,
                start_new_session=True,  # its data-loader processes can be ended with it
            )
        self._ranks.append(_Rank(number, process, Beat(ours), log))
        if number == 0:
            assert process.stdout is not None
            self._relay = threading.Thread(target=_relay, args=(process.stdout, log), daemon=True)
            self._relay.start()

    def _environment(self, start: Start, index: int) -> dict[str, str]:
        topology = self.topology
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads = min(cores // topology.n_ranks, (os.cpu_count() or 1) // topology.local_world_size)
        environment = {
            "OMP_NUM_THREADS": str(max(1, threads)),
            # Threads that spin while they wait cost a shared machine far more than they gain (30 times, measured).
            "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
            **({INTERFACE_VARIABLE: start.interface} if start.interface else {}),
            **without_torchrun(without_mpi(dict(os.environ))),
            "RANK": str(start.first_rank + index),
            "LOCAL_RANK": str(topology.first_local_rank + index),
            "WORLD_SIZE": str(start.world_size),
            "LOCAL_WORLD_SIZE": str(topology.local_world_size),
            "MASTER_ADDR": start.address,
            "MASTER_PORT": str(start.port),
            "PYTHONUNBUFFERED": "1",
            AGENT_VARIABLE: str(os.getpid()),
            FOLDER_VARIABLE: str(self._reports),
        }
        if topology.one_rank_each:
            environment[OWN_AGENT_VARIABLE] = "1"
        if start.n_restarts:
            environment[RESTART_VARIABLE] = str(start.n_restarts)
        return environment

    def running(self) -> bool:
        return any(rank.process.poll() is None for rank in self._ranks)

    def leaving(self) -> bool:
        """Whether some rank ended, or has to be ended, before it had finished."""
        return bool(self._hung) or any(rank.process.poll() not in (None, EXIT_FINISHED) for rank in self._ranks)

    def listen(self, timeout_seconds: float) -> None:
        """Exchange signs of life; a rank that has been silent for ``timeout_seconds`` is killed as hung."""
        for rank in self._ranks:
            rank.beat.exchange()
            if rank.process.poll() is None and time.monotonic() - rank.beat.heard > timeout_seconds:
                self._end_as_hung(rank, f"gave no sign of life for {timeout_seconds:g} s (--rank_timeout)")

    def forgive(self) -> None:
        """The agent itself stood still: what it did not hear in this time says nothing."""
        for rank in self._ranks:
            rank.beat.heard = time.monotonic()

    def end_as_hung(self, reason: str) -> None:
        """Kill the ranks that still run, as failures."""
        for rank in self._ranks:
            if rank.process.poll() is None:
                self._end_as_hung(rank, reason)

    def _end_as_hung(self, rank: _Rank, reason: str) -> None:
        self._hung[rank.number] = f"{reason} and was killed; its log is {rank.log}"
        _kill_session(rank.process.pid)

    def signal(self, number: int) -> None:
        """Hand a stop signal on."""
        for rank in self._ranks:
            if rank.process.poll() is None:
                rank.process.send_signal(signal.SIGTERM if number == signal.SIGINT else number)

    def kill(self) -> set[int]:
        """End what still runs, data-loader processes included; the ranks that had to be killed."""
        stuck = {rank.number for rank in self._ranks if rank.process.poll() is None}
        for rank in self._ranks:
            _kill_session(rank.process.pid)
        for rank in self._ranks:
            rank.process.wait()
            rank.beat.close()
        if self._relay is not None:
            self._relay.join(timeout=2.0)
        return stuck

    def outcome(self, killed: set[int]) -> tuple[int, FailureReport | None]:
        """After the end: the code of the ranks that ended well, 0 or 75, and the failure that came first."""
        codes = {rank.number: rank.process.returncode for rank in self._ranks if rank.number not in killed}
        left = [number for number, code in codes.items() if code == EXIT_PREEMPTED or _stopped_at_start(code)]
        host = self.topology.place
        reports = read_reports(self._reports)
        failures = []
        for rank in self._ranks:
            if rank.number in self._hung:
                failures.append(FailureReport(rank.number, host, time.time(), "hung", self._hung[rank.number]))
            elif rank.number in codes and rank.number not in left and codes[rank.number] != EXIT_FINISHED:
                code, report = codes[rank.number], reports.get(rank.number)
                if report is None or code < 0:
                    report = report_of_exit(code, rank.number, host, rank.log)
                failures.append(report.on(host))
        first = min(failures, key=FailureReport.order, default=None)
        return EXIT_PREEMPTED if left else EXIT_FINISHED, first


def _stopped_at_start(code: int) -> bool:
    """Whether a rank was ended by a stop signal that it did not take yet: it had nothing to save."""
    return code < 0 and -code in STOP_SIGNALS


def _kill_session(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


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
