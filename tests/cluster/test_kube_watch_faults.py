"""A watch tells the truth, whatever lies between it and the API server."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from faulty_proxy import Seen
from kube_bed import ConfigMap, KubeBed, Told, open_kube_bed, quick, until

from kybernate.kube.errors import ApiDeadlineError, ForbiddenError, ResponseError, UnreachableError
from kybernate.kube.resource import CONFIG_MAPS
from kybernate.kube.watch import Following
from kybernate.lab.cluster.apiserver import ApiServerBed


@pytest_asyncio.fixture
async def bed(apiserver: ApiServerBed) -> AsyncIterator[KubeBed]:
    async with open_kube_bed(apiserver) as bed:
        yield bed


def is_watch(seen: Seen) -> bool:
    return seen.is_watch


def is_list(seen: Seen) -> bool:
    return seen.is_list


async def test_all_is_told_and_then_each_change_once(bed: KubeBed) -> None:
    await bed.put("a", "1")
    async with bed.informer() as informer:
        told = Told(informer)
        await informer.synced()
        assert told.state == {"a": "1"}
        await bed.put("b", "1")
        await bed.put("a", "2")
        await bed.drop("b")
        await until(lambda: len(told.changes) == 4, "four changes")
        assert told.state == {"a": "2"}
        assert [change.new is None for change in told.changes] == [False, False, False, True]


async def test_pages_are_told_as_one(bed: KubeBed) -> None:
    for number in range(5):
        await bed.put(f"m{number}", "1")
    async with bed.informer(page=2) as informer:
        await informer.synced()
        assert sorted(one.metadata.name for one in informer.items()) == [f"m{number}" for number in range(5)]
    assert bed.proxy.count(lambda seen: "continue" in seen.query) == 2


@pytest.mark.parametrize("fault", ["cut", "half_line"])
async def test_a_broken_stream_goes_on_without_a_new_list(bed: KubeBed, fault: str) -> None:
    async with bed.informer() as informer:
        told = Told(informer)
        await until(lambda: bed.proxy.open_streams == 1, "a stream")
        getattr(bed.proxy, fault)()
        for value in ("1", "2", "3"):
            await bed.put("a", value)
        await until(lambda: told.state == {"a": "3"}, "what changed meanwhile")
        await until(lambda: bed.proxy.count(is_watch) >= 2, "a second stream")
        assert bed.proxy.count(is_list) == 1
        values = [change.new.data["value"] for change in told.changes if change.new]
        assert values == sorted(set(values)), "nothing twice, nothing backwards"


async def test_what_is_deleted_while_the_stream_is_down_is_told(bed: KubeBed) -> None:
    await bed.put("a", "1")
    async with bed.informer() as informer:
        told = Told(informer)
        await until(lambda: bed.proxy.open_streams == 1, "a stream")
        await bed.proxy.refuse()
        await until(lambda: isinstance(informer.problem, UnreachableError), "the trouble")
        await bed.drop("a")
        assert told.state == {"a": "1"}, "what was known stays known"
        await bed.proxy.listen()
        await until(lambda: told.state == {}, "the deletion")
        await until(lambda: informer.problem is None, "no more trouble")
        assert bed.proxy.count(is_list) == 1


async def test_a_stalled_stream_is_noticed(bed: KubeBed) -> None:
    async with bed.informer(quick(idle_seconds=1.0)) as informer:
        told = Told(informer)
        await until(lambda: bed.proxy.open_streams == 1, "a stream")
        bed.proxy.stall()
        await bed.put("a", "1")
        await until(lambda: told.state == {"a": "1"}, "what changed behind the stalled stream")
        assert bed.proxy.count(is_list) == 1
        await until(lambda: isinstance(informer.problem, ApiDeadlineError) or bed.proxy.open_streams == 1, "a stream")


async def test_lines_in_the_smallest_pieces_are_put_together(bed: KubeBed) -> None:
    bed.proxy.trickle()
    async with bed.informer() as informer:
        told = Told(informer)
        await informer.synced()
        for value in ("1", "ä€𝄞\n\\n{}", "3"):
            await bed.put("a", value)
        await until(lambda: told.state == {"a": "3"}, "three changes")
        assert [change.new.data["value"] for change in told.changes if change.new] == ["1", "ä€𝄞\n\\n{}", "3"]


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (410, json.dumps({"kind": "Status", "reason": "Expired", "code": 410, "message": "too old"})),
        (
            200,
            json.dumps({"type": "ERROR", "object": {"kind": "Status", "reason": "Expired", "code": 410}}) + "\n",
        ),
    ],
    ids=["answer", "event"],
)
async def test_an_expired_version_is_listed_anew_and_only_differences_are_told(
    bed: KubeBed, status: int, body: str
) -> None:
    for name in ("stays", "goes", "changes"):
        await bed.put(name, "1")
    async with bed.informer() as informer:
        told = Told(informer)
        await until(lambda: bed.proxy.open_streams == 1, "a stream")
        before = len(told.changes)
        bed.proxy.answers(1, is_watch, status, body)
        bed.proxy.stall()
        await bed.drop("goes")
        await bed.put("changes", "2")
        await bed.put("comes", "1")
        bed.proxy.cut()
        await until(lambda: told.state == {"stays": "1", "changes": "2", "comes": "1"}, "the new list")
        assert {change.key.name for change in told.changes[before:]} == {"goes", "changes", "comes"}
        assert bed.proxy.count(is_list) == 2


@pytest.mark.parametrize("status", [500, 502, 503, 429])
async def test_server_errors_are_waited_out(bed: KubeBed, status: int) -> None:
    bed.proxy.answers(2, is_list, status, "out of order")
    bed.proxy.answers(2, is_watch, status, "out of order")
    async with bed.informer() as informer:
        told = Told(informer)
        await informer.synced()
        await bed.put("a", "1")
        await until(lambda: told.state == {"a": "1"}, "the change")
        assert informer.problem is None


@pytest.mark.parametrize("when", [is_watch, is_list], ids=["watch", "list"])
async def test_retry_after_is_honoured(bed: KubeBed, when: object) -> None:
    fits = is_watch if when is is_watch else is_list
    bed.proxy.answers(1, fits, 429, "", {"Retry-After": "1"})
    async with bed.informer() as informer:
        await informer.synced()
        await until(lambda: bed.proxy.count(fits) == 2, "a second try")
        first, second = (seen.at for seen in bed.proxy.seen if fits(seen))
        assert second - first >= 1.0


async def test_an_error_in_the_middle_of_a_list_tells_nothing(bed: KubeBed) -> None:
    for number in range(5):
        await bed.put(f"m{number}", "1")
    bed.proxy.answers(1, lambda seen: "continue" in seen.query, 500, "out of order")
    async with bed.informer(page=2) as informer:
        told = Told(informer)
        await informer.synced()
        assert len(told.state) == 5
        assert informer.watch.restarts == 1
        assert bed.proxy.count(is_list) == 2


async def test_a_list_whose_version_expires_between_pages_is_whole(bed: KubeBed) -> None:
    for number in range(5):
        await bed.put(f"m{number}", "1")
    expired = json.dumps({"kind": "Status", "reason": "Expired", "code": 410, "metadata": {"continue": "inconsistent"}})
    bed.proxy.answers(1, lambda seen: "continue" in seen.query, 410, expired)
    listed = await bed.client.list(CONFIG_MAPS, ConfigMap, bed.namespace, page=2)
    assert [one.metadata.name for one in listed.items] == [f"m{number}" for number in range(5)]
    assert bed.proxy.count(lambda seen: seen.is_list and "limit" not in seen.query) == 1


async def test_an_object_that_cannot_be_read_is_never_taken_for_absent(bed: KubeBed) -> None:
    await bed.put("a", "1")
    async with bed.informer() as informer:
        told = Told(informer)
        await until(lambda: bed.proxy.open_streams == 1, "a stream")
        line = json.dumps({"type": "ADDED", "object": {"metadata": {"name": "b"}, "data": {"value": 1}}}) + "\n"
        bed.proxy.answers(3, is_watch, 200, line)
        bed.proxy.cut()
        await until(lambda: isinstance(informer.problem, ResponseError), "the trouble")
        assert told.state == {"a": "1"}
        await bed.put("b", "1")
        await until(lambda: told.state == {"a": "1", "b": "1"}, "the mended object")


async def test_a_bookmark_moves_the_version_on_and_the_next_stream_begins_there(bed: KubeBed) -> None:
    elsewhere = bed.server.create_namespace(f"{bed.namespace}-elsewhere")
    async with bed.informer(quick(stream_seconds=4.0)) as informer:
        await until(lambda: bed.proxy.open_streams == 1, "a stream")
        begin = int(informer.watch.version)
        body = {"metadata": {"name": "other", "namespace": elsewhere}}
        other = await bed.direct.create(CONFIG_MAPS, body, into=ConfigMap)
        made = int(other.metadata.resource_version)
        assert made > begin
        await until(lambda: bed.proxy.count(is_watch) == 2, "a second stream")
        second = [seen for seen in bed.proxy.seen if seen.is_watch][1]
        assert int(second.query["resourceVersion"]) >= made, "without a bookmark it would begin where the first did"
        assert bed.proxy.count(lambda seen: seen.is_probe) == 0, "an end in time raises no doubt"
        assert bed.proxy.count(is_list) == 1


async def test_missing_rights_are_said_and_waited_for(bed: KubeBed) -> None:
    kubeconfig = bed.server.account("reader")
    async with bed.server.client(kubeconfig) as client:
        bed.client = client
        async with bed.informer() as informer:
            await until(lambda: isinstance(informer.problem, ForbiddenError), "the refusal")
            assert not informer.is_synced
            bed.server.allow("reader", bed.namespace, ["configmaps"], ["list", "watch"])
            await informer.synced()
            assert informer.problem is None


async def test_after_long_silence_all_is_listed_anew(bed: KubeBed) -> None:
    async with bed.informer(quick(silent_seconds=0.2)) as informer:
        await until(lambda: bed.proxy.open_streams == 1, "a stream")
        bed.proxy.answers(4, lambda seen: seen.is_probe, 500)
        bed.proxy.cut()
        await until(lambda: informer.watch.restarts == 2, "a second list")
        assert isinstance(informer.watch.state, Following)
