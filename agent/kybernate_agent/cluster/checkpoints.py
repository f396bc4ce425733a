"""The GpuCheckpoints of this node: carried out, written into their status, given up.

    Pending, Running   copied, one task each, so that one whose source never comes holds up no other; what was committed
                       already (an agent was killed before it could say so) is Ready
    Ready              after `expiresAfter` its bytes go: Expired
    deleted            its bytes go, unless they are to be retained; then the finalizer

Statuses are tried again until the API server takes them. Where the kind cannot be followed at all (no such CRD, no
right to it) that is said and tried again: it is no reason for the node to end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import Any

import msgspec

from kybernate.api import names
from kybernate.api.gpucheckpoint import CheckpointStatus, GpuCheckpoint
from kybernate.api.objects import builtins
from kybernate.errors import KybernateError, NotFoundError, RefusedError
from kybernate.kube.backoff import Backoff
from kybernate.kube.cache import Change, Informer
from kybernate.kube.client import Client
from kybernate.kube.errors import ApiError, ApiInvalidError, ApiNotFoundError, ConflictError
from kybernate.kube.events import Recorder, Regarding
from kybernate.kube.resource import GPU_CHECKPOINTS
from kybernate.store import Manifest
from kybernate_agent.actor import Actor
from kybernate_agent.cluster import copies
from kybernate_agent.cluster.copying import DigestOf, committed, copy_of
from kybernate_agent.cluster.objects import id_of
from kybernate_agent.node import Node

log = logging.getLogger(__name__)

SOURCE_SECONDS = 20.0
"""In which the source must have come to this agent's ears; the controller has seen it on this node."""
LOOK_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 5.0
AGAIN_SECONDS = 30.0
SURE_SECONDS = 300.0
"""In which a clock that was wrong when the machine started has been set."""


class SourceGoneError(NotFoundError):
    """{source} is not on this node. Was it deleted, or has it moved?"""


class OtherPodError(RefusedError):
    """{source}: pod {now} is the instance now, and the checkpoint is of pod {uid}. Make another GpuCheckpoint."""


