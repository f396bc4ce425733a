"""A checkpoint that was made for its own pod becomes one for any: what lies outside of the images is added.

What is parked has no processes, so its files stand still: the same images are linked into a new staging, layer and
volumes come beside them, and that is committed as the next epoch. Until then the old one counts; a failure leaves it.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING

from kybernate_agent import portable, wake
from kybernate_agent.sleep import retire, save

if TYPE_CHECKING:
    from kybernate_agent.actor import Actor


async def make_whole(actor: Actor) -> None:
    """For a parked instance whose container is still there. Nothing where it is whole already.

    Raises StateLostError, BundleError, NotPortableError, ArchiveFailedError, DeadlineError, EndedMeanwhileError, the
    errors of the store.
    """
    record, store = actor.record, actor.services.store
    manifest = await asyncio.to_thread(wake.verified, actor)
    images = store.images(manifest)
    saved = portable.load(images)
    if saved is not None and saved.whole:
        return
    state = await actor.keeper.state()
    facts = await portable.facts_of(Path(state.bundle), actor.services.config.containerd_socket)
    epoch = manifest.epoch + 1
    staging = await asyncio.to_thread(store.stage, record.id, epoch, await portable.needed_bytes(facts, True))
    try:
        await asyncio.to_thread(_link, images, staging.images)
        await save(actor, staging.images, facts, state, whole=True)
        made = await asyncio.to_thread(store.commit, staging, manifest.made)
    except BaseException:
        await asyncio.shield(asyncio.to_thread(store.discard, staging))
        raise
    record.epoch, record.stored_bytes = made.epoch, made.size_bytes
    await retire(actor, keep=made.epoch)


def _link(images: Path, staging: Path) -> None:
    """CRIU's files and ours, but for those that `portable.save` writes anew."""
    for entry in os.scandir(images):
        if entry.name != portable.FILE and not entry.name.endswith(".tar"):
            os.link(entry.path, staging / entry.name, follow_symlinks=False)
