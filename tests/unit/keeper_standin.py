"""A stand-in for a keeper: a real unix socket in a keeper's folder that answers with what it is told to, and its
`state.json`. It has no container and runs nothing; its pid and its init's are the test's own."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import msgspec
from kybernate_agent.keepers import process_start


class KeeperStandin:
    """`async with`; `answers` are replies by verb, in place of ok; `asked` are the verbs that came."""

    def __init__(self, run: Path, container: str, state: str) -> None:
        self.folder = run / "keepers" / container
        self.container, self.state = container, state
        self.answers: dict[str, dict[str, Any]] = {}
        self.asked: list[str] = []
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> KeeperStandin:
        self.folder.mkdir(parents=True)
        self.write()
        handle = os.open(self.folder, os.O_PATH | os.O_DIRECTORY)
        try:
            self._server = await asyncio.start_unix_server(self._serve, f"/proc/self/fd/{handle}/sock")
        finally:
            os.close(handle)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()

    def write(self, **facts: Any) -> None:
        pid, start = os.getpid(), process_start(os.getpid())
        known = {"container": self.container, "state": self.state, "keeper_pid": pid, "keeper_start": start}
        known |= {"init_pid": pid, "init_start": start, "bundle": str(self.folder)}
        (self.folder / "state.json").write_bytes(msgspec.json.encode(known | facts))

    def mark(self) -> None:
        """As post-dump does after the agent's yes."""
        (self.folder / "committed").touch()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        verb = msgspec.json.decode(await reader.readline())["verb"]
        self.asked.append(verb)
        if verb == "thaw":
            self.state = "running"
        reply = self.answers.get(verb, {"ok": True, "state": self.state, "init_pid": os.getpid()})
        writer.write(msgspec.json.encode(reply) + b"\n")
        await writer.drain()
        writer.close()
