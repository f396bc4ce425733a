"""A cluster as the CLI sees it: the calls of `AgentClient`, answered by the API server.

So every command is written once. An instance is a GpuInstance, a workload a GpuWorkload; an order is an annotation that
the node's agent answers in the instance's status. Nothing here needs more rights than its person has.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import aiohttp
import msgspec
import yaml

from kybernate.agentapi._pb import agent_pb2 as pb
from kybernate.agentapi.client import QUICK_SECONDS, STEP_SECONDS
from kybernate.api import names
from kybernate.api.gpuinstance import GpuInstance
from kybernate.api.objects import Metadata, Object
from kybernate.cli.message import message_of, time_of
from kybernate.cli.settling import NotSettledError, Workload, unsettled
from kybernate.errors import DeadlineError, InvalidError, KybernateError, NotFoundError, RefusedError
from kybernate.kube.client import APPLY_PATCH, Client
from kybernate.kube.connection import Request
from kybernate.kube.credentials import load_credentials
from kybernate.kube.errors import ApiNotFoundError, ServerError
from kybernate.kube.resource import EVENTS, GPU_INSTANCES, GPU_WORKLOADS, PODS
from kybernate.kube.watch import Applied, Deleted, Restarted, Watch

MANAGER = "kybernate-cli"
LOOK_SECONDS = 0.2
T = TypeVar("T")


class ClusterDeadlineError(DeadlineError):
    """{what}: not within {seconds:g} s. What was ordered may still happen: look with `kybernate get`."""


class SeveralInstancesError(InvalidError):
    """{workload} has several instances: {instances}. Name one of them."""


class OneOfSeveralError(InvalidError):
    """{instance} is one of several instances of {workload}. `kybernate delete {workload}` ends them all; the last ones
    go with `kubectl scale gw {workload} --replicas N`."""


class OtherKindError(InvalidError):
    """{source}: {kind} is not Kybernate's; `kubectl apply` takes manifests of every kind."""


class _Meta(Object, kw_only=True):
    """Any object, for its name and version."""

    metadata: Metadata


class _Reference(Object, kw_only=True):
    kind: str = ""
    name: str = ""


class _Event(Object, kw_only=True):
    metadata: Metadata
    involved_object: _Reference = msgspec.field(default_factory=_Reference)
    type: str = ""
    reason: str = ""
    message: str = ""
    last_timestamp: str | None = None
    event_time: str | None = None


class _Pod(Object, kw_only=True):
    class Status(Object, kw_only=True):
        """What a person may want to know of it."""

        pod_ip: str = msgspec.field(name="podIP", default="")

    metadata: Metadata
    status: Status = msgspec.field(default_factory=Status)


@dataclass(frozen=True)
class AppliedWorkload:
    """A GpuWorkload that was applied, and whether that was a change."""

    name: str
    namespace: str
    outcome: str


