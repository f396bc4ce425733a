"""What the agent makes of a folder of manifests, whatever one of them, or the disk, does to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio
from agent_services import services_in
from kybernate_agent.instance import Record
from kybernate_agent.node import Node
from kybernate_agent.standalone import wishes
from kybernate_agent.standalone.folder import Folder
from kybernate_agent.standalone.wishes import Wishes
from kybernate_agent.workloads import Workloads, documents

from kybernate.api import GpuWorkload, load

TEXT = """apiVersion: kybernate.io/v1alpha1
kind: GpuWorkload
metadata: {{name: {name}}}
spec: {{template: {{spec: {{containers: [{{name: server, image: "localhost/x:{tag}"}}]}}}}}}
"""


def text(name: str, tag: int = 1) -> str:
    return TEXT.format(name=name, tag=tag)


async def eventually(found: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not found():
            await asyncio.sleep(0.01)


class Bed:
    """A folder that is followed by a node on which nothing is started: that is left to a kubelet."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "workloads"
        self.path.mkdir()
        services = services_in(folder)
        self.journal = services.journal
        self.node = Node(services)
        self.wishes = self.node.source = Wishes(self.node)
        self.workloads = Workloads(Folder(self.path, gone_seconds=0.05), self.node, self.wishes)

    def full(self, is_full: bool) -> None:
        """Whatever is written from now on fails, as on a full disk; or it works again."""
        self.journal._db.execute(f"pragma query_only = {int(is_full)}")

    @property
    def names(self) -> list[str]:
        return sorted(self.node.actors)


@pytest_asyncio.fixture
async def bed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bed]:
    monkeypatch.setattr(wishes, "AGAIN_SECONDS", 0.02)
    bed = Bed(tmp_path)
    running = asyncio.create_task(bed.workloads.run())
    try:
        yield bed
        assert not running.done(), "it goes on, whatever came"
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await bed.node.close()


@pytest.mark.parametrize(
    "stream",
    [
        text("a"),
        text("a") + "---\n",
        text("a") + "---\n# nothing yet\n",
        "---\n---\n" + text("a") + "---\n" + text("b") + "---\nnull\n---\n",
    ],
    ids=["one", "a last line", "a comment after it", "empty ones everywhere"],
)
def test_a_text_for_each_workload(stream: str) -> None:
    found = load(stream, "x.yaml")
    assert [load(each, "x.yaml") for each in documents(stream)] == [[each] for each in found]


async def test_a_file_that_ends_with_a_separator_is_taken_up(bed: Bed) -> None:
    (bed.path / "a.yaml").write_text(text("a") + "---\n")
    await eventually(lambda: bed.names == ["a-0"])
    assert await bed.workloads.apply(text("b") + "---\n", "b.yaml") == [("b", "created")]


async def test_one_file_that_makes_trouble_keeps_no_other_from_being_taken_up(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = bed.wishes.want

    def troubled(workload: GpuWorkload, source: str, text: str) -> str:
        if workload.name == "a":
            raise ValueError("nobody foresaw it")
        return want(workload, source, text)

    monkeypatch.setattr(bed.wishes, "want", troubled)
    (bed.path / "a.yaml").write_text(text("a"))
    (bed.path / "b.yaml").write_text(text("b"))
    await eventually(lambda: bed.names == ["b-0"])


async def test_on_a_full_disk_a_manifest_waits_until_there_is_room(bed: Bed) -> None:
    bed.full(True)
    [workload] = load(text("a"), "a.yaml")
    assert bed.wishes.want(workload, "a.yaml", text("a")).startswith("waits")
    again = bed.wishes._again
    await eventually(lambda: bed.wishes._again is not again)  # tried in vain
    assert bed.names == []
    bed.full(False)
    await eventually(lambda: bed.names == ["a-0"])
    assert [record.id for record in bed.journal.records()] == ["a-0"]


async def test_what_nobody_wants_any_more_does_not_begin_when_there_is_room(bed: Bed) -> None:
    bed.full(True)
    for name in ("a", "b"):
        [workload] = load(text(name), "x.yaml")
        bed.wishes.want(workload, "x.yaml", text(name))
    await bed.wishes.unwant("a")
    bed.full(False)
    await eventually(lambda: bed.names == ["b-0"])


async def test_a_successor_for_which_there_is_no_room_is_made_later(bed: Bed) -> None:
    [before], [after] = load(text("a"), "a.yaml"), load(text("a", tag=2), "a.yaml")
    bed.wishes.want(before, "a.yaml", text("a"))
    old = bed.node.actors["a-0"]
    gone = bed.wishes.gone

    def on_a_full_disk(record: Record) -> None:
        bed.full(True)
        gone(record)

    bed.wishes.gone = on_a_full_disk  # type: ignore[method-assign]
    assert bed.wishes.want(after, "a.yaml", text("a", tag=2)).startswith("replaced")
    await eventually(lambda: bed.wishes._again is not None)
    bed.full(False)
    await eventually(lambda: bed.names == ["a-0"] and bed.node.actors["a-0"] is not old)
    assert [event.reason for event in bed.node.actors["a-0"].record.events] == ["StateGivenUp"]
