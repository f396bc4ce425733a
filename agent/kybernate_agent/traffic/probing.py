"""The kubelet's connections to one pod: told from calls, and answered while the pod sleeps.

A connection is judged once, when its SYN comes to the queue: the kubelet's, to a declared port, is given to the
answerer, and everything that follows on it passes. Where the SYN went to the application, before the rules stood, its
data is judged when it comes. A port that is probed and not the application's (a sidecar's) is queued for the kubelet's
SYN alone.

An awake pod has no rules, so there its sockets are judged, at each sample. A probe is mostly shorter than the time
between two samples: those that nobody saw are only a count, which `activity` weighs against what is declared.
"""

from __future__ import annotations

import asyncio
import enum
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from kybernate_agent.probes import NOTHING, Answerer, Declared, listener
from kybernate_agent.probes.certificate import server_context

from . import packets
from .activity import Sample
from .kubelet import Kubelet, Owner
from .netlink import in_netns
from .packets import Flow, Kind, Segment
from .sockdiag import SockDiag, Socket, State

T = TypeVar("T")
PATIENCE_SECONDS = 5.0  # with a probe in flight; most are answered in milliseconds
_MAX_FLOWS = 4096
_HALF_OPEN = frozenset({State.SYN_RECV, State.NEW_SYN_RECV})
_UNCONNECTED = frozenset({State.LISTEN, State.CLOSE, State.BOUND})
_POLL_SECONDS = 0.01
_HANDSHAKE_SECONDS = 1.0


class Fate(enum.Enum):
    """What becomes of a segment that is no matter of the sleeper's."""

    ANSWER = "answer"  # it opens a connection to the answerer
    ACCEPT = "accept"
    DROP = "drop"  # its sender sends it again, or gives up


class Probing:
    """From the event loop only. Without a kubelet nothing is probed."""

    def __init__(self, declared: Declared, kubelet: Kubelet | None) -> None:
        self.listening: dict[int, int] = {}  # the answerer's loopback port by IP version
        self._kubelet = kubelet or Kubelet()
        self._known = kubelet is not None
        self._declared = declared if self._known else NOTHING
        self._stopped = False
        self._answerer = Answerer()
        self._answered: dict[Flow, None] = {}
        self._spoken: dict[Flow, bool] = {}  # whether data on a connection is the kubelet's
        self._owners: dict[int, Owner] = {}  # by the cookie of the pod's socket
        self._opened = 0

    @property
    def ports(self) -> frozenset[int]:
        """Where the kubelet's connections are answered."""
        return self._declared.ports

    def declare(self, declared: Declared) -> bool:
        """Whether this is news."""
        if not self._known or declared == self._declared:
            return False
        self._declared = declared
        return True

    # --- asleep ---

    def stop(self) -> None:
        """Answer no more: the kubelet is a caller like any other."""
        self._stopped = True

    async def listen(self, netns: str, families: Iterable[int], taken: Iterable[int]) -> None:
        """Have an answerer in the pod's namespace, on ports that are none of `taken`. Idempotent. Raises OSError."""
        if self._answerer.listens or not self.ports:
            return
        avoided = frozenset(taken) | self.ports

        made = await asyncio.to_thread(in_netns, netns, lambda: {f: listener(f, avoided) for f in families})
        self.listening = {family: sock.getsockname()[1] for family, sock in made.items()}
        self._answerer.listen(made.values())
        if self._declared.tls:
            await asyncio.to_thread(server_context)

    def judge(self, segment: Segment, *, leaves: bool, holding: bool, own_ports: frozenset[int]) -> Fate | None:
        """The fate of a segment in the queue; None: it is for the sleeper. `own_ports`: the sleeper's."""
        if leaves:
            return Fate.ACCEPT if segment.own_flow in self._answered else None
        flow, port = segment.flow, segment.destination_port
        if segment.kind is Kind.WAKES and segment.flags & packets.SYN:
            self._forget(flow)
            if port in self.ports and self._is_kubelets(flow):
                _remember(self._answered, flow, None)
                return Fate.ANSWER
        elif flow in self._answered:
            return Fate.ACCEPT
        if port not in own_ports:
            return Fate.ACCEPT
        if segment.kind is Kind.WAKES and port in self.ports and self._speaks(flow):
            return Fate.DROP if holding else Fate.ACCEPT
        return None

    def is_answered(self, flow: Flow) -> bool:
        return flow in self._answered

    async def let_end(self, diag: SockDiag) -> None:
        """Wait until no connection of the kubelet reaches the application, at most PATIENCE_SECONDS."""
        if self.ports:
            # One that lasts longer gets no answer now, and the kubelet asks again.
            await _until_none(diag, self._reaches, min(self._declared.timeout_seconds, PATIENCE_SECONDS))

    async def deafen(self, diag: SockDiag) -> None:
        """Stop listening, after the handshakes that are under way; what is being answered goes on. Idempotent."""
        if self._answerer.listens:
            await _until_none(diag, self._is_half_open, _HANDSHAKE_SECONDS)
        self._answerer.deafen()
        self.listening = {}

    async def close(self) -> None:
        await self._answerer.close()
        self.listening = {}

    @property
    def count(self) -> int:
        """Connections answered so far."""
        return self._answerer.answered

    def _speaks(self, flow: Flow) -> bool:
        if flow not in self._spoken:
            _remember(self._spoken, flow, self._is_kubelets(flow))
        return self._spoken[flow]

    def _is_kubelets(self, flow: Flow) -> bool:
        return not self._stopped and self._kubelet.owner(flow) is Owner.KUBELET

    def _reaches(self, found: Socket) -> bool:
        if found.local_port not in self.ports or found.state in _UNCONNECTED or found.flow in self._answered:
            return False
        return self._kubelet.owner(found.flow) is Owner.KUBELET

    def _is_half_open(self, found: Socket) -> bool:
        return found.state in _HALF_OPEN and found.flow in self._answered

    def _forget(self, flow: Flow) -> None:
        self._answered.pop(flow, None)
        self._spoken.pop(flow, None)

    # --- awake ---

    def sample(self, found: Sequence[Socket], passive_opens: int) -> Sample:
        """What of the pod's sockets and connections so far is the kubelet's."""
        theirs = [one for one in found if one.flow not in self._answered]
        probes = frozenset(one.cookie for one in theirs if self._is_probe(one))
        living = {one.cookie for one in theirs}
        self._owners = {cookie: owner for cookie, owner in self._owners.items() if cookie in living}
        return Sample(tuple(theirs), passive_opens, probes, self._opened, self._declared.periods)

    def _is_probe(self, found: Socket) -> bool:
        if found.local_port not in self.ports or found.state in _UNCONNECTED:
            return False
        owner = self._owners.get(found.cookie)
        if owner is None:
            owner = self._kubelet.owner(found.flow)
            if found.state not in _HALF_OPEN:  # else it is no socket yet, and will be counted as one that opened
                self._owners[found.cookie] = owner
                self._opened += owner is Owner.KUBELET
        return owner is not Owner.OTHER


async def _until_none(diag: SockDiag, which: Callable[[Socket], bool], seconds: float) -> None:
    """Return when `which` is true of no socket, or after `seconds`: the kernel sends no event for this."""
    end = time.monotonic() + seconds
    while True:
        if not any(which(found) for found in diag.dump()) or time.monotonic() >= end:
            return
        await asyncio.sleep(_POLL_SECONDS)


def _remember(flows: dict[Flow, T], flow: Flow, value: T) -> None:
    if len(flows) >= _MAX_FLOWS:
        del flows[next(iter(flows))]
    flows[flow] = value
