"""Checkpoints and restores as the CLI orders them: a GpuCheckpoint, a GpuRestoreJob, and what becomes of each."""

from __future__ import annotations

import argparse
import asyncio
import secrets
import time
from collections.abc import Collection
from typing import Any, Self, TypeVar

from kybernate.api.gpucheckpoint import GpuCheckpoint
from kybernate.api.gpurestorejob import GpuRestoreJob
from kybernate.cli.cluster import LOOK_SECONDS, ClusterClient, ClusterDeadlineError
from kybernate.cli.connection import in_cluster
from kybernate.errors import InvalidError, RefusedError
from kybernate.kube.resource import GPU_CHECKPOINTS, GPU_RESTORE_JOBS, Resource

T = TypeVar("T", GpuCheckpoint, GpuRestoreJob)


class NeedsClusterError(InvalidError):
    """`kybernate {verb}` needs a cluster, whose nodes keep the checkpoints: name one with --kubeconfig, --context or
    -n. A single machine without Kubernetes has none."""


class FailedError(RefusedError):
    """{kind} {name} is {phase}: {why}"""


class CopyingClient(ClusterClient):
    """A ClusterClient that can do this too."""

    def __enter__(self) -> Self:
        return self

    def checkpoint(self, name: str, named: str, *, wait: bool, deadline_seconds: float) -> GpuCheckpoint:
        """Copy an instance, or the only one of a workload. Raises NotFoundError, AlreadyExistsError, FailedError."""
        return self._run(self._checkpoint(name, named, wait, deadline_seconds))

    async def _checkpoint(self, name: str, named: str, wait: bool, seconds: float) -> GpuCheckpoint:
        instance = await self._find(name)
        spec = {"source": {"instance": instance.metadata.name}}
        made = await self._made(GPU_CHECKPOINTS, GpuCheckpoint, named, instance.metadata.namespace, spec)
        return await self._over(GPU_CHECKPOINTS, made, ("Ready", "Failed", "Expired"), seconds) if wait else made

    def restore(self, checkpoint: str, pod: str, *, wait: bool, deadline_seconds: float) -> GpuRestoreJob:
        """A new pod of a checkpoint. Raises FailedError where that comes to nothing."""
        return self._run(self._restore(checkpoint, pod, wait, deadline_seconds))

    async def _restore(self, checkpoint: str, pod: str, wait: bool, seconds: float) -> GpuRestoreJob:
        namespace, spec = self._one_namespace(), {"checkpoint": checkpoint, "podName": pod}
        name = f"{pod}-{secrets.token_hex(3)}"
        made = await self._made(GPU_RESTORE_JOBS, GpuRestoreJob, name, namespace, spec)
        return await self._over(GPU_RESTORE_JOBS, made, ("Succeeded", "Failed"), seconds) if wait else made

    async def _made(self, resource: Resource, kind: type[T], name: str, namespace: str, spec: dict[str, Any]) -> T:
        body = {"metadata": {"name": name, "namespace": namespace}, "spec": spec}
        return await self._client.create(resource, body, namespace, into=kind)

    async def _over(self, resource: Resource, made: T, phases: Collection[str], seconds: float) -> T:
        """The object once it has come to one of these. Raises FailedError, ClusterDeadlineError."""
        meta, until, kind = made.metadata, time.monotonic() + seconds, type(made)
        while made.status.phase not in phases:
            if time.monotonic() > until:
                raise ClusterDeadlineError(what=f"{resource.kind} {meta.name}", seconds=seconds)
            await asyncio.sleep(LOOK_SECONDS)
            made = await self._client.get(resource, kind, meta.name, meta.namespace)
        if made.status.phase in ("Failed", "Expired"):
            why = next((c.message for c in made.status.conditions if c.message), "")
            raise FailedError(kind=resource.kind, name=meta.name, phase=made.status.phase, why=why)
        return made


def connect_cluster(options: argparse.Namespace) -> CopyingClient:
    """To be used in a `with`. Raises NeedsClusterError, CredentialsError."""
    if not in_cluster(options, options.program):
        raise NeedsClusterError(verb=options.command)
    return CopyingClient(options.kubeconfig, options.context, options.namespace)
