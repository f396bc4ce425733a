"""What the tests of the client runtime share: a client behind the faulty proxy, and one that is not, in a namespace."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from faulty_proxy import FaultyProxy

from kybernate.api.objects import Metadata, Object
from kybernate.kube.backoff import Backoff
from kybernate.kube.cache import Change, Informer
from kybernate.kube.client import Client
from kybernate.kube.resource import CONFIG_MAPS
from kybernate.kube.watch import Timing
from kybernate.lab.cluster.apiserver import ApiServerBed

LIMIT_SECONDS = 60.0
"""What is awaited here comes within a second or two."""
_numbers = itertools.count(1)


class ConfigMap(Object):
    """The simplest of all kinds."""

    metadata: Metadata
    data: dict[str, str] = {}  # noqa: RUF012  msgspec copies it


def quick(idle_seconds: float = 60.0, stream_seconds: float = 60.0, silent_seconds: float = 600.0) -> Timing:
    """Watches that try again soon."""
    return Timing(
        stream_seconds=(stream_seconds, stream_seconds),
        idle_seconds=idle_seconds,
        silent_seconds=silent_seconds,
        backoff=lambda: Backoff(first=0.05, longest=0.3),
    )


async def until(true: Callable[[], bool], what: str) -> None:
    """Poll until `true()`; what is polled is another task's or process's doing."""
    try:
        async with asyncio.timeout(LIMIT_SECONDS):
            while not true():
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"did not come: {what}") from None


@dataclass
class KubeBed:
    """`client` goes through `proxy`, `direct` does not; both may do everything."""

    server: ApiServerBed
    proxy: FaultyProxy
    client: Client
    direct: Client
    namespace: str

    def informer(self, timing: Timing | None = None, page: int = 500) -> Informer[ConfigMap]:
        return Informer(
            self.client, CONFIG_MAPS, ConfigMap, namespace=self.namespace, page=page, timing=timing or quick()
        )

    async def put(self, name: str, value: str) -> ConfigMap:
        """Make or change a config map, past the proxy."""
        body = {"metadata": {"name": name, "namespace": self.namespace}, "data": {"value": value}}
        return await self.direct.apply(CONFIG_MAPS, body, manager="test", into=ConfigMap)

    async def drop(self, name: str) -> None:
        await self.direct.delete(CONFIG_MAPS, name, self.namespace)


@asynccontextmanager
async def open_kube_bed(server: ApiServerBed) -> AsyncIterator[KubeBed]:
    namespace = server.create_namespace(f"kube-{next(_numbers)}")
    async with (
        FaultyProxy(server) as proxy,
        Client(server.credentials(proxy.address)) as client,
        server.client() as direct,
    ):
        yield KubeBed(server, proxy, client, direct, namespace)


class Told:
    """What a subscriber heard, and the state that follows from it alone."""

    def __init__(self, informer: Informer[ConfigMap]) -> None:
        self.changes: list[Change[ConfigMap]] = []
        self.state: dict[str, str] = {}
        informer.subscribe(self._hear)

    def _hear(self, change: Change[ConfigMap]) -> None:
        self.changes.append(change)
        held = self.state.get(change.key.name)
        assert (change.old.data["value"] if change.old else None) == held, "what it says was there is not what it told"
        if change.new is None:
            del self.state[change.key.name]
        else:
            self.state[change.key.name] = change.new.data["value"]
