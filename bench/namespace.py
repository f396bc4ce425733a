"""A network namespace as a pod has it: lo, eth0, an address on the lab's bridge. For what runs without CRI."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass

from kybernate.errors import DeadlineError
from kybernate.lab.process import ProgramError, run

_FIRST_HOST = 200  # above the addresses that the lab's CNI plugin gives out, from .2 on


class NamespaceDeadlineError(DeadlineError):
    """A new network namespace did not appear within {seconds} s."""


@dataclass(frozen=True)
class Namespace:
    """`holder` is a process that does nothing but keep the namespace; `address` is eth0's."""

    holder: int
    address: str

    @property
    def path(self) -> str:
        return f"/proc/{self.holder}/ns/net"


@contextlib.contextmanager
def namespace(bridge: str, number: int) -> Iterator[Namespace]:
    """A namespace with host number `number` of its own (0..50) on `bridge`, for as long as the context lasts."""
    argv = ["unshare", "--net", "setpriv", "--pdeathsig", "KILL", "sleep", "infinity"]  # it never outlives us
    holder = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
    outside = f"{bridge}n{number}"[-15:]
    try:
        _await_own(holder.pid)
        subnet = _subnet(bridge)
        address = str(subnet[_FIRST_HOST + number])
        inside = ["nsenter", f"--net=/proc/{holder.pid}/ns/net"]
        run(["ip", "link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", str(holder.pid)])
        run(["ip", "link", "set", outside, "master", bridge, "up"])
        run([*inside, "ip", "link", "set", "lo", "up"])
        run([*inside, "ip", "address", "add", f"{address}/{subnet.prefixlen}", "dev", "eth0"])
        run([*inside, "ip", "link", "set", "eth0", "up"])
        yield Namespace(holder.pid, address)
    finally:
        with contextlib.suppress(ProgramError):
            run(["ip", "link", "delete", outside])
        holder.kill()
        holder.wait()


def _subnet(bridge: str) -> ipaddress.IPv4Network:
    (link,) = json.loads(run(["ip", "-json", "-4", "address", "show", "dev", bridge]))
    info = link["addr_info"][0]
    return ipaddress.IPv4Network(f"{info['local']}/{info['prefixlen']}", strict=False)


def _await_own(pid: int, seconds: float = 5.0) -> None:
    """Until the process has left our namespace and become `sleep`: unshare comes before its exec."""
    limit = time.monotonic() + seconds
    ours = os.readlink("/proc/self/ns/net")
    while time.monotonic() < limit:
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{pid}/ns/net") != ours:
                return
        time.sleep(0.001)
    raise NamespaceDeadlineError(seconds=seconds)
