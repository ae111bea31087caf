"""A network namespace for each server, joined by a bridge, whose links can be cut both ways or one way.

    hub (where the run, the clients and half of the nodes are) 10.77.0.254
    a, b, c (a server each)                                    10.77.0.1, .2, .3
    edge (the other nodes): no link to anywhere. The servers' addresses are its own, and what listens there is the run's proxies.

A cut is a route that leads nowhere. Nothing of it outlives the run: see ``isolation``.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from isolation import run

HUB = "hub"
EDGE = "edge"
NET = "10.77.0"
_NEW_NET = 0x40000000


class Links:
    """``address`` of each namespace by name. Raises OSError if they cannot be made here."""

    def __init__(self, names: str) -> None:
        self.address = {name: f"{NET}.{number}" for number, name in enumerate(names, 1)} | {HUB: f"{NET}.254"}
        self._cuts: set[tuple[str, str]] = set()
        run("mount", "-t", "tmpfs", "none", "/run")  # only ours: names of namespaces are kept there
        Path("/run/netns").mkdir()
        run("ip", "link", "set", "lo", "up")
        run("ip", "link", "add", "hub", "type", "bridge")
        run("ip", "address", "add", f"{self.address[HUB]}/24", "dev", "hub")
        run("ip", "link", "set", "hub", "up")
        for name in names:
            run("ip", "netns", "add", name)
            run("ip", "link", "add", f"to-{name}", "type", "veth", "peer", "name", "eth0", "netns", name)
            run("ip", "link", "set", f"to-{name}", "master", "hub")
            run("ip", "link", "set", f"to-{name}", "up")
            run("ip", "-n", name, "address", "add", f"{self.address[name]}/24", "dev", "eth0")
            run("ip", "-n", name, "link", "set", "eth0", "up")
            run("ip", "-n", name, "link", "set", "lo", "up")
        run("ip", "netns", "add", EDGE)
        run("ip", "-n", EDGE, "link", "set", "lo", "up")
        for name in names:
            run("ip", "-n", EDGE, "address", "add", f"{self.address[name]}/32", "dev", "lo")

    def within(self, name: str) -> list[str]:
        """The words before a command that run it in namespace ``name``."""
        return [] if name == HUB else ["nsenter", f"--net=/run/netns/{name}"]

    def cut(self, sender: str, receiver: str) -> None:
        """From now on nothing that ``sender`` sends reaches ``receiver``."""
        if (sender, receiver) not in self._cuts:
            run(*_ip(sender), "route", "add", "blackhole", f"{self.address[receiver]}/32")
            self._cuts.add((sender, receiver))

    def heal(self) -> None:
        for sender, receiver in sorted(self._cuts):
            run(*_ip(sender), "route", "del", "blackhole", f"{self.address[receiver]}/32")
        self._cuts.clear()

    def listen(self, name: str, host: str, port: int) -> socket.socket:
        """A socket of this process that listens in namespace ``name``."""
        with _in(name):
            return socket.create_server((host, port))


def _ip(name: str) -> list[str]:
    return ["ip"] if name == HUB else ["ip", "-n", name]


@contextlib.contextmanager
def _in(name: str) -> Iterator[None]:
    """This thread in another network namespace: a socket belongs to the one it was made in. (``os.setns`` is Python 3.12's.)"""
    libc = ctypes.CDLL(None, use_errno=True)
    own, there = os.open("/proc/thread-self/ns/net", os.O_RDONLY), os.open(f"/run/netns/{name}", os.O_RDONLY)
    try:
        _must(libc.setns(there, _NEW_NET))
        try:
            yield
        finally:
            _must(libc.setns(own, _NEW_NET))
    finally:
        os.close(own)
        os.close(there)


def _must(status: int) -> None:
    if status:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
