"""Coming back: resume from RAM (thaw) and from NVME (verify, restore, let the calls through), and what follows.

Images go only when the application that came from them has lived for a while; until then a crash of it brings them back
once more. Nothing unverified reaches CRIU.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from kybernate import criu
from kybernate.errors import ExternalError, KybernateError, StateLostError
from kybernate.store import Manifest
from kybernate_agent.instance import Condition, Phase, Verb
from kybernate_agent.keepers import KeeperError
from kybernate_agent.sleep import retire
from kybernate_agent.stage import Stage

if TYPE_CHECKING:
    from kybernate_agent.actor import Actor

BACK_OFF_SECONDS = (1.0, 5.0, 30.0, 120.0)


class RestoreFailedError(ExternalError):
    """{instance}: {cause}. {remedy}"""


async def resume(actor: Actor, stage: Stage) -> None:
    """Bring the instance back from the tier it is in; the calls that waited go through."""
    source = actor.record.phase
    if source == Phase.SUSPENDED:
        stage.step("thaw")
        await actor.keeper.thaw()
    else:
        await _restore(actor, stage)
    record = actor.record
    record.enter(Phase.RUNNING, time.time())
    record.last_activity = record.since
    record.last_wake_from = "RAM" if source == Phase.SUSPENDED else "NVME"
    record.last_wake_seconds = round(stage.seconds, 4)
    actor.awake()
    stage.step("release")
    await actor.traffic.release()


async def _restore(actor: Actor, stage: Stage) -> None:
    record, services = actor.record, actor.services
    stage.step("verify")
    manifest = await _verified(actor)
    stage.step("restore", epoch=manifest.epoch)
    work = actor.work_folder("restore")
    images = services.store.images(manifest)
    # From here on a restored copy may live: its images must be known as not yet superseded before it does.
    record.unproven = manifest.epoch
    try:
        await actor.keeper.restore(images, work, criu.restore_conf(), services.config.criu.restore_deadline_seconds)
    except KeeperError as error:
        record.unproven = 0
        cause = await asyncio.to_thread(criu.explain, work / "restore.log", str(error))
        raise RestoreFailedError(
            instance=record.id, cause=cause.message, remedy=cause.remedy, code=cause.code
        ) from error
    record.clear_condition("RestoreFailed")
    actor.prove_at = time.time() + services.config.prove_seconds
    await actor.watch_keeper()


async def _verified(actor: Actor) -> Manifest:
    """The images that are the instance's state. Raises StateLostError where they are missing, damaged or stale."""
    record, store = actor.record, actor.services.store
    manifests = await asyncio.to_thread(store.manifests, record.id)
    if not manifests or manifests[0].epoch != record.epoch:
        raise StateLostError(f"{record.id}: no verified images of epoch {record.epoch} exist")
    await asyncio.to_thread(store.check, manifests[0])
    return manifests[0]


def lost(actor: Actor, error: KybernateError) -> None:
    """Say out loud that the state is gone. Nothing is deleted; a person decides."""
    remedy = "Its images were left where they are. Delete the workload and apply it again to begin anew."
    actor.say(
        Condition(
            type="StateLost", status="True", reason=type(error).__name__, message=f"{error} {remedy}", at=time.time()
        )
    )
    actor.record.enter(Phase.LOST, time.time())


def restore_failed(actor: Actor, error: KybernateError) -> None:
    """Nothing was deleted: it stays parked and is tried again, later each time."""
    failures = actor.failed(Verb.RESUME)
    seconds = BACK_OFF_SECONDS[min(failures, len(BACK_OFF_SECONDS) - 1)]
    message = f"{error} It stays parked, nothing was deleted; tried {failures + 1} times, next in {seconds:g} s."
    code = str(error.fields.get("code") or type(error).__name__.removesuffix("Error"))
    actor.say(Condition(type="RestoreFailed", status="True", reason=code, message=message, at=time.time()))
    actor.back_off(Verb.RESUME, seconds)


async def prove(actor: Actor, stage: Stage) -> None:
    """The restored application has lived: what it came from may go."""
    stage.step("retire", epoch=actor.record.unproven)
    await retire(actor)
    actor.record.unproven = 0
    actor.record.stored_bytes = 0
