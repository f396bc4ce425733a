"""One GpuCheckpoint's copy: asked of the instance's actor, committed to the store. What passes is tried again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import platform
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from kybernate.api.gpucheckpoint import GpuCheckpoint
from kybernate.errors import KybernateError, RefusedError
from kybernate.store import Manifest, Store
from kybernate_agent.actor import Actor
from kybernate_agent.checkpoint import ChangedMeanwhileError, Copy
from kybernate_agent.cluster.copies import name_of
from kybernate_agent.instance import Phase
from kybernate_agent.stage import AbortedError

log = logging.getLogger(__name__)

BEGIN_SECONDS = 60.0
"""So long it may take until it can begin: an instance that does not come to run is no reason to wait for ever."""
TRIES = 3
AGAIN_SECONDS = 0.5

DigestOf = Callable[[str], Awaitable[str]]


class NotBegunError(RefusedError):
    """{instance} is {state}, and a checkpoint needs it running or asleep. It was waited for {seconds:g} s."""


class SourceEndedError(RefusedError):
    """{instance} ended before its checkpoint was made."""


def committed(store: Store, name: str) -> Manifest | None:
    return next(iter(store.manifests(name)), None)


async def copy_of(actor: Actor, checkpoint: GpuCheckpoint, digest_of: DigestOf) -> Manifest:
    """Raises KybernateErrors: then there is no copy, and its source is as it was."""
    for left in reversed(range(TRIES)):
        try:
            return await _copy(actor, checkpoint, digest_of)
        except KybernateError as error:
            passing = isinstance(error, (AbortedError, ChangedMeanwhileError)) or error.fields.get("transient")
            if not passing or not left:
                raise
            log.info("%s: its checkpoint is tried again: %s", actor.record.id, error)
            await asyncio.sleep(AGAIN_SECONDS)
    raise AssertionError


async def _copy(actor: Actor, checkpoint: GpuCheckpoint, digest_of: DigestOf) -> Manifest:
    store = actor.services.store
    copy = Copy(name=name_of(checkpoint), leave_running=checkpoint.spec.leave_running)
    staging = await _staged(actor, copy)
    try:
        assert copy.facts is not None
        digest = await digest_of(copy.facts.image)
        made = _made(actor, checkpoint, copy, digest)
        committing = asyncio.create_task(asyncio.to_thread(store.commit, staging, made))
        try:
            return await asyncio.shield(committing)
        finally:
            await asyncio.wait({committing})  # who gives it up takes away what was committed, not what still may be
    except BaseException:
        await asyncio.shield(asyncio.to_thread(store.discard, staging))
        if copy.was == Phase.RUNNING and not copy.leave_running:
            actor.call("its checkpoint came to nothing")
        raise


async def _staged(actor: Actor, copy: Copy) -> Any:
    """Let the actor make it."""
    actor.copies.append(copy)
    actor.poke()
    ended = asyncio.create_task(actor.finished.wait())
    begun = asyncio.create_task(copy.begun.wait())
    try:
        await asyncio.wait({ended, begun}, timeout=BEGIN_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if not copy.begun.is_set():
            if ended.done():
                raise SourceEndedError(instance=actor.record.id)
            state = actor.record.phase.value if actor.keeper_watched else "Waiting"
            raise NotBegunError(instance=actor.record.id, state=state, seconds=BEGIN_SECONDS)
        return await copy.staging
    finally:
        copy.staging.cancel()  # one who comes too late gives back what was made
        ended.cancel()
        begun.cancel()
        with contextlib.suppress(ValueError):
            actor.copies.remove(copy)


def _made(actor: Actor, checkpoint: GpuCheckpoint, copy: Copy, digest: str) -> dict[str, Any]:
    """What the copy is of and how it was made; `copies.Made` reads it."""
    record, services, facts = actor.record, actor.services, copy.facts
    assert facts is not None
    return {
        "criu": services.criu_version,
        "runc": services.runc_version,
        "kernel": Path("/proc/sys/kernel/osrelease").read_text().strip(),
        "created_at": time.time(),
        "namespace": checkpoint.metadata.namespace,
        "checkpoint": checkpoint.metadata.name,
        "source": record.id,
        "pod_uid": record.pod.uid,
        "container": actor.wanted.container,
        "image": facts.image,
        "image_digest": digest,
        "architecture": platform.machine(),
        "frozen_seconds": copy.frozen_seconds,
        "ports": record.pod.held_ports,
    }
