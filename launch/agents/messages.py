"""JSON lines between the agents: one object on each line, of bounded size, over sockets that never block."""

from __future__ import annotations

import contextlib
import json
import socket
from typing import Any

MAXIMUM_LINE = 1 << 16
MAXIMUM_UNSENT = 1 << 20
MAXIMUM_AT_ONCE = 100
Message = dict[str, Any]


class ConnectionLost(Exception):
    """The other side has gone away, or sends what is no message of ours. The text says which."""


class Connection:
    """One end of a connection between agents.

    Args:
        stream: a connected socket; it is made non-blocking, and closed with this object.
    """

    def __init__(self, stream: socket.socket) -> None:
        self.stream = stream
        stream.setblocking(False)
        with contextlib.suppress(OSError):  # not for a socket pair
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received = bytearray()
        self._unsent = bytearray()

    def fileno(self) -> int:
        return self.stream.fileno()

    def send(self, kind: str, **fields: Any) -> None:
        """Queue a message and send what the network takes now.

        Raises:
            ConnectionLost: the other side has gone away or takes nothing any more.
        """
        self._unsent += json.dumps({"kind": kind, **fields}).encode() + b"\n"
        self.flush()
        if len(self._unsent) > MAXIMUM_UNSENT:
            raise ConnectionLost("it takes no more messages")

    def flush(self) -> None:
        """Send what is queued, as far as the network takes it.

        Raises:
            ConnectionLost: the other side has gone away.
        """
        while self._unsent:
            try:
                sent = self.stream.send(self._unsent)
            except BlockingIOError:
                return
            except OSError as error:
                raise ConnectionLost(f"connection lost: {error.strerror}") from None
            del self._unsent[:sent]

    def receive(self) -> list[Message]:
        """Every whole message that has arrived.

        Raises:
            ConnectionLost: after the last message, when the other side has closed; or it sends no messages of ours.
        """
        messages: list[Message] = []
        while len(messages) < MAXIMUM_AT_ONCE:
            try:
                message = self.receive_one()
            except ConnectionLost:
                if messages:
                    break  # it will be said again, after these
                raise
            if message is None:
                break
            messages.append(message)
        return messages

    def receive_one(self) -> Message | None:
        """The next whole message, if it has arrived.

        Raises:
            ConnectionLost: as ``receive``.
        """
        while b"\n" not in self._received:
            if len(self._received) > MAXIMUM_LINE:
                raise ConnectionLost("it sends no messages of an agent")
            try:
                block = self.stream.recv(MAXIMUM_LINE)
            except BlockingIOError:
                return None
            except OSError as error:
                raise ConnectionLost(f"connection lost: {error.strerror}") from None
            if not block:
                raise ConnectionLost("connection closed")
            self._received += block
        line, _, rest = self._received.partition(b"\n")
        self._received = bytearray(rest)
        return _decode(bytes(line))

    def close(self) -> None:
        self.stream.close()


def _decode(line: bytes) -> Message:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict) or not isinstance(message.get("kind"), str):
        raise ConnectionLost("it sends no messages of an agent")
    return message
