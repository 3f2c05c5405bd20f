"""The connections between agents, over real sockets: whole lines, garbage, and a coordinator that is left alone."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from launch.addresses import LOOPBACK, interface_of, listen, reachable_address
from launch.agents.coordinator import Coordinator
from launch.agents.group import Limits
from launch.agents.messages import MAXIMUM_LINE, Connection, ConnectionLost, Message
from tests.patience import PATIENCE


def until(connection: Connection, kind: str) -> Message:
    """The next message of a kind, others left out."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        message = connection.receive_one()
        if message is not None and message["kind"] == kind:
            return message
        if message is None:
            time.sleep(0.01)
    raise AssertionError(f"no {kind}")


@pytest.fixture
def pair() -> Iterator[tuple[Connection, socket.socket]]:
    ours, theirs = socket.socketpair()
    connection = Connection(ours)
    yield connection, theirs
    connection.close()
    theirs.close()


def test_lines_arrive_whole_in_whatever_pieces(pair: tuple[Connection, socket.socket]) -> None:
    connection, other = pair
    other.sendall(b'{"kind": "a"}\n{"ki')
    assert [message["kind"] for message in connection.receive()] == ["a"]
    other.sendall(b'nd": "b", "x": [1]}\n')
    assert connection.receive() == [{"kind": "b", "x": [1]}]
    assert connection.receive() == []


def test_what_was_said_last_is_heard_before_the_end(pair: tuple[Connection, socket.socket]) -> None:
    connection, other = pair
    other.sendall(b'{"kind": "a"}\n{"kind": "b"}\n')
    other.close()
    assert [message["kind"] for message in connection.receive()] == ["a", "b"]
    with pytest.raises(ConnectionLost, match="closed"):
        connection.receive()


def read_often(connection: Connection) -> None:
    for _ in range(100):
        connection.receive()


def send_often(connection: Connection) -> None:
    for _ in range(1000):
        connection.send("a", text="x" * 10_000)


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.0\r\n",
        b"[1, 2]\n",
        b'{"kind": 3}\n',
        b"\xff\xfe\n",
        b"[" * 50_000 + b"\n",
        b"x" * (MAXIMUM_LINE + 1),
    ],
)
def test_garbage_is_a_lost_connection(pair: tuple[Connection, socket.socket], garbage: bytes) -> None:
    connection, other = pair
    other.sendall(garbage)
    with pytest.raises(ConnectionLost, match="no messages of an agent"):
        read_often(connection)


def test_a_reader_that_takes_nothing_does_not_fill_the_memory(pair: tuple[Connection, socket.socket]) -> None:
    connection, _ = pair
    with pytest.raises(ConnectionLost, match="takes no more"):
        send_often(connection)


def test_foreign_connections_do_not_disturb_the_gathering() -> None:
    own, other = (Connection(end) for end in socket.socketpair())
    listener = listen(LOOPBACK, 0)
    address = listener.getsockname()
    coordinator = Coordinator(2, "id", Limits(PATIENCE, PATIENCE, 0), listener, other, (LOOPBACK, 0))
    coordinator.start()
    identity = {"run_id": "id", "n_agents": 2, "host": "h", "n_ranks": 1, "fingerprint": {}}
    own.send("register", agent_rank=0, place="a", **identity)
    until(own, "welcome")

    scan = socket.create_connection(address)
    scan.close()
    silent = socket.create_connection(address)
    for garbage in (b"GET / HTTP/1.0\r\n\r\n", b"x" * 200_000, b'{"kind": "ended"}\n', b'{"kind": "register"}\n'):
        stranger = socket.create_connection(address)
        stranger.settimeout(PATIENCE)
        try:
            stranger.sendall(garbage)
            while stranger.recv(1 << 16):
                pass
        except ConnectionResetError:
            pass
        stranger.close()
    late = Connection(socket.create_connection(address))
    late.send("register", agent_rank=1, place="old b", **{**identity, "run_id": "of yesterday"})
    assert "another run" in until(late, "refused")["reason"]

    second = Connection(socket.create_connection(address))
    second.send("register", agent_rank=1, place="b", **identity)
    for connection in (own, second):
        assert until(connection, "start")["world_size"] == 2
    coordinator.take_rendezvous_socket().close()
    for connection in (own, second):
        connection.send("ended", code=0, failure=None)
    for connection in (own, second):
        assert until(connection, "verdict")["code"] == 0
        connection.close()
    coordinator.join(timeout=PATIENCE)
    assert not coordinator.is_alive()
    silent.close()
    late.close()


def test_an_agent_that_closes_is_gone() -> None:
    own, other = (Connection(end) for end in socket.socketpair())
    listener = listen(LOOPBACK, 0)
    address = listener.getsockname()
    coordinator = Coordinator(2, "", Limits(PATIENCE, PATIENCE, 3), listener, other, (LOOPBACK, 0))
    coordinator.start()
    identity = {"run_id": "", "n_agents": 2, "host": "h", "n_ranks": 1, "fingerprint": {}}
    own.send("register", agent_rank=0, place="a", **identity)
    second = Connection(socket.create_connection(address))
    second.send("register", agent_rank=1, place="b", **identity)
    until(second, "start")
    second.close()
    until(own, "ending")
    own.send("ended", code=0, failure=None)
    verdict = until(own, "verdict")
    assert verdict["code"] == 1
    assert "b went away" in verdict["line"]
    own.close()
    coordinator.join(timeout=PATIENCE)
    assert not coordinator.is_alive()


def test_addresses_of_this_machine() -> None:
    assert interface_of(LOOPBACK) is not None
    assert interface_of("127.0.1.1") == interface_of(LOOPBACK)
    assert interface_of("192.0.2.1") is None
    listen(reachable_address(), 0).close()
