"""A stand-in for the agent: a real gRPC server on a real unix socket that answers with canned data.

It keeps no state, runs no containers and takes no steps: a verb answers with the instance as if the step had been
taken. What is under test with it is the client, the CLI and the wire between them, never the agent.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from kybernate.agentapi._pb import agent_pb2 as pb
from kybernate.agentapi._pb import agent_pb2_grpc as rpc
from kybernate.agentapi.address import SocketAddress
from kybernate.agentapi.status import METADATA_LIMIT_BYTES, abort
from kybernate.errors import InvalidError, NotFoundError, RefusedError, StateLostError

START = int(time.time())


def at(seconds: int) -> Timestamp:
    """So many seconds after the stand-in was loaded."""
    return Timestamp(seconds=START + seconds)


class QueueHeldError(RefusedError):
    """{instance}: a request is in flight; try again when it has ended."""

    exit_code = 21


def chat() -> pb.Instance:
    """A parked instance with a past."""
    return pb.Instance(
        name="chat-0",
        workload="chat",
        namespace="default",
        state="Parked",
        tier="NVME",
        since=at(-720),
        ram_bytes=0,
        stored_bytes=71303168,
        last_activity=at(-1380),
        last_wake_seconds=0.14,
        last_wake_from="NVME",
        epoch=4,
        container_id="c0ffee",
        sandbox_id="5a9db0",
        ip="10.88.0.7",
        image="localhost/chat:1",
        conditions=[
            pb.Condition(type="NotSuspendable", status="False", reason="Suitable", message="", last_transition=at(0))
        ],
        history=[
            pb.Transition(
                at=at(-720),
                verb="park",
                from_state="Suspended",
                to_state="Parked",
                seconds=0.31,
                phase_seconds={"dump": 0.2, "commit": 0.1},
                outcome="done",
            )
        ],
        events=[pb.Event(at=at(0), type="Warning", reason="WakeTimeout", message="a request waited 120 s")],
    )


def embed() -> pb.Instance:
    """A running instance that policy will suspend soon."""
    return pb.Instance(
        name="embed-0",
        workload="embed",
        namespace="default",
        state="Running",
        since=at(-10800),
        next_verb="suspend",
        next_at=at(2520),
        ram_bytes=67108864,
        pid=4242,
    )


class Standin(rpc.AgentServicer):
    """Answers for two instances, chat-0 and embed-0; `hang` as a name never gets an answer."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.may_resume = asyncio.Event()
        self.may_resume.set()

    async def _find(self, name: str, context: Any) -> pb.Instance:
        if name == "hang":
            await asyncio.Event().wait()
        if name == "lost":
            await abort(context, StateLostError("lost-0: pages-1.img is 17 bytes short; start anew or bring a backup"))
        for instance in (chat(), embed()):
            if name in (instance.name, instance.workload):
                return instance
        return await abort(context, NotFoundError(f"no instance or workload {name!r}; `kybernate get` lists them"))

    async def List(self, request: Any, context: Any) -> pb.ListResponse:
        return pb.ListResponse(instances=[chat(), embed()])

    async def Get(self, request: Any, context: Any) -> pb.Instance:
        return await self._find(request.name, context)

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[pb.WatchEvent]:
        if request.name == "hang":
            await asyncio.Event().wait()
        yield pb.WatchEvent(type=pb.WatchEvent.ADDED, instance=chat())
        yield pb.WatchEvent(type=pb.WatchEvent.SYNCED)
        awake = chat()
        awake.state, awake.tier = "Running", ""
        yield pb.WatchEvent(type=pb.WatchEvent.MODIFIED, instance=awake)
        yield pb.WatchEvent(type=pb.WatchEvent.DELETED, instance=awake)

    async def Apply(self, request: Any, context: Any) -> pb.ApplyResponse:
        self.seen.append(request)
        if "wrong" in request.text:
            await abort(context, InvalidError(f"{request.file_name}:1:1: wrong"))
        return pb.ApplyResponse(workloads=[pb.AppliedWorkload(name="chat", outcome="created")])

    async def Delete(self, request: Any, context: Any) -> pb.DeleteResponse:
        self.seen.append(request)
        return pb.DeleteResponse(workload=(await self._find(request.name, context)).workload)

    async def Suspend(self, request: Any, context: Any) -> pb.Instance:
        self.seen.append(request)
        found = await self._find(request.name, context)
        if found.name == "embed-0":
            await abort(context, QueueHeldError(instance="embed-0"))
        found.state, found.tier = "Suspended", "RAM"
        return found

    async def Park(self, request: Any, context: Any) -> pb.Instance:
        self.seen.append(request)
        return await self._find(request.name, context)

    async def Resume(self, request: Any, context: Any) -> pb.Instance:
        self.seen.append(request)
        found = await self._find(request.name, context)
        if request.wait:
            await self.may_resume.wait()
        found.state, found.tier = "Running", ""
        return found

    async def Logs(self, request: Any, context: Any) -> AsyncIterator[pb.LogChunk]:
        self.seen.append(request)
        await self._find(request.name, context)
        lines = [b"one\n", b"two \xff\n", b"three\n"]
        for line in lines[-request.tail_lines :] if request.HasField("tail_lines") else lines:
            yield pb.LogChunk(data=line, stream="stdout")
        yield pb.LogChunk(data=b"oops\n", stream="stderr")

    async def ExecTarget(self, request: Any, context: Any) -> pb.ExecTargetResponse:
        self.seen.append(request)
        await self._find(request.name, context)
        return pb.ExecTargetResponse(argv=["env", f"IN_CONTAINER=yes{' tty' if request.tty else ''}"])


class Server:
    """The stand-in, served at `path` by a thread with an event loop of its own, until `close`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.standin = Standin()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=[self._serve()])
        self._thread.start()
        assert self._ready.wait(10)

    async def _serve(self) -> None:
        self._end = asyncio.Event()
        server = grpc.aio.server(options=[("grpc.max_metadata_size", METADATA_LIMIT_BYTES)])
        rpc.add_AgentServicer_to_server(self.standin, server)
        with SocketAddress(self.path) as address:
            server.add_insecure_port(address.target)
            await server.start()
            self._ready.set()
            await self._end.wait()
            await server.stop(None)

    def hold_resumes(self) -> None:
        """Resumes that wait get no answer until `answer_resumes`."""
        self._loop.call_soon_threadsafe(self.standin.may_resume.clear)

    def answer_resumes(self) -> None:
        self._loop.call_soon_threadsafe(self.standin.may_resume.set)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(10)
        self._loop.close()
