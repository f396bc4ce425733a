"""One kind of objects, followed for ever: what is there, then each change, whatever happens to the connection.

`Restarted` says everything that exists, at one moment, and replaces all that was told before. `Applied` and `Deleted`
follow. What is told is never older than what was told before, and nothing that exists is ever left out of a
`Restarted`: lists are consistent reads (no resourceVersion=0, which an API server may answer out of a stale cache), and
a list that breaks is not told at all. Between a change and its telling there may be any time: the world may be newer,
never older.

States, and what happens in them:

    state        what it knows              happening         becomes
    Unlisted     nothing that may be told   Listed(version)   Following(version)    tells Restarted
                                            Failed, Expired   Unlisted
    Following    all, up to `version`       Told(version)     Following(version)    tells Applied, Deleted; or nothing,
                                                                                    if it was a bookmark
                                            Told(older one)   Unlisted              etcd was set back
                                            Ended (in time)   Following
                                            Broken            Doubting
                                            Expired (410)     Unlisted
    Doubting     all, up to `version`, if   Probed(newer)     Following
                 the server's history is    Probed(older)     Unlisted              etcd was set back
                 still ours                 Silent too long   Unlisted
                                            Failed            Doubting
                                            Expired           Unlisted

A stream is *ended* when the server closes it at the time that we asked for, and *broken* when it ends before, when it
is cut, when half a line comes, or when nothing came for `idle_seconds`. Bookmarks come about once a minute, so silence
means that something in between holds the line; to look again costs one request. After a break the server's history
may be another (etcd restored from a backup): a list of one object tells its version, and if that is lower than ours,
all is listed anew. A history that was set back and has overtaken us since cannot be seen so; therefore all is also
listed anew after `silent_seconds` without contact, which no restore undercuts.

Between tries lies a pause, longer each time (`Backoff`), or what the server asks for; it is short again after a
stream that told something or lived for `healthy_seconds`. An object that cannot be decoded stops the telling: to leave
it out would say that it does not exist. `problem` holds the reason until it is mended.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import aiohttp
import msgspec

from kybernate.api.objects import Metadata, Object, decode
from kybernate.kube.backoff import Backoff
from kybernate.kube.client import PAGE, Client
from kybernate.kube.connection import Request
from kybernate.kube.errors import (
    ApiDeadlineError,
    ApiError,
    ExpiredError,
    ResponseError,
    Status,
    UnreachableError,
    from_status,
)
from kybernate.kube.lines import Lines
from kybernate.kube.resource import Resource

T = TypeVar("T")
LINE_BYTES = 16 << 20
"""etcd takes no object above 1.5 MiB, unless it is told to; its JSON is hardly ten times that."""

log = logging.getLogger(__name__)


@dataclass
class Restarted(Generic[T]):
    """Everything that exists; what was told before and is not in it is gone."""

    objects: list[T]


@dataclass
class Applied(Generic[T]):
    """An object is new, or changed."""

    object: T


@dataclass
class Deleted(Generic[T]):
    """An object is gone; this was its last state."""

    object: T


Event = Restarted[T] | Applied[T] | Deleted[T]


@dataclass(frozen=True)
class Unlisted:
    """Nothing is known that may be told."""


@dataclass(frozen=True)
class Following:
    """All is known up to `version`."""

    version: str


@dataclass(frozen=True)
class Doubting:
    """All is known up to `version`, if the server still has the history that it belongs to."""

    version: str


State = Unlisted | Following | Doubting


@dataclass(frozen=True)
class Listed:
    version: str


@dataclass(frozen=True)
class Told:
    version: str


@dataclass(frozen=True)
class Probed:
    version: str


@dataclass(frozen=True)
class Ended:
    pass


@dataclass(frozen=True)
class Broken:
    pass


@dataclass(frozen=True)
class Failed:
    pass


@dataclass(frozen=True)
class Expired:
    pass


@dataclass(frozen=True)
class Silent:
    pass


Happening = Listed | Told | Probed | Ended | Broken | Failed | Expired | Silent


def after(state: State, happening: Happening) -> State:
    """The table above."""
    match state, happening:
        case Unlisted(), Listed(version):
            return Following(version)
        case Following(known), Told(version):
            return Unlisted() if older(version, known) else Following(version)
        case Following(version), Broken() | Failed():
            return Doubting(version)
        case Doubting(known), Probed(version):
            return Unlisted() if older(version, known) else Following(known)
        case ((Following() | Doubting()), (Expired() | Silent())):
            return Unlisted()
        case _:
            return state


def older(version: str, known: str) -> bool:
    """Whether `version` comes before `known`. Where they are no numbers nobody can tell."""
    return version.isdigit() and known.isdigit() and int(version) < int(known)


@dataclass(frozen=True)
class Timing:
    """Seconds. `stream_seconds`: how long one stream lives, a random time between the two."""

    stream_seconds: tuple[float, float] = (300.0, 600.0)
    idle_seconds: float = 120.0
    open_seconds: float = 30.0
    list_seconds: float = 60.0
    silent_seconds: float = 60.0
    healthy_seconds: float = 5.0
    backoff: Callable[[], Backoff] = Backoff


class _Bookmark(Object):
    metadata: Metadata = msgspec.field(default_factory=Metadata)


class _Line(Object):
    type: str
    object: msgspec.Raw


@dataclass
class Watch(Generic[T]):
    """One kind, decoded as `kind`, which has `metadata`. `transform` is applied to each object before it is told."""

    client: Client
    resource: Resource
    kind: type[T]
    namespace: str | None = None
    label_selector: str = ""
    field_selector: str = ""
    transform: Callable[[T], T] | None = None
    page: int = PAGE
    timing: Timing = field(default_factory=Timing)
    state: State = field(default_factory=Unlisted, init=False)
    problem: ApiError | None = field(default=None, init=False)
    """Why the last try failed; None while all is well."""
    restarts: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._backoff = self.timing.backoff()
        self._failing_since: float | None = None
        self._random = random.Random()  # noqa: S311  it spreads load, it guards nothing

    @property
    def version(self) -> str:
        """Up to where all is known; empty before the first list."""
        return "" if isinstance(self.state, Unlisted) else self.state.version

    async def events(self) -> AsyncGenerator[Event[T], None]:
        """Never ends and never raises, except by cancellation. Close it (`contextlib.aclosing`)."""
        while True:
            try:
                match self.state:
                    case Unlisted():
                        yield Restarted(await self._list())
                    case Doubting():
                        await self._probe()
                    case Following():
                        async with contextlib.aclosing(self._follow()) as events:
                            async for event in events:
                                yield event
                        self._to(Ended())
            except ApiError as error:
                await self._failed(error)

    def _to(self, happening: Happening) -> None:
        self.state = after(self.state, happening)

    def _well(self) -> None:
        """The server spoke, and sense."""
        self._failing_since = None
        if self.problem is not None:
            log.info("%s: is followed again", self.resource)
            self.problem = None

    async def _failed(self, error: ApiError) -> None:
        if self.problem is None or type(error) is not type(self.problem):
            log.warning("%s: is not followed now: %s", self.resource, error)
        self.problem = error
        self._failing_since = self._failing_since or time.monotonic()
        if isinstance(error, ExpiredError):
            self._to(Expired())
        else:
            self._to(Broken() if isinstance(self.state, Following) else Failed())
        await asyncio.sleep((error.retry_after or 0.0) + self._backoff.next())

    async def _list(self) -> list[T]:
        listed = await self.client.list(
            self.resource,
            self.kind,
            self.namespace,
            label_selector=self.label_selector,
            field_selector=self.field_selector,
            page=self.page,
            transform=self.transform,
            deadline_seconds=self.timing.list_seconds,
        )
        self._to(Listed(listed.resource_version))
        self.restarts += 1
        self._well()
        return listed.items

    async def _probe(self) -> None:
        """Ask the server for its version, with a list of at most one object."""
        if time.monotonic() - (self._failing_since or math.inf) > self.timing.silent_seconds:
            self._to(Silent())
            return
        version = await self.client.version_of(
            self.resource,
            self.namespace,
            label_selector=self.label_selector,
            field_selector=self.field_selector,
            deadline_seconds=self.timing.open_seconds,
        )
        self._to(Probed(version))
        if isinstance(self.state, Unlisted):
            log.warning("%s: the server's history was set back to %s; all is listed anew", self.resource, version)

    async def _follow(self) -> AsyncGenerator[Event[T], None]:
        """One stream, from its begin to its end at the time that was asked for. Raises ApiError."""
        seconds = self._random.uniform(*self.timing.stream_seconds)
        call = self._call(seconds)
        began = time.monotonic()
        async with self.client.stream(call, deadline_seconds=self.timing.open_seconds) as reader:
            self._well()
            lines = self._lines(call, reader)
            async with contextlib.aclosing(lines):
                async for line in lines:
                    event = self._event(call, line)
                    self._backoff.reset()
                    if isinstance(self.state, Unlisted):
                        raise ExpiredError(call=call, problem="the server's history was set back")
                    if event is not None:
                        yield event
        lived = time.monotonic() - began
        if lived >= self.timing.healthy_seconds:
            self._backoff.reset()
        if lived < seconds - 1.0:
            raise UnreachableError(call=call, server=self.client.credentials.server, problem="the stream ended early")

    def _call(self, seconds: float) -> Request:
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": self.version,
            "timeoutSeconds": str(max(1, round(seconds))),
            "labelSelector": self.label_selector,
            "fieldSelector": self.field_selector,
        }
        given = {key: value for key, value in query.items() if value}
        return Request("GET", "watch", self.resource.path(self.namespace), str(self.resource), given)

    async def _lines(self, call: Request, reader: aiohttp.StreamReader) -> AsyncGenerator[bytes, None]:
        """Whole lines; what comes after the last newline is half of one and is dropped."""
        lines = Lines(LINE_BYTES)
        chunks = reader.iter_any()
        while True:
            try:
                async with asyncio.timeout(self.timing.idle_seconds):
                    chunk = await anext(chunks, b"")
            except TimeoutError as error:
                raise ApiDeadlineError(call=call, seconds=self.timing.idle_seconds) from error
            except (aiohttp.ClientError, OSError) as error:
                raise self.client.unreachable(call, error) from error
            if not chunk:
                return
            try:
                whole = lines.feed(chunk)
            except OverflowError as error:
                raise ResponseError(call=call, problem=str(error)) from error
            for line in whole:
                yield line

    def _event(self, call: Request, line: bytes) -> Event[T] | None:
        """What `line` tells; moves the state on. Raises ApiError."""
        try:
            read = decode(line, _Line)
            if read.type == "ERROR":
                raise from_status(str(call), decode(read.object, Status))
            if read.type == "BOOKMARK":
                self._to(Told(decode(read.object, _Bookmark).metadata.resource_version))
                return None
            told: Any = decode(read.object, self.kind)
        except (msgspec.MsgspecError, ValueError) as error:
            raise ResponseError(call=call, problem=str(error)) from error
        self._to(Told(told.metadata.resource_version))
        if self.transform is not None:
            told = self.transform(told)
        match read.type:
            case "ADDED" | "MODIFIED":
                return Applied(told)
            case "DELETED":
                return Deleted(told)
            case _:
                raise ResponseError(call=call, problem=f"an event of type {read.type!r}")
