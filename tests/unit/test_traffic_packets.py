"""Parsing and answering TCP segments, without a network."""

from __future__ import annotations

import random
import socket
import struct

import pytest
from kybernate_agent.traffic.packets import ACK, FIN, PSH, RST, SYN, Kind, Segment, acknowledge, checksum, parse, reset

V4 = ("192.0.2.9", "192.0.2.1")
V6 = ("2001:db8::9", "2001:db8::1")
STAMPS = struct.pack("!BBBBII", 1, 1, 8, 10, 111, 222)


def packet(
    addresses: tuple[str, str] = V4,
    *,
    flags: int = ACK,
    payload: bytes = b"",
    options: bytes = b"",
    extensions: bytes = b"",
    following: int = 6,
    sequence: int = 1000,
    acknowledgement: int = 2000,
) -> bytes:
    words = (20 + len(options)) // 4
    tcp = struct.pack("!HHIIBBHHH", 4242, 8080, sequence, acknowledgement, words << 4, flags, 512, 0, 0)
    tcp += options + payload
    if ":" in addresses[0]:
        source, destination = (socket.inet_pton(socket.AF_INET6, text) for text in addresses)
        header = struct.pack("!IHBB", 6 << 28, len(extensions) + len(tcp), following, 64)
        return header + source + destination + extensions + tcp
    source, destination = (socket.inet_aton(text) for text in addresses)
    return struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 7, 0, 64, 6, 0) + source + destination + tcp


def parsed(data: bytes) -> Segment:
    segment = parse(data, len(data))
    assert segment is not None
    return segment


@pytest.mark.parametrize("addresses", [V4, V6], ids=["v4", "v6"])
@pytest.mark.parametrize(
    ("flags", "payload", "kind"),
    [
        (SYN, b"", Kind.WAKES),
        (SYN | 0xC0, b"", Kind.WAKES),  # with explicit congestion notification
        (SYN, b"fast open", Kind.WAKES),
        (ACK | PSH, b"GET /", Kind.WAKES),
        (ACK | FIN, b"last words", Kind.WAKES),
        (ACK, b"", Kind.BARE_ACK),
        (ACK | PSH, b"", Kind.BARE_ACK),
        (ACK | FIN, b"", Kind.WAITS),
        (RST, b"", Kind.WAITS),
        (RST | ACK, b"go away", Kind.WAITS),
        (SYN | ACK, b"", Kind.WAITS),
        (SYN | RST, b"", Kind.WAITS),
        (0, b"", Kind.WAITS),
    ],
)
def test_kind(addresses: tuple[str, str], flags: int, payload: bytes, kind: Kind) -> None:
    assert parsed(packet(addresses, flags=flags, payload=payload)).kind is kind


def test_options_are_no_payload() -> None:
    assert parsed(packet(options=STAMPS)).kind is Kind.BARE_ACK


def test_padding_of_a_short_frame_is_no_payload() -> None:
    assert parsed(packet() + bytes(6)).kind is Kind.BARE_ACK


def test_a_copy_of_the_headers_is_enough() -> None:
    data = packet(payload=bytes(60000))
    segment = parse(data[:120], len(data))
    assert segment is not None
    assert segment.payload_bytes == 60000


def test_a_large_segment_that_has_no_length_of_its_own_takes_the_packets() -> None:
    data = bytearray(packet(V6, payload=bytes(100)))
    data[4:6] = b"\0\0"
    segment = parse(bytes(data), len(data))
    assert segment is not None
    assert segment.payload_bytes == 100


