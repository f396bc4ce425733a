"""The network of a lab: one bridge with an IPv4 and an IPv6 subnet that nobody on the machine uses.

The bridge and its addresses are ours, not the plugin's: the plugin, asked to be a gateway, switches on forwarding for
the whole machine, and does not switch it off. Pods reach the machine and each other, and nothing beyond; so no rule
of iptables is needed.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kybernate.errors import ExternalError
from kybernate.lab import locks
from kybernate.lab.process import ProgramError, run

Network4Or6 = ipaddress.IPv4Network | ipaddress.IPv6Network
LOCK = Path("/run/kybernate-lab.lock")
"""A file that root alone can open: on one that others can, any user could keep all labs waiting."""
LOCK_SECONDS = 60.0
"""It is held for a few calls of ip(8)."""


class NoSubnetError(ExternalError):
    """No subnet is free for bridge {bridge}: every one from {first} to {last} is routed somewhere already."""


@dataclass(frozen=True)
class Bridge:
    """A bridge by its name; `up` and `down` may be called any number of times."""

    name: str

    @classmethod
    def named(cls, lab: str) -> Bridge:
        """The bridge of the lab with this name: kyb and eight hex digits, so that it fits the kernel's 15 bytes."""
        return cls("kyb" + hashlib.sha256(lab.encode()).hexdigest()[:8])

    def up(self) -> list[Network4Or6]:
        """Make the bridge anew, with subnets that are free now."""
        self.down()
        with one_at_a_time():
            routed = routed_networks()
            subnets: list[Network4Or6] = [free_ipv4(self.name, routed)]
            if has_ipv6():
                subnets.append(free_ipv6(self.name, routed))
            run(["ip", "link", "add", self.name, "type", "bridge"])
            try:
                for subnet in subnets:
                    more = ["nodad"] if subnet.version == 6 else []
                    run(["ip", "address", "add", f"{subnet[1]}/{subnet.prefixlen}", "dev", self.name, *more])
                run(["ip", "link", "set", self.name, "up"])
            except BaseException:
                self.down()
                raise
        return subnets

    def down(self) -> None:
        """Remove the bridge; pods that are still plugged in lose it."""
        if Path("/sys/class/net", self.name).exists():
            with contextlib.suppress(ProgramError):
                run(["ip", "link", "delete", self.name])

    def conflist(self, subnets: list[Network4Or6], data: Path) -> str:
        """The CNI configuration list for this bridge, version 1.0.0. `data` keeps the addresses that are given out.

        Source: CNI specification 1.0.0; the plugins bridge, host-local and loopback.
        """
        ranges = [[{"subnet": str(subnet), "gateway": str(subnet[1])}] for subnet in subnets]
        routes = [{"dst": "0.0.0.0/0" if subnet.version == 4 else "::/0"} for subnet in subnets]
        ipam: dict[str, Any] = {"type": "host-local", "dataDir": str(data), "ranges": ranges, "routes": routes}
        plugin = {"type": "bridge", "bridge": self.name, "isGateway": False, "hairpinMode": True, "ipam": ipam}
        return json.dumps({"cniVersion": "1.0.0", "name": self.name, "plugins": [plugin]}, indent=2)


def has_ipv6() -> bool:
    """Whether new interfaces of this machine get IPv6."""
    try:
        return Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").read_text().strip() == "0"
    except OSError:
        return False


def free_ipv4(seed: str, routed: list[Network4Or6]) -> ipaddress.IPv4Network:
    """A /24 below 10.192.0.0/10 that overlaps nothing in `routed`; `seed` chooses where the search begins.

    Raises NoSubnetError.
    """
    candidates = 64 * 256
    start = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:4], "big")
    for step in range(candidates):
        number = (start + step) % candidates
        subnet = ipaddress.IPv4Network((f"10.{192 + number // 256}.{number % 256}.0", 24))
        if not any(subnet.overlaps(other) for other in routed if isinstance(other, ipaddress.IPv4Network)):
            return subnet
    raise NoSubnetError(bridge=seed, first="10.192.0.0/24", last="10.255.255.0/24")


def free_ipv6(seed: str, routed: list[Network4Or6]) -> ipaddress.IPv6Network:
    """A unique local /64 (RFC 4193) that overlaps nothing in `routed`. Raises NoSubnetError."""
    digest = hashlib.sha256(seed.encode()).digest()
    for last in range(digest[7], digest[7] + 256):
        group = f"fd{digest[0]:02x}:{digest[1:3].hex()}:{digest[3:5].hex()}:{last % 256:x}::"
        subnet = ipaddress.IPv6Network((group, 64))
        if not any(subnet.overlaps(other) for other in routed if isinstance(other, ipaddress.IPv6Network)):
            return subnet
    raise NoSubnetError(bridge=seed, first=f"fd{digest[0]:02x}::/64", last="the last of its global id")


def routed_networks() -> list[Network4Or6]:
    """What the machine has a route to, the default routes left out."""
    found: list[Network4Or6] = []
    for family in ("-4", "-6"):
        with contextlib.suppress(ProgramError):
            for route in json.loads(run(["ip", "-json", family, "route", "show", "table", "all"]) or "[]"):
                if route.get("dst", "default") != "default":
                    with contextlib.suppress(ValueError):
                        found.append(ipaddress.ip_network(route["dst"], strict=False))
    return [network for network in found if network.prefixlen]


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Two labs that start together must not choose one subnet: they queue for a lock. Raises LockHeldError."""
    lock = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        locks.take(lock, LOCK, LOCK_SECONDS)
        yield
    finally:
        os.close(lock)
