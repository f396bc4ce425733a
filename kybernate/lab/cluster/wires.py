"""The network of a cluster: one /16 that nobody on the machine uses, a bridge, and cables.

    10.x.0.0/24        machines: control plane .1, nodes .11 .12 ..., the host .254
    10.x.65.0/24 ...   pods of the first node, the second, ...; together 10.x.64.0/18
    10.x.128.0/17      Services: .128.1 the API server, .128.10 DNS

The bridge lies in the control plane's network namespace, so no iptables rule of the host touches the cluster's
traffic. The host has one cable to it and reaches machines, pods and Services; that cable and its routes go when the
control plane ends. Pods reach the host and each other, and nothing beyond. The host is outside of the pods' network:
what it sends to a Service is masqueraded by the control plane's kube-proxy, so answers find back through it.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kybernate.errors import ExternalError
from kybernate.lab.network import Network4Or6, one_at_a_time, routed_networks
from kybernate.lab.process import ProgramError, run

BRIDGE, HOST_CABLE, NODE_CABLE = "br0", "host", "eth0"


class NoNetworkError(ExternalError):
    """No network is free for the cluster {name}: every /16 from 10.128 to 10.191 is routed somewhere already."""


@dataclass(frozen=True)
class Plan:
    """Who has which address. `prefix` is the first two numbers: 10.140. Nodes are counted from 1."""

    prefix: str

    @property
    def control_plane(self) -> str:
        return f"{self.prefix}.0.1"

    @property
    def host(self) -> str:
        return f"{self.prefix}.0.254"

    @property
    def all_pods(self) -> str:
        return f"{self.prefix}.64.0/18"

    @property
    def services(self) -> str:
        return f"{self.prefix}.128.0/17"

    @property
    def api_service(self) -> str:
        return f"{self.prefix}.128.1"

    @property
    def dns(self) -> str:
        return f"{self.prefix}.128.10"

    @property
    def server(self) -> str:
        return f"https://{self.control_plane}:6443"

    def node(self, number: int) -> str:
        return f"{self.prefix}.0.{10 + number}"

    def pods(self, number: int) -> str:
        return f"{self.prefix}.{64 + number}.0/24"

    def to_pods(self, nodes: Iterable[int]) -> list[str]:
        """Lines for `ip -batch`: a route to the pods of each of these nodes."""
        return [f"route add {self.pods(number)} via {self.node(number)}" for number in nodes]

    def control_plane_lines(self, nodes: int) -> list[str]:
        return [
            "link set lo up", f"link add {BRIDGE} type bridge", f"address add {self.control_plane}/24 dev {BRIDGE}",
            f"link set {BRIDGE} up", *self.to_pods(range(1, nodes + 1)),
        ]  # fmt: skip

    def node_lines(self, number: int, nodes: int) -> list[str]:
        others = (other for other in range(1, nodes + 1) if other != number)
        return [
            "link set lo up", f"address add {self.node(number)}/24 dev {NODE_CABLE}", f"link set {NODE_CABLE} up",
            f"route add default via {self.host}", *self.to_pods(others),
        ]  # fmt: skip


def free_plan(seed: str, routed: list[Network4Or6]) -> Plan:
    """A plan whose /16 overlaps nothing in `routed`; `seed` chooses where the search begins. Raises NoNetworkError."""
    start = hashlib.sha256(seed.encode()).digest()[0]
    for step in range(64):
        prefix = f"10.{128 + (start + step) % 64}"
        network = ipaddress.IPv4Network(f"{prefix}.0.0/16")
        if not any(network.overlaps(other) for other in routed if isinstance(other, ipaddress.IPv4Network)):
            return Plan(prefix)
    raise NoNetworkError(name=seed)


def host_cable(cluster: str) -> str:
    """The host's interface to the cluster: kyc and eight hex digits, so that it fits the kernel's 15 bytes."""
    return "kyc" + hashlib.sha256(cluster.encode()).hexdigest()[:8]


def claim(cluster: str, nodes: int) -> Plan:
    """Choose a network and take it: the host's cable with its routes, its other end in the host's hands still."""
    cable = host_cable(cluster)
    with one_at_a_time():
        plan = free_plan(cluster, routed_networks())
        lines = [
            f"link add {cable} type veth peer name {cable}x", f"address add {plan.host}/24 dev {cable}",
            f"link set {cable} up", f"route add {plan.services} via {plan.control_plane}",
            *plan.to_pods(range(1, nodes + 1)),
        ]  # fmt: skip
        try:
            _ip(lines)
        except BaseException:
            release(cluster)
            raise
    return plan


def release(cluster: str) -> None:
    """Remove the host's cable, and with it addresses and routes. Safe to repeat."""
    if Path("/sys/class/net", host_cable(cluster)).exists():
        with contextlib.suppress(ProgramError):  # it may go at this moment, with the control plane
            run(["ip", "link", "delete", host_cable(cluster)])


def plug_host(cluster: str, plan: Plan, control_plane: int) -> None:
    """Plug the claimed cable into the bridge of the control plane with this pid."""
    _ip([f"link set {host_cable(cluster)}x netns {control_plane} name {HOST_CABLE}"])
    lines = [f"link set {HOST_CABLE} master {BRIDGE} up", f"route add default via {plan.host}"]
    _ip(lines, control_plane)


def plug(control_plane: int, node: int, name: str) -> None:
    """A cable from the bridge to the node with this pid and name. A node that starts anew has the hardware address it
    had: the host and other nodes send to that for up to a minute before they ask again."""
    address = ":".join(["02", *(f"{byte:02x}" for byte in hashlib.sha256(name.encode()).digest()[:5])])
    peer = f"peer name {NODE_CABLE} address {address} netns {node}"
    _ip([f"link add {cable(name)} netns {control_plane} type veth {peer}"])
    _ip([f"link set {cable(name)} master {BRIDGE} up"], control_plane)


def plug_tap(control_plane: int, name: str) -> None:
    """A cable from the bridge that ends in a tap, for a virtual machine whose QEMU runs in that namespace."""
    _ip([f"tuntap add {cable(name)} mode tap", f"link set {cable(name)} master {BRIDGE} up"], control_plane)


def unplug(control_plane: int, name: str) -> None:
    """Take the cable away: what a node that dies still wants to say (FIN, RST) reaches nobody. Safe to repeat."""
    with contextlib.suppress(ProgramError):
        _ip([f"link delete {cable(name)}"], control_plane)


def switch(control_plane: int, name: str, state: str) -> None:
    """Set the bridge's end of the cable `up` or `down`."""
    _ip([f"link set {cable(name)} {state}"], control_plane)


def cable(name: str) -> str:
    return f"to-{name}"


def _ip(lines: list[str], namespace_of: int | None = None) -> None:
    enter = [] if namespace_of is None else ["nsenter", "-t", str(namespace_of), "-n", "--"]
    run([*enter, "ip", "-batch", "-"], stdin="\n".join(lines).encode())
