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
from kybernate.api.decode import NULL
from kybernate.errors import InvalidError, KybernateError
from kybernate_agent.node import Node
from kybernate_agent.standalone.folder import Changed, Folder, FolderEvent, Invalid
from kybernate_agent.standalone.wishes import Wishes

log = logging.getLogger(__name__)


def documents(text: str) -> list[str]:
    """The texts of a YAML stream's documents, in the order in which `load` returns the workloads: it passes over
    empty ones, such as the one after a last `---`."""
    return [
        text[node.start_mark.index : node.end_mark.index]
        for node in yaml.compose_all(text, Loader=yaml.SafeLoader)
        if node and node.tag != NULL
    ]


class Workloads:
    """Keeps the node's instances what the folder says."""

    def __init__(self, folder: Folder, node: Node, wishes: Wishes) -> None:
        self._folder = folder
        self._node = node
        self._wishes = wishes
        self._files: dict[Path, list[GpuWorkload]] = {}
        self._refused: dict[Path, Changed] = {}  # files whose workload's name stands in another file
        self._lock = asyncio.Lock()

    async def run(self) -> None:
        """Take up each change of the folder until cancelled. Raises FolderGoneError."""
        adopting = asyncio.create_task(self._adopt_known())
        try:
            async for event in self._folder.events():
                async with self._lock:
                    try:
                        self._take(event)
                    except (KybernateError, ValueError) as error:  # one file's trouble is no reason to end
                        log.error("%s: not taken up: %s", event.path, error)
        finally:
            adopting.cancel()

    def _take(self, event: FolderEvent) -> None:
        if isinstance(event, Invalid):
            log.error("%s: not taken up, what it said before goes on: %s", event.path, event.error)
            return
        self._refused.pop(event.path, None)
        if isinstance(event, Changed):
            self._changed(event)
            return
        if event.path.exists():
            return  # it came back before we heard that it had gone; what it says now is an event of its own
        for workload in self._files.pop(event.path, []):
            self._wishes.unwant(workload.name)
        for refused in list(self._refused.values()):
            self._take(refused)

    def _changed(self, event: Changed) -> None:
        names = {workload.name for workload in event.workloads}
        for other, theirs in list(self._files.items()):
            if other == event.path or not (both := names & {workload.name for workload in theirs}):
                continue
            if not other.exists():  # the file was renamed
                del self._files[other]
                continue
            self._refused[event.path] = event
            log.error("%s: workload %r stands in %s already; rename one of them", event.path, sorted(both)[0], other)
            return
        for workload in self._files.get(event.path, []):
            if workload.name not in names:
                self._wishes.unwant(workload.name)
        self._files[event.path] = event.workloads
        for workload, document in zip(event.workloads, documents(event.text), strict=True):
            self._wishes.want(workload, str(event.path), document)

    async def _adopt_known(self) -> None:
        """After the first look at the folder: instances whose manifest went while no agent ran are ended.

        One whose file is there but cannot be understood goes on as it was.
        """
        await self._folder.listed.wait()
        wanted = {workload.name for theirs in self._files.values() for workload in theirs}
        for actor in list(self._node.actors.values()):
            source = Path(actor.record.source)
            understood = source in self._files or not source.exists()
            if actor.record.workload not in wanted and understood:
                self._wishes.unwant(actor.record.workload)

    async def apply(self, text: str, file_name: str) -> list[tuple[str, str]]:
        """Write the workloads into the folder, a file each; (name, created | configured | unchanged). All or none."""
        workloads = load(text, file_name)
        if not workloads:
            raise InvalidError(f"{file_name}: no GpuWorkload in it")
        async with self._lock:
            paths = [self._target(workload.name) for workload in workloads]
            outcome: list[tuple[str, str]] = []
            for workload, path, document in zip(workloads, paths, documents(text), strict=True):
                await asyncio.to_thread(_write, path, document)
                self._files[path] = [workload]
                outcome.append((workload.name, self._wishes.want(workload, str(path), document)))
        return outcome

    def _target(self, name: str) -> Path:
        """The file that is to hold the workload, alone. Raises InvalidError where another workload lives there."""
        path = self._source(name) or self._folder.path / f"{name}.yaml"
        others = {workload.name for workload in self._files.get(path, [])} - {name}
        if others:
            raise InvalidError(f"{path} holds {', '.join(sorted(others))}: change {name!r} there, or rename that file")
        return path

    def _source(self, name: str) -> Path | None:
        return next((p for p, ws in self._files.items() if any(w.name == name for w in ws)), None)

    async def delete(self, name: str, wait: bool) -> str:
        """Remove the manifest; the instance ends. Raises NotFoundError, InvalidError."""
        workload = self._node.find(name).record.workload
        async with self._lock:
            path = self._source(workload)
            if path is not None and len(self._files[path]) > 1:
                raise InvalidError(f"{workload!r} stands in {path} beside others; take it out there")
            if path is not None:
                self._files.pop(path, None)
                await asyncio.to_thread(path.unlink, missing_ok=True)
            gone = self._wishes.unwant(workload)
        if wait:
            await gone
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
