"""The segments that wait for a sleeper: which are kept, which are not, and since when somebody is waiting.

The packets themselves lie in the kernel's queue; here is the list of their ids, in the order they came. A client whose
segment waits sends it again and again; the first one is kept and its repetitions are dropped, so a client that waits
long costs no more than one that waits briefly. Past the bound new segments are dropped: their senders repeat them, and
get in once the sleeper is awake.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .packets import Flow, Kind, Segment

MAX_SEGMENTS = 4096
MAX_BYTES = 32 << 20  # kernel memory that nobody's limit counts


@dataclass(frozen=True, slots=True)
class HeldSegment:
    """A segment in the kernel's queue; `at` is the time of the caller's clock, in seconds."""

    packet_id: int
    segment: Segment
    ifindex: int
    length: int
    at: float


@dataclass(slots=True)
class Held:
    """Pure: what it says is to be done, its owner does."""

    max_segments: int = MAX_SEGMENTS
    max_bytes: int = MAX_BYTES
    refused: int = 0
    _by_identity: dict[tuple[Flow, int, int, int], HeldSegment] = field(default_factory=dict)
    _bytes: int = 0

    def __len__(self) -> int:
        return len(self._by_identity)

    def add(self, held: HeldSegment) -> bool:
        """Keep the segment; False: drop it, it is a repetition or there is no room."""
        segment = held.segment
        identity = (segment.flow, segment.sequence, segment.flags, segment.payload_bytes)
        if identity in self._by_identity:
            return False
        if len(self._by_identity) >= self.max_segments or self._bytes + held.length > self.max_bytes:
            self.refused += 1
            return False
        self._by_identity[identity] = held
        self._bytes += held.length
        return True

    def newest_id(self) -> int | None:
        """The id of the segment that came last."""
        return next(reversed(self._by_identity.values())).packet_id if self._by_identity else None

    def oldest_request_at(self) -> float | None:
        """Since when a request (SYN or payload) waits."""
        return next((held.at for held in self._by_identity.values() if held.segment.kind is Kind.WAKES), None)

    def clear(self) -> None:
        self._by_identity.clear()
        self._bytes = 0

    def take_requests(self) -> tuple[list[HeldSegment], list[HeldSegment]]:
        """(first request of each connection that has one, all that waits of these connections); both leave."""
        first: dict[Flow, HeldSegment] = {}
        for held in self._by_identity.values():
            if held.segment.kind is Kind.WAKES:
                first.setdefault(held.segment.flow, held)
        taken = [held for held in self._by_identity.values() if held.segment.flow in first]
        self._by_identity = {key: held for key, held in self._by_identity.items() if held.segment.flow not in first}
        self._bytes = sum(held.length for held in self._by_identity.values())
        return list(first.values()), taken
