"""Events as the API server has them: counted, combined, late, dropped, and never in the way."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
import pytest_asyncio
from kube_bed import ConfigMap, KubeBed, open_kube_bed, until

from kybernate.api.objects import Metadata, Object
from kybernate.kube.events import BURST, COMBINED, SIMILAR, Recorder, Regarding
from kybernate.kube.resource import CONFIG_MAPS, EVENTS, NODES
from kybernate.lab.cluster.apiserver import ApiServerBed


class Event(Object):
    metadata: Metadata
    involved_object: dict[str, str]
    type: str
    reason: str
    message: str
    count: int
    first_timestamp: str
    last_timestamp: str
    source: dict[str, str] = msgspec.field(default_factory=dict)


@pytest_asyncio.fixture
async def bed(apiserver: ApiServerBed) -> AsyncIterator[KubeBed]:
    async with open_kube_bed(apiserver) as bed:
        yield bed


async def regarding(bed: KubeBed, name: str = "a") -> Regarding:
    made = await bed.put(name, "1")
    return Regarding.of(CONFIG_MAPS, made)


async def events(bed: KubeBed, namespace: str = "") -> list[Event]:
    """Those of the recorders here; the API server writes some of its own into `default`."""
    ours = "source=test" if namespace else ""
    listed = await bed.direct.list(EVENTS, Event, namespace or bed.namespace, field_selector=ours)
    return sorted(listed.items, key=lambda event: (event.first_timestamp, event.message))


def writes(bed: KubeBed) -> list[str]:
    return [seen.method for seen in bed.proxy.seen if seen.path.rpartition("/events")[1]]


async def test_an_event_says_what_happened_to_which_object(bed: KubeBed) -> None:
    about = await regarding(bed)
    async with Recorder(bed.client, "kybernate-agent", host="n1") as recorder:
        recorder.record(about, "Warning", "StateLost", "the images are gone")
        await recorder.sent()
    (event,) = await events(bed)
    assert (event.type, event.reason, event.message, event.count) == ("Warning", "StateLost", "the images are gone", 1)
    assert event.involved_object["uid"] == about.uid
    assert event.involved_object["kind"] == "ConfigMap"
    assert event.source == {"component": "kybernate-agent", "host": "n1"}
    found = await bed.direct.list(EVENTS, Event, bed.namespace, field_selector=f"involvedObject.uid={about.uid}")
    assert len(found.items) == 1, "as kubectl describe looks for them"


async def test_the_same_again_counts_up_and_costs_one_request(bed: KubeBed) -> None:
    about = await regarding(bed)
    async with Recorder(bed.client, "test") as recorder:
        recorder.record(about, "Normal", "Parked", "parked")
        await recorder.sent()
        recorder.record(about, "Normal", "Parked", "parked")
        recorder.record(about, "Normal", "Parked", "parked")
        await recorder.sent()
    (event,) = await events(bed)
    assert event.count == 3
    assert event.last_timestamp >= event.first_timestamp
    assert writes(bed) == ["POST", "PATCH"]


async def test_many_messages_of_one_reason_become_one_event(bed: KubeBed) -> None:
    about = await regarding(bed)
    async with Recorder(bed.client, "test") as recorder:
        for number in range(SIMILAR + 5):
            recorder.record(about, "Normal", "Resumed", f"resumed in {100 + number} ms")
        recorder.record(about, "Normal", "Parked", "parked")
        await recorder.sent()
    found = await events(bed)
    assert len(found) == SIMILAR + 2
    (combined,) = [event for event in found if event.message.startswith(COMBINED)]
    assert combined.count == 5
    assert combined.message == f"{COMBINED}resumed in {100 + SIMILAR + 4} ms"


async def test_an_object_that_says_too_much_waits_its_turn(bed: KubeBed) -> None:
    noisy, quiet = await regarding(bed, "noisy"), await regarding(bed, "quiet")
    async with Recorder(bed.client, "test", clock=lambda: 0.0) as recorder:
        for number in range(BURST + 10):
            recorder.record(noisy, "Normal", f"Reason{number}", "said")
        recorder.record(quiet, "Normal", "Said", "said")
        await until(lambda: len(writes(bed)) >= BURST + 1, "what may be sent")
        found = await events(bed)
        assert sum(event.involved_object["name"] == "quiet" for event in found) == 1, "its neighbour is not delayed"
        assert len(found) == BURST + 1


async def test_an_event_whose_first_one_expired_is_made_anew(bed: KubeBed) -> None:
    about = await regarding(bed)
    async with Recorder(bed.client, "test") as recorder:
        recorder.record(about, "Normal", "Parked", "parked")
        await recorder.sent()
        (event,) = await events(bed)
        await bed.direct.delete(EVENTS, event.metadata.name, bed.namespace)
        recorder.record(about, "Normal", "Parked", "parked")
        await recorder.sent()
    (event,) = await events(bed)
    assert event.count == 2


async def test_an_api_server_that_is_away_gets_them_later(bed: KubeBed) -> None:
    about = await regarding(bed)
    async with Recorder(bed.client, "test") as recorder:
        await bed.proxy.refuse()
        recorder.record(about, "Normal", "Parked", "parked")
        recorder.record(about, "Normal", "Resumed", "resumed")
        await until(lambda: bed.client.requests["create", "events"] >= 2, "a try")
        await bed.proxy.listen()
        await recorder.sent()
        assert recorder.dropped == 0
    assert sorted(event.reason for event in await events(bed)) == ["Parked", "Resumed"]


async def test_what_is_refused_is_dropped_and_the_rest_goes_on(bed: KubeBed) -> None:
    about = await regarding(bed)
    gone = Regarding(CONFIG_MAPS, "no-such-namespace", "x", "u")
    odd = Regarding(CONFIG_MAPS, "../x", "y", "u")
    async with Recorder(bed.client, "test") as recorder:
        for one in (gone, odd, about):
            recorder.record(one, "Normal", "Parked", "parked")
        await recorder.sent()
        assert recorder.dropped == 2
    assert len(await events(bed)) == 1


async def test_a_long_message_and_an_object_without_namespace_are_taken(bed: KubeBed) -> None:
    node = await bed.direct.create(NODES, {"metadata": {"name": f"node-{bed.namespace}"}}, into=ConfigMap)
    async with Recorder(bed.client, "test") as recorder:
        recorder.record(Regarding.of(NODES, node), "Normal", "Said", "x" * 5000)
        await recorder.sent()
        assert recorder.dropped == 0
    found = [event for event in await events(bed, "default") if event.involved_object["uid"] == node.metadata.uid]
    assert [len(event.message) for event in found] == [1024]


async def test_the_end_does_not_wait_for_an_api_server_that_is_away(bed: KubeBed) -> None:
    about = await regarding(bed)
    await bed.proxy.refuse()
    async with Recorder(bed.client, "test") as recorder:
        recorder.record(about, "Normal", "Parked", "parked")
    assert await events(bed) == []
