"""The health service of gRPC, as far as a kubelet asks it: every call on a connection is answered "SERVING". Pure.

A gRPC call is one HTTP/2 stream: the client's HEADERS and DATA up to END_STREAM, then the server's HEADERS, a DATA
frame with one length-prefixed message, and HEADERS with the status. Nothing that the client says changes the answer, so
its header blocks are not decoded; ours need no compression state. The connection itself wants SETTINGS acknowledged
and PINGs answered.

Sources: RFC 9113 (HTTP/2), RFC 7541 appendix A (HPACK's static table), grpc/grpc doc/PROTOCOL-HTTP2.md,
grpc/health/v1/health.proto.
"""

from __future__ import annotations

import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _SETTINGS, _PING, _CONTINUATION = 0, 1, 4, 6, 9
_END_STREAM, _ACK, _END_HEADERS = 0x1, 0x1, 0x4
_MAX_FRAME = 1 << 14  # nobody was told that we take more


def _text(value: bytes) -> bytes:
    return bytes([len(value)]) + value


_STATUS_200 = b"\x88"  # entry 8 of the static table
_CONTENT_TYPE = b"\x0f\x10" + _text(b"application/grpc")  # the name is entry 31: 15 in the prefix, 16 after it
_GRPC_OK = b"\x00" + _text(b"grpc-status") + _text(b"0")
_SERVING = b"\x00" + struct.pack("!I", 2) + b"\x08\x01"  # not compressed, two bytes: field 1 (status) is 1


class Health:
    """One connection. `feed` raises ValueError where it is no HTTP/2."""

    def __init__(self) -> None:
        self._buffer = b""
        self._greeted = False
        self._ending: set[int] = set()  # streams whose last header block goes on in CONTINUATION frames

    def feed(self, data: bytes) -> bytes:
        """What the client is to get for `data`."""
        self._buffer += data
        answer = b""
        if not self._greeted:
            if len(self._buffer) < len(PREFACE):
                return b""
            if not self._buffer.startswith(PREFACE):
                raise ValueError("no HTTP/2 preface")
            self._buffer, self._greeted = self._buffer[len(PREFACE) :], True
            answer = _frame(_SETTINGS, 0, 0, b"")
        while (frame := self._next()) is not None:
            answer += self._answer(*frame)
        return answer

    def _next(self) -> tuple[int, int, int, bytes] | None:
        if len(self._buffer) < 9:
            return None
        size = int.from_bytes(self._buffer[:3], "big")
        if size > _MAX_FRAME:
            raise ValueError(f"a frame of {size} bytes")
        kind, flags, stream = struct.unpack_from("!BBI", self._buffer, 3)
        if len(self._buffer) < 9 + size:
            return None
        payload, self._buffer = self._buffer[9 : 9 + size], self._buffer[9 + size :]
        return kind, flags, stream & 0x7FFFFFFF, payload

    def _answer(self, kind: int, flags: int, stream: int, payload: bytes) -> bytes:
        if kind == _SETTINGS and not flags & _ACK:
            return _frame(_SETTINGS, _ACK, 0, b"")
        if kind == _PING and not flags & _ACK:
            return _frame(_PING, _ACK, 0, payload)
        ends = kind in (_DATA, _HEADERS) and flags & _END_STREAM
        if ends and kind == _HEADERS and not flags & _END_HEADERS:
            self._ending.add(stream)
        elif ends or (kind == _CONTINUATION and flags & _END_HEADERS and stream in self._ending):
            self._ending.discard(stream)
            return _serving(stream)
        return b""


def _serving(stream: int) -> bytes:
    return (
        _frame(_HEADERS, _END_HEADERS, stream, _STATUS_200 + _CONTENT_TYPE)
        + _frame(_DATA, 0, stream, _SERVING)
        + _frame(_HEADERS, _END_HEADERS | _END_STREAM, stream, _GRPC_OK)
    )


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + struct.pack("!BBI", kind, flags, stream) + payload
