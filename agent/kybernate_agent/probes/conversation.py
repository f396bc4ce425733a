"""What is said to a kubelet in the place of an application that sleeps: yes. Pure: bytes in, bytes out.

The client speaks first, and its first bytes tell which language it expects: a TLS handshake (then what is inside
it), the preface of HTTP/2 (gRPC), else HTTP/1. A tcpSocket probe says nothing, and is content with the connection.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Protocol

from .health import PREFACE, Health

_TLS_HANDSHAKE = 0x16
_MAX_BYTES = 64 << 10  # of one client: a kubelet's httpHeaders are bounded by far less
_OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class _Language(Protocol):
    def feed(self, data: bytes) -> bytes: ...


class Conversation:
    """One connection. `feed` raises ValueError where the client says nothing that we understand, or too much.

    `context` is asked for once somebody speaks TLS.
    """

    def __init__(self, context: Callable[[], ssl.SSLContext]) -> None:
        self._context = context
        self._language: _Language | None = None
        self._early = b""
        self._heard = 0

    def feed(self, data: bytes) -> bytes:
        """What the client is to get for `data`."""
        self._heard += len(data)
        if self._heard > _MAX_BYTES:
            raise ValueError("the client says too much")
        if self._language is None:
            self._early += data
            self._language = self._recognised(self._early)
            if self._language is None:
                return b""
            data, self._early = self._early, b""
        return self._language.feed(data)

    def _recognised(self, start: bytes) -> _Language | None:
        if not start or (len(start) < 4 and PREFACE.startswith(start)):
            return None  # a PRI could still become a PRINT
        if start[0] == _TLS_HANDSHAKE:
            return _Tls(self._context())
        return Health() if PREFACE.startswith(start[: len(PREFACE)]) else _Http()


class _Http:
    def __init__(self) -> None:
        self._request = b""

    def feed(self, data: bytes) -> bytes:
        self._request += data
        if not self._request[:1].isalpha():
            raise ValueError("no HTTP request")
        head, end, rest = self._request.partition(b"\r\n\r\n")
        if not end:
            return b""
        if not head.split(b"\r\n", 1)[0].rsplit(b" ", 1)[-1].startswith(b"HTTP/1."):
            raise ValueError("no HTTP request")
        self._request = rest
        return _OK


class _Tls:
    def __init__(self, context: ssl.SSLContext) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._inside = Conversation(lambda: context)

    def feed(self, data: bytes) -> bytes:
        self._incoming.write(data)
        try:
            while plain := self._tls.read(16384):
                if answer := self._inside.feed(plain):
                    self._tls.write(answer)
        except (ssl.SSLWantReadError, ssl.SSLZeroReturnError):
            pass  # all read; or the client has said goodbye
        except ssl.SSLError as error:
            raise ValueError(f"TLS: {error.reason}") from error
        return self._outgoing.read()
