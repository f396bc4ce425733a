"""A lasting copy of an instance, which goes on as it was: awake it stands still for the dump, asleep it is not woken.

    awake      calls are held; frozen; dumped with all that another pod needs; CRIU is told no, so that it undoes the
               dump; thawed; calls pass
    suspended  the same without the freeze and the thaw
    parked     its verified images are linked, its layer and volumes are saved beside them: they stand still

What comes of it is a staging in the store, under a name of its own. Whoever asked commits it; the instance goes on
meanwhile, for nothing depends on the copy. A failure leaves the instance as it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from kybernate import criu
from kybernate.criu import skeleton
from kybernate.errors import KybernateError, RefusedError
from kybernate.store import Staging
from kybernate_agent import clock, portable, probed, processes, sleep, wake
from kybernate_agent.instance import Phase
from kybernate_agent.sleep import DumpFailedError, Parking, refuse_unsuitable
from kybernate_agent.stage import Stage
from kybernate_agent.thaw import thaw
from kybernate_agent.traffic.pod import Mode
from kybernate_agent.whole import link

if TYPE_CHECKING:
    from kybernate_agent.actor import Actor

EPOCH = 1
ACCEPT_LOOKS = 40  # of 5 ms: who has connected is accepted first, for CRIU does not take one that waits


class ChangedMeanwhileError(RefusedError):
    """{instance}: a tmpfs that is not dumped has changed since the dump began."""


class CopiedError(RefusedError):
    """{instance}: the copy is complete, so the processes stay."""


class GivenUpError(RefusedError):
    """{instance}: its copy was given up: {why}."""


@dataclass(eq=False)
class Copy:
    """One copy that is wanted. `staging` is what comes of it, or the error of why nothing does."""

    name: str
    """Of the copy in the store."""
    leave_running: bool
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    staging: asyncio.Future[Staging] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    facts: portable.Facts | None = None
    was: Phase = Phase.PENDING
    frozen_seconds: float = 0.0

    def fail(self, error: BaseException) -> None:
        if not self.staging.done():
            self.staging.set_exception(error)
            self.staging.exception()  # seen: the one who asked may be gone


async def take_copy(actor: Actor, stage: Stage) -> None:
    """The verb. Raises AbortedError, UnsuitableErrors, DumpFailedError, the errors of portable and store."""
    copy = actor.copies.pop(0)
    copy.was = actor.record.phase
    copy.begun.set()
    try:
        if copy.was == Phase.PARKED:
            staging = await _of_parked(actor, stage, copy)
        else:
            staging = await _of_living(actor, stage, copy)
    except KybernateError as error:
        copy.fail(error)
        raise
    except BaseException as error:
        copy.fail(GivenUpError(instance=actor.record.id, why=str(error) or type(error).__name__))
        raise
    if copy.staging.done():
        await asyncio.to_thread(actor.services.store.discard, staging)
    else:
        copy.staging.set_result(staging)


async def _of_parked(actor: Actor, stage: Stage, copy: Copy) -> Staging:
    store = actor.services.store
    stage.step("link")
    manifest = await asyncio.to_thread(wake.verified, actor)
    images = store.images(manifest)
    saved = portable.load(images)
    whole = saved is not None and saved.whole
    state = await actor.keeper.state()
    copy.facts = facts = await portable.facts_of(Path(state.bundle))
    needed = 0 if whole else await portable.needed_bytes(facts, True)
    staging = await asyncio.to_thread(store.stage, copy.name, EPOCH, needed)
    try:
        await asyncio.to_thread(link, manifest, images, staging.images, portable_too=whole)
        if not whole:
            await sleep.save(actor, staging.images, facts, state, whole=True)
    except BaseException:
        await asyncio.shield(asyncio.to_thread(store.discard, staging))
        raise
    return staging


async def _of_living(actor: Actor, stage: Stage, copy: Copy) -> Staging:
    record, services = actor.record, actor.services
    if services.park_refusal:
        raise RefusedError(f"{record.id}: {services.park_refusal}")
    state = await actor.keeper.state()
    pids = processes.pids_of(state.cgroups)
    await probed.no_command(actor, state, ordered=True)
    await asyncio.to_thread(refuse_unsuitable, actor, state, pids)
    copy.facts = await portable.facts_of(Path(state.bundle))
    needed = processes.resident_bytes(pids) + await portable.needed_bytes(copy.facts, True)
    stage.step("stage")
    staging = await asyncio.to_thread(services.store.stage, copy.name, EPOCH, needed)
    copying = actor.parking = Copying(actor, stage, staging, state, copy.facts)
    try:
        async with StandingStill(actor, stage, copy, pids):
            await _dumped(actor, stage, copying)
    except BaseException:
        await asyncio.shield(copying.went_through())  # what the script of a dump still does to it ends first
        await asyncio.shield(asyncio.to_thread(services.store.discard, staging))
        raise
    finally:
        actor.parking = None
    return staging


async def _dumped(actor: Actor, stage: Stage, copying: Copying) -> None:
    stage.step("dump")
    try:
        await sleep.dump(actor, copying, actor.keeper.dump)
    except DumpFailedError:
        if not copying.saved:
            raise


class StandingStill:
    """In the block calls are held and nothing runs; then it is as before or, where that is wanted, it stays frozen."""

    def __init__(self, actor: Actor, stage: Stage, copy: Copy, pids: list[int]) -> None:
        self.actor, self.stage, self.copy, self.pids = actor, stage, copy, pids
        self.mode = actor.traffic.mode
        self.frozen_at = 0.0

    async def __aenter__(self) -> None:
        actor, traffic = self.actor, self.actor.traffic
        try:
            if self.copy.was == Phase.RUNNING:
                actor.record.pod.held_ports = await actor.own_ports(self.pids)
            self.stage.step("hold")
            await traffic.hold(actor.record.pod.held_ports)
            if self.copy.was == Phase.RUNNING:
                await traffic.let_probes_end()
                await self._accepted()
                self.stage.step("freeze")
                self.frozen_at = time.monotonic()
                await actor.keeper.freeze()
        except BaseException:
            await asyncio.shield(self._back())
            raise

    async def _accepted(self) -> None:
        for _ in range(ACCEPT_LOOKS):
            if not self.actor.traffic.has_unread():
                return
            await asyncio.sleep(0.005)  # the kernel has no event for it

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and self.frozen_at and not self.copy.leave_running:
            await asyncio.shield(self._stay())
        else:
            await asyncio.shield(self._back())

    async def _stay(self) -> None:
        record = self.actor.record
        await self.actor.traffic.watch(record.pod.held_ports)
        record.enter(Phase.SUSPENDED, clock.now())
        self.copy.frozen_seconds = time.monotonic() - self.frozen_at

    async def _back(self) -> None:
        actor, traffic = self.actor, self.actor.traffic
        with contextlib.suppress(KybernateError):
            self.stage.step("undo")
        try:
            if self.frozen_at:
                await thaw(actor)
                self.copy.frozen_seconds = time.monotonic() - self.frozen_at
        finally:
            if actor.record.phase == Phase.RUNNING:
                await traffic.release()
            elif self.mode is not Mode.HOLDING:
                await traffic.watch(actor.record.pod.held_ports)


class Copying(Parking):
    """A dump that is complete and then undone: the answer to CRIU's question is always no."""

    saved = False

    async def _publish(self) -> None:
        name = self.actor.record.id
        if not await asyncio.to_thread(self._as_it_was):
            raise ChangedMeanwhileError(instance=name)
        await asyncio.to_thread(skeleton.save, self.staging.images, self.skeletons)
        await asyncio.to_thread(criu.drop_empty_tmpfs, self.staging.images)
        await sleep.save(self.actor, self.staging.images, self.facts, self.state, whole=True)
        self.saved = True
        raise CopiedError(instance=name)
