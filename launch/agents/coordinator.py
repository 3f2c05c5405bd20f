"""Agent 0's side of the connections between the agents."""

from __future__ import annotations

import contextlib
import resource
import selectors
import socket
import threading
import time
from typing import Any

from launch.addresses import LOOPBACK, listen
from launch.agents.group import Group, Limits, Refused
from launch.agents.messages import Connection, ConnectionLost, Message

POLL_SECONDS = 0.1
BEAT_SECONDS = 1.0
PAUSE_SECONDS = 2.0
"""A loop that took longer than this was itself stopped for a while."""
REGISTRATION_SECONDS = 10.0
"""How long a connection may stay open without saying who it is."""
FAREWELL_SECONDS = 5.0
SPARE_CONNECTIONS = 64


class Coordinator(threading.Thread):
    """Gathers the agents, starts them together, and ends them together.

    Args:
        n_agents: how many there have to be.
        run_id: what they all have to know; may be empty.
        limits: see there.
        listener: where agents connect; None where agent 0 is the only one. It is closed with the thread.
        own: one end of a socket pair, the other end of which is agent 0's.
        rendezvous: (address, port) at which the ranks will meet; port 0 takes a free one.
    """

    def __init__(
        self,
        n_agents: int,
        run_id: str,
        limits: Limits,
        listener: socket.socket | None,
        own: Connection,
        rendezvous: tuple[str, int],
    ) -> None:
        super().__init__(name="coordinator", daemon=True)
        self.group = Group(n_agents, run_id, limits, self._send, self._open_port, time.monotonic())
        self.rendezvous_socket: socket.socket | None = None
        self.outward_address = LOOPBACK
        self._listener = listener
        self._rendezvous = rendezvous
        self._strangers: dict[Connection, float] = {own: float("inf")}
        self._agents: dict[Connection, int] = {}
        self._connections: dict[int, Connection] = {}
        self._broken: dict[int, str] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(own, selectors.EVENT_READ, own)
        if listener is not None:
            listener.setblocking(False)
            self._selector.register(listener, selectors.EVENT_READ, None)
            _allow_files(n_agents + 4 * SPARE_CONNECTIONS)

    def take_rendezvous_socket(self) -> socket.socket:
        """The listening socket at which the ranks of this start meet, for rank 0."""
        taken, self.rendezvous_socket = self.rendezvous_socket, None
        assert taken is not None
        return taken

    def run(self) -> None:
        try:
            last = beaten = time.monotonic()
            over_since: float | None = None
            while over_since is None or (self._agents and last < over_since + FAREWELL_SECONDS):
                for key, _ in self._selector.select(POLL_SECONDS):
                    self._accept() if key.data is None else self._read(key.data)
                now = time.monotonic()
                if now - last > PAUSE_SECONDS:
                    self.group.forgive(now)
                last = now
                if now - beaten >= BEAT_SECONDS:
                    beaten = now
                    for agent_rank in list(self._agents.values()):
                        self._send(agent_rank, "heartbeat", {})
                self._flush(now)
                self.group.tick(now)
                if self.group.phase == "over" and over_since is None:
                    over_since = now
        finally:
            for connection in [*self._agents, *self._strangers]:
                connection.close()
            if self._listener is not None:
                self._listener.close()
            self._selector.close()

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            stream, _ = self._listener.accept()
        except OSError:
            return  # it has gone already, or there are too many open files
        if len(self._strangers) > self.group.n_agents + SPARE_CONNECTIONS:
            stream.close()
            return
        connection = Connection(stream)
        self._strangers[connection] = time.monotonic() + REGISTRATION_SECONDS
        self._selector.register(connection, selectors.EVENT_READ, connection)

    def _read(self, connection: Connection) -> None:
        if connection not in self._agents and connection not in self._strangers:
            return  # it was dropped since it became readable
        now = time.monotonic()
        try:
            for message in connection.receive():
                if connection in self._agents:
                    self._handle(connection, message, now)
                elif connection in self._strangers:
                    self._admit(connection, message, now)
        except ConnectionLost as lost:
            self._drop(connection, str(lost), now)

    def _handle(self, connection: Connection, message: Message, now: float) -> None:
        try:
            self.group.handle(self._agents[connection], message, now)
        except (KeyError, TypeError, ValueError):
            raise ConnectionLost("it sends no messages of an agent") from None

    def _admit(self, connection: Connection, message: Message, now: float) -> None:
        if message["kind"] != "register":
            raise ConnectionLost("it does not register")
        try:
            agent_rank = self.group.admit(message, now)
        except Refused as refusal:
            connection.send("refused", reason=str(refusal), ends_run=self.group.phase == "over")
            raise ConnectionLost("refused") from None
        del self._strangers[connection]
        self._agents[connection] = agent_rank
        self._connections[agent_rank] = connection
        if self.outward_address.startswith("127.") and connection.stream.family != socket.AF_UNIX:
            self.outward_address = str(connection.stream.getsockname()[0])
        self._send(agent_rank, "welcome", {})
        self.group.start_if_complete(now)

    def _drop(self, connection: Connection, reason: str, now: float) -> None:
        self._selector.unregister(connection)
        connection.close()
        self._strangers.pop(connection, None)
        agent_rank = self._agents.pop(connection, None)
        if agent_rank is not None:
            del self._connections[agent_rank]
            self.group.lost(agent_rank, reason, now)

    def _send(self, agent_rank: int, kind: str, fields: dict[str, Any]) -> None:
        """Queue a message; a broken connection is dealt with in the loop, not inside what the group decides."""
        try:
            if agent_rank in self._connections:
                self._connections[agent_rank].send(kind, **fields)
        except ConnectionLost as lost:
            self._broken[agent_rank] = str(lost)

    def _flush(self, now: float) -> None:
        for connection, agent_rank in list(self._agents.items()):
            try:
                connection.flush()
            except ConnectionLost as lost:
                self._broken[agent_rank] = str(lost)
            if agent_rank in self._broken:
                self._drop(connection, self._broken.pop(agent_rank), now)
        for connection, deadline in list(self._strangers.items()):
            if now > deadline:
                self._drop(connection, "it did not say who it is", now)

    def _open_port(self) -> int:
        if self.rendezvous_socket is not None:
            self.rendezvous_socket.close()
        self.rendezvous_socket = listen(*self._rendezvous)
        return int(self.rendezvous_socket.getsockname()[1])


def _allow_files(number: int) -> None:
    """Raise the limit of open files where many agents will connect."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < number and soft != resource.RLIM_INFINITY:
        wanted = number if hard == resource.RLIM_INFINITY else min(number, hard)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
