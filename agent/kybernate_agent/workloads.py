"""The folder of GpuWorkload manifests, as the kubelet's folder of static pods: what lies there is what runs.

`apply` and `delete` write that folder, so a file dropped in by hand and one applied by the CLI are the same thing.
"""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

import yaml

from kybernate.api import GpuWorkload, load
from kybernate.errors import InvalidError, KybernateError
from kybernate_agent.node import Node
from kybernate_agent.standalone.folder import Folder, FolderEvent, Invalid, Removed

log = logging.getLogger(__name__)


def documents(text: str) -> list[str]:
    """The texts of a YAML stream's documents, in the order in which `load` returns the workloads."""
    return [
        text[node.start_mark.index : node.end_mark.index]
        for node in yaml.compose_all(text, Loader=yaml.SafeLoader)
        if node
    ]


class Workloads:
    """Keeps the node's instances what the folder says."""

    def __init__(self, folder: Folder, node: Node) -> None:
        self._folder = folder
        self._node = node
        self._files: dict[Path, list[GpuWorkload]] = {}
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Take up each change of the folder until cancelled. Raises FolderGoneError."""
        adopting = asyncio.create_task(self._adopt_known())
        try:
            await self._follow()
        finally:
            adopting.cancel()

    async def _follow(self) -> None:
        async for event in self._folder.events():
            async with self._lock:
                try:
                    await self._take(event)
                except KybernateError as error:
                    log.error("%s", error)

    async def _take(self, event: FolderEvent) -> None:
        if isinstance(event, Invalid):
            log.error("%s: not taken up, what it said before goes on: %s", event.path, event.error)
        elif isinstance(event, Removed):
            for workload in self._files.pop(event.path, []):
                self._later(workload.metadata.name)
        else:
            await self._changed(event.path, event.workloads, event.text)

    def _later(self, name: str) -> None:
        task = asyncio.create_task(self._node.unwant(name))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _changed(self, path: Path, workloads: list[GpuWorkload], text: str) -> None:
        names = {w.metadata.name for w in workloads}
        for other, theirs in self._files.items():
            if other != path and (both := names & {w.metadata.name for w in theirs}):
                raise InvalidError(
                    f"{path}: workload {sorted(both)[0]!r} stands in {other} already; rename one of them"
                )
        for workload in self._files.get(path, []):
            if workload.metadata.name not in names:
                self._later(workload.metadata.name)
        self._files[path] = workloads
        for workload, document in zip(workloads, documents(text), strict=True):
            await self._node.want(workload, str(path), document)

    async def _adopt_known(self) -> None:
        """After the first look at the folder: instances whose manifest went while no agent ran are ended."""
        await self._folder.listed.wait()
        wanted = {w.metadata.name for theirs in self._files.values() for w in theirs}
        for actor in list(self._node.actors.values()):
            if actor.record.workload not in wanted:
                self._later(actor.record.workload)

    async def apply(self, text: str, file_name: str) -> list[tuple[str, str]]:
        """Write the workloads into the folder, a file each; (name, created | configured | unchanged). All or none."""
        workloads = load(text, file_name)
        if not workloads:
            raise InvalidError(f"{file_name}: no GpuWorkload in it")
        outcome: list[tuple[str, str]] = []
        async with self._lock:
            for workload, document in zip(workloads, documents(text), strict=True):
                name = workload.metadata.name
                path = self._source(name) or self._folder.path / f"{name}.yaml"
                if len(self._files.get(path, [])) > 1:
                    raise InvalidError(f"{name!r} stands in {path} beside others; change it there")
                self._files[path] = [workload]
                await asyncio.to_thread(_write, path, document)
                outcome.append((name, await self._node.want(workload, str(path), document)))
        return outcome

    def _source(self, name: str) -> Path | None:
        return next((p for p, ws in self._files.items() if any(w.metadata.name == name for w in ws)), None)

    async def delete(self, name: str, wait: bool) -> str:
        """Remove the manifest; the instance ends. Raises NotFoundError, InvalidError."""
        workload = self._node.find(name).record.workload
        path = self._source(workload)
        if path is not None and len(self._files[path]) > 1:
            raise InvalidError(f"{workload!r} stands in {path} beside others; take it out there")
        if path is not None:
            self._files.pop(path, None)
            path.unlink(missing_ok=True)
        if wait:
            await self._node.unwant(workload)
        else:
            self._later(workload)
        return workload


def _write(path: Path, text: str) -> None:
    """Atomic and durable: whoever watches the folder never reads half a file."""
    part = path.with_name(f".{path.name}.part")
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(text if text.endswith("\n") else text + "\n")
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
