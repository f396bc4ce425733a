"""The agent's gRPC API (kybernate/agentapi/agent.proto) on `<run>/agent.sock`, 0600.

A thin layer: each call finds its actor and asks it; errors travel as `kybernate.agentapi.status` says.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Protocol

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from kybernate.agentapi._pb import agent_pb2 as pb
from kybernate.agentapi._pb import agent_pb2_grpc
from kybernate.agentapi.address import HEALTH_SERVICE, SocketAddress
from kybernate.agentapi.status import METADATA_LIMIT_BYTES, abort
from kybernate.errors import KybernateError, RefusedError
from kybernate_agent import processes
from kybernate_agent.actor import Actor
from kybernate_agent.instance import TIER, Phase, Verb
from kybernate_agent.node import Node
from kybernate_agent.standalone.logs import read_log

Context = grpc.aio.ServicerContext[Any, Any]

BUSY_STATE = {
    Verb.START: "Starting",
    Verb.SUSPEND: "Suspending",
    Verb.PARK: "Parking",
    Verb.RESUME: "Resuming",
    Verb.RESCUE: "Rescuing",
    Verb.END: "Ending",
}
IDLE_STATE = {Phase.PENDING: "Starting", Phase.BACKOFF: "Starting", Phase.ENDED: "Ending"}


def _time(seconds: float) -> Timestamp | None:
    return Timestamp(seconds=int(seconds), nanos=int(seconds % 1 * 1e9)) if seconds else None


def _facts(actor: Actor) -> tuple[int, int]:
    """Pid of the init and resident bytes of all; zero where there are no processes."""
    state = actor.last_keeper
    if state is None or actor.record.phase not in (Phase.RUNNING, Phase.SUSPENDED):
        return 0, 0
    return state.init_pid, processes.resident_bytes(processes.pids_of(state.cgroups))


def instance_message(actor: Actor) -> pb.Instance:
    """What the API tells of one instance."""
    record, decision = actor.record, actor.decision
    pid, ram_bytes = _facts(actor)
    state = BUSY_STATE.get(actor.busy) if actor.busy else None
    if state is None and record.phase == Phase.RUNNING and not actor.has_keeper:
        state = "Starting"  # its container ended, and waits for its next start
    message = pb.Instance(
        name=record.id,
        workload=record.workload,
        namespace=actor.wanted.namespace,
        state=state or IDLE_STATE.get(record.phase, record.phase.value),
        tier=TIER.get(record.phase, "").replace("-", ""),
        since=_time(record.since),
        next_verb=decision.next_verb.value if decision.next_verb else "",
        next_at=_time(decision.next_at or 0.0),
        ram_bytes=ram_bytes,
        stored_bytes=record.stored_bytes,
        last_activity=_time(record.last_activity),
        last_wake_from=record.last_wake_from,
        epoch=record.epoch,
        container_id=record.pod.container,
        sandbox_id=record.pod.sandbox,
        pid=pid,
        ip=record.pod.ip,
        uid=record.pod.uid,
        image=actor.wanted.image,
    )
    if record.last_wake_from:
        message.last_wake_seconds = record.last_wake_seconds
    for c in record.conditions:
        message.conditions.add(
            type=c.type, status=c.status, reason=c.reason, message=c.message, last_transition=_time(c.at)
        )
    for t in record.history:
        message.history.add(
            at=_time(t.at), verb=t.verb, from_state=t.source, to_state=t.target, seconds=t.seconds,
            phase_seconds=t.phases, outcome=t.outcome, message=t.message,
        )  # fmt: skip
    for e in record.events:
        message.events.add(at=_time(e.at), type=e.type, reason=e.reason, message=e.message)
    return message


class News:
    """Who watches gets the names of instances that have news; one pending note a name is enough."""

    def __init__(self) -> None:
        self._watchers: set[asyncio.Queue[str]] = set()
        self._also: list[Callable[[str], None]] = []

    def also(self, listener: Callable[[str], None]) -> None:
        """Call `listener` at each change from now on."""
        self._also.append(listener)

    def changed(self, name: str) -> None:
        for listener in self._also:
            listener(name)
        for queue in self._watchers:
            queue.put_nowait(name)

    async def watch(self) -> AsyncIterator[str]:
        queue: asyncio.Queue[str] = asyncio.Queue()
        self._watchers.add(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self._watchers.discard(queue)


class Applying(Protocol):
    """Who takes manifests from people."""

    async def apply(self, text: str, file_name: str) -> list[tuple[str, str]]: ...

    async def delete(self, name: str, wait: bool) -> str: ...


class Api(agent_pb2_grpc.AgentServicer):
    """One method a call of agent.proto."""

    def __init__(self, node: Node, workloads: Applying, news: News) -> None:
        self._node = node
        self._workloads = workloads
        self._news = news

    async def List(self, request: pb.ListRequest, context: Context) -> pb.ListResponse:
        return pb.ListResponse(instances=[instance_message(a) for _, a in sorted(self._node.actors.items())])

    async def Get(self, request: pb.GetRequest, context: Context) -> pb.Instance:
        try:
            return instance_message(self._node.find(request.name))
        except KybernateError as error:
            await abort(context, error)

    async def Watch(self, request: pb.WatchRequest, context: Context) -> AsyncIterator[pb.WatchEvent]:
        wanted = {request.name, f"{request.name}-0"} if request.name else None
        shown: set[str] = set()
        news = self._news.watch()
        first = asyncio.ensure_future(anext(news))  # listening before the list, so that nothing falls between
        await asyncio.sleep(0)
        try:
            for name, actor in sorted(self._node.actors.items()):
                if wanted is None or name in wanted:
                    shown.add(name)
                    yield pb.WatchEvent(type=pb.WatchEvent.ADDED, instance=instance_message(actor))
            yield pb.WatchEvent(type=pb.WatchEvent.SYNCED)
            name = await first
            while True:
                if wanted is None or name in wanted:
                    yield self._event(name, shown)
                name = await anext(news)
        finally:
            first.cancel()
            await news.aclose()  # type: ignore[attr-defined]

    def _event(self, name: str, shown: set[str]) -> pb.WatchEvent:
        actor = self._node.actors.get(name)
        if actor is None:
            shown.discard(name)
            return pb.WatchEvent(type=pb.WatchEvent.DELETED, instance=pb.Instance(name=name))
        kind = pb.WatchEvent.MODIFIED if name in shown else pb.WatchEvent.ADDED
        shown.add(name)
        return pb.WatchEvent(type=kind, instance=instance_message(actor))

    async def Apply(self, request: pb.ApplyRequest, context: Context) -> pb.ApplyResponse:
        try:
            applied = await self._workloads.apply(request.text, request.file_name)
        except KybernateError as error:
            await abort(context, error)
        return pb.ApplyResponse(workloads=[pb.AppliedWorkload(name=n, outcome=o) for n, o in applied])

    async def Delete(self, request: pb.DeleteRequest, context: Context) -> pb.DeleteResponse:
        try:
            return pb.DeleteResponse(workload=await self._workloads.delete(request.name, request.wait))
        except KybernateError as error:
            await abort(context, error)

    async def _order(self, verb: Verb, request: pb.VerbRequest, context: Context) -> pb.Instance:
        try:
            actor = self._node.find(request.name)
            await actor.order(verb, request.wait)
            return instance_message(actor)
        except KybernateError as error:
            await abort(context, error)

    async def Suspend(self, request: pb.VerbRequest, context: Context) -> pb.Instance:
        return await self._order(Verb.SUSPEND, request, context)

    async def Park(self, request: pb.VerbRequest, context: Context) -> pb.Instance:
        return await self._order(Verb.PARK, request, context)

    async def Resume(self, request: pb.VerbRequest, context: Context) -> pb.Instance:
        return await self._order(Verb.RESUME, request, context)

    async def Logs(self, request: pb.LogsRequest, context: Context) -> AsyncIterator[pb.LogChunk]:
        try:
            actor = self._node.find(request.name)
            folder = self._node.services.starter.log_folder(actor.record)
            tail = request.tail_lines if request.HasField("tail_lines") else None
            async for stream, data in read_log(folder, follow=request.follow, tail_lines=tail):
                yield pb.LogChunk(data=data, stream=stream)
        except KybernateError as error:
            await abort(context, error)

    async def ExecTarget(self, request: pb.ExecTargetRequest, context: Context) -> pb.ExecTargetResponse:
        try:
            actor = self._node.find(request.name)
            state = actor.last_keeper
            if state is None or actor.record.phase in (Phase.PENDING, Phase.BACKOFF, Phase.LOST):
                raise RefusedError(
                    f"{actor.record.id} is {actor.record.phase.value}: there is nothing to run a command in"
                )
        except KybernateError as error:
            await abort(context, error)
        launcher = Path(self._node.services.config.prefix) / "bin" / "kybernate-runc"
        systemd = [flag for flag in state.runc_globals if flag == "--systemd-cgroup"]
        tty = ["--tty"] if request.tty else []
        return pb.ExecTargetResponse(
            argv=[str(launcher), "--root", state.runc_root, *systemd, "exec", *tty, actor.record.pod.container]
        )


class ApiServer:
    """Owns the socket and the gRPC server; grpc.health.v1 says SERVING while it is open."""

    def __init__(self, run: Path, api: Api) -> None:
        self._path = run / "agent.sock"
        self._address = SocketAddress(self._path)
        self._server = grpc.aio.server(options=[("grpc.max_metadata_size", METADATA_LIMIT_BYTES)])
        agent_pb2_grpc.add_AgentServicer_to_server(api, self._server)
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)

    async def open(self) -> None:
        self._path.unlink(missing_ok=True)
        before = os.umask(0o177)
        try:
            self._server.add_insecure_port(self._address.target)
            await self._server.start()
        finally:
            os.umask(before)
        for service in ("", HEALTH_SERVICE):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)

    async def close(self) -> None:
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace=1.0)
        self._path.unlink(missing_ok=True)
        self._address.close()
