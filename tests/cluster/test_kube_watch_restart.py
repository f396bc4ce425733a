"""Watches when the API server itself goes: restarted, killed, its history compacted or set back.

These have an API server of their own, because others would not like it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
from kube_bed import ConfigMap, KubeBed, Told, open_kube_bed, until

from kybernate.kube.resource import CONFIG_MAPS
from kybernate.lab.cluster.apiserver import ApiServerBed, open_apiserver_bed


@pytest.fixture(scope="module")
def mortal() -> Iterator[ApiServerBed]:
    with open_apiserver_bed() as bed:
        yield bed


@pytest_asyncio.fixture
async def bed(mortal: ApiServerBed) -> AsyncIterator[KubeBed]:
    async with open_kube_bed(mortal) as bed:
        yield bed


async def elsewhere(bed: KubeBed, namespace: str, count: int) -> None:
    for number in range(count):
        body = {"metadata": {"name": f"e{number}", "namespace": namespace}}
        await bed.direct.create(CONFIG_MAPS, body, into=ConfigMap)


@pytest.mark.parametrize("kill", [True, False], ids=["killed", "in good order"])
async def test_a_restarted_api_server_is_followed_on(bed: KubeBed, kill: bool) -> None:
    await bed.put("a", "1")
    async with bed.informer() as informer:
        told = Told(informer)
        await until(lambda: bed.proxy.open_streams == 1, "a stream")
        await asyncio.to_thread(bed.server.stop_api_server, kill=kill)
        await asyncio.to_thread(bed.server.start_api_server)
        await bed.put("a", "2")
        await until(lambda: told.state == {"a": "2"}, "the change after it")
        # One that starts anew knows no history: where others have written meanwhile it asks for one new list.
        assert bed.proxy.count(lambda seen: seen.is_list) <= 2
        assert len(told.changes) == 2


async def test_a_compacted_history_is_listed_anew(bed: KubeBed) -> None:
    await bed.put("a", "1")
    await bed.put("gone", "1")
    async with bed.informer() as informer:
        told = Told(informer)
        await until(lambda: bed.proxy.open_streams == 1, "a stream")
        await bed.proxy.refuse()
        await bed.drop("gone")
        await bed.put("a", "2")
        await asyncio.to_thread(bed.server.stop_api_server)
        bed.server.compact()
        await asyncio.to_thread(bed.server.start_api_server)
        await bed.proxy.listen()
        await until(lambda: told.state == {"a": "2"}, "the truth after the compaction")
        assert informer.watch.restarts == 2
        await bed.drop("a")
        await until(lambda: not told.state, "the end of what is followed")
        gone = {change.key.name: change.unseen for change in told.changes if change.new is None}
        assert gone == {"gone": True, "a": False}  # of the first nobody knows what it was at its end


async def test_an_etcd_that_was_set_back_is_noticed(bed: KubeBed) -> None:
    await bed.put("before", "1")
    saved = bed.server.save_etcd()
    async with bed.informer() as informer:
        told = Told(informer)
        await until(lambda: bed.proxy.open_streams == 1, "a stream")
        await bed.put("before", "2")
        for number in range(20):
            await bed.put(f"after{number}", "1")
        await until(lambda: len(told.state) == 21, "what will be undone")
        await asyncio.to_thread(bed.server.stop_api_server)
        bed.server.stop_etcd()
        bed.server.set_etcd_back(saved)
        await asyncio.to_thread(bed.server.start_etcd)
        await asyncio.to_thread(bed.server.start_api_server)
        await until(lambda: told.state == {"before": "1"}, "the state of the backup")
        await bed.put("new", "1")
        await until(lambda: told.state == {"before": "1", "new": "1"}, "the first change after it")
