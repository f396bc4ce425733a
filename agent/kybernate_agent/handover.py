"""Where the kubelet starts the containers: one is taken over, one goes and its state stays, one is over.

A container that the kubelet made is *offered* once containerd has started it. What it is for was decided at the hook's
`create` and stands in its keeper: it runs (a beginning), or awaits its restore. So an offer needs no memory of ours:
an agent that was killed in between finds the same in the keeper's folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

import msgspec

from kybernate.errors import DeadlineError, KybernateError, RefusedError
from kybernate_agent import clock, orphan
from kybernate_agent.instance import Phase, Pod, Verb
from kybernate_agent.keepers import Keeper, KeeperGoneError, KeeperState, ended
from kybernate_agent.sleep import retire
from kybernate_agent.stage import Stage
from kybernate_agent.whole import make_whole, outside

if TYPE_CHECKING:
    from kybernate_agent.actor import Actor

TERM_SECONDS = 10.0
"""How long an awake application has to end after SIGTERM when its GpuInstance was deleted and its pod was not."""
END_SECONDS = 5.0
POD_SECONDS = 3.0
"""So long the word that the pod is deleted, too, may be behind the one about its GpuInstance."""

log = logging.getLogger(__name__)


async def adopt(actor: Actor, stage: Stage) -> None:
    """Take over the offered container: it runs, or waits for the restore of what is parked."""
    record, offer = actor.record, actor.offer
    if offer is None:
        raise RefusedError(f"{record.id}: no container is there to be taken over")
    before = record.pod
    stage.step("adopt", container=offer.container)
    if before.netns != offer.netns:
        await actor.close_traffic()
    held = before.held_ports if before.netns == offer.netns else []
    record.pod = Pod(
        uid=offer.uid, sandbox=offer.sandbox, container=offer.container, netns=offer.netns, ip=offer.ip,
        upper=before.upper, held_ports=held, attempt=before.attempt + 1,
    )  # fmt: skip
    if before.container != offer.container:  # at once: from here on it is this one that may be told to end
        actor.pod_goes.clear()
        actor.told_to_end = False
        record.leaving, record.given_up = None, ""
    actor.forget_keeper()
    try:
        await actor.adopt()
    except KeeperGoneError:
        actor.offer = None  # it has ended already; another one comes
        raise
    await _take_as_it_is(actor)  # where it fails the container is still offered, and is taken over again
    if actor.offer is offer:
        actor.offer = None
    record.clear_condition("Degraded")


async def _take_as_it_is(actor: Actor) -> None:
    """The keeper says what the container is. One that begins has no images; those that are there are older."""
    record, state = actor.record, actor.last_keeper.state if actor.last_keeper else ""
    if state in ("awaiting-restore", "parked"):
        await actor.traffic.hold(record.pod.held_ports)
        record.enter(Phase.PARKED, record.since)
        if record.wakes:
            actor.call(record.wakes)
    elif state == "frozen":
        await actor.traffic.watch(record.pod.held_ports)
        record.enter(Phase.SUSPENDED, record.since)
    elif state in ("created", "running"):
        await actor.traffic.release()
        begins = record.phase in (Phase.PENDING, Phase.BACKOFF)
        record.unproven, record.wakes = 0 if begins else record.unproven, ""
        record.enter(Phase.RUNNING, clock.now())
        record.last_activity = record.since
        record.clear_condition("StateLost")
        if begins:
            await retire(actor)
    else:
        raise RefusedError(f"{record.id}: its container is {state or 'unknown'}")


async def discard(actor: Actor, stage: Stage) -> None:
    """What the instance was is over, and no state of it stays. The kubelet's next container begins anew."""
    record = actor.record
    stage.step("discard")
    was = record.phase
    if actor.has_keeper:  # of a state that is lost: its container is there, and is to be made anew
        with contextlib.suppress(KeeperGoneError):
            await actor.keeper.kill()
    actor.forget_keeper()
    if actor.last_keeper is not None:
        await orphan.end(actor.last_keeper, actor.work)
    actor.leave_container()
    actor.orders.answer(RefusedError(f"{record.id}: its container ended"))
    await actor.close_traffic()
    if record.given_up:
        record.event("Warning", "StateGivenUp", record.given_up, clock.now())
    elif was == Phase.SUSPENDED:
        record.event("Warning", "StateLost", "it ended while it was suspended; it begins anew", clock.now())
    record.leaving, record.given_up, record.unproven, record.wakes = None, "", 0, ""
    record.stored_bytes = 0
    record.clear_condition("NotParkable")
    record.enter(Phase.PENDING, clock.now())
    await retire(actor)


