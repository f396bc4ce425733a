"""What the agent says of its node, and when it says it again."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cluster_actor import actor_in
from kybernate_agent.cluster.gpunode import Seen, is_news, look, node_status, publish
from kybernate_agent.instance import Phase

from kybernate.kube.errors import UnreachableError

GIB = 1 << 30
SEEN = Seen(
    capacity=100 * GIB, used=40 * GIB, free=55 * GIB, criu="4.2", runc="1.2", kernel="6.1", cgroup="v2", refusal="",
    instances=2,
)  # fmt: skip
SMALL = replace(SEEN, capacity=10 * GIB, used=4 * GIB, free=6 * GIB)


@pytest.mark.parametrize(
    ("written", "seen", "news"),
    [
        (None, SEEN, True),
        (SEEN, SEEN, False),
        (SEEN, replace(SEEN, used=SEEN.used + GIB, free=SEEN.free - GIB), False),
        (SEEN, replace(SEEN, free=SEEN.free - GIB - 1), True),
        (SEEN, replace(SEEN, free=SEEN.free + GIB + 1), True),
        (SMALL, replace(SMALL, free=SMALL.free - GIB // 3), False),
        (SMALL, replace(SMALL, free=SMALL.free - 6 * GIB // 10), True),
        (SEEN, replace(SEEN, criu="4.3"), True),
        (SEEN, replace(SEEN, runc="1.3"), True),
        (SEEN, replace(SEEN, refusal="no CRIU"), True),
        (SEEN, replace(SEEN, instances=3), True),
    ],
)
def test_what_is_worth_a_write(written: Seen | None, seen: Seen, news: bool) -> None:
    assert is_news(written, seen) == news


def test_people_read_sizes() -> None:
    status = node_status(replace(SEEN, used=int(1.25 * GIB)), 0.0)
    assert status.tiers is not None
    assert status.tiers.nvme is not None
    sizes = status.tiers.nvme
    assert (sizes.capacity, sizes.used, sizes.free) == ("100Gi", "1.2Gi", "55Gi")


def test_the_disk_is_the_stores(tmp_path: Path) -> None:
    found = look(actor_in(tmp_path, Phase.RUNNING).services, 1)
    assert 0 <= found.free <= found.capacity
    assert 0 < found.used <= found.capacity
    assert (found.criu, found.instances) == ("4.2", 1)


class Server:
    """An API server that keeps what is written, and is away for the first `away` requests."""

    def __init__(self, away: int = 0) -> None:
        self.away, self.statuses = away, list[dict[str, Any]]()

    async def get(self, *_: Any) -> Any:
        if self.away:
            self.away -= 1
            raise UnreachableError(call="get", server="x", problem="refused")
        return SimpleNamespace(metadata=SimpleNamespace(uid="node-uid"))

    async def apply(self, resource: Any, body: dict[str, Any], *, subresource: str = "", **_: Any) -> None:
        if subresource:
            self.statuses.append(body["status"])


async def told(server: Server, looks: list[Seen | OSError]) -> list[dict[str, Any]]:
    """What is written while the node is seen like this, one after the other."""
    over = asyncio.Event()
    loop = asyncio.get_running_loop()

    def next_look() -> Seen:
        if len(looks) == 1:
            loop.call_soon_threadsafe(over.set)
        found = looks.pop(0) if len(looks) > 1 else looks[0]
        if isinstance(found, OSError):
            raise found
        return found

    client: Any = server
    task = asyncio.create_task(publish(client, "n1", next_look, pause=0.001))
    await asyncio.wait_for(over.wait(), 30)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return server.statuses


async def test_it_is_written_again_when_that_is_news_and_only_then() -> None:
    fuller = replace(SEEN, free=10 * GIB, used=85 * GIB)
    statuses = await told(Server(), [SEEN, SEEN, replace(SEEN, used=1), OSError("stale"), fuller, fuller, SEEN, SEEN])
    assert [status["tiers"]["NVME"]["free"] for status in statuses] == ["55Gi", "10Gi", "55Gi"]
    assert len({status["conditions"][0]["lastTransitionTime"] for status in statuses}) == 1, "it was Ready all the time"


async def test_none_is_a_number_too() -> None:
    (status,) = await told(Server(), [replace(SEEN, instances=0), replace(SEEN, instances=0)])
    assert status["instances"] == 0


async def test_an_api_server_that_is_away_is_waited_for() -> None:
    assert len(await told(Server(away=2), [SEEN, SEEN])) == 1
