"""Going down: suspend (running -> RAM) and park (RAM -> NVME).

The order of things is what makes them safe. The traffic rule stands before the freeze, and one last look after it finds
what came in between. The dump is committed inside CRIU's post-dump step, so the processes end only when the images are
proven; anything else makes CRIU undo the dump, and the instance stays as it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from kybernate import criu
from kybernate.criu import skeleton
from kybernate.errors import ExternalError, KybernateError, RefusedError
from kybernate.store import Staging
from kybernate_agent import clock, portable, probed, processes
from kybernate_agent.instance import Condition, Phase, Verb
from kybernate_agent.keepers import Keeper, KeeperError, KeeperState, ended, stands
from kybernate_agent.look import moved_since_decision
from kybernate_agent.stage import AbortedError, Stage
from kybernate_agent.thaw import thaw

if TYPE_CHECKING:
    from kybernate_agent.actor import Actor

log = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
RETRY_MOST_SECONDS = 300.0
ABORTED_MOST_SECONDS = 30.0
ACCEPT_LOOKS = 200
END_SECONDS = 10.0  # in which CRIU ends the processes after our yes


Dump = Callable[[Path, Path, str, float], Awaitable[Any]]


class DumpFailedError(ExternalError):
    """{instance}: {cause}. {remedy}"""


class EndedMeanwhileError(RefusedError):
    """Container {container} ended while its files were saved. What was saved is not used: it may lack what was removed
    with the container."""


async def suspend(actor: Actor, stage: Stage, ordered: bool) -> None:
    """Freeze the container in place. Raises AbortedError where work turned out to be going on, ThawFailedError where
    it then could not be let go on."""
    keeper, traffic, record = actor.keeper, actor.traffic, actor.record
    state = await keeper.state()
    if state.state != "running" or state.paused:
        raise AbortedError(f"{record.id}: its container is {'paused' if state.paused else state.state}")
    await probed.no_command(actor, state, ordered)
    # What the decision knew of has waited for long enough, and nobody may ever read it.
    known = record.pod.unread = actor.activity.unread if actor.activity else {}
    pids = processes.pids_of(state.cgroups)
    record.pod.held_ports = await actor.own_ports(pids)
    stage.step("hold", ports=record.pod.held_ports)
    keeps_out = record.leaving is not None or actor.policy.down
    await (traffic.hold if keeps_out else traffic.watch)(record.pod.held_ports)
    frozen = False
    try:
        if keeps_out:
            await _let_it_accept(actor)
        await traffic.let_probes_end()
        if not ordered and (traffic.has_unread(known) or actor.wake_wanted):
            raise AbortedError(f"{record.id}: a call came in")
        stage.step("freeze")
        frozen = True
        await keeper.freeze()
        # What came before the rule is no event: unread, it lies in a socket; read, its connection has moved.
        if not ordered and (traffic.has_unread(known) or moved_since_decision(actor)):
            raise AbortedError(f"{record.id}: a call came in")
    except BaseException:
        if frozen:
            await asyncio.shield(thaw(actor))  # where it fails the rule stays: it sleeps, and calls wake it
        await asyncio.shield(traffic.release())
        raise
    record.enter(Phase.SUSPENDED, clock.now())


def suspend_aborted(actor: Actor, told: bool) -> None:
    """When it is tried again: what was going on may go on for long, so later each time; for who was `told`, soon."""
    failures = actor.failed(Verb.SUSPEND)
    growing = min(ABORTED_MOST_SECONDS, RETRY_SECONDS * 2 ** min(failures, 10))
    actor.back_off(Verb.SUSPEND, RETRY_SECONDS if told else growing)


async def _let_it_accept(actor: Actor) -> None:
    """Nobody new comes in; who has connected is accepted first, for CRIU does not take one that waits."""
    for _ in range(ACCEPT_LOOKS):
        if not actor.traffic.has_unread():
            break
        await asyncio.sleep(0.005)  # the kernel has no event for it
    if actor.record.leaving:
        actor.record.leaving = msgspec.structs.replace(actor.record.leaving, again=False)


class Parking:
    """One park under way; the post-dump script finds it by its images and commits through it."""

    def __init__(self, actor: Actor, stage: Stage, staging: Staging, state: KeeperState, facts: portable.Facts) -> None:
        self.actor = actor
        self.facts = facts
        self.stage = stage
        self.staging = staging
        self.state = state
        self.init_pid = state.init_pid
        self.init_start = state.init_start
        self.empty_tmpfs: list[str] = []
        self.skeletons: list[skeleton.Skeleton] = []
        self.committed = False
        self._closed = False
        self._deciding = asyncio.Lock()

    async def conf(self) -> str:
        """CRIU's options for this dump; to be asked when nothing in the container runs."""
        self.empty_tmpfs = await asyncio.to_thread(criu.empty_tmpfs, self.init_pid)
        self.skeletons = await asyncio.to_thread(skeleton.skeletons, self.init_pid)
        external = {one.mountpoint: one.key for one in self.skeletons}
        return criu.dump_conf(empty_tmpfs=self.empty_tmpfs, external=external)

    async def commit(self) -> None:
        """Called while the processes are dumped and still there. Raises to veto.

        Not to be cut off half way: whoever gave the park up meanwhile waits in `went_through` until this is decided.
        """
        await asyncio.shield(asyncio.ensure_future(self._commit()))

    async def _commit(self) -> None:
        async with self._deciding:
            if self._closed:
                raise RefusedError(f"{self.actor.record.id}: this park was given up")
            await self._publish()

    async def _publish(self) -> None:
        actor = self.actor
        self.stage.step("commit", epoch=self.staging.epoch)
        await self.stage.synced()
        if not await asyncio.to_thread(self._as_it_was):
            raise RefusedError(f"{actor.record.id}: a tmpfs that is not dumped has changed since the dump began")
        await asyncio.to_thread(skeleton.save, self.staging.images, self.skeletons)
        await asyncio.to_thread(criu.drop_empty_tmpfs, self.staging.images)
        await save(actor, self.staging.images, self.facts, self.state, whole=goes_elsewhere(actor))
        manifest = await asyncio.to_thread(actor.services.store.commit, self.staging, _made(actor))
        actor.record.stored_bytes = manifest.size_bytes
        self.committed = True
        self.stage.step("end-processes", epoch=self.staging.epoch)

    def _as_it_was(self) -> bool:
        same = criu.still_empty(self.init_pid, self.empty_tmpfs)
        return same and skeleton.unchanged(self.init_pid, self.skeletons)

    async def went_through(self) -> bool:
        """After an error: whether the processes ended all the same. They do once CRIU has our yes, whatever becomes of
        the keeper, of runc or of us; to take the images away then would be to lose the state. So those that are not
        gone in time, because a file system of theirs hangs, count as gone: the keeper restores none before they are."""
        async with self._deciding:
            self._closed = True
        if not self.committed:
            return False
        record = self.actor.record
        mark = Keeper(self.actor.services.config.run, record.pod.container)
        with contextlib.suppress(KybernateError):
            state = (await self.actor.keeper.state()).state
            if state != "dumping":
                return state == "parked" or mark.committed
        try:
            gone = await ended(self.init_pid, self.init_start, END_SECONDS)
        except KybernateError:
            if not mark.committed:
                raise
            gone = False
        if gone or not mark.committed:
            return gone
        message = f"its images are complete, but process {self.init_pid} does not end; it wakes when that has ended"
        record.event("Warning", "ProcessStays", message, clock.now())
        log.warning("%s: %s", record.id, message)
        return True


