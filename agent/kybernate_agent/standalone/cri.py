"""containerd's CRI socket: the calls that a kubelet makes, each with a deadline, each failure typed.

Calls that end something are idempotent in CRI: what is gone counts as ended. Pulls and everything that the OCI
runtime's hook may delay (create, start) have long deadlines; the rest answers at once or not at all.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc

from kybernate.errors import DeadlineError, ExternalError, NotFoundError
from kybernate_agent.standalone._pb import cri_pb2 as pb
from kybernate_agent.standalone._pb.cri_pb2_grpc import ImageServiceStub, RuntimeServiceStub

QUICK_SECONDS = 10.0
# The kubelet's own, for calls behind which a runtime works (--runtime-request-timeout).
WORK_SECONDS = 120.0
PULL_SECONDS = 900.0
MESSAGE_BYTES = 16 << 20
_RETRY_SECONDS = 0.02

Reply = TypeVar("Reply")


class CriError(ExternalError):
    """containerd at {socket} failed in {call}: {reason}"""


class CriUnavailableError(ExternalError):
    """containerd does not answer at {socket}: {reason}. Is it running, and is this its socket?"""


class CriDeadlineError(DeadlineError):
    """containerd at {socket} did not answer {call} within {seconds:g} s."""


class CriNotFoundError(NotFoundError):
    """containerd at {socket} knows nothing of what {call} names: {reason}"""


@dataclass(frozen=True)
class Sandbox:
    """A pod sandbox as it is now. `netns` is the path of its network namespace; `pid` its init's, 0 where none runs."""

    id: str
    ready: bool
    labels: Mapping[str, str]
    uid: str = ""
    netns: str = ""
    ip: str = ""
    more_ips: tuple[str, ...] = ()
    pid: int = 0
    attempt: int = 0


@dataclass(frozen=True)
class Runtime:
    """What containerd's configuration says of the runtime handlers; `systemd` are those with the systemd driver."""

    handlers: frozenset[str]
    systemd: frozenset[str]


