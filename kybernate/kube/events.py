"""Kubernetes Events: what people are told, beside the object that it is about. Never in the way of who tells it.

They are written as core/v1 Events, not as events.k8s.io/v1 (the same objects in etcd): `kubectl describe` and `kubectl
get events` sort by lastTimestamp and show count, and the newer API sets neither, so its events stand there with an
unknown age.

    record ──same object, type, reason, message as one that is known──> its count grows (one PATCH)
           ──the tenth different message for one reason within ten minutes──> from then on one Event for all of them
           ──else──> a new Event (one POST)

`record` only notes; a task sends. What is noted twice before it was sent goes as one. An object has a bucket of
`BURST` sendings, filled again by one every `REFILL_SECONDS`; what finds it empty waits its turn and is counted up
meanwhile. While the API server is away, what was noted waits, at most `KEEP_SECONDS`, at most `ROOM` Events; what is
dropped is counted (`dropped`) and logged. An Event is news, never the place where state is kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Literal

from kybernate.api.objects import Object
from kybernate.kube.backoff import Backoff
from kybernate.kube.client import Client
from kybernate.kube.errors import (
    AlreadyExistsError,
    ApiDeadlineError,
    ApiNotFoundError,
    ServerError,
    TooManyRequestsError,
    UnreachableError,
)
from kybernate.kube.resource import EVENTS, Resource

ROOM = 1000
KNOWN = 4096
BURST = 25
REFILL_SECONDS = 10.0
SIMILAR = 10
SIMILAR_SECONDS = 600.0
KEEP_SECONDS = 600.0
FLUSH_SECONDS = 3.0
MESSAGE_CHARACTERS = 1024
"""The API server refuses longer ones."""
COMBINED = "(combined from similar events) "
_TRANSIENT = (UnreachableError, ServerError, TooManyRequestsError, ApiDeadlineError)

log = logging.getLogger(__name__)

Type = Literal["Normal", "Warning"]


@dataclass(frozen=True)
class Regarding:
    """The object that an Event is about."""

    resource: Resource
    namespace: str
    name: str
    uid: str

    @classmethod
    def of(cls, resource: Resource, object: Any) -> Regarding:
        """`object` has metadata."""
        metadata = object.metadata
        return cls(resource, metadata.namespace, metadata.name, metadata.uid)


Key = tuple[Regarding, Type, str, str]


@dataclass
class _Entry:
    """One Event: what is noted of it, and what the API server knows."""

    key: Key
    name: str
    message: str
    first: datetime
    last: datetime
    noted_at: float
    count: int = 0
    sent: bool = False


@dataclass
class _Bucket:
    tokens: float
    at: float


@dataclass
class _Similar:
    """The different messages that one reason had of late."""

    since: float
    messages: set[str] = field(default_factory=set)


class Recorder:
    """Sends between `async with`; what is noted before goes then."""

    def __init__(
        self, client: Client, component: str, *, host: str = "", clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.dropped = 0
        self._client = client
        self._component, self._host = component, host
        self._instance = f"{component}-{host or os.uname().nodename}"
        self._clock = clock
        self._known: OrderedDict[Key, _Entry] = OrderedDict()
        self._pending: OrderedDict[Key, _Entry] = OrderedDict()
        self._similar: OrderedDict[tuple[Regarding, Type, str], _Similar] = OrderedDict()
        self._buckets: OrderedDict[Regarding, _Bucket] = OrderedDict()
        self._wanted = asyncio.Event()
        self._idle = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Recorder:
        self._task = asyncio.create_task(self._send_for_ever(), name="events")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """What was noted gets `FLUSH_SECONDS` more."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_SECONDS):
                await self.sent()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    def record(self, regarding: Regarding, type: Type, reason: str, message: str) -> None:
        """Note that `reason` (UpperCamelCase) happened to `regarding`. Returns at once, never raises."""
        message = message[:MESSAGE_CHARACTERS]
        key: Key = (regarding, type, reason, self._common(regarding, type, reason, message))
        if not key[3]:
            message = (COMBINED + message)[:MESSAGE_CHARACTERS]
        now = datetime.now(UTC)
        entry = self._known.get(key)
        if entry is None:
            name = f"{regarding.name[:200]}.{uuid.uuid4().hex[:16]}"
            entry = self._known[key] = _Entry(key, name, message, now, now, self._clock())
            if len(self._known) > KNOWN:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        entry.count += 1
        entry.message, entry.last = message, now
        if key in self._pending:
            return
        if len(self._pending) >= ROOM:
            self._drop(self._pending.popitem(last=False)[1], "too many wait")
        entry.noted_at = self._clock()
        self._pending[key] = entry
        self._idle.clear()
        self._wanted.set()

    async def sent(self) -> None:
        """Return when nothing waits to be sent."""
        if self._pending:
            await self._idle.wait()

    def _common(self, regarding: Regarding, type: Type, reason: str, message: str) -> str:
        """`message`, or nothing where this reason has had too many different ones."""
        now = self._clock()
        similar = self._similar.setdefault((regarding, type, reason), _Similar(now))
        self._similar.move_to_end((regarding, type, reason))
        if len(self._similar) > KNOWN:
            self._similar.popitem(last=False)
        if now - similar.since > SIMILAR_SECONDS:
            similar.since, similar.messages = now, set()
        if len(similar.messages) < SIMILAR:
            similar.messages.add(message)
        return message if message in similar.messages else ""

    async def _send_for_ever(self) -> None:
        backoff = Backoff()
        while True:
            self._wanted.clear()
            entry, pause = self._next()
            if entry is None:
                if not self._pending:
                    self._idle.set()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._wanted.wait()
                continue
            count = entry.count
            try:
                await self._send(entry)
            except _TRANSIENT as error:
                if self._clock() - entry.noted_at > KEEP_SECONDS:
                    self._settled(entry, count)
                    self._drop(entry, str(error))
                await asyncio.sleep((error.retry_after or 0.0) + backoff.next())
            except Exception as error:  # no event is worth its program
                self._settled(entry, count)
                self._drop(entry, str(error))
            else:
                backoff.reset()
                entry.sent = True
                self._settled(entry, count)

    def _next(self) -> tuple[_Entry | None, float | None]:
        """What to send now; else the seconds until something may be sent, or None where nothing waits."""
        pause: float | None = None
        for entry in self._pending.values():
            seconds = self._until_token(entry.key[0])
            if seconds <= 0:
                return entry, None
            pause = seconds if pause is None else min(pause, seconds)
        return None, pause

    def _until_token(self, regarding: Regarding) -> float:
        now = self._clock()
        bucket = self._buckets.setdefault(regarding, _Bucket(BURST, now))
        self._buckets.move_to_end(regarding)
        if len(self._buckets) > KNOWN:
            self._buckets.popitem(last=False)
        bucket.tokens = min(BURST, bucket.tokens + (now - bucket.at) / REFILL_SECONDS)
        bucket.at = now
        return 0.0 if bucket.tokens >= 1 else (1 - bucket.tokens) * REFILL_SECONDS

    def _settled(self, entry: _Entry, count: int) -> None:
        """Sent or dropped: it costs a token, and waits again only if it was counted up meanwhile."""
        bucket = self._buckets.get(entry.key[0])
        if bucket is not None:
            bucket.tokens -= 1
        if entry.count == count:
            self._pending.pop(entry.key, None)

    def _drop(self, entry: _Entry, problem: str) -> None:
        self.dropped += 1
        regarding, _, reason, _ = entry.key
        log.warning("an event was dropped (%s of %s/%s): %s", reason, regarding.namespace, regarding.name, problem)

    async def _send(self, entry: _Entry) -> None:
        """Create or count up. Raises ApiError."""
        namespace = entry.key[0].namespace or "default"
        if entry.sent:
            patch = {"count": entry.count, "lastTimestamp": _stamp(entry.last), "message": entry.message}
            with contextlib.suppress(ApiNotFoundError):  # Events live for an hour
                await self._client.merge_patch(EVENTS, Object, entry.name, patch, namespace)
                return
        with contextlib.suppress(AlreadyExistsError):  # created by a try whose answer did not come
            await self._client.create(EVENTS, self._event(entry, namespace), namespace, into=Object)

    def _event(self, entry: _Entry, namespace: str) -> dict[str, Any]:
        regarding, type, reason, _ = entry.key
        return {
            "metadata": {"name": entry.name, "namespace": namespace},
            "involvedObject": {
                "apiVersion": regarding.resource.api_version,
                "kind": regarding.resource.kind,
                "namespace": regarding.namespace,
                "name": regarding.name,
                "uid": regarding.uid,
            },
            "type": type,
            "reason": reason,
            "message": entry.message,
            "count": entry.count,
            "firstTimestamp": _stamp(entry.first),
            "lastTimestamp": _stamp(entry.last),
            "source": {"component": self._component, "host": self._host},
            "reportingComponent": self._component,
            "reportingInstance": self._instance,
        }


def _stamp(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")