async def save(actor: Actor, images: Path, facts: portable.Facts, state: KeeperState, *, whole: bool) -> None:
    """`portable.save` of a container that is there until the end of it. Raises as that, EndedMeanwhileError.

    Once it has ended (the grace of its pod runs out) containerd removes its layer and the kubelet its pod's volumes,
    what is in a folder before the folder. From within that looks as if a neighbour cleared up, so it is no error of a
    volume that others share; but all of it comes after the end, and what stands afterwards has not ended before.
    """
    await portable.save(images, facts, whole=whole)
    if not stands(actor.services.config.run, state):
        raise EndedMeanwhileError(container=state.container)


def goes_elsewhere(actor: Actor) -> bool:
    """Its pod goes, so what another one needs is saved along with the images."""
    return actor.record.leaving is not None


async def needed_bytes(actor: Actor, facts: portable.Facts, pids: list[int]) -> int:
    """The room that a dump of these processes takes at most. Raises ArchiveFailedError, DeadlineError."""
    return processes.resident_bytes(pids) + await portable.needed_bytes(facts, goes_elsewhere(actor))


def _made(actor: Actor) -> dict[str, Any]:
    """How and of what the images were made: what a restore elsewhere must match."""
    record, services = actor.record, actor.services
    return {
        "criu": services.criu_version,
        "runc": services.runc_version,
        "kernel": Path("/proc/sys/kernel/osrelease").read_text().strip(),
        "created_at": time.time(),
        "workload": record.workload,
        "container": record.pod.container,
        "pod_uid": record.pod.uid,
        "image": actor.wanted.image,
        "ports": record.pod.held_ports,
    }


