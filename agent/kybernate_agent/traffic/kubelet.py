"""Which connections are the kubelet's: told by who owns the other end, in the node's network namespace.

Addresses tell nothing: NodePorts, ingress on the host's network and every process of the node call pods from the
same addresses as the kubelet. But a connection of the kubelet has a socket in the node's namespace, with an inode, and
the kubelet has a descriptor of that inode. So three questions: does the node have a socket with these addresses and
ports (sock_diag), does a process hold it, and is that process the kubelet.

A kubelet is a process of one of the known names that shares with us the user, the pid namespace and, with the
connection, the network namespace: a pod with a network of its own cannot pass for it, nor one with the host's network
and pids of its own. The distributions that run the kubelet as part of one big process (k3s, microk8s) have their API
server in it: what that one proxies to a declared probe port passes for a probe.

The agent therefore needs the host's network and pid namespaces and CAP_SYS_PTRACE. Where no kubelet is found, nothing
is its own, and every connection counts.

Sources: sock_diag(7), proc(5), pidfd_open(2).
"""

from __future__ import annotations

import enum
import logging
import os
import select
import time
from collections.abc import Sequence

from .netlink import in_netns
from .packets import Flow
from .sockdiag import SockDiag, Socket, State

log = logging.getLogger(__name__)

NAMES = ("kubelet", "kubelite", "k3s", "k3s-server", "k3s-agent")  # as in comm: at most 15 characters
_LOOK_AGAIN_SECONDS = 1.0
_MAX_HINTS = 64


class Owner(enum.Enum):
    """Whose a connection to a pod is, seen from the node."""

    KUBELET = "kubelet"
    OTHER = "other"  # a process of the node, or somebody elsewhere
    NOBODY = "nobody"  # the node has the socket, but its process has closed it: nobody waits for an answer


class Kubelet:
    """The kubelet of the node whose network namespace is at path `netns` (None: our own). For one thread."""

    def __init__(self, netns: str | None = None, names: Sequence[str] = NAMES) -> None:
        self._netns = netns
        self._names = frozenset(names)
        self._diag: SockDiag | None = None
        self._processes: dict[int, int] = {}  # pid: pidfd
        self._hints: list[int] = []  # descriptors that were its connections lately; the lowest free one is used next
        self._looked_at = -_LOOK_AGAIN_SECONDS
        self._missed = False

    def open(self) -> None:
        """Idempotent. Raises NetnsGoneError, OSError (no right to)."""
        if self._diag is None:
            self._diag = in_netns(self._netns, SockDiag) if self._netns else SockDiag()

    def close(self) -> None:
        """Idempotent."""
        if self._diag is not None:
            self._diag.close()
            self._diag = None
        self._forget(list(self._processes))

    def owner(self, flow: Flow) -> Owner:
        """Whose the connection is that the pod knows as `flow` (peer first).

        Takes 30 us for a peer that is not of this node, a millisecond for one that is. A socket that has gone again
        leaves no trace: it is taken for somebody's. Raises NetlinkError.
        """
        peer, peer_port, address, port = flow
        found = self._sockets().find((address, port, peer, peer_port), 0)
        if found is None or not _same(found, flow):
            return Owner.OTHER
        if not found.inode:
            return Owner.NOBODY
        target = f"socket:[{found.inode}]"
        if self._hold(target):
            return Owner.KUBELET
        return Owner.KUBELET if self._look_again() and self._hold(target) else Owner.OTHER

    def _sockets(self) -> SockDiag:
        if self._diag is None:
            raise RuntimeError("Kubelet is not open")
        return self._diag

    def _hold(self, target: str) -> bool:
        """Whether a kubelet that lives has a descriptor of this socket."""
        self._forget([pid for pid, handle in self._processes.items() if _has_ended(handle)])
        for pid in self._processes:
            folder = f"/proc/{pid}/fd"
            if any(_link(f"{folder}/{number}") == target for number in self._hints):
                return True
            try:
                names = os.listdir(folder)
            except OSError:
                continue  # it has ended
            for name in names:
                if _link(f"{folder}/{name}") == target:
                    self._hints = [int(name), *self._hints][:_MAX_HINTS]
                    return True
        return False

    def _look_again(self) -> bool:
        """Look for kubelets; False: that was done a moment ago."""
        now = time.monotonic()
        if now - self._looked_at < _LOOK_AGAIN_SECONDS and self._processes:
            return False
        self._looked_at = now
        self._forget(list(self._processes))
        space = _identity(self._netns or "/proc/self/ns/net")
        for pid in _named(self._names):
            try:
                handle = os.pidfd_open(pid)
            except OSError:
                continue
            self._processes[pid] = handle
            if not _is_ours(pid, space):
                self._forget([pid])
        if bool(self._processes) == self._missed:
            self._missed = not self._processes
            told = (
                f"processes {sorted(self._processes)}"
                if self._processes
                else "none is found: its probes count as calls"
            )
            log.info("the kubelet of this node: %s", told)
        return True

    def _forget(self, pids: Sequence[int]) -> None:
        for pid in pids:
            os.close(self._processes.pop(pid))


def _same(found: Socket, flow: Flow) -> bool:
    """Not a listener that would take such a connection, but its own end."""
    ends = (found.local, found.local_port, found.remote, found.remote_port)
    return found.state != State.LISTEN and ends == flow


def _named(names: frozenset[str]) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/comm") as file:
                    comm = file.read().rstrip("\n")
            except OSError:
                continue
            if comm in names:
                found.append(int(name))
    return found


def _is_ours(pid: int, space: tuple[int, int]) -> bool:
    try:
        same_user = os.stat(f"/proc/{pid}").st_uid == os.geteuid()
        same_pids = _identity(f"/proc/{pid}/ns/pid") == _identity("/proc/self/ns/pid")
        return same_user and same_pids and _identity(f"/proc/{pid}/ns/net") == space
    except OSError:
        return False


def _identity(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _has_ended(handle: int) -> bool:
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    return bool(poll.poll(0))


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""
