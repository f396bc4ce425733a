"""The instance's container: started, started again, rescued when its keeper died, ended.

A cold start is for an application that never ran, or ended by itself. Where a state exists the container is made anew
and restored into; the hook's `create` asks for the word, and gets it for exactly this pod and container.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from kybernate.errors import DeadlineError, ExternalError, KybernateError, RefusedError, StateLostError
from kybernate.store import Staging
from kybernate.store.archive import entries
from kybernate_agent import clock, orphan, portable, processes, wake
from kybernate_agent.instance import Condition, Phase, Verb
from kybernate_agent.keepers import KeeperState
from kybernate_agent.sleep import Parking, dump, needed_bytes, retire
from kybernate_agent.stage import Stage

if TYPE_CHECKING:
    from kybernate_agent.actor import Actor

COPY_SECONDS = 100.0  # the kubelet gives CreateContainer two minutes
START_BACK_OFF_SECONDS = (1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0)


async def start(actor: Actor, stage: Stage) -> None:
    """Start the pod, or its container again where the sandbox still stands."""
    record, starter = actor.record, actor.services.starter
    actor.leave_container()  # of the one before
    if not record.pod.uid:
        record.pod.uid = str(uuid.uuid4())
    stage.step("pod", uid=record.pod.uid)
    await actor.close_traffic()  # what a dead agent or an earlier sleep left; the pod may get another namespace
    actor.services.journal.save(record)
    if record.phase == Phase.SUSPENDED:
        record.event("Warning", "StateLost", "it ended while it was suspended; it begins anew", clock.now())
    actor.expects = "start"
    try:
        if record.pod.sandbox and await starter.stands(record.pod):
            record.pod.attempt += 1
            pod = await starter.again(record)
        else:
            pod = await starter.start(record)
    finally:
        actor.expects = ""
    record.pod = pod
    stage.step("adopt", container=pod.container)
    await actor.adopt()
    await actor.traffic.release()
    record.unproven = 0
    record.enter(Phase.RUNNING, clock.now())
    record.last_activity = record.since
    record.clear_condition("StartFailed")
    await retire(actor)


def end_of(state: KeeperState | None, lived: float) -> str | None:
    """What to tell of a container whose keeper ended; None where that died alone, its application living or parked."""
    if state and (state.state == "parked" or processes.is_alive(state.init_pid, state.init_start)):
        return None
    how = " ".join(f"{kind} {number}" for kind, number in state.exit.items()) if state else ""
    return f"its container ended after {lived:.0f} s with {how or 'an unknown status'}"


def start_failed(actor: Actor, error: KybernateError) -> None:
    failures = actor.failed(Verb.START)
    seconds = START_BACK_OFF_SECONDS[min(failures, len(START_BACK_OFF_SECONDS) - 1)]
    actor.say(
        Condition(type="StartFailed", status="True", reason=type(error).__name__, message=str(error), at=clock.now())
    )
    actor.back_off(Verb.START, seconds)


async def rescue(actor: Actor, stage: Stage) -> None:
    """The keeper died. What lives is frozen, dumped and ended; then a container is made anew for the images.

    Ends parked. Where the processes were awake the actor is asked to wake them again at once.
    """
    record = actor.record
    state = actor.last_keeper
    was_awake = record.phase == Phase.RUNNING
    if state is not None:
        await orphan.settle(state, actor.work)
    if state is not None and processes.is_alive(state.init_pid, state.init_start):
        await _dump_orphan(actor, stage, state)
    elif record.phase == Phase.RUNNING and record.unproven:
        record.epoch, record.unproven = record.unproven, 0
    record.enter(Phase.PARKED, clock.now())
    if was_awake:
        actor.wake_wanted = actor.wake_wanted or "its keeper died while it was awake"
    if actor.services.starter.kubelet:
        actor.rescued.set()  # nothing lives any more, whatever the images are: containerd may clean up
        if not await asyncio.to_thread(_has_images, actor):
            raise StateLostError(f"{record.id}: its keeper died, and no verified images of epoch {record.epoch} exist")
        record.wakes = actor.wake_wanted or record.wakes
        return
    stage.step("recreate", epoch=record.epoch, awake=was_awake)
    if not await asyncio.to_thread(_has_images, actor):
        raise StateLostError(f"{record.id}: its keeper died, and no verified images of epoch {record.epoch} exist")
    actor.expects = "restore"
    actor.rescued.set()
    starter = actor.services.starter
    try:
        stands = await starter.stands(record.pod)
        if not stands:
            await actor.close_traffic()  # the machine started anew: network and sandbox are gone, the files are there
            await asyncio.to_thread(_refuse_without_layer, actor)
        record.pod.attempt += 1
        record.pod = await (starter.again(record) if stands else starter.renew(record))
    finally:
        actor.expects = ""
    await actor.adopt()
    await actor.traffic.hold(record.pod.held_ports)
    record.clear_condition("Degraded")


def _has_images(actor: Actor) -> bool:
    return any(m.epoch == actor.record.epoch for m in actor.services.store.manifests(actor.record.id))


def _refuse_without_layer(actor: Actor) -> None:
    record, store = actor.record, actor.services.store
    images = store.images(wake.verified(actor))
    if not portable.holds_layer(images) and record.pod.upper and not Path(record.pod.upper).is_dir():
        raise StateLostError(f"{record.id}: its pod is gone, and so is the writable layer of its container")


async def _dump_orphan(actor: Actor, stage: Stage, state: KeeperState) -> None:
    record, store = actor.record, actor.services.store
    stage.step("freeze")
    await asyncio.to_thread(orphan.freeze, state.cgroups)
    pids = processes.pids_of(state.cgroups)
    record.pod.held_ports = sorted({*record.pod.held_ports, *await actor.own_ports(pids)})
    await actor.traffic.hold(record.pod.held_ports)
    epoch = record.epoch + 1
    facts = await portable.facts_of(Path(state.bundle))
    staging = await asyncio.to_thread(store.stage, record.id, epoch, await needed_bytes(actor, facts, pids))
    # An epoch is used once, also when its dump comes to nothing.
    record.epoch = epoch
    parking = actor.parking = Parking(actor, stage, staging, state, facts)
    stage.step("dump", epoch=epoch)
    try:
        runner = orphan.Dump(state, actor.services.config, actor.record.pod.container)
        await dump(actor, parking, runner.run)
    except BaseException as error:
        if not await asyncio.shield(parking.went_through()):
            transient = isinstance(error, KybernateError) and bool(error.fields.get("transient"))
            await asyncio.shield(_let_go(actor, state, staging, transient))
            raise
        with contextlib.suppress(DeadlineError):  # what a CRIU left that was killed after our yes
            await asyncio.shield(orphan.end(state, actor.work))
    finally:
        actor.parking = None
    record.unproven = 0
    await retire(actor, keep=epoch)


async def _let_go(actor: Actor, state: KeeperState, staging: Staging, transient: bool) -> None:
    """The dump came to nothing. What ran runs on; so does what has to run to get over what CRIU refused it for."""
    with contextlib.suppress(KybernateError):
        await asyncio.to_thread(actor.services.store.discard, staging)
    await retire(actor, only=staging.epoch)
    if actor.record.phase == Phase.RUNNING or transient:
        await asyncio.to_thread(orphan.thaw, state.cgroups)
        await actor.traffic.release()
    else:
        await actor.traffic.watch(actor.record.pod.held_ports)


async def prepare_create(actor: Actor, bundle: Path) -> dict[str, str]:
    """The hook's question at `create`: begin anew, or restore? Then its files come first.

    Raises RefusedError where this agent has not just asked for the container: a `create` on behalf of an agent that was
    killed meanwhile would be a second copy, or a cold start in place of a restore.
    """
    if not actor.expects:
        raise RefusedError(f"{actor.record.id}: no start of it is under way")
    if actor.expects == "start":
        return {"action": "start"}
    await carry_layer(actor, bundle)
    return {"action": "restore"}


async def carry_layer(actor: Actor, bundle: Path) -> None:
    """Put the state's files into the container of `bundle`: what lies with the images, and the writable layer of the
    container before where it does not. Raises as `portable.restore` and `copy_layer`; StateLostError."""
    manifest = await asyncio.to_thread(wake.verified, actor)
    new = await portable.facts_of(bundle, actor.services.config.containerd_socket)
    filled = await portable.restore(actor.services.store.images(manifest), new)
    old = actor.record.pod.upper
    if not filled and old and new.upper and old != new.upper:
        await copy_layer(Path(old), Path(new.upper))


async def copy_layer(old: Path, new: Path) -> None:
    """Copy an overlay's upper folder into another that no process uses yet: whiteouts, owners, times and extended
    attributes included (`cp --archive`; trusted.overlay.* needs CAP_SYS_ADMIN). Raises ExternalError, DeadlineError,
    StateLostError where it is gone, or goes meanwhile."""
    if not old.is_dir():
        raise StateLostError(f"the writable layer {old} of the old container is gone")
    until = time.monotonic() + COPY_SECONDS
    before = await asyncio.to_thread(entries, old, until)
    copy = await asyncio.create_subprocess_exec(
        "cp", "--archive", "--reflink=auto", "--no-target-directory", "--", os.fspath(old), os.fspath(new),
        stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(COPY_SECONDS):
            _, stderr = await copy.communicate()
    except BaseException as error:
        copy.kill()
        await copy.wait()
        if isinstance(error, TimeoutError):
            raise DeadlineError(f"copying the writable layer {old} took longer than {COPY_SECONDS:g} s") from error
        raise
    if copy.returncode:
        raise ExternalError(f"copying the writable layer {old} failed: {stderr.decode(errors='replace').strip()}")
    if await asyncio.to_thread(entries, old, until) != before:
        raise StateLostError(f"the writable layer {old} of the old container was being removed while it was copied")


async def end(actor: Actor, stage: Stage) -> None:
    """End the instance for good: processes, pod, rules, images, journal rows."""
    record, services = actor.record, actor.services
    stage.step("stop")
    await actor.end_sleeper()
    actor.forget_keeper()
    if actor.last_keeper is not None:
        await orphan.end(actor.last_keeper, actor.work)
    actor.rescued.set()
    await services.starter.remove(record.pod)
    stage.step("clean")
    if actor.has_traffic:
        await actor.close_traffic()
    await asyncio.to_thread(services.store.forget, record.id)
    await asyncio.to_thread(actor.remove_work)
    record.enter(Phase.ENDED, clock.now())
