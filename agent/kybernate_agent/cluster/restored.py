"""An instance that begins with a checkpoint: the copy's verified images become its own, as if it had been parked so.

After that it is any parked instance whose pod is another one: image, mounts and rights are compared at the container's
`create`, its files are put back, and CRIU comes last. That happens once in an instance's life, for the pod and
container that its GpuInstance names, and with a checkpoint of its own namespace only.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from kybernate.errors import InvalidError, NotFoundError, RefusedError, StateLostError
from kybernate.store import Manifest, NoRoomError
from kybernate_agent import clock
from kybernate_agent.cluster import copies
from kybernate_agent.instance import Condition, Phase
from kybernate_agent.whole import link

if TYPE_CHECKING:
    from kybernate_agent.actor import Actor

log = logging.getLogger(__name__)

WAKES = "it was restored from a checkpoint"
DigestOf = Callable[[str], Awaitable[str]]
_under_way: set[str] = set()


class CheckpointGoneError(NotFoundError):
    """{instance}: the images {manifest} are not on this node. Was the GpuCheckpoint deleted?"""


class CheckpointOfOthersError(RefusedError):
    """{instance}: the checkpoint is of {whose}, and is for nobody else."""


class ImageChangedError(RefusedError):
    """{instance}: the image {image} is {new} now, and the checkpoint was made in {old}. Bring that image back."""


def awaits(actor: Actor, pod_uid: str) -> bool:
    """Whether its first container is about to be created, and a copy is to be restored into it."""
    member, record = actor.record.member, actor.record
    return (
        member is not None
        and bool(member.restore_from)
        and member.restored != member.restore_from
        and member.pod_uid == pod_uid
        and record.phase == Phase.PENDING
        and not actor.deleting
        and actor.busy is None
    )


async def prepare(actor: Actor, image: str, digest_of: DigestOf) -> None:
    """Make the copy the instance's state. Raises what is wrong with it, which its condition then says too."""
    if actor.record.id in _under_way:
        raise RefusedError(f"{actor.record.id}: its checkpoint is being prepared")
    _under_way.add(actor.record.id)
    doing = asyncio.create_task(_prepare(actor, image, digest_of))
    doing.add_done_callback(lambda _: _under_way.discard(actor.record.id))
    try:
        await asyncio.shield(doing)  # the hook may be gone; what is half made must not stay
    except NoRoomError:
        raise
    except (RefusedError, StateLostError, InvalidError, NotFoundError) as error:
        reason, message = copies.reason_of(error), str(error)
        actor.say(Condition(type="StateLost", status="True", reason=reason, message=message, at=clock.now()))
        actor.services.journal.save(actor.record)
        actor.services.changed(actor.record.id)
        raise


async def _prepare(actor: Actor, image: str, digest_of: DigestOf) -> None:
    record, store, member = actor.record, actor.services.store, actor.record.member
    assert member is not None
    wanted = member.restore_from
    manifest = await asyncio.to_thread(_found, actor, wanted)
    made = copies.made_of(manifest)
    if (made.namespace, made.container) != (actor.wanted.namespace, actor.wanted.container):
        whose = f"container {made.container} in namespace {made.namespace}"
        raise CheckpointOfOthersError(instance=record.id, whose=whose)
    digest = await digest_of(image) if made.image_digest else ""
    if digest != made.image_digest:
        raise ImageChangedError(instance=record.id, image=image, new=digest or "not here", old=made.image_digest)
    own = await asyncio.to_thread(_own, actor, manifest)
    if actor.deleting:  # meanwhile
        await asyncio.to_thread(store.forget, record.id)
        raise RefusedError(f"{record.id} is being deleted")
    record.epoch, record.stored_bytes = own.epoch, own.size_bytes
    member.restored, record.wakes = wanted, WAKES
    record.enter(Phase.PARKED, clock.now())
    actor.over.set()  # it never had a container
    actor.services.journal.save(record)
    log.info("%s: begins with the checkpoint %s", record.id, wanted)


def _found(actor: Actor, wanted: str) -> Manifest:
    name, seal = copies.parts_of(wanted)
    found = next((m for m in actor.services.store.manifests(name) if m.mac == seal), None)
    if found is None:
        raise CheckpointGoneError(instance=actor.record.id, manifest=wanted)
    return found


def _own(actor: Actor, copy: Manifest) -> Manifest:
    """The copy's files, found true, committed once more as the instance's own."""
    store, record = actor.services.store, actor.record
    store.check(copy)
    store.forget(record.id)  # nothing is there, but what an agent that was killed here has left
    staging = store.stage(record.id, record.epoch + 1, 0)
    try:
        linked = link(copy, store.images(copy), staging.images, portable_too=True)
        return store.commit(staging, copy.made, linked)
    except BaseException:
        store.discard(staging)
        raise
