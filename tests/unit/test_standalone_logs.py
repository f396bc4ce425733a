"""Reading container logs in CRI's format."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from kybernate_agent.standalone.logs import Entry, NoLogError, read_log


def line(text: str, stream: str = "stdout", tag: str = "F") -> str:
    return f"2025-01-02T03:04:05.678901234Z {stream} {tag} {text}\n"


async def collect(entries: AsyncIterator[Entry]) -> list[Entry]:
    return [entry async for entry in entries]


async def test_lines_come_with_their_stream_and_parts_are_joined(tmp_path: Path) -> None:
    (tmp_path / "0.log").write_text(
        line("one") + line("ha", tag="P") + line("lf") + line("err or", "stderr") + line("")
    )
    entries = await collect(read_log(tmp_path))
    assert b"".join(data for stream, data in entries if stream == "stdout") == b"one\nhalf\n\n"
    assert entries[3] == ("stderr", b"err or\n")


async def test_attempts_are_one_log_in_numeric_order(tmp_path: Path) -> None:
    for attempt in (10, 9, 0):
        (tmp_path / f"{attempt}.log").write_text(line(str(attempt)))
    assert await collect(read_log(tmp_path)) == [("stdout", b"0\n"), ("stdout", b"9\n"), ("stdout", b"10\n")]


async def test_tail_counts_lines_over_attempts(tmp_path: Path) -> None:
    (tmp_path / "0.log").write_text(line("a") + line("b"))
    (tmp_path / "1.log").write_text(line("long ", tag="P") + line("c") + line("d"))
    assert b"".join(data for _, data in await collect(read_log(tmp_path, tail_lines=3))) == b"b\nlong c\nd\n"
    assert await collect(read_log(tmp_path, tail_lines=0)) == []


async def test_a_log_larger_than_a_read_is_whole(tmp_path: Path) -> None:
    (tmp_path / "0.log").write_text("".join(line("x" * 1000 + str(n)) for n in range(1000)))
    entries = await collect(read_log(tmp_path))
    assert [data[1000:] for _, data in entries] == [f"{n}\n".encode() for n in range(1000)]


async def test_following_sees_what_is_written_and_the_next_attempt(tmp_path: Path) -> None:
    (tmp_path / "0.log").write_text(line("old"))
    entries = read_log(tmp_path, follow=True, tail_lines=0)
    following = asyncio.ensure_future(anext(entries))
    done, _ = await asyncio.wait({following}, timeout=0.1)
    assert not done
    with (tmp_path / "0.log").open("a") as log:
        log.write(line("new")[:30])
        log.flush()
        log.write(line("new")[30:])
    async with asyncio.timeout(5):
        assert await following == ("stdout", b"new\n")
        (tmp_path / "1.log").write_text(line("restarted"))
        assert await anext(entries) == ("stdout", b"restarted\n")
    await entries.aclose()  # type: ignore[attr-defined]


async def test_no_log_is_said(tmp_path: Path) -> None:
    with pytest.raises(NoLogError, match="no log"):
        await collect(read_log(tmp_path / "missing"))