class ClusterClient:
    """Open until `close`. `namespace` None: that of the kubeconfig's context; "" : all.

    Raises CredentialsError.
    """

    def __init__(self, kubeconfig: Path | None, context: str | None, namespace: str | None) -> None:
        self._kubeconfig, self._context = kubeconfig, context
        self._loop = asyncio.new_event_loop()
        credentials = self._run(load_credentials(kubeconfig, context=context))
        self._namespace = credentials.namespace if namespace is None else namespace
        self._client = Client(credentials, program="kybernate-cli", deadline_seconds=QUICK_SECONDS)
        self._run(self._client.__aenter__())

    def close(self) -> None:
        """Close connections and loop."""
        self._run(self._client.__aexit__(None, None, None))
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    def __enter__(self) -> ClusterClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, work: Awaitable[T]) -> T:
        """Until it is done; Ctrl-C ends it, too, before it ends us."""
        task = asyncio.ensure_future(work, loop=self._loop)
        try:
            return self._loop.run_until_complete(task)
        except KeyboardInterrupt:
            task.cancel()
            self._loop.run_until_complete(asyncio.wait({task}))
            raise

    # --- looking ---

    def instances(self) -> list[pb.Instance]:
        """Every instance, ordered by namespace and name."""
        found = self._run(self._client.list(GPU_INSTANCES, GpuInstance, self._namespace or None)).items
        return [message_of(each) for each in sorted(found, key=lambda i: (i.metadata.namespace, i.metadata.name))]

    def find(self, name: str) -> list[pb.Instance]:
        """The instance of that name, or all of the workload of that name, with their events. Raises NotFoundError."""
        return [self._told(each) for each in self._run(self._find_all(name))]

    def _told(self, instance: GpuInstance) -> pb.Instance:
        message = message_of(instance)
        for event in self._run(self._events(instance)):
            message.events.add(at=time_of(_when(event)), type=event.type, reason=event.reason, message=event.message)
        if instance.spec.pod:
            with contextlib.suppress(ApiNotFoundError):
                pod = self._run(self._client.get(PODS, _Pod, instance.spec.pod, instance.metadata.namespace))
                message.ip = pod.status.pod_ip
        return message

    def watch(self, name: str = "", *, deadline_seconds: float | None = None) -> Iterator[pb.WatchEvent]:
        """What exists, a SYNCED, then every change, until the caller stops. Raises ClusterDeadlineError."""
        until = None if deadline_seconds is None else time.monotonic() + deadline_seconds
        events = self._watched(name)
        try:
            while True:
                left = None if until is None else max(0.0, until - time.monotonic())
                try:
                    yield self._run(asyncio.wait_for(anext(events), left))
                except TimeoutError as error:
                    raise ClusterDeadlineError(what=f"watching {name or 'all'}", seconds=deadline_seconds) from error
                except StopAsyncIteration:
                    return
        finally:
            self._run(events.aclose())

    async def _watched(self, name: str) -> AsyncGenerator[pb.WatchEvent, None]:
        kinds = pb.WatchEvent
        known: dict[tuple[str, str], GpuInstance] = {}
        synced = False
        # A watch tries again for ever, also what we may not do or what does not exist: that is said first.
        await self._client.version_of(GPU_INSTANCES, self._namespace or None)
        watch = Watch(self._client, GPU_INSTANCES, GpuInstance, namespace=self._namespace or None)
        async with contextlib.aclosing(watch.events()) as events:
            async for event in events:
                match event:
                    case Restarted(objects):
                        changed, gone = [o for o in objects if _named(o, name)], set(known)
                        gone -= {_key(o) for o in changed}
                    case Applied(instance):
                        changed, gone = [instance] if _named(instance, name) else [], set()
                    case Deleted(instance):
                        changed, gone = [], {_key(instance)} & set(known)
                for key in gone:
                    yield kinds(type=kinds.DELETED, instance=message_of(known.pop(key)))
                for instance in changed:
                    type_ = kinds.MODIFIED if _key(instance) in known else kinds.ADDED
                    known[_key(instance)] = instance
                    yield kinds(type=type_, instance=message_of(instance))
                if not synced:
                    synced = True
                    yield kinds(type=kinds.SYNCED)

    async def _find(self, name: str) -> GpuInstance:
        """By its own name, or by that of the workload whose only one it is."""
        found = await self._find_all(name)
        if len(found) > 1:
            names_ = ", ".join(each.metadata.name for each in found)
            raise SeveralInstancesError(workload=name, instances=names_)
        return found[0]

    async def _find_all(self, name: str) -> list[GpuInstance]:
        """At least one. By its own name, or by that of their workload, in the order of their ordinals."""
        namespace = self._one_namespace()
        with contextlib.suppress(ApiNotFoundError):
            return [await self._client.get(GPU_INSTANCES, GpuInstance, name, namespace)]
        found = await self._of_workload(name, namespace)
        if not found:
            raise NotFoundError(
                f"no workload or instance in namespace {namespace} is called {name!r}; list them with `kybernate get`"
            )
        return sorted(found, key=lambda each: (each.spec.ordinal, each.metadata.name))

    async def _of_workload(self, name: str, namespace: str) -> list[GpuInstance]:
        selector = f"spec.workload={name}"
        return (await self._client.list(GPU_INSTANCES, GpuInstance, namespace, field_selector=selector)).items

    def _one_namespace(self) -> str:
        if not self._namespace:
            raise InvalidError("-A lists all namespaces; this command needs one: -n NAMESPACE")
        return self._namespace

    async def _events(self, instance: GpuInstance) -> list[_Event]:
        selector = f"involvedObject.kind=GpuInstance,involvedObject.name={instance.metadata.name}"
        namespace = instance.metadata.namespace
        found = (await self._client.list(EVENTS, _Event, namespace, field_selector=selector)).items
        return sorted(found, key=_when)

    # --- changing ---

    def apply(self, text: str, file_name: str) -> list[AppliedWorkload]:
        """Server-side apply of every GpuWorkload in `text`. Raises InvalidError with the server's words."""
        try:
            documents = [each for each in yaml.safe_load_all(text) if each is not None]
        except yaml.YAMLError as error:
            raise InvalidError(f"{file_name}: not YAML: {error}") from error
        for document in documents:
            kind = document.get("kind") if isinstance(document, dict) else type(document).__name__
            if kind != "GpuWorkload":
                raise OtherKindError(source=file_name, kind=kind)
        return [self._run(self._apply(document)) for document in documents]

    async def _apply(self, document: dict[str, Any]) -> AppliedWorkload:
        metadata = document.get("metadata") or {}
        name, namespace = str(metadata.get("name", "")), metadata.get("namespace") or self._one_namespace()
        before = ""
        with contextlib.suppress(ApiNotFoundError):
            before = (await self._client.get(GPU_WORKLOADS, _Meta, name, namespace)).metadata.resource_version
        query = {"fieldManager": MANAGER, "force": "true", "fieldValidation": "Strict"}
        path = GPU_WORKLOADS.path(namespace, name)
        body = msgspec.json.encode(document, enc_hook=str)
        call = Request("PATCH", "apply", path, str(GPU_WORKLOADS), query, body, APPLY_PATCH)
        try:
            answer = await self._client.request(call)
        except ServerError as error:
            if "field not declared in schema" in str(error):  # the API server calls a slip its own failure (HTTP 500)
                raise InvalidError(str(error.problem)) from error
            raise
        after = msgspec.json.decode(answer, type=_Meta).metadata.resource_version
        outcome = "created" if not before else "unchanged" if after == before else "configured"
        return AppliedWorkload(name, namespace, outcome)

    def await_settled(self, applied: AppliedWorkload, deadline_seconds: float) -> None:
        """Return when all is as the workload says. Raises NotSettledError, TemplateInvalidError, StateLostError."""
        self._run(self._await_settled(applied, deadline_seconds))

    async def _await_settled(self, applied: AppliedWorkload, seconds: float) -> None:
        until = time.monotonic() + seconds
        while why := unsettled(await self._client.get(GPU_WORKLOADS, Workload, applied.name, applied.namespace)):
            if time.monotonic() > until:
                raise NotSettledError(workload=applied.name, seconds=seconds, why=why.rstrip("."))
            await asyncio.sleep(LOOK_SECONDS)

    def delete(self, name: str, *, wait: bool = False, deadline_seconds: float = STEP_SECONDS) -> str:
        """Delete a workload; with `wait` return when nothing of it is left. Raises NotFoundError."""
        return self._run(self._delete(name, wait, deadline_seconds))

    async def _delete(self, name: str, wait: bool, seconds: float) -> str:
        namespace = self._one_namespace()
        try:
            await self._client.delete(
                GPU_WORKLOADS, name, namespace, propagation="Foreground" if wait else "Background"
            )
        except ApiNotFoundError:
            instance = await self._find(name)
            workload = instance.spec.workload or name
            if len(await self._of_workload(workload, namespace)) > 1:
                raise OneOfSeveralError(instance=name, workload=workload) from None
            name = workload
            await self._client.delete(
                GPU_WORKLOADS, name, namespace, propagation="Foreground" if wait else "Background"
            )
        until = time.monotonic() + seconds
        while wait:
            try:
                await self._client.get(GPU_WORKLOADS, _Meta, name, namespace)
            except ApiNotFoundError:
                break
            if time.monotonic() > until:
                raise ClusterDeadlineError(what=f"delete {name}", seconds=seconds)
            await asyncio.sleep(LOOK_SECONDS)
        return name

    def order_all(
        self, verb: str, name: str, *, wait: bool = False, deadline_seconds: float = STEP_SECONDS
    ) -> list[pb.Instance | KybernateError]:
        """One step of the instance, or of each of the workload, all at the same time, ordered from their nodes' agents.
        What became of each: RefusedError, ClusterDeadlineError, ApiErrors. Raises NotFoundError."""
        return self._run(self._order_all(verb, name, wait, deadline_seconds))

    async def _order_all(self, verb: str, name: str, wait: bool, seconds: float) -> list[pb.Instance | KybernateError]:
        async def one(instance: GpuInstance) -> pb.Instance | KybernateError:
            try:
                return message_of(await self._order(verb, instance, wait, seconds))
            except KybernateError as error:
                return error

        return await asyncio.gather(*(one(each) for each in await self._find_all(name)))

    async def _order(self, verb: str, instance: GpuInstance, wait: bool, seconds: float) -> GpuInstance:
        name, namespace = instance.metadata.name, instance.metadata.namespace
        id_ = secrets.token_hex(4)
        patch = {"metadata": {"annotations": {names.ORDER: f"{verb} {id_}"}}}
        instance = await self._client.merge_patch(
            GPU_INSTANCES, GpuInstance, name, patch, namespace, manager=MANAGER
        )  # fmt: skip
        until = time.monotonic() + seconds
        while wait:
            order = instance.status.order
            if order is not None and order.id == id_:
                if order.outcome != "done":
                    raise RefusedError(f"{name}: {order.message or f'{verb} was refused'}")
                break
            if time.monotonic() > until:
                raise ClusterDeadlineError(what=f"{verb} {name}", seconds=seconds)
            await asyncio.sleep(LOOK_SECONDS)
            instance = await self._client.get(GPU_INSTANCES, GpuInstance, name, namespace)
        return instance

    # --- its container ---

    def logs(self, name: str, *, follow: bool = False, tail_lines: int | None = None) -> Iterator[pb.LogChunk]:
        """What the container wrote, as the kubelet keeps it. Raises NotFoundError."""
        instance = self._run(self._find(name))
        query = {"container": instance.spec.policy.container, "follow": str(follow).lower()}
        if tail_lines is not None:
            query["tailLines"] = str(tail_lines)
        path = PODS.path(instance.metadata.namespace, instance.spec.pod or name, "log")
        chunks = self._log_chunks(Request("GET", "get", path, "pods/log", query))
        try:
            while True:
                try:
                    yield pb.LogChunk(data=self._run(anext(chunks)), stream="stdout")
                except StopAsyncIteration:
                    return
        finally:
            self._run(chunks.aclose())

    async def _log_chunks(self, call: Request) -> AsyncGenerator[bytes, None]:
        async with self._client.stream(call, deadline_seconds=QUICK_SECONDS) as reader:
            try:
                while data := await reader.readany():
                    yield data
            except (aiohttp.ClientError, OSError) as error:
                raise self._client.unreachable(call, error) from error

    def exec_target(self, name: str, *, tty: bool = False) -> list[str]:
        """kubectl's argv to which a command is appended. The kubelet's exec wakes a sleeping instance by itself."""
        instance = self._run(self._find(name))
        argv = ["kubectl"]
        argv += [f"--kubeconfig={self._kubeconfig}"] if self._kubeconfig else []
        argv += [f"--context={self._context}"] if self._context else []
        argv += ["exec", f"--namespace={instance.metadata.namespace}", instance.spec.pod]
        argv += [f"--container={instance.spec.policy.container}", "--stdin"]
        return [*argv, *(["--tty"] if tty else []), "--"]


def _when(event: _Event) -> str:
    return event.last_timestamp or event.event_time or event.metadata.creation_timestamp


def _key(instance: GpuInstance) -> tuple[str, str]:
    return instance.metadata.namespace, instance.metadata.name


def _named(instance: GpuInstance, name: str) -> bool:
    return not name or name in (instance.metadata.name, instance.spec.workload)
