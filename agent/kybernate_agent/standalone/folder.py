"""A folder of GpuWorkload manifests, watched: what lies there is what is wanted.

Files end in .yaml or .yml; hidden ones and editors' copies do not count. A file counts when its writer closed it or
moved it into place. One that goes away may come back at once, because many editors move the old file aside before they
write the new one: it counts as removed only when it is still gone after `GONE_SECONDS`. A file that cannot be
understood is reported and changes nothing: what it said before goes on, and so do the other files.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

from kybernate.api import GpuWorkload, load
from kybernate.errors import ExternalError, InvalidError
from kybernate_agent.standalone import inotify
from kybernate_agent.standalone.inotify import Inotify

GONE_SECONDS = 1.0
_APPEARED = inotify.CLOSE_WRITE | inotify.MOVED_TO
_GONE = inotify.MOVED_FROM | inotify.DELETE
_FOLDER_GONE = inotify.DELETE_SELF | inotify.MOVE_SELF | inotify.IGNORED


class FolderGoneError(ExternalError):
    """The workloads folder {path} is gone or cannot be watched: {reason}. Make it again and start the agent anew."""


@dataclass(frozen=True)
class Changed:
    """A file is new or says something else; `text` is what it holds."""

    path: Path
    text: str
    workloads: list[GpuWorkload]


@dataclass(frozen=True)
class Removed:
    path: Path


@dataclass(frozen=True)
class Invalid:
    """A file cannot be read or understood; `error` names file, line and field."""

    path: Path
    error: InvalidError


FolderEvent = Changed | Removed | Invalid


class Folder:
    """One folder. `listed` is set when all that `events` found at its begin has been dealt with by its consumer."""

    def __init__(
        self,
        path: Path,
        *,
        load: Callable[[str, str], list[GpuWorkload]] = load,
        gone_seconds: float = GONE_SECONDS,
    ) -> None:
        self.path = path
        self.listed = asyncio.Event()
        self._load = load
        self._gone_seconds = gone_seconds
        self._texts: dict[Path, str | None] = {}  # what each file said when it was reported; None: unreadable
        self._gone: dict[Path, float] = {}  # when an absent file counts as removed, on the monotonic clock

    async def events(self) -> AsyncIterator[FolderEvent]:
        """What is there, then each change, without end. One consumer. Raises FolderGoneError."""
        mask = _APPEARED | _GONE | inotify.DELETE_SELF | inotify.MOVE_SELF
        try:
            watch = Inotify(self.path, mask)
        except OSError as error:
            raise FolderGoneError(path=self.path, reason=error.strerror) from error
        with watch:
            for event in self._look():
                yield event
            self.listed.set()
            while True:
                for event in await self._next(watch):
                    yield event

    async def _next(self, watch: Inotify) -> list[FolderEvent]:
        """The next happening that may mean something, or the end of a removed file's time."""
        left = min(self._gone.values(), default=None)
        try:
            async with asyncio.timeout(None if left is None else max(0.0, left - time.monotonic())):
                happened = await watch.read()
        except TimeoutError:
            return self._look()
        if any(event.mask & _FOLDER_GONE for event in happened):
            raise FolderGoneError(path=self.path, reason="it was removed or moved")
        if any(event.mask & inotify.OVERFLOW for event in happened):
            return self._look()
        paths = dict.fromkeys(self.path / event.name for event in happened if counts(event.name))
        return [event for path in paths for event in self._take(path)]

    def _look(self) -> list[FolderEvent]:
        """Every file that is there or was known."""
        try:
            there = {path for path in self.path.iterdir() if counts(path.name)}
        except OSError as error:
            raise FolderGoneError(path=self.path, reason=error.strerror) from error
        return [event for path in sorted(there | set(self._texts)) for event in self._take(path)]

    def _take(self, path: Path) -> list[FolderEvent]:
        """What this file's present content means, if it is news."""
        try:
            text = path.read_bytes().decode()
        except FileNotFoundError:
            return self._absent(path)
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            return self._news(path, None, Invalid(path, InvalidError(f"{path}: cannot be read: {reason}")))
        self._gone.pop(path, None)
        if path in self._texts and self._texts[path] == text:
            return []
        try:
            return self._news(path, text, Changed(path, text, self._load(text, str(path))))
        except InvalidError as error:
            return self._news(path, text, Invalid(path, error))

    def _news(self, path: Path, text: str | None, event: FolderEvent) -> list[FolderEvent]:
        self._gone.pop(path, None)
        self._texts[path] = text
        return [event]

    def _absent(self, path: Path) -> list[FolderEvent]:
        if path not in self._texts:
            return []
        now = time.monotonic()
        if self._gone.setdefault(path, now + self._gone_seconds) > now:
            return []
        del self._gone[path], self._texts[path]
        return [Removed(path)]


def counts(name: str) -> bool:
    """Whether a file of this name is a manifest: not hidden, not an editor's copy."""
    return name.endswith((".yaml", ".yml")) and not name.startswith((".", "#", "~"))
