"""Requests to the API server: one method for each of its verbs, each with a deadline and typed errors.

A request is sent once. It is repeated, within its deadline, only where the server has said that nothing was done: 429,
503 with Retry-After, 401 once with renewed credentials. A broken connection is told as UnreachableError, because a
write may have happened: whoever reconciles looks again. At most `PARALLEL` requests run at once; watches do not count.

Objects go in as dicts or msgspec structs and come out as the type that the caller names (or that went in): only the
fields of that type are decoded, which is what makes ten thousand pods cheap.

`requests` counts what was sent, by verb and resource, repeated ones too.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Literal, TypeVar, overload

import aiohttp
import msgspec
from yarl import URL

from kybernate import __version__
from kybernate.api.objects import Object, builtins, decode
from kybernate.kube.backoff import Backoff
from kybernate.kube.credentials import Access, Credentials
from kybernate.kube.errors import (
    ApiDeadlineError,
    ApiError,
    ExpiredError,
    ResponseError,
    TooManyRequestsError,
    UnauthorizedError,
    UnreachableError,
    from_body,
)
from kybernate.kube.resource import Resource

DEADLINE_SECONDS = 30.0
PAGE = 500
PARALLEL = 32
CONNECT_SECONDS = 10.0
JSON = "application/json"
MERGE_PATCH = "application/merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"

T = TypeVar("T")
R = TypeVar("R")


class ListMetadata(Object):
    """Where a list stands."""

    resource_version: str = ""
    continue_: str = msgspec.field(name="continue", default="")


class Page(Object, Generic[T]):
    """A part of a list; `items` is null where a server has none."""

    metadata: ListMetadata = msgspec.field(default_factory=ListMetadata)
    items: list[T] | None = None


@dataclass
class Listed(Generic[T]):
    """Objects as they were, all at one moment, at `resource_version`."""

    items: list[T]
    resource_version: str


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


class Client:
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

    async def __aenter__(self) -> Client:
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

    async def get(
        self,
        resource: Resource,
        kind: type[T],
        name: str,
        namespace: str | None = None,
        *,
        deadline_seconds: float | None = None,
    ) -> T:
        """One object, as it is now. Raises ApiNotFoundError and the errors of `request`."""
        call = Request("GET", "get", resource.path(namespace, name), str(resource))
        return _decoded(call, await self.request(call, deadline_seconds=deadline_seconds), kind)

    async def list(
        self,
        resource: Resource,
        kind: type[T],
        namespace: str | None = None,
        *,
        label_selector: str = "",
        field_selector: str = "",
        page: int = PAGE,
        transform: Callable[[T], T] | None = None,
        deadline_seconds: float | None = None,
    ) -> Listed[T]:
        """All objects, as they are now (never out of an API server's stale cache), of all namespaces if None is named.

        Fetched in pages of `page`, each through `transform`; the deadline holds for each. Where the first page's
        version has gone before the last page is asked for, all come once more and in one piece.
        """
        query = {"labelSelector": label_selector, "fieldSelector": field_selector}
        path = resource.path(namespace)
        items: list[T] = []
        version, more = "", ""
        while True:
            size = {"limit": str(page)} if page else {}
            call = Request("GET", "list", path, str(resource), _given({**query, **size, "continue": more}))
            try:
                body = await self.request(call, deadline_seconds=deadline_seconds)
            except ExpiredError:
                if not more:
                    raise
                items, more, page = [], "", 0
                continue
            part = _decoded(call, body, Page[kind])  # type: ignore[valid-type]
            items += (part.items or ()) if transform is None else map(transform, part.items or ())
            version, more = version or part.metadata.resource_version, part.metadata.continue_
            if not more:
                return Listed(items, part.metadata.resource_version or version)

    async def version_of(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        label_selector: str = "",
        field_selector: str = "",
        deadline_seconds: float | None = None,
    ) -> str:
        """The version at which a list of these objects would be now; costs one object."""
        query = _given({"labelSelector": label_selector, "fieldSelector": field_selector, "limit": "1"})
        call = Request("GET", "list", resource.path(namespace), str(resource), query)
        body = await self.request(call, deadline_seconds=deadline_seconds)
        return _decoded(call, body, Page[Any]).metadata.resource_version

    @overload
    async def create(self, resource: Resource, object: T, namespace: str | None = None) -> T: ...
    @overload
    async def create(self, resource: Resource, object: Any, namespace: str | None = None, *, into: type[R]) -> R: ...
    async def create(
        self, resource: Resource, object: Any, namespace: str | None = None, *, into: type[Any] | None = None
    ) -> Any:
        """Create `object`; what the server made of it, as `into` or the type that was given.

        Raises AlreadyExistsError.
        """
        value = _complete(object, resource)
        path = resource.path(namespace or value["metadata"].get("namespace"))
        call = Request("POST", "create", path, str(resource), body=_encoded(value))
        return _decoded(call, await self.request(call), into or type(object))

    @overload
    async def replace(
        self, resource: Resource, object: T, namespace: str | None = None, *, subresource: str | None = None
    ) -> T: ...
    @overload
    async def replace(
        self,
        resource: Resource,
        object: Any,
        namespace: str | None = None,
        *,
        subresource: str | None = None,
        into: type[R],
    ) -> R: ...
    async def replace(
        self,
        resource: Resource,
        object: Any,
        namespace: str | None = None,
        *,
        subresource: str | None = None,
        into: type[Any] | None = None,
    ) -> Any:
        """Put `object` whole in place of what is there; with its resourceVersion only if nothing changed meanwhile.

        Raises ConflictError, ApiNotFoundError.
        """
        value = _complete(object, resource)
        path = _path_of(resource, value, namespace, subresource)
        call = Request("PUT", "update", path, _counted(resource, subresource), body=_encoded(value))
        return _decoded(call, await self.request(call), into or type(object))

    @overload
    async def apply(
        self,
        resource: Resource,
        object: T,
        namespace: str | None = None,
        *,
        manager: str,
        force: bool = True,
        subresource: str | None = None,
    ) -> T: ...
    @overload
    async def apply(
        self,
        resource: Resource,
        object: Any,
        namespace: str | None = None,
        *,
        manager: str,
        force: bool = True,
        subresource: str | None = None,
        into: type[R],
    ) -> R: ...
    async def apply(
        self,
        resource: Resource,
        object: Any,
        namespace: str | None = None,
        *,
        manager: str,
        force: bool = True,
        subresource: str | None = None,
        into: type[Any] | None = None,
    ) -> Any:
        """Server-side apply: `manager` owns the fields of `object` from now on, and no others.

        Creates what is not there (a subresource never does). With `force` fields of other managers become ours;
        without, ConflictError names them. With metadata.uid or resourceVersion it is refused where they differ.
        """
        value = _complete(object, resource)
        call = Request(
            "PATCH",
            "apply",
            _path_of(resource, value, namespace, subresource),
            _counted(resource, subresource),
            {"fieldManager": manager, "force": str(force).lower()},
            _encoded(value),
            APPLY_PATCH,
        )
        return _decoded(call, await self.request(call), into or type(object))

    async def merge_patch(
        self,
        resource: Resource,
        kind: type[T],
        name: str,
        patch: Mapping[str, Any],
        namespace: str | None = None,
        *,
        subresource: str | None = None,
        manager: str | None = None,
    ) -> T:
        """JSON merge patch: fields given are set, null ones removed, lists replaced. Raises ApiNotFoundError.

        With metadata.resourceVersion in the patch ConflictError says that the object changed meanwhile.
        """
        call = Request(
            "PATCH",
            "patch",
            resource.path(namespace, name, subresource),
            _counted(resource, subresource),
            _given({"fieldManager": manager or ""}),
            _encoded(patch),
            MERGE_PATCH,
        )
        return _decoded(call, await self.request(call), kind)

    async def delete(
        self,
        resource: Resource,
        name: str,
        namespace: str | None = None,
        *,
        uid: str | None = None,
        resource_version: str | None = None,
        grace_seconds: int | None = None,
        propagation: Literal["Foreground", "Background", "Orphan"] | None = None,
    ) -> None:
        """Ask for the object's deletion; with finalizers or a grace period it goes later.

        Raises ApiNotFoundError; ConflictError where it has another `uid` or `resource_version`.
        """
        preconditions = _given({"uid": uid or "", "resourceVersion": resource_version or ""})
        options = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": preconditions or None,
            "gracePeriodSeconds": grace_seconds,
            "propagationPolicy": propagation,
        }
        body = _encoded({key: value for key, value in options.items() if value is not None})
        await self.request(Request("DELETE", "delete", resource.path(namespace, name), str(resource), body=body))

    async def request(self, call: Request, *, deadline_seconds: float | None = None) -> bytes:
        """Send `call`, and again where that is safe; the body of the answer.

        Raises ApiError: ApiDeadlineError, UnreachableError, or what the server said.
        """
        seconds = self.deadline_seconds if deadline_seconds is None else deadline_seconds
        try:
            async with asyncio.timeout(seconds) as limit, self._room:
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
                response = await self._sent(call)
                try:
                    return await response.read()
                except (aiohttp.ClientError, OSError) as error:
                    raise self.unreachable(call, error) from error
                finally:
                    response.release()
            except ApiError as error:
                wait = error.retry_after
                if wait is None and not isinstance(error, TooManyRequestsError):
                    raise
                # Jitter, so that all who were sent away together do not come back together.
                pause = (wait or 0.0) + backoff.next()
                ends = limit.when()
                if ends is not None and asyncio.get_running_loop().time() + pause >= ends:
                    raise
                await asyncio.sleep(pause)

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
                URL(access.server + call.path, encoded=True).with_query(call.query),
                data=call.body,
                headers=headers,
                allow_redirects=False,
                ssl=access.tls if access.tls is not None else True,
                server_hostname=access.server_name or None,
                proxy=proxy.url if proxy else None,
                proxy_auth=aiohttp.BasicAuth(proxy.user, proxy.password) if proxy and proxy.user else None,
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


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds; a date, which no API server sends, counts as not given."""
    value = headers.get("Retry-After", "")
    return float(value) if value.isdigit() else None


def _given(query: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in query.items() if value}


def _counted(resource: Resource, subresource: str | None) -> str:
    return f"{resource}/{subresource}" if subresource else str(resource)


def _complete(object: Any, resource: Resource) -> dict[str, Any]:
    """`object` as a dict that says what it is."""
    value: dict[str, Any] = builtins(object)
    return {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": {}} | value


def _path_of(resource: Resource, value: Mapping[str, Any], namespace: str | None, subresource: str | None) -> str:
    metadata = value["metadata"]
    return resource.path(namespace or metadata.get("namespace"), metadata.get("name", ""), subresource)


def _encoded(value: Any) -> bytes:
    return msgspec.json.encode(value)


def _decoded(call: Request, body: bytes, kind: type[T]) -> T:
    try:
        return decode(body, kind)
    except (msgspec.MsgspecError, json.JSONDecodeError, ValueError) as error:
        raise ResponseError(call=call, problem=str(error)) from error
