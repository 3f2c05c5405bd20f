"""One agent on each node (or for each rank) starts ranks, watches them, and ends all of them when one goes away."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from launch.agents.apart import run_apart
from launch.agents.coordinator import PAUSE_SECONDS
from launch.agents.group import FAILURE_GRACE_SECONDS, ended_message
from launch.agents.membership import Membership
from launch.agents.messages import ConnectionLost, Message
from launch.agents.ranks import Ranks, Start
from launch.agents.reports import FailureReport
from launch.agents.restart import RESTART_VARIABLE, STARTER_VARIABLE
from launch.options import LaunchOptions
from launch.places.topology import Topology
from launch.waiting import Waiting
from util.errors import EXIT_FAILED, EXIT_PREEMPTED, EXIT_USAGE, Preempted, RunFailed, UsageError
from util.files import check_usable
from util.lock import clear
from util.overwritten import bring_back
from util.run_file import read_run_file, update_run_file
from util.run_options import RunOptions
from util.stop import leave_at_stop_signals, on_stop_signal

POLL_SECONDS = 0.05
VERDICT_SECONDS = 1.0
"""How long an agent that was told to stop while nodes gather waits for agent 0 to agree."""
FAREWELL_SECONDS = 10.0


class Agent:
    """Runs one command as the ranks of this agent, together with the agents on the other nodes.

    Args:
        command: the program and its arguments, the same for every rank.
        topology: of the run.
        options: all bounds on waiting.
        run: names the run's folder: log files go to ``logs`` in it, ``run.json`` gets the reason of a failure.
        fingerprint: what has to be the same on all nodes.

    Raises:
        UsageError: there is no folder for the run, or none that can be used.
    """

    def __init__(
        self,
        command: Sequence[str],
        topology: Topology,
        options: LaunchOptions,
        run: RunOptions,
        fingerprint: dict[str, str],
    ) -> None:
        self.command = list(command)
        self.topology = topology
        self.options = options
        self.workdir = run.folder
        self.fingerprint = fingerprint
        self._notes_end = run.trains
        self._name = os.environ.get(STARTER_VARIABLE)
        self._began_before = read_run_file(self.workdir).get("started")
        if not run.workdir:
            raise UsageError("--workdir is missing: give the folder for (or of) the run")
        if run.mode in ("continue", "eval", "sample") and not run.follow and not run.folder.is_dir():
            raise UsageError(f"--mode {run.mode}: {run.folder} is no folder; --workdir names an earlier run")
        check_usable(run.folder)
        self.ranks: Ranks | None = None
        self._waiting: Waiting | None = None
        """While nodes gather."""
        self._stop_signal = 0
        self._stop_time: float | None = None
        self._ending_time: float | None = None
        """When the ranks that still run are to be killed, because one of them, on some node, went away."""

    def run(self) -> int:
        """Start the ranks and return the exit code of the run, the same on every node: 0, 1, 2 or 75."""
        return run_apart(self._run) if self.topology.impatient else self._run()

    def _run(self) -> int:
        self._scratch: Path | None = None
        self._membership: Membership | None = None
        self._waiting = Waiting(self.options.rendezvous_timeout, self.topology.went_by)
        leave_at_stop_signals()
        try:
            self._membership = Membership(
                self.topology, self.options, self.fingerprint, self._be_known, lambda: self._stop_time is not None
            )
            self._scratch = Path(tempfile.mkdtemp(prefix="scorefleet-"))
            return self._take_part(self._membership)
        except Preempted:
            return EXIT_PREEMPTED
        except RunFailed as error:
            self._show(f"{error}\n")
            self._note("failed", str(error))
            return EXIT_FAILED
        except UsageError as error:
            self._show(f"error: {error}\n")
            return EXIT_USAGE
        finally:
            if self.ranks is not None:
                self.ranks.kill()
            clear(self.workdir)
            if self._membership is not None:
                alone = self._waiting is not None and self._stop_time is not None
                self._membership.close(VERDICT_SECONDS if alone else FAREWELL_SECONDS)
            if self._scratch is not None:
                shutil.rmtree(self._scratch, ignore_errors=True)

    def _take_part(self, membership: Membership) -> int:
        """Do what agent 0 says until it gives a verdict; the exit code.

        Raises:
            RunFailed: agent 0 has gone away.
            Preempted: this agent was asked to stop while nodes gather, and agent 0 does not answer.
        """
        last, told = time.monotonic(), 0.0
        while True:
            if self._stop_time is not None and self.ranks is None:
                if not told:
                    told = time.monotonic()
                    self._say_stopped(membership)
                elif self._waiting is not None and time.monotonic() > told + VERDICT_SECONDS:
                    raise Preempted("stopped before the nodes had met")
            try:
                messages = membership.poll()
            except ConnectionLost as lost:
                where = self.topology.master_address
                raise RunFailed(f"node 0 ({where}) {_sentence(lost)}; the run ends on {self.topology.place}") from None
            for message in messages:
                if message["kind"] == "verdict":
                    return self._obey(message)
                if message["kind"] == "waiting":
                    assert self._waiting is not None
                    self._waiting.say(f"{self.topology.place} waits for {message['missing']}")
                elif message["kind"] == "start":
                    self._waiting = None
                    self._start(membership, message)
                elif message["kind"] == "ending":
                    self._set_ending()
            now = time.monotonic()
            if self.ranks is not None:
                if now - last > PAUSE_SECONDS:
                    self.ranks.forgive()
                self._watch(membership, self.ranks, now)
            last = now
            time.sleep(POLL_SECONDS)

    def _start(self, membership: Membership, message: Message) -> None:
        if message["cause"]:
            self._show(f"{message['cause']}\nrestart {message['n_restarts']} of {self.options.max_restarts}\n")
        listener = membership.coordinator.take_rendezvous_socket() if membership.coordinator is not None else None
        if self._stop_time is not None:
            if listener is not None:
                listener.close()
            self._say_stopped(membership)
            return
        self._ending_time = None
        assert self._scratch is not None
        start = Start(
            first_rank=message["first_rank"],
            world_size=message["world_size"],
            address=self.topology.master_address,
            port=message["port"],
            interface=membership.network_interface(message["one_host"]),
            n_restarts=message["n_restarts"],
        )
        try:
            self.ranks = Ranks(
                self.command, self.topology, start, self.workdir / "logs", self._scratch / "reports", listener
            )
        except OSError as error:
            reason = f"cannot start its ranks: {error.strerror or error} ({error.filename or self.command[0]})"
            failure = FailureReport(-1, self.topology.place, time.time(), "node", reason)
            membership.say("ended", **ended_message(EXIT_FAILED, failure))

    def _watch(self, membership: Membership, ranks: Ranks, now: float) -> None:
        grace = self.options.grace_seconds
        ranks.listen(self.options.rank_timeout)
        if self._stop_time is not None and now > self._stop_time + grace:
            ranks.end_as_hung(f"did not stop within {grace:g} s (--grace_seconds)")
        if ranks.leaving() and self._ending_time is None:
            self._set_ending()
            membership.say("ending")
        if ranks.running() and (self._ending_time is None or now < self._ending_time):
            return
        code, failure = ranks.outcome(ranks.kill())
        self.ranks = None
        membership.say("ended", **ended_message(code, failure))

    def _set_ending(self) -> None:
        self._ending_time = self._ending_time or time.monotonic() + FAILURE_GRACE_SECONDS

    def _say_stopped(self, membership: Membership) -> None:
        membership.say("ended", **ended_message(EXIT_PREEMPTED, None))

    def _obey(self, verdict: Message) -> int:
        """End the run as agent 0 says."""
        if self.ranks is not None:
            self.ranks.kill()
        main = self.topology.agent_rank == 0
        if verdict["line"]:
            line = verdict["line"]
            if self._waiting is not None and verdict["code"] == EXIT_FAILED:
                line = self._waiting.line(line)
            self._show((verdict["traceback"] if main else "") + line + "\n")
        if main and verdict["code"] == EXIT_FAILED:
            self._note("failed", verdict["line"])
        if main and verdict["code"] in (EXIT_FAILED, EXIT_USAGE):
            self._bring_back()
        elif main and verdict["code"] == EXIT_PREEMPTED and read_run_file(self.workdir).get("state") != "preempted":
            self._note(
                "preempted",
                f"{signal.Signals(self._stop_signal).name if self._stop_signal else 'stopped'} at the start",
            )
        return int(verdict["code"])

    def _show(self, text: str) -> None:
        with contextlib.suppress(OSError):  # the console may be gone
            print(text, end="", file=sys.stderr, flush=True)

    def _note(self, state: str, reason: str) -> None:
        """Put the end of a training run into run.json, if the run has begun."""
        run = read_run_file(self.workdir)
        ours = self._name in run.get("starters", {}).get(RESTART_VARIABLE, ())  # and not of another command
        if self._notes_end and ours and run.get("started") != self._began_before:
            with contextlib.suppress(OSError):  # a full disk must not hide the message
                update_run_file(self.workdir, state=state, exit_reason=reason)

    def _bring_back(self) -> None:
        """Have the run back that ours was to overwrite and has not: it ends without a snapshot."""
        starters = read_run_file(self.workdir).get("starters", {})
        if self._notes_end and self._name in starters.get(RESTART_VARIABLE, ()):
            with contextlib.suppress(OSError, ValueError):
                if bring_back(self.workdir):
                    self._show(f"{self.workdir}: the run that was to be overwritten is back\n")

    def _be_known(self, known: bool) -> None:
        """From when on a stop signal has to be told to other agents, and is not just the end of this process.

        Raises:
            Preempted: it came meanwhile.
        """
        if known:
            on_stop_signal(self._stop)
            return
        leave_at_stop_signals()
        if self._stop_time is not None:
            raise Preempted("stopped before the nodes had met")

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        """Hand a stop signal on to every rank; a second Ctrl-C kills."""
        if number == signal.SIGINT and self._stop_time is not None and self.ranks is not None:
            self.ranks.end_as_hung("did not wait for a second Ctrl-C")
            return
        if self._stop_time is None:
            self._stop_time, self._stop_signal = time.monotonic(), number
        if self.ranks is not None:
            self.ranks.signal(number)


def _sentence(lost: ConnectionLost) -> str:
    text = str(lost)
    return text if text.startswith("was ") else f"went away: {text}"
