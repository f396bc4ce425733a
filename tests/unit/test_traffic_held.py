"""Which segments are kept for a sleeper."""

from __future__ import annotations

from kybernate_agent.traffic.held import Held, HeldSegment
from kybernate_agent.traffic.packets import ACK, FIN, SYN, Segment


def segment(port: int, flags: int = SYN, sequence: int = 1, payload_bytes: int = 0) -> Segment:
    return Segment(b"\xc0\0\2\t", b"\xc0\0\2\1", port, 8080, sequence, 0, flags, payload_bytes, b"")


def held(packet_id: int, what: Segment, length: int = 60) -> HeldSegment:
    return HeldSegment(packet_id, what, 2, length, float(packet_id))


def test_a_repetition_is_not_kept() -> None:
    store = Held()
    assert store.add(held(1, segment(1)))
    assert not store.add(held(2, segment(1)))
    assert store.add(held(3, segment(1, sequence=9)))
    assert (len(store), store.newest_id(), store.refused) == (2, 3, 0)


def test_the_bound_on_segments_refuses_the_newest() -> None:
    store = Held(max_segments=2)
    assert [store.add(held(number, segment(number))) for number in (1, 2, 3)] == [True, True, False]
    assert store.refused == 1


def test_the_bound_on_bytes_refuses_what_does_not_fit() -> None:
    store = Held(max_bytes=100)
    assert [store.add(held(number, segment(number), 60)) for number in (1, 2)] == [True, False]
    store.clear()
    assert store.add(held(3, segment(3), 100))


def test_only_requests_have_an_age() -> None:
    store = Held()
    store.add(held(1, segment(1, FIN | ACK)))
    assert store.oldest_request_at() is None
    store.add(held(2, segment(2)))
    store.add(held(3, segment(3)))
    assert store.oldest_request_at() == 2.0


def test_requests_are_taken_with_all_that_waits_of_their_connections() -> None:
    store = Held()
    kept = held(1, segment(1, FIN | ACK))
    data = [held(2, segment(2, ACK, 1, 10)), held(3, segment(2, ACK, 11, 10)), held(4, segment(2, FIN | ACK, 21))]
    for one in [kept, *data]:
        store.add(one)
    requests, taken = store.take_requests()
    assert requests == data[:1]
    assert taken == data
    assert (len(store), store.newest_id(), store.oldest_request_at()) == (1, 1, None)
