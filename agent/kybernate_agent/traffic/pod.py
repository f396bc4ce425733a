"""The traffic of one pod: seen while it sleeps in memory, held while its processes are gone.

    OPEN      no rules, no listener; packets go to the app as if we were not here
    WATCHING  packets of the ports pass through us and are accepted at once; the first request wakes
    HOLDING   packets wait in the kernel until release; the first request wakes; keepalives are answered

    OPEN --watch--> WATCHING --hold--> HOLDING --release--> OPEN      (each from each; watch and hold may come again)

The listener is there before the rules and goes after them, so no packet ever meets rules without a listener, except
while the agent itself is not running: then the kernel drops them and TCP sends them again. `close` leaves the rules as
they are: an agent that ends does not wake its sleepers, and its successor takes the rules over with `watch` or `hold`,
or takes them out with `release`.

While HOLDING, a bare ACK is answered for the socket that is gone and then dropped: to the kernel it would be a segment
without a socket, which gets a reset. The exception is the ACK that completes a handshake begun before the hold: it must
reach the kernel, or the connection would stay half open, which CRIU cannot dump.

HOLDING also silences the sockets that are there when it begins. CRIU copies a socket and only later ends it; between,
the kernel's timers go on, and a probe of a small window carries data. A peer that got it would acknowledge what the
restored socket has not sent, which TCP ignores for good: the connection would stand still. Sockets that come later are
restored ones, and speak.

Probes of the kubelet are answered in both modes and wake nobody: see probing.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType

from kybernate_agent.probes import NOTHING, Declared

from . import nfqueue, packets
from .activity import Sample
from .held import Held, HeldSegment
from .kubelet import Kubelet
from .netlink import in_netns
from .packets import Flow, Kind, Segment
from .podsockets import PodSockets
from .probing import Fate, Probing
from .rules import PROBE_MARK, Rules, RulesDeadlineError, RulesError
from .sockdiag import State

_ANSWER_INTERVAL_SECONDS = 0.9  # TCP_KEEPINTVL is at least 1 s; a quicker repetition is a peer that disagrees with us
_MAX_ANSWERED = 4096
NOTHING_UNREAD: Mapping[int, tuple[int, int]] = MappingProxyType({})


class Mode(enum.Enum):
    OPEN = "open"
    WATCHING = "watching"
    HOLDING = "holding"


class PodTraffic:
    """Watches and holds TCP of the pod whose network namespace is at path `netns`, for `ports` and those given later.

    `on_wake(reason)` is called from the event loop, once after each `watch`, `hold` or `reset`, when the first SYN or
    payload comes; never for FIN, RST or bare ACKs, nor for what `kubelet` owns on the ports of `probes`. It must not
    block. Without a kubelet all connections are alike.
    """

    def __init__(
        self,
        netns: str,
        ports: Sequence[int],
        on_wake: Callable[[str], None],
        probes: Declared = NOTHING,
        kubelet: Kubelet | None = None,
    ) -> None:
        self._netns = netns
        self._probing = Probing(probes, kubelet)
        self._ports = frozenset(ports)
        self._on_wake = on_wake
        self._mode = Mode.OPEN
        self._held = Held()
        self._armed = False
        self._made: PodSockets | None = None
        self._rules: Rules | None = None
        self._ruled: frozenset[int] | None = None
        self._sleepers = self._ports  # ports, as the last watch or hold wanted them
        self._rules_leaving = False  # whether the rules stop what leaves, too
        self._bound = False
        self._windows: dict[Flow, int] = {}
        self._silenced: frozenset[int] = frozenset()  # cookies of the sockets that a dump copies
        self._answered: dict[Flow, float] = {}
        self._counts = dict.fromkeys(("seen", "held", "answered", "reset", "dropped", "unsent", "silenced"), 0)
        self._changing = asyncio.Lock()

    @property
    def mode(self) -> Mode:
        return self._mode

    async def open(self) -> None:
        """Make the sockets, see which rules are there. Raises NetnsGoneError, OSError (no right to), RulesError."""
        if self._made is None:
            self._made = await asyncio.to_thread(in_netns, self._netns, PodSockets)
            self._rules = Rules(self._netns, self._made.families)
            try:
                await self._rules.present()
            except BaseException:
                await self.close()
                raise

    async def close(self) -> None:
        """Give the sockets back; rules stay as they are. Idempotent. What was held is dropped: TCP sends it again."""
        async with self._changing:
            await self._probing.close()
            if self._bound:
                self._receive()  # the resets of what was being answered
            self._unlisten()
            self._mode = Mode.OPEN
            if self._made is not None:
                self._made.close()
                self._made = self._rules = self._ruled = None

    async def __aenter__(self) -> PodTraffic:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def sample(self) -> Sample:
        """The pod's TCP sockets and passive opens now. Takes about 10 us a socket. Raises NetlinkError."""
        made = self._sockets()
        return self._probing.sample(made.diag.dump(), made.passive_opens())

    def has_unread(self, known: Mapping[int, tuple[int, int]] = NOTHING_UNREAD) -> bool:
        """Whether data waits for the app, or a connection that it has not accepted, or a handshake is under way.

        What lies as it lay in `known` (see Activity.unread) does not count: an answer that nobody will ever read.
        """
        ports = self._ports if self._ruled is None else self._ruled
        for found in self._sockets().diag.dump():
            pending = found.state in (State.SYN_RECV, State.NEW_SYN_RECV)
            unread = found.unread and known.get(found.cookie) != (found.received, found.unread)
            if found.local_port in ports and (unread or pending) and not self._probing.is_answered(found.flow):
                return True
        return False

    async def declare(self, probes: Declared) -> None:
        """These are the pod's probes, from now on; the rules of a sleeper follow. Idempotent. Errors as for `watch`."""
        async with self._changing:
            if not self._probing.declare(probes) or self._ruled is None:
                return
            ports, self._ruled = self._ruled, None
            await self._probing.listen(self._netns, self._sockets().families, ports)
            await self._rule(ports, self._rules_leaving)

    def stop_answering(self) -> None:
        """What sleeps will not come back: a probe gets no answer any more than a call does."""
        self._probing.stop()

    async def let_probes_end(self) -> None:
        """After `watch` and before a freeze: wait until no probe reaches the app, at most as long as the kubelet waits
        for one, and 5 s (new ones are answered by us). Raises NetlinkError.
        """
        await self._probing.let_end(self._sockets().diag)

    async def watch(self, extra_local_ports: Iterable[int] = ()) -> None:
        """See every packet and let it pass; the next request wakes. What was held passes first.

        Idempotent; adopts rules that are there. Raises RulesError, RulesDeadlineError, QueueTakenError; then all is as
        it was before.
        """
        await self._enter(Mode.WATCHING, extra_local_ports)

    async def hold(self, extra_local_ports: Iterable[int] = ()) -> None:
        """Keep every packet but bare ACKs from the app until `release`; the next request wakes. The sockets that are
        there now fall silent.

        Idempotent; what is held already stays, in its order. Errors as for `watch`. At the bound (held.MAX_SEGMENTS,
        held.MAX_BYTES) further packets are dropped, and sent again by TCP.
        """
        await self._enter(Mode.HOLDING, extra_local_ports)

    async def release(self) -> None:
        """Let go: what is held goes to the app in its order, then the rules go. Idempotent; also takes out leftovers.

        Raises RulesError, RulesDeadlineError; packets then pass, through us.
        """
        async with self._changing:
            self._armed = False
            self._pass_all(Mode.OPEN)
            await self._rules_of_pod().remove()
            self._ruled = None
            if self._bound:
                # A packet that a processor was taking through the old rules may still arrive: let it.
                await asyncio.sleep(0)
                self._receive()
            self._unlisten()
            await self._probing.deafen(self._sockets().diag)

    async def reset(self) -> int:
        """Refuse each held request with a RST, go on holding; the next request wakes again. Returns their number."""
        async with self._changing:
            made = self._sockets()
            requests, taken = self._held.take_requests()
            for held in requests:
                self._send(held.segment, held.ifindex, packets.reset(held.segment))
            for held in taken:
                made.queue.verdict(held.packet_id, nfqueue.DROP)
            self._counts["reset"] += len(requests)
            self._armed = True
            return len(requests)

    def oldest_held_at(self) -> float | None:
        """Since when (time.monotonic) a request is held; None: no request is."""
        return self._held.oldest_request_at()

    def statistics(self) -> dict[str, int]:
        """Counts since this object was made, and `waiting`: how many packets are held now."""
        overruns = self._made.queue.overruns if self._made else 0
        self._counts["probes"] = self._probing.count
        return {**self._counts, "refused": self._held.refused, "waiting": len(self._held), "overruns": overruns}

    async def _enter(self, mode: Mode, extra_local_ports: Iterable[int]) -> None:
        wanted = self._ports | frozenset(extra_local_ports)
        async with self._changing:
            before, adopted = self._mode, await self._rules_of_pod().present()
            if mode is Mode.HOLDING:
                sockets = self._sockets().diag.dump()
                self._silenced = frozenset(found.cookie for found in sockets)
                if before is not Mode.HOLDING:
                    self._windows = {found.flow: found.window for found in sockets}
            self._armed, self._sleepers = True, wanted
            if before is not Mode.HOLDING:
                self._mode = mode
            try:
                await self._probing.listen(self._netns, self._sockets().families, wanted)
                self._listen()
                await self._rule(wanted, mode is Mode.HOLDING)
            except BaseException:
                await self._undo(before, adopted)
                raise
            if mode is Mode.WATCHING:
                self._pass_all(mode)

    async def _rule(self, ports: frozenset[int], leaving: bool) -> None:
        """Rules for what leaves may stay where they are not needed: it is let through."""
        known, self._ruled = self._ruled, None  # unknown until the change is done
        if ports != known:
            probed, answerers = self._probing.ports, self._probing.listening
            await self._rules_of_pod().install(ports, leaving=leaving, probed=probed, answerers=answerers)
            self._rules_leaving = leaving
        elif leaving and not self._rules_leaving:
            await self._rules_of_pod().add_leaving(ports)
            self._rules_leaving = True
        self._ruled = ports

    async def _undo(self, before: Mode, adopted: bool) -> None:
        """After a failed change: as it was. Where there were no rules, none may stay; an adopted sleeper keeps its."""
        if before is not Mode.HOLDING:
            self._pass_all(before)
        if before is Mode.OPEN:
            if not adopted:
                with contextlib.suppress(RulesError, RulesDeadlineError):  # the first error is the one to tell
                    await self._rules_of_pod().remove()
            self._unlisten()
            await self._probing.deafen(self._sockets().diag)

    def _listen(self) -> None:
        if not self._bound:
            queue = self._sockets().queue
            queue.bind()
            self._bound = True
            asyncio.get_running_loop().add_reader(queue.fileno(), self._receive)
            self._receive()

    def _unlisten(self) -> None:
        if self._bound:
            queue = self._sockets().queue
            asyncio.get_running_loop().remove_reader(queue.fileno())
            queue.unbind()
            self._bound = False
        self._held.clear()
        self._answered.clear()
        self._windows.clear()

    def _pass_all(self, mode: Mode) -> None:
        """Let what is held go on, in its order, and everything after it."""
        newest = self._held.newest_id()
        if newest is not None:
            # Whatever waits in the kernel beside these has just come, and passes too.
            self._sockets().queue.verdict_up_to(newest, nfqueue.ACCEPT)
        self._held.clear()
        self._mode = mode

    def _receive(self) -> None:
        """Give every packet that has come its verdict, then wake if one of them asks for it."""
        queue = self._sockets().queue
        found = queue.packets()
        self._counts["seen"] += len(found)
        reason: Segment | None = None
        for packet in found:
            segment = packets.parse(packet.data, packet.length)
            if segment is not None and self._is_of_kubelet(packet, segment):
                continue
            wakes = segment is not None and segment.kind is Kind.WAKES and not packet.leaves
            if self._mode is not Mode.HOLDING:
                queue.verdict(packet.id, nfqueue.ACCEPT)
            elif packet.leaves:
                queue.verdict(packet.id, self._leaving(segment, packet.ifindex))
            else:
                self._hold(packet, segment)
            if wakes and reason is None:
                reason = segment
        if reason is not None and self._armed:
            self._armed = False
            self._on_wake(reason.reason)

    def _is_of_kubelet(self, packet: nfqueue.Packet, segment: Segment) -> bool:
        """Whether it was no matter of the sleeper, and has got its verdict."""
        if self._mode is Mode.OPEN or not self._probing.ports:
            return False
        queue, holding = self._sockets().queue, self._mode is Mode.HOLDING
        fate = self._probing.judge(segment, leaves=packet.leaves, holding=holding, own_ports=self._sleepers)
        if fate is Fate.ANSWER:
            queue.repeat(packet.id, PROBE_MARK)
        elif fate is not None:
            queue.verdict(packet.id, nfqueue.ACCEPT if fate is Fate.ACCEPT else nfqueue.DROP)
        return fate is not None

    def _hold(self, packet: nfqueue.Packet, segment: Segment | None) -> None:
        queue = self._sockets().queue
        if segment is None:
            self._counts["dropped"] += 1
            queue.verdict(packet.id, nfqueue.DROP)
        elif segment.kind is Kind.BARE_ACK:
            queue.verdict(packet.id, self._bare_ack(segment, packet.ifindex))
        elif self._held.add(HeldSegment(packet.id, segment, packet.ifindex, packet.length, time.monotonic())):
            self._counts["held"] += 1
        else:
            self._counts["dropped"] += 1
            queue.verdict(packet.id, nfqueue.DROP)

    def _bare_ack(self, segment: Segment, ifindex: int) -> int:
        found = self._sockets().diag.find(segment.flow, ifindex)
        if found and found.state in (State.SYN_RECV, State.NEW_SYN_RECV):
            return nfqueue.ACCEPT
        now = time.monotonic()
        if now - self._answered.get(segment.flow, 0.0) >= _ANSWER_INTERVAL_SECONDS:
            if len(self._answered) >= _MAX_ANSWERED:
                self._answered.clear()
            self._answered[segment.flow] = now
            self._send(segment, ifindex, packets.acknowledge(segment, self._windows.get(segment.flow, 1)))
            self._counts["answered"] += 1
        return nfqueue.DROP

    def _leaving(self, segment: Segment | None, ifindex: int) -> int:
        """Drop what a silenced socket sends, or one that has gone meanwhile. A handshake may complete: see above."""
        if segment is not None:
            found = self._sockets().diag.find(segment.own_flow, ifindex)
            if segment.flags & packets.SYN or (found and found.cookie not in self._silenced):
                return nfqueue.ACCEPT
        self._counts["silenced"] += 1
        return nfqueue.DROP

    def _send(self, segment: Segment, ifindex: int, packet: bytes) -> None:
        made = self._sockets()
        family = 4 if len(segment.source) == 4 else 6
        text = socket.inet_ntop(socket.AF_INET if family == 4 else socket.AF_INET6, segment.source)
        scope = ifindex if text.startswith("fe80:") else 0
        try:
            made.raw[family].sendto(packet, (text, 0) if family == 4 else (text, 0, 0, scope))
        except OSError:
            # No route, no buffer: as if the network had lost it. The peer sends again.
            self._counts["unsent"] += 1

    def _sockets(self) -> PodSockets:
        if self._made is None:
            raise RuntimeError("PodTraffic is not open")
        return self._made

    def _rules_of_pod(self) -> Rules:
        if self._rules is None:
            raise RuntimeError("PodTraffic is not open")
        return self._rules
