"""Addresses, ports and network interfaces of this machine."""

from __future__ import annotations

import ipaddress
import socket

import psutil

LOOPBACK = "127.0.0.1"


def listen(address: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Args:
        address: of this machine, or empty for all of them.

    Raises:
        OSError: the address is not of this machine, or the port is taken.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.create_server((address, port), family=family, backlog=1024)


def reachable_address() -> str:
    """An address of this machine at which others can reach it, as far as can be told from here.

    The host's own name is looked up first; on many systems it stands for a loopback address, and then the first
    address of an interface that is up is taken. The loopback address is what is left.
    """
    try:
        found = socket.gethostbyname(socket.gethostname())
        if not ipaddress.ip_address(found).is_loopback:
            return found
    except OSError:
        pass  # the name is in no table and no name server knows it
    states = psutil.net_if_stats()
    for name, entries in sorted(psutil.net_if_addrs().items()):
        # Bridges of container engines lead nowhere else.
        if name.startswith(("docker", "br-", "virbr", "veth", "lxc", "cni")) or not states[name].isup:
            continue
        for entry in entries:
            if entry.family == socket.AF_INET and not ipaddress.ip_address(entry.address).is_loopback:
                return entry.address
    return LOOPBACK


def interface_of(address: str) -> str | None:
    """The network interface that has the address; None where none has."""
    for name, entries in psutil.net_if_addrs().items():
        if any(entry.address.split("%")[0] == address for entry in entries):
            return name
    if address.startswith("127."):  # the whole block belongs to the loopback interface, which lists one address
        return interface_of(LOOPBACK) if address != LOOPBACK else None
    return None
