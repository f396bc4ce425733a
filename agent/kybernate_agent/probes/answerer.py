"""Stands in a sleeping pod for its application, towards the kubelet alone.

It owns listening sockets in the pod's network namespace, one for each IP version, on a loopback port that nobody is
told: the traffic rules give a kubelet's SYN to them, and to nobody else's. What is accepted has the address that the
kubelet called, so the answers come from there.

Ports of the pod are the application's, so nothing of a connection may stay behind: the kubelet closes first, and where
it does not, the connection is reset. A side that closes first keeps the port in TIME_WAIT, where an application that
starts anew could not bind it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
from collections.abc import Iterable

from .certificate import server_context
from .conversation import Conversation

log = logging.getLogger(__name__)

SILENCE_SECONDS = 30.0  # a probe ends by the kubelet: with its answer, or after timeoutSeconds
_MAX_CONNECTIONS = 256
_IP_TRANSPARENT, _IPV6_TRANSPARENT = 19, 75
_RESET_AT_CLOSE = struct.pack("ii", 1, 0)


def listener(family: int, taken: frozenset[int]) -> socket.socket:
    """A listening socket for the calling thread's network namespace, at a port that is none of `taken`.

    Transparent: it accepts what is addressed to the pod's address (CAP_NET_ADMIN). Raises OSError.
    """
    while True:
        sock = socket.socket(socket.AF_INET if family == 4 else socket.AF_INET6, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            # What it accepts inherits this, so the application's own listener can be bound beside it.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == 4:
                sock.setsockopt(socket.SOL_IP, _IP_TRANSPARENT, 1)
            else:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_TRANSPARENT, 1)
            sock.bind(("127.0.0.1" if family == 4 else "::1", 0))
            if sock.getsockname()[1] not in taken:
                sock.listen(64)
                return sock
        except BaseException:
            sock.close()
            raise
        sock.close()


class Answerer:
    """Serves listening sockets from the event loop until `deafen` or `close`."""

    def __init__(self) -> None:
        self._listeners: list[socket.socket] = []
        self._talks: set[asyncio.Task[None]] = set()
        self.answered = 0

    def listen(self, listeners: Iterable[socket.socket]) -> None:
        """Take these over."""
        loop = asyncio.get_running_loop()
        for sock in listeners:
            self._listeners.append(sock)
            loop.add_reader(sock.fileno(), self._accept, sock)

    @property
    def listens(self) -> bool:
        return bool(self._listeners)

    def deafen(self) -> None:
        """Accept what has come, then no more; what is being answered goes on. Idempotent."""
        for sock in self._listeners:
            self._accept(sock)
            asyncio.get_running_loop().remove_reader(sock.fileno())
            sock.close()
        self._listeners.clear()

    async def close(self) -> None:
        """Give everything back; what is being answered is reset. Idempotent."""
        self.deafen()
        talks = list(self._talks)
        for talk in talks:
            talk.cancel()
        await asyncio.gather(*talks, return_exceptions=True)

    def _accept(self, sock: socket.socket) -> None:
        while True:
            try:
                accepted, _ = sock.accept()
            except OSError:  # there is no more, or it has gone again
                return
            accepted.setblocking(False)
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
            if len(self._talks) >= _MAX_CONNECTIONS:
                accepted.close()
                continue
            talk = asyncio.create_task(self._talk(accepted), name="kybernate-probe")
            self._talks.add(talk)
            talk.add_done_callback(self._talks.discard)

    async def _talk(self, sock: socket.socket) -> None:
        """Answer one connection, until its other end closes it."""
        loop, conversation = asyncio.get_running_loop(), Conversation(server_context)
        self.answered += 1
        with sock, contextlib.suppress(TimeoutError, OSError):
            while True:
                async with asyncio.timeout(SILENCE_SECONDS):
                    data = await loop.sock_recv(sock, 16384)
                if not data:
                    break
                try:
                    answer = conversation.feed(data)
                except ValueError as error:
                    log.info("a probe of the kubelet speaks an unknown language: %s", error)
                    return
                if answer:
                    async with asyncio.timeout(SILENCE_SECONDS):
                        await loop.sock_sendall(sock, answer)
            # The other end has closed: a plain close now leaves nothing behind on this side.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0))
