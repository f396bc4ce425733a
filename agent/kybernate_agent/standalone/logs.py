"""A container's log as containerd writes it for CRI, and reading it as what the container wrote.

`<folder>/<attempt>.log`, a line for each line of output:

    2025-01-02T03:04:05.678901234Z stdout F the text

F ends the line, P means that the rest follows. Reading goes through the attempts in order: for whoever reads, a
container that was made anew to be restored is one and the same.

Source: Kubernetes, the CRI logging format (kubelet CRI logging proposal).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import BinaryIO

from kybernate.errors import NotFoundError
from kybernate_agent.standalone import inotify
from kybernate_agent.standalone.inotify import Inotify

_CHUNK_BYTES = 256 << 10


class NoLogError(NotFoundError):
    """There is no log in {folder}: the container has not been started yet, or the workload is gone."""


Entry = tuple[str, bytes]  # stream (stdout or stderr) and what was written to it


async def read_log(folder: Path, *, follow: bool = False, tail_lines: int | None = None) -> AsyncIterator[Entry]:
    """What the container wrote, oldest first: (stream, bytes) by line, or by part of an overlong line.

    `tail_lines` begins that many lines before the end. `follow` goes on with what is written, without end, until the
    folder is removed. Raises NoLogError.
    """
    try:
        watch = Inotify(folder, inotify.CREATE | inotify.MODIFY | inotify.DELETE_SELF)
    except OSError as error:
        raise NoLogError(folder=folder) from error
    with watch, contextlib.closing(_Reader(folder)) as reader:
        if tail_lines is not None:
            for entry in await asyncio.to_thread(reader.tail, tail_lines):
                yield entry
        while True:
            for entry in await asyncio.to_thread(reader.more):
                yield entry
            if reader.has_more:
                continue
            if not follow or any(event.mask & (inotify.DELETE_SELF | inotify.IGNORED) for event in await watch.read()):
                return


class _Reader:
    """A place in the files of a folder that moves forward."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._attempt = -1
        self._file: BinaryIO | None = None
        self._rest = b""
        self.has_more = True

    def tail(self, lines: int) -> list[Entry]:
        """Move to the end; the last `lines` lines on the way."""
        kept: deque[Entry] = deque(maxlen=max(lines, 0))
        line: list[Entry] = []
        while self.has_more:
            for entry in self.more():
                line.append(entry)
                if entry[1].endswith(b"\n"):
                    kept.append((entry[0], b"".join(part for _, part in line)))
                    line = []
        return [*kept, *line]

    def more(self) -> list[Entry]:
        """The next entries; none, and `has_more` False, at the present end."""
        data = self._file.read(_CHUNK_BYTES) if self._file else b""
        if not data:
            self.has_more = self._open_next()
            return []
        *lines, self._rest = (self._rest + data).split(b"\n")
        self.has_more = True
        return list(_parse(lines))

    def _open_next(self) -> bool:
        attempts = [int(path.stem) for path in self._folder.glob("*.log") if path.stem.isdigit()]
        following = min((attempt for attempt in attempts if attempt > self._attempt), default=None)
        if following is None:
            return False
        file = (self._folder / f"{following}.log").open("rb")
        self.close()
        self._file, self._attempt, self._rest = file, following, b""
        return True

    def close(self) -> None:
        if self._file:
            self._file.close()


def _parse(lines: list[bytes]) -> Iterator[Entry]:
    for line in lines:
        words = line.split(b" ", 3)
        if len(words) == 4:
            _, stream, tags, text = words
            yield stream.decode(), text + (b"" if tags.startswith(b"P") else b"\n")
