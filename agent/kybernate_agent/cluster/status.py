"""What an instance's agent tells of it: the status of its GpuInstance, written at transitions, and Events.

One writer for each object, which lives while there is something to write. What comes while it writes is written once
after it. A status is written when its essence changed: what people and programs wait for. The rest (last activity,
bytes, history) goes along. While a verb is under way nothing is written: its outcome is the transition.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec

from kybernate.api.gpuinstance import GpuInstance, InstanceStatus, LastWake, NextStep, OrderStatus, Transition
from kybernate.api.names import AGENT_MANAGER, API_VERSION
from kybernate.api.objects import Condition
from kybernate.kube.backoff import Backoff
from kybernate.kube.client import Client
from kybernate.kube.errors import ApiError, ApiInvalidError, ApiNotFoundError, ConflictError
from kybernate.kube.events import Recorder, Regarding
from kybernate.kube.resource import GPU_INSTANCES
from kybernate_agent import clock, processes
from kybernate_agent.actor import Actor
from kybernate_agent.instance import TIER, Phase, Record, Verb

log = logging.getLogger(__name__)

COALESCE_SECONDS = 0.05
"""A verb's end and the decision after it are one piece of news."""
LONGEST_PAUSE_SECONDS = 5.0
QUIET = (Verb.PROVE, Verb.RESET)
STATE = {Phase.PENDING: "Waiting", Phase.BACKOFF: "Waiting", Phase.ENDED: "Ending"}


