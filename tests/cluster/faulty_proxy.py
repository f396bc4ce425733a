"""Stands between a client and the API server, and misbehaves on demand, as networks and busy servers do.

It ends TLS with a certificate of the bed's authority and passes each request on, with its token. What it does wrong is
said by a test, in calls that take effect at once:

    answers(n, when, status, ...)   the next n requests that fit get this answer, and never reach the API server
    cut, half_line                  watch streams that are open break: between lines, or within one
    stall                           open streams stay open and nothing more comes
    trickle                         every few bytes in a chunk of their own, wherever a line or a character ends
    hang                            requests are taken and never answered
    refuse, listen                  nobody listens any more; and again, at the same port
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import aiohttp
from aiohttp import web

from kybernate.lab.cluster.apiserver import ApiServerBed, free_ports

PIECE_BYTES = 7


@dataclass(frozen=True)
class Seen:
    """A request that came in."""

    method: str
    path: str
    query: dict[str, str]
    at: float

    @property
    def is_watch(self) -> bool:
        return "watch" in self.query

    @property
    def is_probe(self) -> bool:
        return self.query.get("limit") == "1"

    @property
    def is_list(self) -> bool:
        """The first page of a list."""
        return self.method == "GET" and not self.is_watch and not self.is_probe and "continue" not in self.query


@dataclass
class _Answer:
    left: int
    when: Callable[[Seen], bool]
    status: int
    body: str
    headers: dict[str, str]


@dataclass(eq=False)
class _Stream:
    request: web.BaseRequest
    halve_next: bool = False
    stalled: bool = False


class FaultyProxy:
    """Open between `async with`."""

    def __init__(self, bed: ApiServerBed) -> None:
        self.seen: list[Seen] = []
        self.bed = bed
        (self.port,) = free_ports(1)
        self.address = f"https://127.0.0.1:{self.port}"
        self._answers: list[_Answer] = []
        self._streams: set[_Stream] = set()
        self._trickle = False
        self._hangs = False
        self._before: list[tuple[Callable[[Seen], bool], Callable[[], None]]] = []
        self._listener: asyncio.Server | None = None
        self._server = web.Server(self._handle, handler_cancellation=True)

    async def __aenter__(self) -> FaultyProxy:
        self._to_server = ssl.create_default_context(cafile=str(self.bed.pki.certificate))
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), auto_decompress=False)
        await self.listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.refuse()
        await self._server.shutdown(0.1)
        await self._session.close()

    def answers(
        self,
        count: int,
        when: Callable[[Seen], bool],
        status: int,
        body: str = "",
        headers: dict[str, str] | None = None,
    ) -> None:
        self._answers.append(_Answer(count, when, status, body, headers or {}))

    def before(self, when: Callable[[Seen], bool], do: Callable[[], None]) -> None:
        """Run `do` before the next request that fits is passed on."""
        self._before.append((when, do))

    @property
    def open_streams(self) -> int:
        return len(self._streams)

    def cut(self) -> None:
        for stream in self._streams:
            _abort(stream.request)

    def half_line(self) -> None:
        """What comes next is passed on by half, then the streams break."""
        for stream in self._streams:
            stream.halve_next = True

    def stall(self) -> None:
        for stream in self._streams:
            stream.stalled = True

    def trickle(self) -> None:
        self._trickle = True

    def hang(self) -> None:
        self._hangs = True

    async def refuse(self) -> None:
        """Close the port and all connections; return when nobody listens."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        for connection in list(self._server.connections):
            if connection.transport is not None:
                connection.transport.abort()

    async def listen(self) -> None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.bed.pki.crt("server"), self.bed.pki.key("server"))
        self._listener = await asyncio.get_running_loop().create_server(
            self._server, "127.0.0.1", self.port, ssl=context, reuse_address=True
        )

    def count(self, when: Callable[[Seen], bool]) -> int:
        return sum(when(seen) for seen in self.seen)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        seen = Seen(request.method, request.path, dict(request.query), time.monotonic())
        self.seen.append(seen)
        if self._hangs:
            await asyncio.Event().wait()
        for answer in self._answers:
            if answer.left and answer.when(seen):
                answer.left -= 1
                return web.Response(status=answer.status, text=answer.body, headers=answer.headers)
        for index, (when, do) in enumerate(self._before):
            if when(seen):
                del self._before[index]
                await asyncio.to_thread(do)
                break
        try:
            return await self._pass_on(request)
        except aiohttp.ClientError as error:
            return web.Response(status=502, text=f"bad gateway: {error}")

    async def _pass_on(self, request: web.BaseRequest) -> web.StreamResponse:
        names = ("Authorization", "Content-Type", "Accept")
        async with self._session.request(
            request.method,
            self.bed.server + request.raw_path.partition("?")[0],
            params=request.query,
            data=await request.read() or None,
            headers={name: request.headers[name] for name in names if name in request.headers},
            ssl=self._to_server,
        ) as upstream:
            if "watch" not in request.query:
                kept = {
                    name: upstream.headers[name] for name in ("Content-Type", "Retry-After") if name in upstream.headers
                }
                return web.Response(status=upstream.status, body=await upstream.read(), headers=kept)
            response = web.StreamResponse(status=upstream.status)
            await response.prepare(request)
            async with self._registered(request) as stream:
                try:
                    async for chunk in upstream.content.iter_any():
                        await self._write(stream, response, chunk)
                except aiohttp.ClientError:
                    _abort(request)
            return response

    async def _write(self, stream: _Stream, response: web.StreamResponse, chunk: bytes) -> None:
        if stream.stalled:
            return
        if stream.halve_next:
            await response.write(chunk[: len(chunk) // 2])
            _abort(stream.request)
        elif self._trickle:
            for start in range(0, len(chunk), PIECE_BYTES):
                await response.write(chunk[start : start + PIECE_BYTES])
        else:
            await response.write(chunk)

    @contextlib.asynccontextmanager
    async def _registered(self, request: web.BaseRequest) -> AsyncIterator[_Stream]:
        stream = _Stream(request)
        self._streams.add(stream)
        try:
            yield stream
        finally:
            self._streams.discard(stream)


def _abort(request: web.BaseRequest) -> None:
    if request.transport is not None:
        request.transport.abort()
