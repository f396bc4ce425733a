"""The socket on which the hook and CRIU's post-dump script ask the agent.

One JSON line in, one out. The answer to `post-dump` is the commit: anything but ok makes CRIU undo the dump. The folder
is 0700 and the socket 0600, so whoever reaches it is root on this node already; each peer is checked all the same.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from kybernate.errors import KybernateError

log = logging.getLogger(__name__)

Answer = Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]
LINE_LIMIT = 1 << 20


class HookServer:
    """Serves `answer(verb, message)` on `<run>/hook.sock`; KybernateErrors become refusals."""

    def __init__(self, run: Path, answer: Answer) -> None:
        self._run = run
        self._answer = answer
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        handle = os.open(self._run, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            path = f"/proc/self/fd/{handle}/hook.sock"
            Path(path).unlink(missing_ok=True)
            before = os.umask(0o177)
            try:
                listener.bind(path)
            finally:
                os.umask(before)
            self._server = await asyncio.start_unix_server(self._serve, sock=listener, limit=LINE_LIMIT)
        except BaseException:
            listener.close()
            raise
        finally:
            os.close(handle)

    async def close(self) -> None:
        if self._server:
            self._server.close()
            (self._run / "hook.sock").unlink(missing_ok=True)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            line = await reader.readline()
            if line and _peer_uid(writer) == os.geteuid():
                reply = await self._reply(line)
                writer.write(msgspec.json.encode(reply) + b"\n")
                await writer.drain()
        except (OSError, ValueError) as error:
            log.warning("a hook went away: %s", error)
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _reply(self, line: bytes) -> dict[str, Any]:
        try:
            message = msgspec.json.decode(line, type=dict[str, Any])
            return {"ok": True, **await self._answer(str(message.get("verb", "")), message)}
        except KybernateError as error:
            return {"ok": False, "error": type(error).__name__, "message": str(error)}
        except msgspec.MsgspecError as error:
            return {"ok": False, "error": "bad_message", "message": f"not a JSON object on one line: {error}"}
        except Exception as error:
            log.exception("a hook's call failed")
            return {"ok": False, "error": "internal", "message": f"{type(error).__name__}: {error}"}


def _peer_uid(writer: asyncio.StreamWriter) -> int:
    raw = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int(struct.unpack("3i", raw)[1])
