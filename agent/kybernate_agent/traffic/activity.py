"""Whether anybody uses a pod, folded from samples of what the kernel counts. Pure, and the app knows nothing of it.

Used means one of three things:

- Bytes moved since the last sample, in either direction, on any connection that counts, outgoing ones included. So
  they did where a request was in flight whose connection is gone: it was answered, or given up.
- Connections came: one that was not there before, or ones that came and went between samples (the namespace's counter
  of passive opens, which counts a sidecar's as well).
- A request is in flight: on a connection that the pod serves, the client's data is newer than the server's, or data or
  a connection waits to be taken by the app.

What the third cannot see: the kernel keeps ages in jiffies (1 to 10 ms). A request and an answer with equal ages count
as answered, unless nothing was ever sent or only the client moved since the last sample; a request that came within
one jiffy after the previous answer and is served in silence is then only as active as the time since its last byte.
And a client message that gets no answer by design (an HTTP/2 SETTINGS acknowledgement, a websocket's notice) looks
like a request until the caller's `maxInFlight` ends it; that is why each one's beginning is told.

The kubelet's connections count for nothing. Those that a sample saw are known by their owner. Those that came and went
between two samples are known by their number alone, and are taken for probes as far as the pod declares probes: each
grants one connection a period, and at most one more is kept for later, since a kubelet is sometimes late. So as many
short calls as there are probes may pass for probes; after that each call counts, or a probe counts in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from .packets import Flow
from .sockdiag import Socket, State

_EARLY = 0.02  # of a period: no two probes are exactly one apart
_SERVING = frozenset({State.ESTABLISHED, State.CLOSE_WAIT})


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at a pod: its TCP sockets but those in TIME_WAIT, and the passive opens of its namespace so far.

    `probes` are the cookies of the kubelet's connections, `probe_opens` is how many of them were seen so far, and
    `probe_periods` how often the kubelet connects, in seconds, by probe.
    """

    sockets: tuple[Socket, ...]
    passive_opens: int
    probes: frozenset[int] = frozenset()
    probe_opens: int = 0
    probe_periods: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Activity:
    """When the pod was last used and what is in flight, by the caller's clock in seconds; goes into the next fold."""

    last_activity: float
    in_flight: Mapping[Flow, float] = field(default_factory=dict)
    sockets: Mapping[int, Socket] = field(default_factory=dict)
    passive_opens: int = 0
    probe_opens: int = 0
    granted: float = 0.0  # connections that may be probes which no sample saw
    at: float = 0.0

    @property
    def in_flight_since(self) -> float | None:
        """When the oldest request in flight began; None: there is none."""
        return min(self.in_flight.values(), default=None)

    @property
    def unread(self) -> dict[int, tuple[int, int]]:
        """By its cookie, each connection with data that nobody has read: bytes received, and how many lie unread."""
        waiting = (found for found in self.sockets.values() if found.unread and found.state != State.LISTEN)
        return {found.cookie: (found.received, found.unread) for found in waiting}

    def requests(self, now: float, max_in_flight_seconds: float) -> int:
        """Requests in flight, without those older than `max_in_flight_seconds`."""
        return sum(now - since <= max_in_flight_seconds for since in self.in_flight.values())


def fold(
    previous: Activity | None,
    sample: Sample,
    now: float,
    ports: Iterable[int] = (),
    counts: Callable[[Socket], bool] = lambda _: True,
) -> Activity:
    """What the sample says after `previous`. `counts` chooses sockets; those on `ports` always count.

    Without `previous` the pod counts as used now.
    """
    declared = frozenset(ports)
    kept = (found for found in sample.sockets if found.local_port in declared or counts(found))
    sockets = {found.cookie: _without_probes(found, sample) for found in kept if found.cookie not in sample.probes}
    served = declared | {found.local_port for found in sockets.values() if found.state == State.LISTEN}
    in_flight = {}
    for found in sockets.values():
        since = _in_flight_since(found, previous, served, now)
        if since is not None:
            in_flight[found.flow] = since
    others, granted = _unseen(previous, sample, now)
    moved = (
        previous is None
        or others
        or not previous.in_flight.keys() <= {found.flow for found in sockets.values()}
        or any(_moved(found, previous.sockets.get(found.cookie)) for found in sockets.values())
    )
    last = now if moved or previous is None else previous.last_activity
    return Activity(last, in_flight, sockets, sample.passive_opens, sample.probe_opens, granted, now)


def _unseen(previous: Activity | None, sample: Sample, now: float) -> tuple[bool, float]:
    """Whether somebody else than the kubelet connected; how many connections may be probes from now on."""
    most = 2.0 * len(sample.probe_periods)
    if previous is None:
        return False, most
    if sample.passive_opens < previous.passive_opens:
        return True, most  # another namespace: the pod is a new one
    granted = previous.granted + (now - previous.at) * sum(1 / period for period in sample.probe_periods)
    seen = max(0, sample.probe_opens - previous.probe_opens)
    unseen = max(0, sample.passive_opens - previous.passive_opens - seen)
    probes = min(unseen, max(0, int(granted - seen + _EARLY)))
    return unseen > probes, min(most, max(0.0, granted - seen - probes))


def _without_probes(found: Socket, sample: Sample) -> Socket:
    """A listener's queue without the kubelet's connections in it: those have no inode yet."""
    if found.state != State.LISTEN or not found.unread or not sample.probes:
        return found
    port = found.local_port
    waiting = sum(not s.inode and s.local_port == port and s.cookie in sample.probes for s in sample.sockets)
    return replace(found, unread=max(0, found.unread - waiting))


def _moved(found: Socket, before: Socket | None) -> bool:
    if found.state == State.LISTEN:
        return found.unread > 0
    return before is None or (found.received, found.sent) != (before.received, before.sent)


def _in_flight_since(found: Socket, previous: Activity | None, served: frozenset[int], now: float) -> float | None:
    """When the request that this socket owes an answer to began; None: it owes none."""
    known = previous.in_flight.get(found.flow) if previous else None
    if found.state == State.LISTEN:
        return None if not found.unread else now if known is None else known
    if found.local_port not in served or found.state not in _SERVING:
        return None
    before = previous.sockets.get(found.cookie) if previous else None
    if not _owes_answer(found, before, known is not None):
        return None
    if known is not None and (before is None or found.sent == before.sent):
        return known
    return now - found.received_age_ms / 1000


def _owes_answer(found: Socket, before: Socket | None, owed: bool) -> bool:
    if found.unread:
        return True
    if not found.received:
        # A connection that was restored counts from zero; what it owed before it still owes.
        return owed and not found.sent
    if found.received_age_ms != found.sent_age_ms:
        return found.received_age_ms < found.sent_age_ms
    if not found.sent:
        return True
    return before is not None and found.received > before.received and found.sent == before.sent
