"""To a checkpoint that was made for its own pod is added what lies outside of its images: all of it, so that any pod
can have it, or the layer alone, where its container is over.

What is parked has no processes, so its files stand still: the same images are linked into a new staging, what is added
comes beside them, and that is committed as the next epoch. Until then the old one counts; a failure leaves it.

Why the layer: a container that the kubelet makes anew takes its files from the one before. The kubelet removes dead
containers once a minute but for the newest, and counts as that one which is made and does not run yet: a restore under
way. Source: kubelet, container garbage collection (`evictableContainers`: whatever does not run is one).
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

from kybernate.errors import KybernateError
from kybernate.store import ImageFile, Manifest
from kybernate_agent import clock, portable, wake
from kybernate_agent.sleep import retire, save
from kybernate_agent.stage import Stage

if TYPE_CHECKING:
    from kybernate_agent.actor import Actor

log = logging.getLogger(__name__)


async def make_whole(actor: Actor) -> None:
    """For a parked instance whose container is still there. Nothing where it is whole already.

    Raises StateLostError, BundleError, NotPortableError, ArchiveFailedError, DeadlineError, EndedMeanwhileError, the
    errors of the store.
    """
    manifest = await asyncio.to_thread(wake.verified, actor)
    saved = portable.load(actor.services.store.images(manifest))
    if saved is not None and saved.whole:
        return
    state = await actor.keeper.state()
    facts = await portable.facts_of(Path(state.bundle), actor.services.config.containerd_socket)

    async def add(images: Path) -> None:
        await save(actor, images, facts, state, whole=True)

    await _commit_more(actor, manifest, await portable.needed_bytes(facts, True), add, portable_too=False)


async def keep_layer(actor: Actor, stage: Stage) -> None:
    """The verb, for a parked instance whose container is over. What it comes to nothing for is said: then the layer is
    to be had from that container, as long as it is there. Who waits for it waits on where this is cancelled: the next
    agent does it."""
    stage.step("pack")
    try:
        async with actor.services.packing:
            await _add_layer(actor)
    except Exception as error:  # whatever it was, the next container must not wait for ever
        foreseen = isinstance(error, KybernateError | OSError)
        message = f"its writable layer is not put with its images, and lies with a container that is over: {error}"
        actor.record.event("Warning", "LayerOutside", message, clock.now())
        log.warning("%s: %s", actor.record.id, message, exc_info=not foreseen)
    actor.over.set()


async def _add_layer(actor: Actor) -> None:
    manifest = await outside(actor)
    if manifest is None:
        return
    upper = Path(actor.record.pod.upper)

    async def add(images: Path) -> None:
        await portable.save_layer(images, upper)

    await _commit_more(actor, manifest, await portable.layer_bytes(upper), add, portable_too=True)


async def outside(actor: Actor) -> Manifest | None:
    """The images of a parked instance whose layer lies beside another container; None: they have it, or it is gone."""
    record, store = actor.record, actor.services.store
    manifests = await asyncio.to_thread(store.manifests, record.id)
    if not manifests or manifests[0].epoch != record.epoch or not os.path.isdir(record.pod.upper):
        return None
    return None if portable.holds_layer(store.images(manifests[0])) else manifests[0]


async def _commit_more(
    actor: Actor, manifest: Manifest, needed: int, add: Callable[[Path], Awaitable[None]], *, portable_too: bool
) -> None:
    """The instance's next epoch: the images of `manifest`, and `needed` bytes or so that `add` writes beside them."""
    record, store = actor.record, actor.services.store
    staging = await asyncio.to_thread(store.stage, record.id, manifest.epoch + 1, needed)
    try:
        images = store.images(manifest)
        linked = await asyncio.to_thread(link, manifest, images, staging.images, portable_too=portable_too)
        await add(staging.images)
        committing = asyncio.ensure_future(asyncio.to_thread(store.commit, staging, manifest.made, linked))
        try:
            made = await asyncio.shield(committing)
        finally:
            await asyncio.wait({committing})  # whoever gives it up must not find it half way
    except BaseException:
        await asyncio.shield(asyncio.to_thread(store.discard, staging))
        raise
    record.epoch, record.stored_bytes = made.epoch, made.size_bytes
    await retire(actor, keep=made.epoch)


def link(manifest: Manifest, images: Path, staging: Path, *, portable_too: bool) -> list[ImageFile]:
    """The files that the manifest lists and nothing else, CRIU's alone or those of `portable` too. Raises OSError."""
    linked = [file for file in manifest.files if portable_too or not portable.is_ours(file.name)]
    for file in linked:
        os.link(images / file.name, staging / file.name, follow_symlinks=False)
    return linked