class Cri:
    """One containerd. Used from one event loop, until `close`."""

    def __init__(self, socket: str) -> None:
        self.socket = socket
        # The Go server refuses the authority that gRPC makes of a unix socket's path.
        options = [
            ("grpc.default_authority", "localhost"),
            ("grpc.max_receive_message_length", MESSAGE_BYTES),
            ("grpc.enable_retries", 0),
        ]
        self._channel = grpc.aio.insecure_channel(f"unix://{socket}", options=options)
        self._runtime = RuntimeServiceStub(self._channel)
        self._images = ImageServiceStub(self._channel)

    async def close(self) -> None:
        await self._channel.close()

    async def version(self) -> str:
        """As `containerd 1.7.24`."""
        reply = await self._quick("Version", self._runtime.Version(pb.VersionRequest(), timeout=QUICK_SECONDS))
        return f"{reply.runtime_name} {reply.runtime_version}"

    async def ready(self, deadline_seconds: float = 30.0) -> None:
        """Return when containerd can run pods; after its start it answers a little before it can.

        Raises CriUnavailableError (nobody answers), CriError (the runtime or the network is not ready, and why).
        """
        limit = time.monotonic() + deadline_seconds
        while True:
            try:
                reply = await self._quick("Status", self._runtime.Status(pb.StatusRequest(), timeout=QUICK_SECONDS))
            except CriUnavailableError:
                if time.monotonic() > limit:
                    raise
            else:
                missing = [condition for condition in reply.status.conditions if not condition.status]
                if not missing:
                    return
                if time.monotonic() > limit:
                    reason = "; ".join(f"{it.type} is false: {it.message}" for it in missing)
                    raise CriError(socket=self.socket, call="Status", reason=reason)
            await asyncio.sleep(_RETRY_SECONDS)

    async def runtime(self) -> Runtime:
        """The runtime handlers of containerd's configuration. Source: the CRI plugin's verbose status."""
        status = self._runtime.Status(pb.StatusRequest(verbose=True), timeout=QUICK_SECONDS)
        info = dict((await self._quick("Status", status)).info)
        runtimes: dict[str, Any] = json.loads(info.get("config", "{}")).get("containerd", {}).get("runtimes") or {}
        systemd = {name for name, it in runtimes.items() if (it.get("options") or {}).get("SystemdCgroup")}
        return Runtime(frozenset(runtimes), frozenset(systemd))

    async def run_sandbox(self, config: pb.PodSandboxConfig, handler: str) -> str:
        """Make a pod sandbox with its network; its id."""
        request = pb.RunPodSandboxRequest(config=config, runtime_handler=handler)
        reply = await self._call(
            "RunPodSandbox", self._runtime.RunPodSandbox(request, timeout=WORK_SECONDS), WORK_SECONDS
        )
        return reply.pod_sandbox_id

    async def stop_sandbox(self, sandbox: str) -> None:
        """End its containers by force and give its network back. Nothing where it is gone."""
        request = pb.StopPodSandboxRequest(pod_sandbox_id=sandbox)
        await self._end("StopPodSandbox", self._runtime.StopPodSandbox(request, timeout=WORK_SECONDS))

    async def remove_sandbox(self, sandbox: str) -> None:
        """Remove it with its containers. Nothing where it is gone."""
        request = pb.RemovePodSandboxRequest(pod_sandbox_id=sandbox)
        await self._end("RemovePodSandbox", self._runtime.RemovePodSandbox(request, timeout=WORK_SECONDS))

    async def sandbox_status(self, sandbox: str) -> Sandbox:
        """Raises CriNotFoundError."""
        request = pb.PodSandboxStatusRequest(pod_sandbox_id=sandbox, verbose=True)
        call = self._runtime.PodSandboxStatus(request, timeout=QUICK_SECONDS)
        reply = await self._quick("PodSandboxStatus", call)
        info: dict[str, Any] = json.loads(reply.info.get("info", "{}"))
        namespaces = (info.get("runtimeSpec") or {}).get("linux", {}).get("namespaces", [])
        status = reply.status
        return Sandbox(
            id=status.id,
            ready=status.state == pb.SANDBOX_READY,
            labels=dict(status.labels),
            uid=status.metadata.uid,
            netns=next((it.get("path", "") for it in namespaces if it.get("type") == "network"), ""),
            ip=status.network.ip,
            more_ips=tuple(it.ip for it in status.network.additional_ips),
            pid=int(info.get("pid") or 0),
        )

    async def sandboxes(self, labels: Mapping[str, str] | None = None) -> list[Sandbox]:
        """Those with all of these labels; without namespace path, address and pid."""
        request = pb.ListPodSandboxRequest(filter=pb.PodSandboxFilter(label_selector=labels or {}))
        reply = await self._quick("ListPodSandbox", self._runtime.ListPodSandbox(request, timeout=QUICK_SECONDS))
        return [
            Sandbox(it.id, it.state == pb.SANDBOX_READY, dict(it.labels), it.metadata.uid, attempt=it.metadata.attempt)
            for it in reply.items
        ]

    async def create_container(
        self, sandbox: str, config: pb.ContainerConfig, sandbox_config: pb.PodSandboxConfig
    ) -> str:
        """Make a container without starting it; its id."""
        request = pb.CreateContainerRequest(pod_sandbox_id=sandbox, config=config, sandbox_config=sandbox_config)
        call = self._runtime.CreateContainer(request, timeout=WORK_SECONDS)
        return (await self._call("CreateContainer", call, WORK_SECONDS)).container_id

    async def start_container(self, container: str) -> None:
        request = pb.StartContainerRequest(container_id=container)
        await self._call("StartContainer", self._runtime.StartContainer(request, timeout=WORK_SECONDS), WORK_SECONDS)

    async def stop_container(self, container: str, grace_seconds: int) -> None:
        """The image's stop signal (SIGTERM), and SIGKILL after `grace_seconds`. Nothing where it is gone."""
        request = pb.StopContainerRequest(container_id=container, timeout=grace_seconds)
        call = self._runtime.StopContainer(request, timeout=grace_seconds + WORK_SECONDS)
        await self._end("StopContainer", call, grace_seconds + WORK_SECONDS)

    async def remove_container(self, container: str) -> None:
        """By force where it runs. Nothing where it is gone."""
        request = pb.RemoveContainerRequest(container_id=container)
        await self._end("RemoveContainer", self._runtime.RemoveContainer(request, timeout=WORK_SECONDS))

    async def container_status(self, container: str) -> pb.ContainerStatus:
        """Raises CriNotFoundError."""
        request = pb.ContainerStatusRequest(container_id=container)
        call = self._runtime.ContainerStatus(request, timeout=QUICK_SECONDS)
        return (await self._quick("ContainerStatus", call)).status

    async def containers(self, sandbox: str) -> list[pb.Container]:
        """All containers of a sandbox, the newest attempt first."""
        request = pb.ListContainersRequest(filter=pb.ContainerFilter(pod_sandbox_id=sandbox))
        reply = await self._quick("ListContainers", self._runtime.ListContainers(request, timeout=QUICK_SECONDS))
        return sorted(reply.containers, key=lambda it: it.metadata.attempt, reverse=True)

    async def exec_sync(self, container: str, argv: list[str], deadline_seconds: int) -> tuple[int, bytes, bytes]:
        """Run a command in the container: exit code, stdout, stderr."""
        request = pb.ExecSyncRequest(container_id=container, cmd=argv, timeout=deadline_seconds)
        seconds = deadline_seconds + QUICK_SECONDS
        reply = await self._call("ExecSync", self._runtime.ExecSync(request, timeout=seconds), seconds)
        return reply.exit_code, reply.stdout, reply.stderr

    async def events(self) -> AsyncIterator[pb.ContainerEventResponse]:
        """Containers and sandboxes as they start and end, from now on and without end.

        containerd 1.7 gives each event to one listener only: what another client takes is not seen here.
        Raises CriError, CriUnavailableError when the stream breaks.
        """
        try:
            async for event in self._runtime.GetContainerEvents(pb.GetEventsRequest()):
                yield event
        except grpc.aio.AioRpcError as error:
            raise self._typed("GetContainerEvents", error, 0.0) from error

    async def has_image(self, image: str) -> bool:
        request = pb.ImageStatusRequest(image=pb.ImageSpec(image=image))
        reply = await self._quick("ImageStatus", self._images.ImageStatus(request, timeout=QUICK_SECONDS))
        return reply.HasField("image")

    async def image_id(self, image: str) -> str:
        """The digest of its configuration, which names its content; empty where it is not here."""
        request = pb.ImageStatusRequest(image=pb.ImageSpec(image=image))
        reply = await self._quick("ImageStatus", self._images.ImageStatus(request, timeout=QUICK_SECONDS))
        return str(reply.image.id)

    async def pull(self, image: str) -> None:
        request = pb.PullImageRequest(image=pb.ImageSpec(image=image))
        await self._call("PullImage", self._images.PullImage(request, timeout=PULL_SECONDS), PULL_SECONDS)

    async def _quick(self, name: str, call: Awaitable[Reply]) -> Reply:
        return await self._call(name, call, QUICK_SECONDS)

    async def _end(self, name: str, call: Awaitable[object], seconds: float = WORK_SECONDS) -> None:
        try:
            await self._call(name, call, seconds)
        except CriNotFoundError:
            return

    async def _call(self, name: str, call: Awaitable[Reply], seconds: float) -> Reply:
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise self._typed(name, error, seconds) from error

    def _typed(self, call: str, error: grpc.aio.AioRpcError, seconds: float) -> Exception:
        code, reason = error.code(), error.details() or error.code().name
        if code == grpc.StatusCode.DEADLINE_EXCEEDED:
            return CriDeadlineError(socket=self.socket, call=call, seconds=seconds)
        # Before its plugins are up containerd says "server is not initialized yet", with an unknown code.
        if code == grpc.StatusCode.UNAVAILABLE or "not initialized yet" in reason:
            return CriUnavailableError(socket=self.socket, reason=reason)
        if code == grpc.StatusCode.NOT_FOUND:
            return CriNotFoundError(socket=self.socket, call=call, reason=reason)
        return CriError(socket=self.socket, call=call, reason=reason)
