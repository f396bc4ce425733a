"""A TCP segment as it arrives: what it asks for, and the answers that stand in for a socket that is not there.

Pure: bytes in, bytes out. Three kinds of segments exist for a sleeper:

    WAKES     a SYN without ACK, or any payload: somebody wants something
    WAITS     FIN, RST, SYN-ACK (of a connection that the app was opening): to be delivered, but no reason to wake
    BARE_ACK  an ACK with nothing else: a keepalive probe, a window update, a late acknowledgement

A keepalive probe cannot be told from a late acknowledgement by its looks alone: the probe carries the sequence number
before the next one. `acknowledge` answers as if it were a probe. On anything else that answer acknowledges a byte that
was never sent, which a peer ignores (RFC 9293, 3.10.7.4) or answers with one more bare ACK; so whoever sends these
answers must limit their rate per connection.

Sources: RFC 9293 (TCP, resets in 3.10.7), RFC 7323 (timestamps, PAWS), RFC 8200 (IPv6 extension headers).
"""

from __future__ import annotations

import enum
import ipaddress
import struct
from dataclasses import dataclass

FIN, SYN, RST, PSH, ACK = 0x01, 0x02, 0x04, 0x08, 0x10
_TCP = 6
_HOP_BY_HOP, _ROUTING, _FRAGMENT, _AUTHENTICATION, _DESTINATION = 0, 43, 44, 51, 60
_MAX_EXTENSION_HEADERS = 8
_TCP_HEADER = struct.Struct("!HHIIBBHHH")
_TIMESTAMPS_KIND, _TIMESTAMPS_BYTES = 8, 10
_WORD = 0xFFFFFFFF
_HOPS = 64


Flow = tuple[bytes, int, bytes, int]  # a connection: the peer's address and port, our address and port


class Kind(enum.Enum):
    WAKES = "wakes"
    WAITS = "waits"
    BARE_ACK = "bare ACK"


@dataclass(frozen=True, slots=True)
class Segment:
    """One TCP segment; addresses are packed (4 or 16 bytes), sequence numbers as on the wire."""

    source: bytes
    destination: bytes
    source_port: int
    destination_port: int
    sequence: int
    acknowledgement: int
    flags: int
    payload_bytes: int
    options: bytes

    @property
    def kind(self) -> Kind:
        if self.payload_bytes or self.flags & (SYN | ACK | RST) == SYN:
            # A RST may carry a text for people (RFC 9293, 3.5.3); it asks for nothing.
            return Kind.WAITS if self.flags & RST else Kind.WAKES
        if self.flags & (SYN | FIN | RST | ACK) == ACK:
            return Kind.BARE_ACK
        return Kind.WAITS

    @property
    def flow(self) -> Flow:
        return self.source, self.source_port, self.destination, self.destination_port

    @property
    def own_flow(self) -> Flow:
        """The flow of a segment that leaves: the peer is its destination."""
        return self.destination, self.destination_port, self.source, self.source_port

    @property
    def reason(self) -> str:
        """Why this segment wakes, for people."""
        verb = "SYN" if self.flags & SYN else "data"
        return f"{verb} from {endpoint(self.source, self.source_port)} to port {self.destination_port}"


def endpoint(address: bytes, port: int) -> str:
    text = str(ipaddress.ip_address(address))
    return f"[{text}]:{port}" if len(address) == 16 else f"{text}:{port}"


def parse(data: bytes, length: int) -> Segment | None:
    """The segment in an IP packet of `length` bytes, of which `data` holds the first; None: no whole TCP header."""
    if len(data) < 20:
        return None
    version = data[0] >> 4
    if version == 4:
        offset, total = _ipv4(data, length)
        source, destination = data[12:16], data[16:20]
    elif version == 6 and len(data) >= 40:
        offset, total = _ipv6(data, length)
        source, destination = data[8:24], data[24:40]
    else:
        return None
    if not offset or len(data) < offset + 20:
        return None
    sport, dport, sequence, acknowledgement, words, flags, *_ = _TCP_HEADER.unpack_from(data, offset)
    end = offset + (words >> 4) * 4
    if end < offset + 20 or end > total:
        return None
    options = data[offset + 20 : end] if end > offset + 20 else b""
    return Segment(source, destination, sport, dport, sequence, acknowledgement, flags, total - end, options)


