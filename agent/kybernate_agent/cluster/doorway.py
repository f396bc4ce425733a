"""A container is about to be created: what is known of its instance, and what is done where it may come in."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from kybernate.errors import KybernateError, RefusedError, StateLostError
from kybernate.store import Manifest
from kybernate_agent import clock, life, portable, processes, wake
from kybernate_agent.actor import Actor
from kybernate_agent.cluster.admission import Action, Answer, Case, admit
from kybernate_agent.instance import Condition, Phase, Verb

log = logging.getLogger(__name__)

SANDBOX_NAMESPACE = "io.kubernetes.cri.sandbox-namespace"
SANDBOX_NAME = "io.kubernetes.cri.sandbox-name"
IMAGE_NAME = "io.kubernetes.cri.image-name"
_coming: set[str] = set()
"""Instances whose files are being put back. One at a time: a kubelet that has given a creation up tries again, and two
would fill the same volumes."""


def image_of(message: Mapping[str, Any]) -> str:
    """The name of the container's image, as containerd has it."""
    return str((message.get("annotations") or {}).get(IMAGE_NAME, ""))


async def ask(actor: Actor | None, message: Mapping[str, Any]) -> Answer:
    """The answer as things are now; a state that turns out to be lost is said."""
    if actor is None:
        return admit(Case(named=False))
    case = await _case(actor, str(message.get("pod_uid", "")))
    if why := _waits(actor):  # asked after what took time: it may have begun meanwhile
        return Answer(Action.WAIT, f"{actor.record.id}: {why}")
    answer = admit(case)
    if answer.action == Action.LOSE:
        wake.lost(actor, StateLostError(f"{actor.record.id}: {answer.why}."))
        actor.services.journal.save(actor.record)
        actor.services.changed(actor.record.id)
    if actor.record.phase == Phase.LOST and actor.policy.anew_when_lost and not actor.record.given_up:
        actor.begin_anew()
    return Answer(answer.action, f"{actor.record.id}: {answer.why}")


def _waits(actor: Actor) -> str:
    """What has to come to its end first."""
    if actor.busy not in (None, Verb.PROVE, Verb.RESET):
        return f"{actor.busy} is under way"
    if actor.layer_outside:
        return "its files are about to be put with its images"
    return "its files are still put into a container of before" if actor.record.id in _coming else ""


async def _case(actor: Actor, pod_uid: str) -> Case:
    record = actor.record
    store = actor.services.store
    manifests = await asyncio.to_thread(store.manifests, record.id)
    kept = bool(manifests) and portable.holds_layer(store.images(manifests[0]))
    state = actor.last_keeper
    alive = state is not None and bool(processes.pids_of(state.cgroups)) and not _ended(actor)
    return Case(
        named=record.member is not None and record.member.pod_uid == pod_uid,
        deleting=actor.deleting,
        phase=record.phase,
        living=actor.keeper_watched or actor.offer is not None or alive,
        given_up=bool(record.given_up),
        images=bool(manifests) and manifests[0].epoch == record.epoch,
        files=kept or (bool(record.pod.upper) and Path(record.pod.upper).is_dir()),
        same_pod=record.pod.uid in ("", pod_uid),
        portable=bool(manifests) and await asyncio.to_thread(_is_whole, actor, manifests[0]),
        may_begin_anew=bool(record.given_up) or actor.policy.anew_when_lost,
    )


def _is_whole(actor: Actor, manifest: Manifest) -> bool:
    try:
        saved = portable.load(actor.services.store.images(manifest))
    except StateLostError:
        return False
    return saved is not None and saved.whole


def _say_lost(actor: Actor, error: KybernateError) -> None:
    kind = type(error).__name__.removesuffix("Error")
    actor.say(Condition(type="StateLost", status="True", reason=kind, message=str(error), at=clock.now()))
    actor.services.journal.save(actor.record)
    actor.services.changed(actor.record.id)
    if actor.policy.anew_when_lost:
        actor.begin_anew()


def _ended(actor: Actor) -> bool:
    """The cgroup of a container that has ended may be another's by now."""
    state = actor.last_keeper
    return state is not None and state.state == "ended"


async def open(actor: Actor, message: Mapping[str, Any], action: Action) -> dict[str, Any]:
    """It may come in. Files go over before a restore. Raises KybernateErrors: then it is refused, and comes again."""
    record, pod_uid = actor.record, str(message.get("pod_uid", ""))
    if action == Action.RESTORE:
        await _put_files(actor, Path(str(message.get("bundle", ""))))
    if not _holds(actor, pod_uid, action):
        raise RefusedError(f"{record.id}: it is {record.phase.value} now; its container is asked for again")
    if action == Action.RESTORE:
        record.clear_condition("StateLost")
    notes = message.get("annotations") or {}
    actor.reconfigure(msgspec.structs.replace(actor.wanted, image=str(notes.get(IMAGE_NAME, actor.wanted.image))))
    record.pod.uid = pod_uid
    actor.services.journal.save(record)
    log.info("%s: container %s: %s", record.id, message.get("container"), action.value)
    return {"action": action.value}


async def _put_files(actor: Actor, bundle: Path) -> None:
    name = actor.record.id
    if name in _coming:
        raise RefusedError(f"{name}: its files are still put into a container of before")
    _coming.add(name)
    try:
        await life.carry_layer(actor, bundle)
    except (RefusedError, StateLostError) as error:
        # Another image, other mounts, fewer rights: nothing is deleted, and a pod as it was before can have it.
        _say_lost(actor, error)
        raise
    finally:
        _coming.discard(name)


def _holds(actor: Actor, pod_uid: str, action: Action) -> bool:
    """Whether the answer is still true after all that was waited for."""
    record, member = actor.record, actor.record.member
    if actor.deleting or member is None or member.pod_uid != pod_uid:
        return False
    if action == Action.RESTORE:
        return record.phase == Phase.PARKED and not record.given_up
    return record.phase in (Phase.PENDING, Phase.BACKOFF)
