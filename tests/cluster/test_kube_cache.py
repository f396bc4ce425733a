"""The cache: indexes, subscribers, one's own writes, and a controller on top of it, with a real API server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Hashable

import pytest
import pytest_asyncio
from kube_bed import ConfigMap, KubeBed, Told, open_kube_bed, quick, until

from kybernate.kube.cache import Informer, Key, NotSyncedError
from kybernate.kube.controller import run_loop
from kybernate.kube.queue import WorkQueue
from kybernate.kube.resource import CONFIG_MAPS
from kybernate.lab.cluster.apiserver import ApiServerBed


@pytest_asyncio.fixture
async def bed(apiserver: ApiServerBed) -> AsyncIterator[KubeBed]:
    async with open_kube_bed(apiserver) as bed:
        yield bed


def by_value(object: ConfigMap) -> list[Hashable]:
    return [object.data["value"]]


def indexed(bed: KubeBed) -> Informer[ConfigMap]:
    return Informer(
        bed.client, CONFIG_MAPS, ConfigMap, namespace=bed.namespace, indexers={"value": by_value}, timing=quick()
    )


async def test_before_it_is_whole_nothing_can_be_asked(bed: KubeBed) -> None:
    bed.proxy.answers(3, lambda seen: seen.is_list, 500)
    async with bed.informer() as informer:
        for ask in (
            lambda: informer.get(bed.namespace, "a"),
            informer.items,
            lambda: informer.by_index("value", "1"),
        ):
            with pytest.raises(NotSyncedError):
                ask()
        await informer.synced()
        assert informer.get(bed.namespace, "a") is None


async def test_indexes_follow_each_change(bed: KubeBed) -> None:
    for name in ("a", "b"):
        await bed.put(name, "red")
    async with indexed(bed) as informer:

        def of(value: str) -> list[str]:
            return sorted(one.metadata.name for one in informer.by_index("value", value))

        await informer.synced()
        assert of("red") == ["a", "b"]
        await bed.put("b", "blue")
        await until(lambda: of("blue") == ["b"], "the change")
        assert of("red") == ["a"]
        await bed.drop("a")
        await until(lambda: of("red") == [], "the deletion")
        assert of("blue") == ["b"]


async def test_a_transform_is_applied_to_whatever_is_told(bed: KubeBed) -> None:
    def loud(object: ConfigMap) -> ConfigMap:
        object.data["value"] = object.data["value"].upper()
        return object

    await bed.put("a", "x")
    async with Informer(
        bed.client, CONFIG_MAPS, ConfigMap, namespace=bed.namespace, transform=loud, timing=quick()
    ) as informer:
        told = Told(informer)
        await informer.synced()
        await bed.put("b", "y")
        await until(lambda: told.state == {"a": "X", "b": "Y"}, "both")


async def test_ones_own_write_is_seen_at_once_and_never_undone(bed: KubeBed) -> None:
    first = await bed.put("a", "1")
    async with bed.informer() as informer:
        told = Told(informer)
        await until(lambda: bed.proxy.open_streams == 1, "a stream")
        bed.proxy.stall()
        await bed.put("a", "2")
        third = await bed.put("a", "3")
        assert informer.get(bed.namespace, "a") == first
        informer.absorb(third)
        assert informer.get(bed.namespace, "a") == third
        informer.absorb(first)
        assert informer.get(bed.namespace, "a") == third
        bed.proxy.cut()
        await bed.put("b", "1")
        await until(lambda: "b" in told.state, "what the watch tells again")
        assert [change.new.data["value"] for change in told.changes if change.key.name == "a" and change.new] == [
            "1",
            "3",
        ], "the second came after the third, and was passed over"


async def test_what_was_absorbed_and_deleted_since_goes(bed: KubeBed) -> None:
    async with bed.informer() as informer:
        told = Told(informer)
        await until(lambda: bed.proxy.open_streams == 1, "a stream")
        bed.proxy.stall()
        made = await bed.put("a", "1")
        await bed.drop("a")
        informer.absorb(made)
        assert told.state == {"a": "1"}
        bed.proxy.cut()
        await until(lambda: told.state == {}, "the deletion")
        informer.absorb(made)
        assert told.state == {}, "it is older than what was told"


async def test_an_object_that_ones_own_write_took_out_of_the_selection_goes(bed: KubeBed) -> None:
    body = {"metadata": {"name": "a", "labels": {"color": "red"}}, "data": {"value": "1"}}
    await bed.direct.create(CONFIG_MAPS, body, bed.namespace)
    async with Informer(
        bed.client, CONFIG_MAPS, ConfigMap, namespace=bed.namespace, label_selector="color=red", timing=quick()
    ) as informer:
        told = Told(informer)
        await until(lambda: bed.proxy.open_streams == 1, "a stream")
        bed.proxy.stall()
        patch = {"metadata": {"labels": {"color": "blue"}}, "data": {"value": "2"}}
        informer.absorb(await bed.client.merge_patch(CONFIG_MAPS, ConfigMap, "a", patch, bed.namespace))
        assert told.state == {"a": "2"}
        bed.proxy.cut()
        await until(lambda: told.state == {}, "its going")


async def test_nobody_goes_on_with_a_cache_that_no_longer_follows(bed: KubeBed) -> None:
    def fail(change: object) -> None:
        raise ZeroDivisionError

    async def work() -> None:
        async with bed.informer() as informer:
            await informer.synced()
            informer.subscribe(fail)
            await bed.put("a", "1")
            await asyncio.Event().wait()

    with pytest.raises(ExceptionGroup) as failure:
        await work()
    assert failure.group_contains(ZeroDivisionError)


async def test_what_the_block_raises_comes_out_as_it_is(bed: KubeBed) -> None:
    async def work() -> None:
        async with bed.informer() as informer:
            await informer.synced()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await work()
    working = asyncio.create_task(ended_from_outside(bed))
    await until(lambda: bed.proxy.open_streams == 1, "a stream")
    working.cancel()
    await asyncio.wait({working})
    assert working.cancelled()
    await until(lambda: bed.proxy.open_streams == 0, "the stream's end")


async def ended_from_outside(bed: KubeBed) -> None:
    async with bed.informer():
        await asyncio.Event().wait()


async def test_an_object_made_again_under_its_name_is_another_one(bed: KubeBed) -> None:
    first = await bed.put("a", "1")
    async with bed.informer() as informer:
        told = Told(informer)
        await until(lambda: bed.proxy.open_streams == 1, "a stream")
        bed.proxy.stall()
        await bed.drop("a")
        second = await bed.put("a", "1")
        bed.proxy.answers(1, lambda seen: seen.is_watch, 410, "{}")
        bed.proxy.cut()
        await until(lambda: len(told.changes) == 2, "the change")
        change = told.changes[-1]
        assert change.old is not None
        assert change.new is not None
        assert (change.old.metadata.uid, change.new.metadata.uid) == (first.metadata.uid, second.metadata.uid)


async def test_a_controller_brings_the_world_to_what_is_wanted(bed: KubeBed) -> None:
    """It copies each config map's value into `copy-<name>`, through a proxy that breaks and refuses."""
    async with bed.informer() as informer:
        queue: WorkQueue[Key] = WorkQueue(first_seconds=0.02, longest_seconds=0.2)

        def enqueue(name: str) -> None:
            queue.add(Key(bed.namespace, name.removeprefix("copy-")))

        async def reconcile(key: Key) -> None:
            wanted, copy = (informer.get(key.namespace, name) for name in (key.name, f"copy-{key.name}"))
            if wanted is None and copy is not None:
                await bed.client.delete(CONFIG_MAPS, f"copy-{key.name}", key.namespace, uid=copy.metadata.uid)
            elif wanted is not None and (copy is None or copy.data != wanted.data):
                body = {
                    "metadata": {"name": f"copy-{key.name}", "namespace": key.namespace},
                    "data": wanted.data,
                }
                await bed.client.apply(CONFIG_MAPS, body, manager="copier")

        informer.subscribe(lambda change: enqueue(change.key.name))
        await informer.synced()
        loop = asyncio.create_task(run_loop(queue, reconcile, workers=3))
        bed.proxy.answers(3, lambda seen: seen.method == "PATCH", 500)
        bed.proxy.answers(1, lambda seen: seen.method == "PATCH", 429, "", {"Retry-After": "1"})
        for number in range(10):
            await bed.put(f"m{number}", "1")
        bed.proxy.cut()
        await bed.put("m3", "2")
        await bed.drop("m4")

        def copies() -> dict[str, str]:
            return {
                one.metadata.name: one.data["value"]
                for one in informer.items()
                if one.metadata.name.startswith("copy-")
            }

        wanted = {f"copy-m{number}": "1" for number in range(10) if number != 4} | {"copy-m3": "2"}
        await until(lambda: copies() == wanted and queue.idle, "all copies")
        loop.cancel()
        await asyncio.wait({loop})
        writes = bed.proxy.count(lambda seen: seen.method == "PATCH")
        assert writes <= 10 + 1 + 4 + 2, "one for each copy, one for the change, one for each failure; m4 may come late"
