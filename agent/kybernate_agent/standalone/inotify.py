"""inotify for asyncio: what happens in a folder, as events. Source: inotify(7)."""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

MODIFY = 0x2
CLOSE_WRITE = 0x8
MOVED_FROM = 0x40
MOVED_TO = 0x80
CREATE = 0x100
DELETE = 0x200
DELETE_SELF = 0x400
MOVE_SELF = 0x800
OVERFLOW = 0x4000
IGNORED = 0x8000
ONLYDIR = 0x01000000

_EVENT = struct.Struct("iIII")
_NONBLOCK_CLOEXEC = os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True)
class Event:
    """`name` is the entry of the folder; empty where the folder itself is meant."""

    mask: int
    name: str


class Inotify:
    """Watches one folder from construction to `close`. Raises OSError where it cannot be watched."""

    def __init__(self, folder: Path, mask: int) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.inotify_init1(_NONBLOCK_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(folder))
        if libc.inotify_add_watch(self._fd, os.fsencode(folder), ctypes.c_uint32(mask | ONLYDIR)) < 0:
            error = ctypes.get_errno()
            self.close()
            raise OSError(error, os.strerror(error), str(folder))

    async def read(self) -> list[Event]:
        """Wait until something happened; all of it, in order."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                return _parse(os.read(self._fd, 65536))
            except BlockingIOError:
                pass
            readable = asyncio.Event()
            loop.add_reader(self._fd, readable.set)
            try:
                await readable.wait()
            finally:
                loop.remove_reader(self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Inotify:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _parse(data: bytes) -> list[Event]:
    events, offset = [], 0
    while offset < len(data):
        _, mask, _, length = _EVENT.unpack_from(data, offset)
        offset += _EVENT.size
        events.append(Event(mask, os.fsdecode(data[offset : offset + length].rstrip(b"\0"))))
        offset += length
    return events
