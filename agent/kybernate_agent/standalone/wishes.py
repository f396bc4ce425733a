"""Which instances a machine without a cluster has: one for each workload that a manifest of the folder wants."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kybernate.api import GpuWorkload
from kybernate.errors import RefusedError
from kybernate_agent import clock, life
from kybernate_agent.actor import Actor
from kybernate_agent.instance import Record, Wanted
from kybernate_agent.journal import JournalError
from kybernate_agent.node import Node
from kybernate_agent.policy import wanted_of
from kybernate_agent.standalone.starter import workload_of

log = logging.getLogger(__name__)

AGAIN_SECONDS = 5.0
GIVEN_UP = "its template changed, so it begins anew and what it was is given up"


@dataclass(frozen=True, slots=True)
class Wish:
    """A workload that somebody wants, the manifest it stands in, and what that says."""

    workload: GpuWorkload
    source: str
    text: str
    instead: bool = False  # of one whose template changed


class Wishes:
    """See `kybernate_agent.source`."""

    def __init__(self, node: Node) -> None:
        self._node = node
        # What is to come when an instance that is ending is gone, or when the journal can be written.
        self._waiting: dict[str, Wish] = {}
        self._again: asyncio.TimerHandle | None = None
        self._workloads: dict[str, GpuWorkload] = {}

    # --- what the manifests say ---

    def want(self, workload: GpuWorkload, source: str, text: str) -> str:
        """A workload as its manifest now says: `created`, `configured` or `unchanged`. Never waits."""
        name = f"{workload.name}-0"
        wish = Wish(workload, source, text)
        actor = self._node.actors.get(name)
        if actor is None:
            return self._create_instance(name, wish)
        if actor.deleting:
            self._waiting[name] = wish  # when the old one is gone
            return "created"
        actor.record.source = source
        before = self._workloads[name]
        if before == workload:
            return "unchanged"
        if before.spec.template != workload.spec.template:
            log.warning("%s: %s", name, GIVEN_UP)
            self._waiting[name] = Wish(workload, source, text, instead=True)
            self._node.end(actor)
            return f"replaced: {GIVEN_UP}"
        self._workloads[name] = workload
        actor.reconfigure(wanted_of(workload), text)
        return "configured"

    def _create_instance(self, name: str, wish: Wish) -> str:
        """A full disk is no reason to end: the wish stays, and is tried again."""
        self._waiting.pop(name, None)
        now = clock.now()
        record = Record(id=name, workload=wish.workload.name, source=wish.source, text=wish.text, since=now)
        if wish.instead:
            record.event("Warning", "StateGivenUp", GIVEN_UP, now)
        try:
            self._node.add(record, wanted_of(wish.workload))
        except JournalError as error:
            log.error("%s: does not begin yet, tried again in %g s: %s", name, AGAIN_SECONDS, error)
            self._waiting[name] = wish
            if self._again is None:
                self._again = asyncio.get_running_loop().call_later(AGAIN_SECONDS, self._try_again)
            return f"waits for room: {error}"
        self._workloads[name] = wish.workload
        return "created"

    def _try_again(self) -> None:
        self._again = None
        for name, wish in list(self._waiting.items()):
            if name not in self._node.actors:  # else it still ends
                self._create_instance(name, wish)

    def unwant(self, workload: str) -> asyncio.Future[None]:
        """The workload is gone: its instance ends. The future is done when it has; at once where there is none."""
        name = f"{workload}-0"
        self._waiting.pop(name, None)
        actor = self._node.actors.get(name)
        if actor is not None:
            return self._node.end(actor)
        nothing: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        nothing.set_result(None)
        return nothing

    # --- what the node asks ---

    def wanted(self, record: Record) -> Wanted:
        workload = self._workloads[record.id] = workload_of(record)
        return wanted_of(workload)

    async def create(self, message: Mapping[str, Any]) -> dict[str, Any]:
        for actor in self._node.actors.values():
            pod = actor.record.pod
            if pod.uid and pod.uid == message.get("pod_uid") and actor.wanted.container == message.get("name"):
                return dict(await life.prepare_create(actor, Path(str(message.get("bundle", "")))))
        raise RefusedError(f"no workload of this node has a pod with uid {message.get('pod_uid')!r}")

    async def started(self, container: str) -> None:
        """The agent started it itself."""

    async def terminate(self, actor: Actor, signal: int, until: float) -> str:
        return "end"

    def gone(self, record: Record) -> None:
        self._workloads.pop(record.id, None)
        if (wish := self._waiting.pop(record.id, None)) is not None:
            self._create_instance(record.id, wish)
