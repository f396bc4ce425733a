"""What was last seen of one kind of objects, kept by a watch, with indexes and subscribers.

The cache is whole or not there: before `synced` it must not be asked whether an object exists (`NotSyncedError`), and
from then on it holds everything as it was at one moment, in order; it may lag behind the API server. A program that
has just written an object can `absorb` the answer, so that its next look sees at least its own write: an answer newer
than all that the watch has told is put in; an older one is passed over, for the watch knows better.

    watch ── Restarted ──> compare with what is held: subscribers hear of each difference, and of nothing else
          ── Applied, Deleted ──> put in, take out ──> subscribers hear (old, new)

Subscribers are plain functions, called in order, after the cache has changed: they put keys on queues and return.
Objects belong to the cache: whoever changes one breaks its indexes and what others see.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, NamedTuple, Protocol, Self, TypeVar

from kybernate.errors import RefusedError
from kybernate.kube.client import PAGE, Client
from kybernate.kube.errors import ApiError
from kybernate.kube.resource import Resource
from kybernate.kube.watch import Applied, Deleted, Restarted, Timing, Watch, older


class NotSyncedError(RefusedError):
    """The cache of {resource} is not filled yet: what it lacks may exist. Await synced() first."""


class Named(Protocol):
    """What an object's metadata must tell."""

    name: str
    namespace: str
    uid: str
    resource_version: str


class HasMetadata(Protocol):
    """An object of a cluster."""

    @property
    def metadata(self) -> Any:
        """A `Named`."""


T = TypeVar("T", bound=HasMetadata)


class Key(NamedTuple):
    """What an object is called; namespace is empty for kinds that have none."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


def key_of(object: HasMetadata) -> Key:
    return Key(object.metadata.namespace, object.metadata.name)


@dataclass(frozen=True)
class Change(Generic[T]):
    """`old` is None for a new object, `new` for one that is gone. One that was deleted and made again under the same
    name has two uids and comes as one change. `unseen`: it went while nobody followed, so `old` may not be its last."""

    key: Key
    old: T | None
    new: T | None
    unseen: bool = False


Subscriber = Callable[[Change[T]], None]
Index = Callable[[T], Iterable[Hashable]]


class Informer(Generic[T]):
    """Filled between `async with`, or while `run` runs."""

    def __init__(
        self,
        client: Client,
        resource: Resource,
        kind: type[T],
        *,
        namespace: str | None = None,
        label_selector: str = "",
        field_selector: str = "",
        indexers: Mapping[str, Index[T]] | None = None,
        transform: Callable[[T], T] | None = None,
        page: int = PAGE,
        timing: Timing | None = None,
    ) -> None:
        self.resource = resource
        self.watch = Watch(
            client,
            resource,
            kind,
            namespace,
            label_selector,
            field_selector,
            transform,
            page,
            timing or Timing(),
        )
        self._transform = transform
        self._objects: dict[Key, T] = {}
        self._indexers = dict(indexers or {})
        self._indexes: dict[str, dict[Hashable, dict[Key, T]]] = {name: defaultdict(dict) for name in self._indexers}
        self._subscribers: list[Subscriber[T]] = []
        self._synced = asyncio.Event()
        self._group = asyncio.TaskGroup()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        self._task = self._group.create_task(self.run(), name=f"informer {self.resource}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """An informer that fails (a subscriber, indexer or transform raised) ends the block too: nobody goes on with a
        cache that no longer follows."""
        if self._task is not None:
            self._task.cancel()
        if kind is not None and issubclass(kind, asyncio.CancelledError):
            await self._group.__aexit__(kind, error, trace)
        else:  # what the block raised comes out as it is, in no group
            await self._group.__aexit__(None, None, None)

    async def run(self) -> None:
        """Keep the cache filled; until cancelled."""
        async with contextlib.aclosing(self.watch.events()) as events:
            async for event in events:
                match event:
                    case Restarted(objects):
                        self._restart(objects)
                        self._synced.set()
                    case Applied(object) if not self._knows(object):
                        self._put(object)
                    case Deleted(object) if not self._is_older(object):
                        self._take(key_of(object))

    async def synced(self) -> None:
        """Return when the cache is whole."""
        await self._synced.wait()

    @property
    def is_synced(self) -> bool:
        return self._synced.is_set()

    @property
    def problem(self) -> ApiError | None:
        """Why the kind is not followed now; None while it is. The cache then lags."""
        return self.watch.problem

    def subscribe(self, subscriber: Subscriber[T]) -> None:
        """Call `subscriber` at each change from now on, and once now for each object that is held."""
        self._subscribers.append(subscriber)
        for key, object in self._objects.items():
            subscriber(Change(key, None, object))

    def get(self, namespace: str, name: str) -> T | None:
        """None: it does not exist, as far as was told. Raises NotSyncedError."""
        self._whole()
        return self._objects.get(Key(namespace, name))

    def items(self) -> Collection[T]:
        """All, as a view that changes with the cache: do not await while you iterate. Raises NotSyncedError."""
        self._whole()
        return self._objects.values()

    def by_index(self, index: str, key: Hashable) -> list[T]:
        """Those for which the indexer of that name gave `key`. Raises NotSyncedError."""
        self._whole()
        found = self._indexes[index].get(key)
        return list(found.values()) if found else []

    def __len__(self) -> int:
        return len(self._objects)

    def absorb(self, object: T) -> None:
        """Put in the answer to a write of our own, if the watch has not told something newer."""
        self._whole()
        version = object.metadata.resource_version
        held = self._objects.get(key_of(object))
        if not older(self.watch.version, version) or (held and not older(held.metadata.resource_version, version)):
            return
        self._put(object if self._transform is None else self._transform(object))

    def _whole(self) -> None:
        if not self._synced.is_set():
            raise NotSyncedError(resource=self.resource)

    def _knows(self, told: T) -> bool:
        """Whether what is held is this very state, or a newer one: it was absorbed."""
        held = self._objects.get(key_of(told))
        return held is not None and (_state(held) == _state(told) or self._is_older(told))

    def _is_older(self, told: T) -> bool:
        """Whether a newer state than this one was absorbed; the one that is told may be an object's last."""
        held = self._objects.get(key_of(told))
        return held is not None and older(told.metadata.resource_version, held.metadata.resource_version)

    def _restart(self, objects: list[T]) -> None:
        gone = set(self._objects)
        for object in objects:
            key = key_of(object)
            gone.discard(key)
            held = self._objects.get(key)
            if held is None or _state(held) != _state(object):
                self._put(object)
        for key in gone:
            self._take(key, unseen=True)

    def _put(self, object: T) -> None:
        key = key_of(object)
        old = self._objects.get(key)
        if old is not None:
            self._unindex(key, old)
        self._objects[key] = object
        for name, indexer in self._indexers.items():
            for at in indexer(object):
                self._indexes[name][at][key] = object
        self._tell(Change(key, old, object))

    def _take(self, key: Key, unseen: bool = False) -> None:
        old = self._objects.pop(key, None)
        if old is not None:
            self._unindex(key, old)
            self._tell(Change(key, old, None, unseen))

    def _unindex(self, key: Key, object: T) -> None:
        for name, indexer in self._indexers.items():
            index = self._indexes[name]
            for at in indexer(object):
                index[at].pop(key, None)
                if not index[at]:
                    del index[at]

    def _tell(self, change: Change[T]) -> None:
        for subscriber in self._subscribers:
            subscriber(change)


def _state(object: HasMetadata) -> tuple[str, str]:
    return object.metadata.uid, object.metadata.resource_version