def reset(segment: Segment) -> bytes:
    """The IP packet that refuses `segment`: its sender sees ECONNREFUSED on a SYN, ECONNRESET on an open connection."""
    if segment.flags & ACK:
        return segment_back(segment, segment.acknowledgement, 0, RST)
    consumed = segment.payload_bytes + bool(segment.flags & SYN) + bool(segment.flags & FIN)
    return segment_back(segment, 0, (segment.sequence + consumed) & _WORD, RST | ACK)


def acknowledge(probe: Segment, window: int) -> bytes:
    """The IP packet that answers the keepalive `probe`, as the socket would.

    `window` is the unscaled window field. Timestamps are swapped, so that PAWS accepts them: the peer's echo is the
    newest stamp that it has seen from us.
    """
    options = b""
    stamps = timestamps(probe.options)
    if stamps is not None:
        value, echo = stamps
        options = struct.pack("!BBBBII", 1, 1, _TIMESTAMPS_KIND, _TIMESTAMPS_BYTES, echo, value)
    expected = (probe.sequence + 1) & _WORD
    return segment_back(probe, probe.acknowledgement, expected, ACK, window=window, options=options)


def timestamps(options: bytes) -> tuple[int, int] | None:
    """(value, echo) of the timestamps option, or None where there is none."""
    offset = 0
    while offset < len(options):
        kind = options[offset]
        if kind == 0:
            return None
        if kind == 1:
            offset += 1
            continue
        size = options[offset + 1] if offset + 1 < len(options) else 0
        if size < 2 or offset + size > len(options):
            return None
        if kind == _TIMESTAMPS_KIND and size == _TIMESTAMPS_BYTES:
            value, echo = struct.unpack_from("!II", options, offset + 2)
            return value, echo
        offset += size
    return None


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return int(~total & 0xFFFF)


def _ipv4(data: bytes, length: int) -> tuple[int, int]:
    """(where TCP begins, where the packet ends); begin 0: not TCP, or not the first fragment."""
    header = (data[0] & 15) * 4
    fragment = ((data[6] << 8) | data[7]) & 0x1FFF
    if header < 20 or data[9] != _TCP or fragment:
        return 0, 0
    return header, ((data[2] << 8) | data[3]) or length


def _ipv6(data: bytes, length: int) -> tuple[int, int]:
    payload = (data[4] << 8) | data[5]
    total = 40 + payload if payload else length  # 0: a jumbogram
    following, offset = data[6], 40
    for _ in range(_MAX_EXTENSION_HEADERS):
        if following == _TCP:
            return offset, total
        if len(data) < offset + 8:
            break
        if following in (_HOP_BY_HOP, _ROUTING, _DESTINATION):
            size = (data[offset + 1] + 1) * 8
        elif following == _AUTHENTICATION:
            size = (data[offset + 1] + 2) * 4
        elif following == _FRAGMENT and not ((data[offset + 2] << 8) | data[offset + 3]) & 0xFFF8:
            size = 8
        else:
            break
        following, offset = data[offset], offset + size
    return 0, 0


def segment_back(
    cause: Segment, sequence: int, acknowledgement: int, flags: int, *, window: int = 0, options: bytes = b""
) -> bytes:
    """A segment back to the sender of `cause`, headers and checksums and all."""
    source, destination = cause.destination, cause.source
    size = 20 + len(options)
    ports = cause.destination_port, cause.source_port
    tcp = _TCP_HEADER.pack(*ports, sequence, acknowledgement, (size // 4) << 4, flags, window, 0, 0) + options
    pseudo = source + destination + struct.pack("!II", size, _TCP)
    tcp = tcp[:16] + checksum(pseudo + tcp).to_bytes(2, "big") + tcp[18:]
    if len(source) == 16:
        return struct.pack("!IHBB", 6 << 28, size, _TCP, _HOPS) + source + destination + tcp
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + size, 0, 0x4000, _HOPS, _TCP, 0) + source + destination
    return header[:10] + checksum(header).to_bytes(2, "big") + header[12:] + tcp
