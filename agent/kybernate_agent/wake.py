"""Coming back: resume from RAM (thaw) and from NVME (verify, restore, let the calls through), and what follows.

Images go only when the application that came from them has lived for a while; until then a crash of it brings them back
once more. Nothing unverified reaches CRIU.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from kybernate import criu
from kybernate.criu import skeleton
from kybernate.errors import DeadlineError, ExternalError, KybernateError, RefusedError, StateLostError
from kybernate.store import Manifest
from kybernate_agent import clock, portable, processes
from kybernate_agent.instance import Condition, Phase, Verb
from kybernate_agent.keepers import KeeperError
from kybernate_agent.sleep import retire, said
from kybernate_agent.stage import Stage
from kybernate_agent.thaw import thaw

if TYPE_CHECKING:
    from kybernate_agent.actor import Actor

log = logging.getLogger(__name__)

VIEW = "images"  # in a restore's work folder
BACK_OFF_SECONDS = (1.0, 5.0, 30.0, 120.0)


class RestoreFailedError(ExternalError):
    """{instance}: {cause}. {remedy}"""


async def resume(actor: Actor, stage: Stage) -> None:
    """Bring the instance back from the tier it is in; the calls that waited go through."""
    if actor.record.phase == Phase.SUSPENDED:
        stage.step("thaw")
        await thaw(actor)
        await _awake(actor, stage, "RAM")
        return
    stand = criu.Stand(mounts_folder(actor.services.config.run) / actor.record.id)
    try:
        await _restore(actor, stage, stand)
        await _awake(actor, stage, "NVME")
    finally:
        # CRIU has bound them, or the container is gone. After the release, for nobody waits for it.
        await asyncio.shield(asyncio.to_thread(_clear, stand))
    await actor.watch_keeper()


async def _awake(actor: Actor, stage: Stage, source: str) -> None:
    record = actor.record
    record.enter(Phase.RUNNING, clock.now())
    record.last_activity = record.since
    record.last_wake_from = source
    record.wakes = ""
    record.last_wake_seconds = round(stage.seconds, 4)
    actor.awake()
    stage.step("release")
    try:
        await actor.traffic.release()
    except (ExternalError, DeadlineError) as error:
        # It runs, and its packets pass through us; the next sleep and wake try again to take the rules out.
        actor.say(Condition(type="Degraded", status="True", reason="RulesStay", message=str(error), at=clock.now()))


async def _restore(actor: Actor, stage: Stage, stand: criu.Stand) -> None:
    record, services = actor.record, actor.services
    stage.step("verify")
    hurried = asyncio.create_task(asyncio.to_thread(processes.hurry_cgroup_moves))
    manifest = await asyncio.to_thread(verified, actor)
    stage.step("restore", epoch=manifest.epoch)
    work = actor.work_folder("restore")
    images = services.store.images(manifest)
    moved = portable.has_moved(images, record.pod.sandbox)
    if moved:
        images = await portable.images_for(images, Path((await actor.keeper.state()).bundle), work / VIEW)
    # From here on a restored copy may live: its images must be known as not yet superseded before it does.
    record.unproven = manifest.epoch
    try:
        conf = criu.restore_conf(external=stand.make(skeleton.load(images)), keep_connections=not moved)
        await actor.keeper.restore(images, work, conf, services.config.criu.restore_deadline_seconds)
    except KeeperError as error:
        record.unproven = 0
        cause = await asyncio.to_thread(criu.explain, work / "restore.log", said(error))
        raise RestoreFailedError(
            instance=record.id, cause=cause.message, remedy=cause.remedy, code=cause.code
        ) from error
    except RefusedError:
        # An earlier try whose answer did not come, or told of another failure than the restore's, has brought it back.
        if (await actor.keeper.state()).state != "running":
            raise
    except OSError as error:
        record.unproven = 0
        raise RestoreFailedError(
            instance=record.id, cause=f"its tmpfs mounts cannot be made: {error}", remedy="", code="mounts"
        ) from error
    finally:
        await hurried
    if moved:
        await _name_host(actor)
    record.clear_condition("RestoreFailed")
    record.clear_condition("StateLost")
    actor.prove_at = clock.now() + services.config.prove_seconds


async def _name_host(actor: Actor) -> None:
    """It lives already: a wrong host name is said, and no reason to undo anything."""
    try:
        state = await actor.keeper.state()
        await portable.name_host(state.init_pid, Path(state.bundle))
    except KybernateError as error:
        actor.say(Condition(type="Degraded", status="True", reason="HostName", message=str(error), at=clock.now()))


def mounts_folder(run: Path) -> Path:
    """Where restores under way have their mounts; one that an agent left behind goes with `clear_mounts`."""
    return run / "mounts"


def clear_mounts(run: Path, spared: Collection[str]) -> None:
    """What agents that were killed in the midst of a restore have left, but for instances that may be at one now."""
    with contextlib.suppress(FileNotFoundError):
        for folder in list(mounts_folder(run).iterdir()):
            if folder.name not in spared:
                _clear(criu.Stand(folder))


def clear_mounts_of(run: Path, instance: str) -> None:
    """The same of one instance, before it can be at a restore."""
    _clear(criu.Stand(mounts_folder(run) / instance))


def _clear(stand: criu.Stand) -> None:
    """A mount that stays costs nothing but its place, and goes with the next restore: the instance is what counts."""
    try:
        stand.clear()
    except OSError as error:
        log.warning("a restore's mounts in %s stay for now: %s", stand.folder, error)


def verified(actor: Actor) -> Manifest:
    """The images that are the instance's state. Raises StateLostError where they are missing, damaged or stale."""
    record, store = actor.record, actor.services.store
    manifests = store.manifests(record.id)
    if not manifests or manifests[0].epoch != record.epoch:
        raise StateLostError(f"{record.id}: no verified images of epoch {record.epoch} exist")
    store.check(manifests[0])
    return manifests[0]


def lost(actor: Actor, error: KybernateError) -> None:
    """Say out loud that the state is gone. Nothing is deleted; a person decides."""
    anew = "Delete the workload and apply it again" if actor.record.member is None else "Raise spec.startAnew"
    kind = type(error).__name__.removesuffix("Error")
    remedy = f"Its images were left where they are. {anew} to begin anew."
    actor.say(Condition(type="StateLost", status="True", reason=kind, message=f"{error} {remedy}", at=clock.now()))
    actor.record.enter(Phase.LOST, clock.now())
    actor.leave_container()
    if actor.has_traffic:
        actor.traffic.stop_answering()


def restore_failed(actor: Actor, error: KybernateError) -> None:
    """Nothing was deleted: it stays parked and is tried again, later each time."""
    failures = actor.failed(Verb.RESUME)
    seconds = BACK_OFF_SECONDS[min(failures, len(BACK_OFF_SECONDS) - 1)]
    message = f"{error} It stays parked, nothing was deleted; tried {failures + 1} times, next in {seconds:g} s."
    code = str(error.fields.get("code") or type(error).__name__.removesuffix("Error"))
    actor.say(Condition(type="RestoreFailed", status="True", reason=code, message=message, at=clock.now()))
    actor.back_off(Verb.RESUME, seconds)


async def prove(actor: Actor, stage: Stage) -> None:
    """The restored application has lived: what it came from may go."""
    stage.step("retire", epoch=actor.record.unproven)
    await stage.synced()
    await retire(actor)
    # Links to the images, which else stay on the disk. A restore that no agent saw the end of comes by here too.
    await asyncio.to_thread(shutil.rmtree, actor.work / "restore" / VIEW, ignore_errors=True)
    actor.record.unproven = 0
    actor.record.stored_bytes = 0