class Checkpoints:
    """Followed by one task of the agent. `digest_of` says what image a name stands for."""

    def __init__(self, node: Node, client: Client, recorder: Recorder, name: str, digest_of: DigestOf) -> None:
        self._node, self._client, self._recorder, self._digest_of = node, client, recorder, digest_of
        self._name = name
        self._tasks: dict[str, asyncio.Task[None]] = {}  # by uid
        self._leaving: set[str] = set()
        self._over_with: set[str] = set()  # uids that failed or expired here; the watch may be behind

    async def follow(self) -> None:
        """Until cancelled."""
        try:
            while True:
                here = f"status.node={self._name}"
                informer: Informer[GpuCheckpoint] = Informer(
                    self._client, GPU_CHECKPOINTS, GpuCheckpoint, field_selector=here
                )
                informer.subscribe(self._changed)
                try:
                    async with informer:
                        await asyncio.Event().wait()
                except* ApiError as group:
                    log.error("GpuCheckpoints are not followed for now: %s", group.exceptions[0])
                await asyncio.sleep(AGAIN_SECONDS)
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def _changed(self, change: Change[GpuCheckpoint]) -> None:
        for gone in (change.old,) if change.old is not None else ():
            if change.new is None or change.new.metadata.uid != gone.metadata.uid:
                self._end(gone.metadata.uid)
                self._over_with.discard(gone.metadata.uid)
        if (now := change.new) is None:
            return
        uid = now.metadata.uid
        if now.metadata.deletion_timestamp is not None:
            if uid not in self._leaving:
                self._leaving.add(uid)
                self._end(uid)
                self._begin(uid, self._leave(now))
        elif uid not in (*self._tasks, *self._over_with) and now.status.phase in ("Pending", "Running", "Ready"):
            self._begin(uid, self._live(now))

    def _begin(self, uid: str, doing: Any) -> None:
        before = self._tasks.get(uid)

        async def after() -> None:
            if before is not None:
                await asyncio.gather(before, return_exceptions=True)
            try:
                await doing
            except Exception:
                log.exception("checkpoint %s", uid)

        task = self._tasks[uid] = asyncio.create_task(after(), name=f"checkpoint {uid}")
        task.add_done_callback(lambda done: self._over(uid, done))

    def _over(self, uid: str, done: asyncio.Task[None]) -> None:
        if self._tasks.get(uid) is done:
            del self._tasks[uid]

    def _end(self, uid: str) -> None:
        if (task := self._tasks.get(uid)) is not None:
            task.cancel()

    # --- one of them ---

    async def _live(self, checkpoint: GpuCheckpoint) -> None:
        """From its beginning to its expiry."""
        store = self._node.services.store
        found = manifest = await asyncio.to_thread(committed, store, copies.name_of(checkpoint))
        if checkpoint.status.phase != "Ready":
            manifest = await self._made(checkpoint, found)
        elif manifest is None:
            gone = copies.failed(checkpoint, "ImagesGone", "its images are gone from the node, or their seal is broken")
            await self._say(checkpoint, gone, "Warning")
        if manifest is None:
            self._over_with.add(checkpoint.metadata.uid)
            return
        if (at := copies.expires_at(checkpoint, manifest)) is None:
            return
        if found is None:  # made just now: what passes from here on no clock has to tell
            await asyncio.sleep(float(checkpoint.spec.expires_after or 0.0))
        else:
            await _passed(at)
        given_up = checkpoint.spec.deletion_policy == "Delete"
        if given_up:
            await asyncio.to_thread(store.forget, copies.name_of(checkpoint))
        self._over_with.add(checkpoint.metadata.uid)
        await self._say(checkpoint, copies.expired(checkpoint, given_up), "Normal")

    async def _made(self, checkpoint: GpuCheckpoint, manifest: Manifest | None) -> Manifest | None:
        """The copy, made where it is not there, and said to be Ready; None where it failed, which is said."""
        try:
            if manifest is None:
                if checkpoint.status.phase != "Running":
                    await self._say(checkpoint, copies.running(checkpoint), "")
                actor = await self._source(checkpoint)
                manifest = await copy_of(actor, checkpoint, self._digest_of)
            ready = copies.ready(checkpoint, manifest)
        except (KybernateError, OSError) as error:
            reason = copies.reason_of(error)
            await self._say(checkpoint, copies.failed(checkpoint, reason, str(error)), "Warning")
            return None
        except Exception as error:  # nobody foresaw it: it must not stay Running for ever
            log.exception("checkpoint %s", checkpoint.metadata.uid)
            unforeseen = copies.failed(checkpoint, "Unforeseen", f"{type(error).__name__}: {error}")
            await self._say(checkpoint, unforeseen, "Warning")
            return None
        checkpoint.status = await self._say(checkpoint, ready, "Normal")
        return manifest

    async def _source(self, checkpoint: GpuCheckpoint) -> Actor:
        source, namespace = checkpoint.spec.source, checkpoint.metadata.namespace
        of_pod: Callable[[Actor], bool] = lambda a: (  # noqa: E731
            a.wanted.namespace == namespace and a.record.member is not None and a.record.member.pod == source.pod
        )
        until = time.monotonic() + SOURCE_SECONDS
        while True:
            actors = self._node.actors
            if source.instance:
                actor = actors.get(id_of(namespace, source.instance))
            else:
                actor = next((each for each in actors.values() if of_pod(each)), None)
            if actor is not None and actor.record.member is not None:
                uid, now = checkpoint.metadata.annotations.get(names.SOURCE_POD, ""), actor.record.member.pod_uid
                if uid != now:
                    raise OtherPodError(source=source.instance or source.pod, uid=uid, now=now)
                return actor
            if time.monotonic() > until:
                raise SourceGoneError(source=source.instance or source.pod)
            await asyncio.sleep(LOOK_SECONDS)  # its GpuInstance is on its way to us

    async def _leave(self, checkpoint: GpuCheckpoint) -> None:
        """However long the disk takes: the finalizer stays as long as the bytes do."""
        uid, backoff = checkpoint.metadata.uid, Backoff(longest=LONGEST_PAUSE_SECONDS)
        while checkpoint.spec.deletion_policy == "Delete":
            try:
                await asyncio.to_thread(self._node.services.store.forget, copies.name_of(checkpoint))
                break
            except (KybernateError, OSError) as error:
                log.warning("checkpoint %s: its bytes stay for now: %s", copies.name_of(checkpoint), error)
                await asyncio.sleep(backoff.next())
        await self._release(checkpoint)
        self._leaving.discard(uid)

    async def _release(self, checkpoint: GpuCheckpoint) -> None:
        """Take our finalizer away, however long the API server is."""
        meta, backoff = checkpoint.metadata, Backoff(longest=LONGEST_PAUSE_SECONDS)
        while True:
            try:
                found = await self._client.get(GPU_CHECKPOINTS, GpuCheckpoint, meta.name, meta.namespace)
                left = [it for it in found.metadata.finalizers if it != names.STATE_FINALIZER]
                if found.metadata.uid != meta.uid or len(left) == len(found.metadata.finalizers):
                    return
                patch = {"metadata": {"resourceVersion": found.metadata.resource_version, "finalizers": left}}
                await self._client.merge_patch(
                    GPU_CHECKPOINTS, GpuCheckpoint, meta.name, patch, meta.namespace, manager=names.AGENT_MANAGER
                )
                return
            except ApiNotFoundError:
                return
            except ConflictError:
                continue
            except ApiError as error:
                log.warning("checkpoint %s/%s: its finalizer stays for now: %s", meta.namespace, meta.name, error)
                await asyncio.sleep(backoff.next())

    async def _say(self, checkpoint: GpuCheckpoint, status: CheckpointStatus, kind: Any) -> CheckpointStatus:
        """Write the status, until it is written or nobody wants it. An Event tells of it where `kind` is one."""
        meta, backoff = checkpoint.metadata, Backoff(longest=LONGEST_PAUSE_SECONDS)
        status = copies.changed_at(status, checkpoint.status, time.time())
        condition = status.conditions[0]
        said = builtins(status)
        said["conditions"][0]["message"] = condition.message  # also an empty one: it takes another's place
        body = {"metadata": {"name": meta.name, "namespace": meta.namespace, "uid": meta.uid}, "status": said}
        log.info("checkpoint %s/%s: %s %s", meta.namespace, meta.name, status.phase, condition.message)
        while True:
            try:
                await self._client.apply(
                    GPU_CHECKPOINTS, body, manager=names.AGENT_MANAGER, subresource="status",
                    into=dict[str, msgspec.Raw],
                )  # fmt: skip
                break
            except (ApiNotFoundError, ConflictError, ApiInvalidError) as error:
                log.warning("checkpoint %s/%s: its status is refused: %s", meta.namespace, meta.name, error)
                return status
            except ApiError as error:
                log.warning("checkpoint %s/%s: its status waits: %s", meta.namespace, meta.name, error)
                await asyncio.sleep(backoff.next())
        if kind:
            about = Regarding(GPU_CHECKPOINTS, meta.namespace, meta.name, meta.uid)
            with contextlib.suppress(KybernateError):
                self._recorder.record(about, kind, str(status.phase), condition.message or str(status.phase))
        return status


async def _passed(at: float, sure_seconds: float = SURE_SECONDS) -> None:
    """Return when a time that an earlier agent set has passed. Its bytes go for good, and the machine's clock may be
    wrong, at its start above all: so it is asked twice, `sure_seconds` apart."""
    sure = False
    while (left := at - time.time()) > 0 or not sure:
        sure = left <= 0
        await asyncio.sleep(sure_seconds if sure else min(left, sure_seconds))
