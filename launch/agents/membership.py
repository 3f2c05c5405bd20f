"""An agent's side of its connection to agent 0."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable
from typing import Any

from launch.addresses import LOOPBACK, interface_of, listen, reachable_address
from launch.agents.coordinator import BEAT_SECONDS, PAUSE_SECONDS, Coordinator
from launch.agents.group import Limits, ended_message
from launch.agents.messages import Connection, ConnectionLost, Message
from launch.options import LaunchOptions
from launch.places.topology import Topology
from launch.waiting import Waiting
from util.errors import EXIT_PREEMPTED, Preempted, RunFailed, UsageError

CONNECT_SECONDS = 2.0
ANSWER_SECONDS = 5.0
RETRY_SECONDS = 0.5


class Membership:
    """This agent among the agents of the run. Agent 0 runs the coordinator in a thread beside.

    Args:
        topology: of the run.
        options: for the time-outs.
        fingerprint: what has to be the same on all nodes.
        known: called with True before another agent may hear of this one, so that from then on a stop signal has to
            be told to it; with False when none has.
        stop_requested: polled while waiting for agent 0 to answer.

    Raises:
        UsageError: agent 0 cannot listen where it should; the nodes do not fit together.
        RunFailed: agent 0 was not found in time.
        Preempted: this agent was asked to stop before it found agent 0.
    """

    def __init__(
        self,
        topology: Topology,
        options: LaunchOptions,
        fingerprint: dict[str, str],
        known: Callable[[bool], None],
        stop_requested: Callable[[], bool],
    ) -> None:
        self.topology = topology
        self.options = options
        self.coordinator: Coordinator | None = None
        self._known = known
        self._stop_requested = stop_requested
        self._registration = {
            "run_id": topology.run_id,
            "agent_rank": topology.agent_rank,
            "n_agents": topology.n_agents,
            "place": topology.place,
            "host": socket.gethostname(),
            "n_ranks": topology.n_ranks,
            "fingerprint": fingerprint,
        }
        self._connection = self._coordinate() if topology.agent_rank == 0 else self._find()
        self._heard = self._polled = time.monotonic()
        self._beaten = 0.0

    def poll(self) -> list[Message]:
        """What agent 0 has said, heartbeats left out; and a heartbeat to it when one is due.

        Raises:
            ConnectionLost: agent 0 has gone away.
        """
        now = time.monotonic()
        if now - self._polled > PAUSE_SECONDS:
            self._heard = now  # this agent itself stood still
        self._polled = now
        if now - self._beaten >= BEAT_SECONDS:
            self._beaten = now
            # What agent 0 said last is worth more than the news that it hears nothing any more.
            with contextlib.suppress(ConnectionLost):
                self._connection.send("heartbeat")
        messages = self._connection.receive()
        if messages:
            self._heard = now
        elif now - self._heard > self.options.node_timeout:
            raise ConnectionLost(f"was not heard of for {self.options.node_timeout:g} s (--node_timeout)")
        return [message for message in messages if message["kind"] not in ("heartbeat", "welcome")]

    def say(self, kind: str, **fields: Any) -> None:
        """Send a message; that agent 0 has gone away shows in ``poll``."""
        with contextlib.suppress(ConnectionLost):
            self._connection.send(kind, **fields)

    def network_interface(self, one_host: bool) -> str | None:
        """The interface through which the ranks of this node reach those of the others."""
        if self.coordinator is not None:
            address = self.coordinator.outward_address
        else:
            address = str(self._connection.stream.getsockname()[0])
        if address.startswith("127.") and not one_host:
            address = reachable_address()  # a host's own name often stands for its loopback address
        return interface_of(address)

    def close(self, patience_seconds: float) -> None:
        """Leave; agent 0 waits a little, so long at most, until every other agent has left."""
        self._connection.close()
        if self.coordinator is not None:
            self.coordinator.join(timeout=patience_seconds)

    def _coordinate(self) -> Connection:
        """Start the coordinator, and connect to it within this process."""
        topology, options = self.topology, self.options
        listener = topology.listener
        if topology.n_agents == 1:
            if listener is not None:
                listener.close()
            listener = None
        elif listener is None:
            try:
                listener = self._listen()
            except OSError as error:
                raise self._cannot_listen(error) from None
        own, other = (Connection(end) for end in socket.socketpair())
        port = topology.master_ports[0] if topology.n_agents == 1 else 0
        limits = Limits(options.rendezvous_timeout, options.node_timeout, options.max_restarts)
        self.coordinator = Coordinator(
            topology.n_agents, topology.run_id, limits, listener, other, (topology.listen_address, port)
        )
        self._known(True)
        self.coordinator.start()
        own.send("register", **self._registration)
        return own

    def _listen(self) -> socket.socket:
        error = OSError()
        for port in self.topology.master_ports:
            try:
                return listen(self.topology.listen_address, port)
            except OSError as problem:
                error = problem
        raise error

    def _cannot_listen(self, error: OSError) -> UsageError:
        """Why agent 0 cannot listen. Another agent 0 that does, where this one should, hears of it too."""
        ports = ", ".join(map(str, self.topology.master_ports))
        address = self.topology.master_address
        for port in self.topology.master_ports:
            try:
                self._register(address, port).close()
            except (OSError, ConnectionLost):
                continue
            except UsageError as refusal:
                return refusal
        return UsageError(
            f"{self.topology.place} cannot listen at --master_address {address} --master_port {ports}: "
            f"{error.strerror or error}; the address has to be one of node 0's and the port a free one"
        )

    def _find(self) -> Connection:
        """Connect to agent 0, trying for as long as it may take to start."""
        waiting = Waiting(self.options.rendezvous_timeout, self.topology.went_by)
        problem = "no answer"
        where = f"{self.topology.master_address}:{'/'.join(map(str, self.topology.master_ports))}"
        while waiting.remaining:
            for port in self.topology.master_ports:
                try:
                    return self._register(self.topology.master_address, port)
                except (OSError, ConnectionLost) as error:
                    problem = getattr(error, "strerror", None) or str(error) or "no answer"
            waiting.remind(f"{self.topology.place} waits for node 0 at {where}: {problem}")
            time.sleep(min(RETRY_SECONDS, waiting.remaining))
        raise RunFailed(
            waiting.line(
                f"{self.topology.place} did not find node 0 at {where} within {waiting.seconds:g} s "
                f"(--rendezvous_timeout): {problem}; check --master_address and --master_port, that node 0 runs, and "
                "that no firewall is between them"
            )
        )

    def _register(self, address: str, port: int) -> Connection:
        """Connect and register.

        Raises:
            UsageError: agent 0 refuses, and ends the run, because this agent does not fit.
            Preempted: this agent was asked to stop while it waited for the answer.
            ConnectionLost, OSError: nobody, or somebody else, is there.
        """
        connection = Connection(socket.create_connection((address or LOOPBACK, port), timeout=CONNECT_SECONDS))
        try:
            self._known(True)
            connection.send("register", **self._registration)
            deadline = time.monotonic() + ANSWER_SECONDS
            while time.monotonic() < deadline:
                if self._stop_requested():
                    connection.send("ended", **ended_message(EXIT_PREEMPTED, None))
                    raise Preempted("stopped before the nodes had met")
                # Only the first message is looked at here; those behind it stay for poll.
                message = connection.receive_one()
                if message is None:
                    time.sleep(0.01)
                elif message["kind"] == "welcome":
                    return connection
                elif message["kind"] == "refused" and message.get("ends_run"):
                    raise UsageError(str(message.get("reason")))
                else:
                    raise ConnectionLost(str(message.get("reason", "something else answers there")))
            raise ConnectionLost("something is there that does not answer as node 0 does")
        except BaseException as error:
            connection.close()
            if isinstance(error, (ConnectionLost, OSError)):
                self._known(False)
            raise