def when(seconds: float) -> str:
    """Seconds since 1970 as RFC 3339, in whole seconds: what Kubernetes' own times are."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if seconds else ""


def status_of(actor: Actor, node: str) -> InstanceStatus:
    """What is true of the instance now."""
    record, member, decision = actor.record, actor.record.member, actor.decision
    assert member is not None
    state = STATE.get(record.phase, record.phase.value)
    if record.phase == Phase.RUNNING and not actor.keeper_watched:
        state = "Waiting"  # its container ended
    if not actor.keeper_watched and any(c.type == "StateLost" and c.status == "True" for c in record.conditions):
        state = "StateLost"  # also where a pod may not have what is kept
    if actor.deleting:
        state = "Ending"
    next_step = None
    if decision.next_verb in (Verb.SUSPEND, Verb.PARK) and decision.next_at:
        next_step = NextStep(verb=decision.next_verb.value, at=when(decision.next_at))
    return InstanceStatus(
        observed_generation=member.generation,
        state=state,
        tier=TIER.get(record.phase, "") if state not in ("Waiting", "StateLost") else "",
        since=when(record.since),
        node_name=node,
        pod=member.pod if record.pod.uid == member.pod_uid else "",
        pod_uid=record.pod.uid,
        epoch=record.epoch,
        ram_bytes=_ram_bytes(actor),
        stored_bytes=record.stored_bytes,
        last_activity=when(record.last_activity),
        load=actor.load.word if actor.load and state == "Running" else "",
        next=next_step,
        last_wake=LastWake(seconds=record.last_wake_seconds, source=record.last_wake_from)
        if record.last_wake_from
        else None,
        order=OrderStatus(
            id=member.order, verb=member.order_verb, outcome=member.order_outcome, message=member.order_message
        )
        if member.order
        else None,
        history=[
            Transition(
                at=when(t.at), verb=t.verb, seconds=t.seconds, outcome=t.outcome,
                message=t.message if t.outcome != "done" else "", phases=t.phases,
            )
            for t in record.history
        ],
        conditions=[
            Condition(
                type=c.type, status=c.status, reason=c.reason, message=c.message[:32768],  # type: ignore[arg-type]
                last_transition_time=when(c.at), observed_generation=member.generation,
            )
            for c in record.conditions
        ],
    )  # fmt: skip


def _ram_bytes(actor: Actor) -> int:
    state = actor.last_keeper
    if state is None or actor.record.phase not in (Phase.RUNNING, Phase.SUSPENDED):
        return 0
    return processes.resident_bytes(processes.pids_of(state.cgroups))


def essence(status: InstanceStatus) -> tuple[Any, ...]:
    """What makes a status worth a write."""
    conditions = tuple((c.type, c.status, c.reason, c.message) for c in status.conditions)
    return (
        status.observed_generation, status.state, status.tier, status.since, status.node_name, status.pod,
        status.pod_uid, status.epoch, status.load, status.order.id if status.order else "", conditions,
    )  # fmt: skip


class StatusWriter:
    """Writes between `open` and `close`. `look_up` gives the actor of an id, `seen` its object as the cache has it."""

    def __init__(
        self,
        client: Client,
        recorder: Recorder,
        node: str,
        look_up: Callable[[str], Actor | None],
        seen: Callable[[Record], GpuInstance | None],
    ) -> None:
        self._client, self._recorder, self._node = client, recorder, node
        self._look_up, self._seen = look_up, seen
        self._dirty: set[str] = set()
        self._writers: dict[str, asyncio.Task[None]] = {}
        self._written: dict[str, tuple[Any, ...]] = {}
        self._told: dict[str, float] = {}  # up to when Events have been told
        self._began = clock.now()  # Events from before were told by the agent before
        self.writes = 0

    def changed(self, name: str) -> None:
        self._dirty.add(name)
        if name not in self._writers:
            task = self._writers[name] = asyncio.create_task(self._write(name), name=f"status {name}")
            task.add_done_callback(lambda _: self._over(name))

    def _over(self, name: str) -> None:
        self._writers.pop(name, None)
        if self._look_up(name) is None:
            self._written.pop(name, None)
            self._told.pop(name, None)
        elif name in self._dirty:
            self.changed(name)

    async def close(self) -> None:
        for task in list(self._writers.values()):
            task.cancel()
        await asyncio.gather(*self._writers.values(), return_exceptions=True)

    async def _write(self, name: str) -> None:
        backoff = Backoff(longest=LONGEST_PAUSE_SECONDS)
        while name in self._dirty:
            await asyncio.sleep(COALESCE_SECONDS)
            self._dirty.discard(name)
            actor = self._look_up(name)
            if actor is None or actor.record.member is None or actor.busy not in (None, *QUIET):
                return
            self._tell(actor.record)
            status = status_of(actor, self._node)
            if not self._is_news(actor.record, status):
                return
            try:
                await self._apply(actor.record, status)
            except ApiNotFoundError:
                return  # deleted; whoever watches it ends the instance
            except (ConflictError, ApiInvalidError) as error:
                log.warning("%s: its status is refused: %s", name, error)
                return
            except ApiError as error:
                if backoff.failures == 0:
                    log.warning("%s: its status waits: %s", name, error)
                self._dirty.add(name)
                await asyncio.sleep(backoff.next())
            else:
                self._written[name] = essence(status)

    def _is_news(self, record: Record, status: InstanceStatus) -> bool:
        written = self._written.get(record.id)
        if written is None and (seen := self._seen(record)) is not None:
            written = essence(seen.status)
        return written != essence(status)

    async def _apply(self, record: Record, status: InstanceStatus) -> None:
        """With the uid: another object of this name is refused."""
        assert record.member is not None
        assert record.wanted is not None
        meta = {"name": record.member.name, "namespace": record.wanted.namespace, "uid": record.member.uid}
        body = {"apiVersion": API_VERSION, "kind": "GpuInstance", "metadata": meta, "status": status}
        await self._client.apply(
            GPU_INSTANCES, body, manager=AGENT_MANAGER, subresource="status", into=dict[str, msgspec.Raw]
        )
        self.writes += 1

    def _tell(self, record: Record) -> None:
        """Events that came since the last time. After a restart of ours only what is new."""
        told = self._told.get(record.id)
        newest = max((event.at for event in record.events), default=0.0)
        if told is None:
            told = self._began
        assert record.member is not None
        assert record.wanted is not None
        about = Regarding(GPU_INSTANCES, record.wanted.namespace, record.member.name, record.member.uid)
        for event in record.events:
            if event.at > told:
                self._recorder.record(about, event.type, event.reason, event.message)  # type: ignore[arg-type]
        self._told[record.id] = max(newest, told)
