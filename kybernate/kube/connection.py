"""Sending to the API server: one connection pool, deadlines, credentials, and what a failure means.

A request is sent once. It is repeated, within its deadline, only where the server has said that nothing was done: 429,
503 with Retry-After, 401 once with renewed credentials. A broken connection is told as UnreachableError, because a
write may have happened: whoever reconciles looks again. At most `PARALLEL` requests run at once; watches do not count.

`requests` counts what was sent, by verb and resource, repeated ones too.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import aiohttp

from kybernate import __version__
from kybernate.kube.backoff import Backoff
from kybernate.kube.credentials import Access, Credentials
from kybernate.kube.errors import (
    ApiDeadlineError,
    ApiError,
    ServerError,
    TooManyRequestsError,
    UnauthorizedError,
    UnreachableError,
    from_body,
)

DEADLINE_SECONDS = 30.0
PARALLEL = 32
CONNECT_SECONDS = 10.0
JSON = "application/json"


@dataclass(frozen=True)
class Request:
    """One call, as it is sent and as messages and counters name it."""

    method: str
    verb: str
    path: str
    resource: str
    query: Mapping[str, str] | None = None
    body: bytes | None = None
    content_type: str = JSON

    def __str__(self) -> str:
        return f"{self.verb} {self.path}"


class Connection:
    """Open between `async with`; safe for any number of tasks of one event loop."""

    def __init__(
        self, credentials: Credentials, *, program: str = "kybernate", deadline_seconds: float = DEADLINE_SECONDS
    ) -> None:
        self.credentials = credentials
        self.deadline_seconds = deadline_seconds
        self.requests: Counter[tuple[str, str]] = Counter()
        self._program = f"{program}/{__version__}"
        self._room = asyncio.Semaphore(PARALLEL)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60),
            # Compression costs both sides more than the cluster's network does.
            headers={"User-Agent": self._program, "Accept": JSON, "Accept-Encoding": "identity"},
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def request(self, call: Request, *, deadline_seconds: float | None = None) -> bytes:
        """Send `call`, and again where that is safe; the body of the answer.

        Raises ApiError: ApiDeadlineError, UnreachableError, or what the server said.
        """
        seconds = self.deadline_seconds if deadline_seconds is None else deadline_seconds
        try:
            async with asyncio.timeout(seconds) as limit:
                return await self._repeated(call, limit)
        except TimeoutError as error:
            raise ApiDeadlineError(call=call, seconds=seconds) from error

    @contextlib.asynccontextmanager
    async def stream(self, call: Request, *, deadline_seconds: float) -> AsyncIterator[aiohttp.StreamReader]:
        """The body of `call` as it comes; the deadline is for its first byte only. Raises ApiError; what reading raises
        is for the caller to translate (`unreachable`)."""
        response: aiohttp.ClientResponse | None = None
        try:
            try:
                async with asyncio.timeout(deadline_seconds):
                    response = await self._sent(call)
            except TimeoutError as error:
                raise ApiDeadlineError(call=call, seconds=deadline_seconds) from error
            yield response.content
        finally:
            if response is not None:
                response.close()

    def unreachable(self, call: Request, error: Exception) -> UnreachableError:
        """What a failure of the connection means to the caller."""
        problem = str(error) or type(error).__name__
        return UnreachableError(call=call, server=self.credentials.server, problem=problem.rstrip("."))

    async def _repeated(self, call: Request, limit: asyncio.Timeout) -> bytes:
        backoff = Backoff(first=0.2, longest=5.0)
        while True:
            try:
                return await self._read(call)
            except ApiError as error:
                if not _undone(call, error):
                    raise
                # Jitter, so that all who were sent away together do not come back together.
                pause = (error.retry_after or 0.0) + backoff.next()
                ends = limit.when()
                if ends is not None and asyncio.get_running_loop().time() + pause >= ends:
                    raise
                await asyncio.sleep(pause)

    async def _read(self, call: Request) -> bytes:
        """The body of the answer. Who waits to ask again holds nobody up: the Lease must not miss its renewal."""
        async with self._room:
            response = await self._sent(call)
            try:
                return await response.read()
            except (aiohttp.ClientError, OSError) as error:
                raise self.unreachable(call, error) from error
            finally:
                response.release()

    async def _sent(self, call: Request) -> aiohttp.ClientResponse:
        """The answer's head, if it is a success; with renewed credentials once more after a 401."""
        access = await self.credentials.access()
        try:
            return await self._once(call, access)
        except UnauthorizedError:
            renewed = await self.credentials.renew(access)
            if renewed is None:
                raise
            return await self._once(call, renewed)

    async def _once(self, call: Request, access: Access) -> aiohttp.ClientResponse:
        if self._session is None:
            raise RuntimeError("the client is not open; use `async with`")
        headers = {"Authorization": access.authorization} if access.authorization else {}
        if call.body is not None:
            headers["Content-Type"] = call.content_type
        proxy = access.proxy
        self.requests[call.verb, call.resource] += 1
        try:
            response = await self._session.request(
                call.method,
                access.server + call.path,
                params=call.query,
                data=call.body,
                headers=headers,
                allow_redirects=False,
                ssl=access.tls if access.tls is not None else True,
                server_hostname=access.server_name or None,
                proxy=proxy.url if proxy else None,
                proxy_headers=proxy.headers if proxy else None,
            )
            if response.ok and response.status < 300:
                return response
            try:
                body = await response.read()
            finally:
                response.release()
        except (aiohttp.ClientError, OSError) as error:
            raise self.unreachable(call, error) from error
        raise from_body(str(call), response.status, body, _retry_after(response.headers))


def _undone(call: Request, error: ApiError) -> bool:
    """Whether the server said that it did nothing and that it may be asked again. Reading does nothing in any case."""
    if isinstance(error, TooManyRequestsError):
        return True
    if not isinstance(error, ServerError) or error.retry_after is None:
        return False
    return call.method == "GET" or error.status == 503


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds; a date, which no API server sends, counts as not given."""
    value = headers.get("Retry-After", "")
    return float(value) if value.isdigit() else None
