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

PREFIX = "10.77.0."
BRIDGE = "scorefleet-br"


def why_not() -> str | None:
    """Why hosts cannot be made here, or None."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [tool for tool in ("ip", "unshare", "mount") if shutil.which(tool) is None]
    if missing:
        return f"{', '.join(missing)} not found: install iproute2, util-linux and mount"
    made = subprocess.run(["ip", "netns", "add", "scorefleet-try"], capture_output=True, text=True, check=False)
    subprocess.run(["ip", "netns", "del", "scorefleet-try"], capture_output=True, check=False)
    return None if made.returncode == 0 else f"network namespaces are not allowed here: {made.stderr.strip()}"


class Network:
    """Hosts ``node1``, ``node2``, ... with addresses 10.77.0.11, 10.77.0.12, ...

    Args:
        n_hosts: how many.
        folder: for the files that describe them.
    """

    def __init__(self, n_hosts: int, folder: Path) -> None:
        self.hosts = [f"node{number}" for number in range(1, n_hosts + 1)]
        self.folder = folder
        names = "".join(f"{self.address(host)} {host}\n" for host in self.hosts)
        (folder / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
        self.enter = folder / "enter"
        inside = f'hostname "$0"; mount --bind "{folder}/hosts" /etc/hosts; exec "$@"'
        self._script(
            self.enter, f'exec ip netns exec "$host" unshare --uts --mount /bin/sh -c \'{inside}\' "$host" "$@"'
        )
        # Open MPI starts its daemons through this instead of ssh. The hosts share everything but network and names.
        self.remote_shell = folder / "remote_shell"
        self._script(self.remote_shell, f'exec "{self.enter}" "$host" /bin/sh -c "$*"')

    @staticmethod
    def _script(path: Path, line: str) -> None:
        path.write_text(f"#!/bin/sh\nhost=$1\nshift\n{line}\n")
        path.chmod(0o755)

    def address(self, host: str) -> str:
        return f"{PREFIX}{10 + int(host.removeprefix('node'))}"

    def command(self, host: str, words: Sequence[str]) -> list[str]:
        """The command line that runs ``words`` on a host."""
        return [str(self.enter), host, *map(str, words)]

    def up(self) -> None:
        self.down()
        _ip("link", "add", BRIDGE, "type", "bridge")
        _ip("addr", "add", f"{PREFIX}1/24", "dev", BRIDGE)
        _ip("link", "set", BRIDGE, "up")
        for host in self.hosts:
            _ip("netns", "add", host)
            _ip("link", "add", f"sf-{host}", "type", "veth", "peer", "name", "eth0", "netns", host)
            _ip("link", "set", f"sf-{host}", "master", BRIDGE, "up")
            _ip("-n", host, "addr", "add", f"{self.address(host)}/24", "dev", "eth0")
            _ip("-n", host, "link", "set", "lo", "up")
        self.connect_all()

    def connect_all(self) -> None:
        """Every link up, as a test that took one down must leave it."""
        for host in self.hosts:
            _ip("-n", host, "link", "set", "eth0", "up")

    def disconnect(self, host: str) -> None:
        """Take a host off the network; its processes run on."""
        _ip("-n", host, "link", "set", "eth0", "down")

    def processes(self, host: str) -> list[psutil.Process]:
        """What runs on a host."""
        listed = subprocess.run(["ip", "netns", "pids", host], capture_output=True, text=True, check=False).stdout
        found = []
        for number in listed.split():
            try:
                found.append(psutil.Process(int(number)))
            except psutil.NoSuchProcess:
                continue
        return found

    def listens(self, host: str, port: int) -> bool:
        """Whether something on a host takes connections at the port."""
        words = ["ip", "netns", "exec", host, "cat", "/proc/net/tcp"]
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
            subprocess.run(["ip", "netns", "del", host], capture_output=True, check=False)
            # A namespace lives on, and with it the link, until its last process has gone.
            subprocess.run(["ip", "link", "del", f"sf-{host}"], capture_output=True, check=False)
        subprocess.run(["ip", "link", "del", BRIDGE], capture_output=True, check=False)


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
