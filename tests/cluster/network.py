"""Several hosts on one machine: network namespaces with their own hostname, address and link, joined by a bridge."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest


def why_not() -> str | None:
    """Why hosts cannot be made here, or None."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [tool for tool in ("ip", "unshare", "mount") if shutil.which(tool) is None]
    if missing:
        return f"{', '.join(missing)} not found: install iproute2, util-linux and mount"
    name = f"sf{os.getpid()}-try"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return None if made.returncode == 0 else f"network namespaces are not allowed here: {made.stderr.strip()}"


class Network:
    """Hosts ``node1``, ``node2``, ... with addresses 10.77.n.11, 10.77.n.12, ...

    The number n, and the names of the namespaces, are of this process, so that several networks can be there at once.

    Args:
        n_hosts: how many.
        folder: for the files that describe them.
    """

    def __init__(self, n_hosts: int, folder: Path) -> None:
        self.id = f"sf{os.getpid()}"
        self.prefix = f"10.77.{_free_subnet()}."
        self.hosts = [f"node{number}" for number in range(1, n_hosts + 1)]
        self.folder = folder
        names = "".join(f"{self.address(host)} {host}\n" for host in self.hosts)
        (folder / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
        self.enter = folder / "enter"
        inside = f'hostname "$0"; mount --bind "{folder}/hosts" /etc/hosts; exec "$@"'
        unshared = f'unshare --uts --mount /bin/sh -c \'{inside}\' "$host" "$@"'
        self._script(self.enter, f'exec ip netns exec "{self.id}-$host" {unshared}')
        # Open MPI starts its daemons through this instead of ssh. The hosts share everything but network and names.
        self.remote_shell = folder / "remote_shell"
        self._script(self.remote_shell, f'exec "{self.enter}" "$host" /bin/sh -c "$*"')

    def namespace(self, host: str) -> str:
        return f"{self.id}-{host}"

    @staticmethod
    def _script(path: Path, line: str) -> None:
        path.write_text(f"#!/bin/sh\nhost=$1\nshift\n{line}\n")
        path.chmod(0o755)

    def address(self, host: str) -> str:
        return f"{self.prefix}{10 + int(host.removeprefix('node'))}"

    def command(self, host: str, words: Sequence[str]) -> list[str]:
        """The command line that runs ``words`` on a host."""
        return [str(self.enter), host, *map(str, words)]

    def up(self) -> None:
        self.down()
        _ip("link", "add", self.id, "type", "bridge")
        _ip("addr", "add", f"{self.prefix}1/24", "dev", self.id)
        _ip("link", "set", self.id, "up")
        for host in self.hosts:
            name = self.namespace(host)
            _ip("netns", "add", name)
            _ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("link", "set", name, "master", self.id, "up")
            _ip("-n", name, "addr", "add", f"{self.address(host)}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "lo", "up")
        self.connect_all()

    def connect_all(self) -> None:
        """Every link up, as a test that took one down must leave it."""
        for host in self.hosts:
            _ip("-n", self.namespace(host), "link", "set", "eth0", "up")

    def disconnect(self, host: str) -> None:
        """Take a host off the network; its processes run on."""
        _ip("-n", self.namespace(host), "link", "set", "eth0", "down")

    def processes(self, host: str) -> list[psutil.Process]:
        """What runs on a host."""
        words = ["ip", "netns", "pids", self.namespace(host)]
        listed = subprocess.run(words, capture_output=True, text=True, check=False).stdout
        found = []
        for number in listed.split():
            try:
                found.append(psutil.Process(int(number)))
            except psutil.NoSuchProcess:
                continue
        return found

    def listens(self, host: str, port: int) -> bool:
        """Whether something on a host takes connections at the port."""
        words = ["ip", "netns", "exec", self.namespace(host), "cat", "/proc/net/tcp"]
        listed = subprocess.run(words, capture_output=True, text=True, check=False).stdout
        return f":{port:04X} 00000000:0000 0A " in listed

    def clear(self) -> None:
        """End what still runs on the hosts."""
        for host in self.hosts:
            for process in self.processes(host):
                try:
                    process.kill()
                except psutil.NoSuchProcess:
                    continue

    def down(self) -> None:
        self.clear()
        for host in self.hosts:
            subprocess.run(["ip", "netns", "del", self.namespace(host)], capture_output=True, check=False)
            # A namespace lives on, and with it the link, until its last process has gone.
            subprocess.run(["ip", "link", "del", self.namespace(host)], capture_output=True, check=False)
        subprocess.run(["ip", "link", "del", self.id], capture_output=True, check=False)


def _free_subnet() -> int:
    """The n of a subnet 10.77.n.0/24 that no interface of this machine is in."""
    taken = subprocess.run(["ip", "-4", "addr"], capture_output=True, text=True, check=True).stdout
    return next(n for n in (*range(os.getpid() % 256, 256), *range(256)) if f"inet 10.77.{n}." not in taken)


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}")


@contextmanager
def network(n_hosts: int, folder: Path) -> Iterator[Network]:
    """Hosts for the duration of a block; skips the test where they cannot be made."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    hosts = Network(n_hosts, folder)
    try:
        hosts.up()
        yield hosts
    finally:
        hosts.down()
