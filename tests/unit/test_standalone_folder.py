"""The folder of workloads, watched."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from kybernate_agent.standalone.folder import Changed, Folder, FolderEvent, FolderGoneError, Invalid, Removed, counts

TEXT = """apiVersion: kybernate.io/v1alpha1
kind: GpuWorkload
metadata: {{name: {name}}}
spec: {{template: {{spec: {{containers: [{{name: server, image: "localhost/x:1"}}]}}}}}}
"""


def text(name: str = "chat") -> str:
    return TEXT.format(name=name)


class Watched:
    """A folder under watch: `next` is the next event, `silent` that none comes before another file's."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.folder = Folder(path, gone_seconds=0.1)
        self._events = self.folder.events()

    async def next(self) -> FolderEvent:
        async with asyncio.timeout(5):
            return await anext(self._events)

    async def silent(self) -> bool:
        """Nothing was said of what happened before: the next event is that of a file that is made now."""
        (self.path / "mark.yaml").write_text(text("mark"))
        event = await self.next()
        (self.path / "mark.yaml").unlink()
        return event.path.name == "mark.yaml" and isinstance(await self.next(), Removed)

    async def close(self) -> None:
        await self._events.aclose()  # type: ignore[attr-defined]


@contextlib.asynccontextmanager
async def watch(path: Path) -> AsyncIterator[Watched]:
    """A watched folder whose first file, `first.yaml`, has been reported."""
    (path / "first.yaml").write_text(text("first"))
    watched = Watched(path)
    assert (await watched.next()).path.name == "first.yaml"
    try:
        yield watched
    finally:
        await watched.close()


async def test_what_is_there_comes_first_and_then_the_folder_counts_as_listed(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text("a"))
    (tmp_path / "b.yml").write_text(text("b"))
    watched = Watched(tmp_path)
    assert [(await watched.next()).path.name for _ in range(2)] == ["a.yaml", "b.yml"]
    assert not watched.folder.listed.is_set()
    (tmp_path / "c.yaml").write_text(text("c"))
    following = await watched.next()
    assert isinstance(following, Changed)
    assert [it.name for it in following.workloads] == ["c"]
    assert watched.folder.listed.is_set()
    await watched.close()


async def test_a_file_moved_into_place_is_taken_whole(tmp_path: Path) -> None:
    async with watch(tmp_path) as watched:
        (tmp_path / ".chat.yaml.part").write_text(text())
        (tmp_path / ".chat.yaml.part").rename(tmp_path / "chat.yaml")
        event = await watched.next()
        assert isinstance(event, Changed)
        assert event.text == text()


async def test_the_same_text_again_is_no_news(tmp_path: Path) -> None:
    async with watch(tmp_path) as watched:
        (tmp_path / "first.yaml").write_text(text("first"))
        assert await watched.silent()


async def test_editors_files_do_not_count(tmp_path: Path) -> None:
    async with watch(tmp_path) as watched:
        for name in (".chat.yaml.swp", "chat.yaml~", "#chat.yaml#", ".#chat.yaml", "4913", "~chat.yaml"):
            (tmp_path / name).write_text(text())
        assert await watched.silent()
    assert counts("chat.yaml")


async def test_an_editor_that_moves_the_old_file_aside_removes_nothing(tmp_path: Path) -> None:
    async with watch(tmp_path) as watched:
        (tmp_path / "first.yaml").rename(tmp_path / "first.yaml~")
        (tmp_path / "first.yaml").write_text(text("first") + "# changed\n")
        event = await watched.next()
        assert isinstance(event, Changed)
        assert await watched.silent()


async def test_a_file_that_stays_away_is_removed(tmp_path: Path) -> None:
    async with watch(tmp_path) as watched:
        (tmp_path / "first.yaml").unlink()
        assert await watched.next() == Removed(tmp_path / "first.yaml")


async def test_a_bad_file_is_reported_and_the_others_go_on(tmp_path: Path) -> None:
    async with watch(tmp_path) as watched:
        (tmp_path / "bad.yaml").write_text(text().replace("spec:", "spek:"))
        event = await watched.next()
        assert isinstance(event, Invalid)
        assert "bad.yaml" in str(event.error)
        assert "spek" in str(event.error)
        (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe")
        event = await watched.next()
        assert isinstance(event, Invalid)
        (tmp_path / "good.yaml").write_text(text("good"))
        assert isinstance(await watched.next(), Changed)
        (tmp_path / "bad.yaml").write_text(text("mended"))
        assert isinstance(await watched.next(), Changed)


async def test_a_link_that_leads_nowhere_is_not_there(tmp_path: Path) -> None:
    async with watch(tmp_path) as watched:
        (tmp_path / "dangling.yaml").symlink_to("nowhere")
        assert await watched.silent()


async def test_a_folder_that_goes_away_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "workloads"
    folder.mkdir()
    async with watch(folder) as watched:
        (folder / "first.yaml").unlink()
        os.rmdir(folder)
        with pytest.raises(FolderGoneError, match="workloads"):
            await watched.next()
    with pytest.raises(FolderGoneError, match="No such file"):
        await Watched(folder).next()