def failed(actor: Actor, verb: Verb, error: KybernateError) -> None:
    """On the way out: whether it is tried once more."""
    leaving = actor.record.leaving
    if leaving is not None and verb in (Verb.SUSPEND, Verb.PARK, Verb.RESUME):
        again = verb == Verb.PARK and bool(error.fields.get("transient")) and clock.now() < leaving.until
        actor.record.leaving = msgspec.structs.replace(leaving, again=again, failed=not again)


async def leave(actor: Actor, stage: Stage) -> None:
    """End the container as by the signal that containerd sent; what is parked stays, what could not be parked is told
    by that signal."""
    record, leaving = actor.record, actor.record.leaving
    stage.step("leave")
    if leaving is not None and actor.has_keeper:
        if record.phase == Phase.PARKED:
            await _for_another_pod(actor)
        if record.phase == Phase.SUSPENDED:
            with contextlib.suppress(KybernateError):
                await actor.keeper.thaw()
            record.enter(Phase.RUNNING, clock.now())
        if record.phase != Phase.PARKED:
            record.event("Warning", "StateGivenUp", "its pod goes, and it could not be parked", clock.now())
            with contextlib.suppress(KybernateError):  # whatever its network says, it has to hear that it is to end
                await actor.traffic.release()
        actor.told_to_end = True
        with contextlib.suppress(KybernateError):
            await actor.keeper.kill(leaving.signal)
    record.leaving = None
    if record.phase == Phase.PARKED:
        if await outside(actor) is None:
            actor.over.set()
        actor.forget_keeper()
        await actor.close_traffic()


async def _for_another_pod(actor: Actor) -> None:
    """What was parked in place may have to come back elsewhere. If that fails it can in the same pod only."""
    try:
        await make_whole(actor)
    except (KybernateError, OSError) as error:
        actor.record.event("Warning", "NotPortable", str(error), clock.now())


async def finish(actor: Actor, stage: Stage) -> None:
    """End the instance for good: processes, rules, images. Its pod is the kubelet's."""
    record, services = actor.record, actor.services
    stage.step("stop")
    await actor.end_sleeper()
    await _end_containers(actor)
    actor.forget_keeper()
    if actor.last_keeper is not None:
        await orphan.end(actor.last_keeper, actor.work)
    actor.leave_container()
    stage.step("clean")
    await actor.close_traffic()
    await asyncio.to_thread(services.store.forget, record.id)
    await asyncio.to_thread(actor.remove_work)
    record.enter(Phase.ENDED, clock.now())


async def _end_containers(actor: Actor) -> None:
    """Those of its pod, taken over or not. Most often the kubelet ends the pod at the same time, with its preStop hook
    and its grace; else they are told by SIGTERM."""
    services, record = actor.services, actor.record
    for pod in await services.starter.find():
        keeper = Keeper(services.config.run, pod.container)
        state = keeper.last_state()
        if not record.pod.uid or pod.uid != record.pod.uid or state is None:
            continue
        if not await ended(state.keeper_pid, state.keeper_start, 0) and not await _pod_goes(actor):
            await _end(keeper, state, 15, TERM_SECONDS)
        elif not await ended(state.keeper_pid, state.keeper_start, actor.grace_seconds + END_SECONDS):
            log.warning("%s: its container outlives its pod's grace", record.id)
        await _end(keeper, state, 9, END_SECONDS)


async def _pod_goes(actor: Actor) -> bool:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(POD_SECONDS):
            await actor.pod_goes.wait()
    return actor.pod_goes.is_set()


async def _end(keeper: Keeper, state: KeeperState, signal: int, seconds: float) -> None:
    """Nothing where it has ended. Raises DeadlineError where it does not end by SIGKILL."""
    if await ended(state.keeper_pid, state.keeper_start, 0):
        return
    with contextlib.suppress(KybernateError):
        await keeper.kill(signal)
    if not await ended(state.keeper_pid, state.keeper_start, seconds) and signal == 9:
        raise DeadlineError(f"container {keeper.container} does not end")
