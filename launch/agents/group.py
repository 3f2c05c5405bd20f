"""What agent 0 knows of all agents, and what it decides for them. No sockets and no clock: both are handed in."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

from launch.agents.fingerprint import difference
from launch.agents.messages import Message
from launch.agents.reports import FailureReport, report_from
from launch.waiting import REMINDER_SECONDS
from util.errors import EXIT_FAILED, EXIT_FINISHED, EXIT_PREEMPTED

FAILURE_GRACE_SECONDS = 4.0
"""How long ranks may take to notice that one of them went away (and to finish a snapshot) before they are killed."""
ANSWER_SECONDS = 4.0
"""How long after that an agent may take to say what became of its ranks."""

Phase = Literal["gathering", "running", "ending", "over"]


class Limits(NamedTuple):
    """Bounds on waiting, in seconds, and on restarts."""

    rendezvous: float
    node: float
    max_restarts: int


@dataclass
class Member:
    """One agent, as it registered, and what it said last."""

    place: str
    host: str
    n_ranks: int
    fingerprint: dict[str, str]
    heard: float
    ended: bool = False
    gone: bool = False
    code: int = EXIT_FINISHED
    failure: FailureReport | None = None


class Refused(Exception):
    """An agent cannot take part. The text says why; the others go on without it."""


@dataclass
class Group:
    """The agents of a run.

    Attributes:
        n_agents: how many there have to be.
        run_id: what all of them have to know.
        limits: see there.
        send: (agent_rank, kind, fields) sends a message to an agent.
        open_port: opens the port at which the ranks will meet, and returns its number.
        started: when waiting began.
    """

    n_agents: int
    run_id: str
    limits: Limits
    send: Callable[[int, str, dict[str, Any]], None]
    open_port: Callable[[], int]
    started: float
    phase: Phase = "gathering"
    members: dict[int, Member] = field(default_factory=dict)
    n_restarts: int = 0
    deadline: float = 0.0
    reminded: float = 0.0

    def admit(self, message: Message, now: float) -> int:
        """Take a registering agent in; its rank. Two that do not fit together end the run on all of them.

        When messages can be sent to it, call ``start_if_complete``.

        Raises:
            Refused: it does not belong here.
        """
        try:
            agent_rank, n_agents = int(message["agent_rank"]), int(message["n_agents"])
            member = Member(
                str(message["place"]), str(message["host"]), int(message["n_ranks"]), dict(message["fingerprint"]), now
            )
            run_id = str(message["run_id"])
        except (KeyError, TypeError, ValueError):
            raise Refused("it does not say who it is") from None
        first = self.members.get(0, member)
        if run_id != self.run_id:
            raise Refused(f"{first.place} is waiting for the nodes of another run")
        if self.phase != "gathering":
            raise Refused(f"the run of {first.place} has started already, without {member.place}")
        problem = ""
        if n_agents != self.n_agents:
            problem = f"{member.place} was started as one of {n_agents}, {first.place} as one of {self.n_agents}"
            problem += "; give the same --n_nodes on every node"
        elif not 0 <= agent_rank < self.n_agents:
            problem = f"{member.place}: --node_rank {agent_rank} with {self.n_agents} nodes; node ranks count from 0"
        elif agent_rank in self.members:
            earlier = self.members[agent_rank].place
            problem = f"both {earlier} and {member.place} were given rank {agent_rank} among the nodes; "
            problem += "give each node its own --node_rank"
        elif unlike := difference(first.fingerprint, first.place, member.fingerprint, member.place):
            problem = f"{unlike}; start every node with the same configuration and code"
        if problem:
            self._decide_usage(problem)
            raise Refused(problem)
        self.members[agent_rank] = member
        return agent_rank

    def start_if_complete(self, now: float) -> None:
        """Start the ranks when every agent is there."""
        if self.phase == "gathering" and len(self.members) == self.n_agents:
            self._start(now)

    def handle(self, agent_rank: int, message: Message, now: float) -> None:
        """A message of an agent that was taken in."""
        member = self.members[agent_rank]
        member.heard = now
        kind = message["kind"]
        if kind == "ending" and self.phase == "running":
            self._end(now)
        elif kind == "ended" and not member.ended:
            member.ended = True
            member.code = int(message["code"])
            if message["failure"] is not None:
                member.failure = report_from(message["failure"])
            if self.phase == "gathering":
                self._conclude(now)  # it was told to stop before the others came
            elif self.phase == "running" and (member.failure is not None or member.code != EXIT_FINISHED):
                self._end(now)
            self._conclude_if_ended(now)

    def lost(self, agent_rank: int, reason: str, now: float) -> None:
        """The connection to an agent has ended."""
        member = self.members[agent_rank]
        if self.phase == "gathering":
            del self.members[agent_rank]  # it may come back: nothing has begun
        elif self.phase != "over" and not member.gone:
            self._gone(member, f"went away: {reason}", now)

    def tick(self, now: float) -> None:
        """Look at the clock."""
        if self.phase == "gathering":
            missing = ", ".join(str(rank) for rank in range(self.n_agents) if rank not in self.members)
            if now > max(self.started, self.reminded) + REMINDER_SECONDS:
                self.reminded = now
                if 0 in self.members:
                    what = f"number {missing} of {self.n_agents} nodes (or processes)"
                    self.send(0, "waiting", {"missing": what})
            if now > self.started + self.limits.rendezvous:
                present = ", ".join(member.place for _, member in sorted(self.members.items()))
                self._decide(
                    EXIT_FAILED,
                    f"of {self.n_agents} nodes (or processes) number {missing} did not come within "
                    f"{self.limits.rendezvous:g} s (--rendezvous_timeout); here: {present}",
                )
            return
        if self.phase == "over":
            return
        for member in self.members.values():
            if not member.gone and now > member.heard + self.limits.node:
                self._gone(member, f"was not heard of for {self.limits.node:g} s (--node_timeout)", now)
        if self.phase == "ending" and now > self.deadline:
            for member in self.members.values():
                if not member.ended:
                    self._gone(member, "did not say what became of its ranks", now)

    def forgive(self, now: float) -> None:
        """Agent 0 itself stood still: what it did not hear in this time says nothing."""
        for member in self.members.values():
            member.heard = now
        self.deadline = max(self.deadline, now + ANSWER_SECONDS)

    def _start(self, now: float, cause: str = "") -> None:
        try:
            port = self.open_port()
        except OSError as error:
            return self._decide_usage(
                f"{self.members[0].place} cannot open a port for its ranks ({error.strerror}); choose another "
                "--master_address or --master_port"
            )
        world_size = sum(member.n_ranks for member in self.members.values())
        one_host = len({member.host for member in self.members.values()}) == 1
        self.phase = "running"
        first_rank = 0
        for agent_rank, member in sorted(self.members.items()):
            member.ended, member.failure, member.code, member.heard = False, None, EXIT_FINISHED, now
            start = {"first_rank": first_rank, "world_size": world_size, "port": port, "one_host": one_host}
            self.send(agent_rank, "start", {**start, "n_restarts": self.n_restarts, "cause": cause})
            first_rank += member.n_ranks
        return None

    def _gone(self, member: Member, reason: str, now: float) -> None:
        if not member.ended:
            member.failure = FailureReport(-1, member.place, time.time(), "node", reason)
        member.gone = member.ended = True
        self._end(now)
        self._conclude_if_ended(now)

    def _end(self, now: float) -> None:
        if self.phase == "running":
            self.phase = "ending"
            self.deadline = now + FAILURE_GRACE_SECONDS + ANSWER_SECONDS
            for agent_rank in self.members:
                self.send(agent_rank, "ending", {})

    def _conclude_if_ended(self, now: float) -> None:
        if self.phase in ("running", "ending") and all(member.ended for member in self.members.values()):
            self._conclude(now)

    def _conclude(self, now: float) -> None:
        """Every agent has said what became of its ranks: what is the outcome?"""
        members = self.members.values()
        failures = sorted((member.failure for member in members if member.failure), key=FailureReport.order)
        stopped = any(member.code == EXIT_PREEMPTED for member in members)
        if stopped and all(failure.consequence for failure in failures):
            return self._decide(EXIT_PREEMPTED, "")
        if not failures:
            return self._decide(EXIT_FINISHED, "")
        cause = failures[0]
        hopeless = cause.kind == "usage" or any(member.gone for member in members) or stopped
        if not hopeless and self.n_restarts < self.limits.max_restarts:
            self.n_restarts += 1
            return self._start(now, cause.text())
        return self._decide(cause.exit_code, cause.line(), cause.traceback)

    def _decide_usage(self, problem: str) -> None:
        cause = FailureReport(-1, "", time.time(), "usage", problem)
        self._decide(cause.exit_code, cause.line())

    def _decide(self, code: int, line: str, traceback: str = "") -> None:
        self.phase = "over"
        for agent_rank, member in self.members.items():
            if not member.gone:
                self.send(agent_rank, "verdict", {"code": code, "line": line, "traceback": traceback})


def ended_message(code: int, failure: FailureReport | None) -> dict[str, Any]:
    """The fields of an agent's "ended": the exit code of its ranks that ended well, and its failure if it had one."""
    return {"code": code, "failure": None if failure is None else asdict(failure)}