async def park(actor: Actor, stage: Stage) -> None:
    """Dump the frozen container into the store and let its processes end. A failure leaves it frozen in RAM."""
    record, services = actor.record, actor.services
    state = await actor.keeper.state()
    if state.state == "running":
        raise AbortedError(f"{record.id}: it is awake")
    pids = processes.pids_of(state.cgroups)
    await asyncio.to_thread(refuse_unsuitable, actor, state, pids)
    epoch = record.epoch + 1
    if services.park_refusal:
        raise RefusedError(f"{record.id}: {services.park_refusal}")
    stage.step("stage", epoch=epoch)
    socket = services.config.containerd_socket if goes_elsewhere(actor) else ""
    facts = await portable.facts_of(Path(state.bundle), socket)
    needed = await needed_bytes(actor, facts, pids)
    # An epoch is used once, also when its dump comes to nothing.
    record.epoch = epoch
    staging = await asyncio.to_thread(services.store.stage, record.id, epoch, needed)
    parking = actor.parking = Parking(actor, stage, staging, state, facts)
    try:
        stage.step("hold", epoch=epoch)
        await actor.traffic.hold(record.pod.held_ports)
        stage.step("dump", epoch=epoch)
        await dump(actor, parking, actor.keeper.dump)
    except BaseException:
        if not await asyncio.shield(parking.went_through()):
            await asyncio.shield(_undo(actor, staging))
            raise
    finally:
        actor.parking = None
    record.clear_condition("NotParkable")
    record.unproven = 0
    record.enter(Phase.PARKED, clock.now())
    await retire(actor, keep=epoch)


def refuse_unsuitable(actor: Actor, state: KeeperState, pids: list[int]) -> None:
    """Raises the leaf of criu.UnsuitableError that says why CRIU could not bring these processes back."""
    services = actor.services
    criu.refuse_unsuitable(
        actor.record.id,
        pids,
        init=state.init_pid,
        destinations=mount_points(Path(state.bundle)),
        sys_resource=services.sys_resource,
        allow_other_users=services.config.criu.assume_sys_resource,
    )


def mount_points(bundle: Path) -> list[str]:
    """Where the container's config.json mounts something. Raises OSError, msgspec.MsgspecError."""
    config = msgspec.json.decode((bundle / "config.json").read_bytes(), type=dict[str, Any])
    return [str(mount["destination"]) for mount in config.get("mounts", [])]


async def dump(actor: Actor, parking: Parking, run: Dump) -> None:
    """Have `run` dump into the staging. Raises DumpFailedError with the cause out of CRIU's log, DeadlineError."""
    work = actor.work_folder("dump")
    conf = await parking.conf()
    try:
        await run(parking.staging.images, work, conf, actor.services.config.criu.dump_deadline_seconds)
    except KeeperError as error:
        cause = await asyncio.to_thread(criu.explain, work / "dump.log", said(error))
        raise DumpFailedError(
            instance=actor.record.id,
            cause=cause.message,
            remedy=cause.remedy,
            code=cause.code,
            transient=cause.transient,
        ) from error
    if not parking.committed:
        raise ExternalError(f"{actor.record.id}: the dump ended without a commit")


def said(error: KeeperError) -> str:
    """What runc and the keeper said of a dump or a restore, runc's last words first."""
    reply: dict[str, Any] = error.fields.get("reply") or {}
    return f"{reply.get('stderr') or ''}\n{error}"


async def _undo(actor: Actor, staging: Staging) -> None:
    """The processes live on, frozen: nothing of the dump may stay, and calls wake it as before."""
    store = actor.services.store
    with contextlib.suppress(KybernateError):
        await asyncio.to_thread(store.discard, staging)
    await retire(actor, only=staging.epoch)
    await actor.traffic.watch(actor.record.pod.held_ports)


async def retire(actor: Actor, *, keep: int = 0, only: int = 0) -> None:
    """Delete images of the instance: all but those of epoch `keep`, or `only` those of one epoch."""
    store, record = actor.services.store, actor.record
    for manifest in await asyncio.to_thread(store.manifests, record.id):
        if manifest.epoch == only if only else manifest.epoch != keep:
            await asyncio.to_thread(store.retire, manifest)


def park_refused(actor: Actor, error: KybernateError) -> None:
    """Say why it stays in RAM, and when it is tried again."""
    code = str(error.fields.get("code") or type(error).__name__.removesuffix("Error"))
    transient = bool(error.fields.get("transient"))
    actor.say(Condition(type="NotParkable", status="True", reason=code, message=str(error), at=clock.now()))
    failures = actor.failed(Verb.PARK)
    seconds = RETRY_SECONDS if transient else min(RETRY_MOST_SECONDS, 10.0 * 2 ** min(failures, 10))
    actor.back_off(Verb.PARK, RETRY_MOST_SECONDS if isinstance(error, RefusedError) else seconds)