def test_ipv6_extension_headers_are_passed_over() -> None:
    extensions = bytes([43, 0, 0, 0, 0, 0, 0, 0]) + bytes([60, 1]) + bytes(14) + bytes([6, 0]) + bytes(6)
    assert parsed(packet(V6, flags=SYN, extensions=extensions, following=0)).kind is Kind.WAKES


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x45" + bytes(18),
        packet()[:39],
        packet()[:20] + packet()[32:],
        packet(V6)[:59],
        bytes([0x55]) + packet()[1:],
        packet()[:9] + b"\x11" + packet()[10:],  # UDP
        packet()[:6] + b"\x00\x10" + packet()[8:],  # a later fragment
        packet(V6, extensions=bytes([44, 0, 0, 8, 0, 0, 0, 0]), following=44),
        packet(V6, extensions=bytes(8) * 12, following=0),
        packet()[:32] + b"\x10" + packet()[33:],  # a header of 4 bytes
        packet()[:32] + b"\xf0" + packet()[33:],  # a header longer than the packet
    ],
)
def test_what_is_no_whole_tcp_segment_is_none(data: bytes) -> None:
    assert parse(data, len(data)) is None


def test_the_reason_names_the_caller() -> None:
    assert parsed(packet(flags=SYN)).reason == "SYN from 192.0.2.9:4242 to port 8080"
    assert parsed(packet(V6, payload=b"x")).reason == "data from [2001:db8::9]:4242 to port 8080"


def verify(data: bytes) -> None:
    """The checksums are right, as a receiver computes them."""
    if data[0] >> 4 == 4:
        assert checksum(data[:20]) == 0
        addresses, tcp = data[12:20], data[20:]
    else:
        addresses, tcp = data[8:40], data[40:]
    assert checksum(addresses + struct.pack("!II", len(tcp), 6) + tcp) == 0


@pytest.mark.parametrize("addresses", [V4, V6], ids=["v4", "v6"])
def test_reset_of_a_syn_acknowledges_it(addresses: tuple[str, str]) -> None:
    data = reset(parsed(packet(addresses, flags=SYN, sequence=0xFFFFFFFF)))
    answer = parsed(data)
    verify(data)
    assert (answer.flags, answer.sequence, answer.acknowledgement) == (RST | ACK, 0, 0)
    assert (answer.source_port, answer.destination_port) == (8080, 4242)


@pytest.mark.parametrize("addresses", [V4, V6], ids=["v4", "v6"])
def test_reset_of_data_has_the_sequence_that_the_peer_expects(addresses: tuple[str, str]) -> None:
    data = reset(parsed(packet(addresses, payload=b"hello")))
    verify(data)
    assert (parsed(data).flags, parsed(data).sequence) == (RST, 2000)


@pytest.mark.parametrize("addresses", [V4, V6], ids=["v4", "v6"])
def test_a_probe_is_answered_with_its_stamps_swapped(addresses: tuple[str, str]) -> None:
    data = acknowledge(parsed(packet(addresses, options=STAMPS, sequence=0xFFFFFFFF)), 77)
    answer = parsed(data)
    verify(data)
    assert (answer.flags, answer.sequence, answer.acknowledgement) == (ACK, 2000, 0)
    assert answer.options == struct.pack("!BBBBII", 1, 1, 8, 10, 222, 111)
    assert data[-len(answer.options) - 6 : -len(answer.options) - 4] == struct.pack("!H", 77)


def test_a_probe_without_stamps_is_answered_without() -> None:
    assert parsed(acknowledge(parsed(packet(options=bytes([2, 4, 5, 180]))), 1)).options == b""


@pytest.mark.parametrize("seed", range(20))
def test_any_bytes_are_parsed_or_refused_and_every_answer_is_whole(seed: int) -> None:
    rng = random.Random(seed)
    bases = [packet(V4, options=STAMPS, payload=b"data"), packet(V6, options=STAMPS), packet(V6, extensions=bytes(16))]
    for _ in range(2000):
        data = bytearray(rng.choice(bases))
        for _ in range(rng.randrange(6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        cut = bytes(data[: rng.randrange(len(data) + 1)]) if rng.random() < 0.5 else bytes(data)
        segment = parse(cut, len(cut) + rng.randrange(3))
        if segment is None:
            continue
        assert segment.payload_bytes >= 0
        assert segment.kind in Kind
        for answer in (reset(segment), acknowledge(segment, 1)):
            verify(answer)
            assert parsed(answer).flow[0] == segment.destination
