"""The node: every instance's actor, and what reaches them from outside.

Instances come from workloads; the journal says which exist already. At start the hook's socket opens first, so that a
dump left by a killed agent is vetoed at once and not at its deadline; then each instance is brought to a true state
(`recover.py`), and only then do workloads and people get a word.

None is kept asleep by another whose keeper is at a long dump or restore: as soon as it is in a true state it can wake
(EARLY). No more than that until all are: `sweep` takes every staging, also that of a park or a copy that has just
begun, and `_remove_strays` every pod that no record names, also one that a start has just made.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from pathlib import Path
from typing import Any

import msgspec

from kybernate.errors import DeadlineError, InvalidError, KybernateError, NotFoundError, RefusedError
from kybernate_agent import clock, network, orphan, probed, processes, sleep, wake, whole
from kybernate_agent.actor import Actor
from kybernate_agent.hookserver import HookServer
from kybernate_agent.instance import Condition, Phase, Pod, Record, Verb, Wanted
from kybernate_agent.keepers import Keeper, KeeperGoneError, KeeperState, ended
from kybernate_agent.probes import is_declared
from kybernate_agent.recover import LOST_IN_MEMORY, SETTLED, Evidence, recover
from kybernate_agent.services import Services
from kybernate_agent.source import Source
from kybernate_agent.traffic.netlink import NetnsGoneError

log = logging.getLogger(__name__)

EARLY = (Verb.RESUME, Verb.RESET)
SETTLE_SECONDS = 0.02
LATER_SECONDS = 1.0
FORWARD_SECONDS = 90.0  # beyond its deadline a keeper undoes a dump or a restore, or ends what a commit has left
EXEC_WAKE_SECONDS = 110.0  # less than the two minutes that the kubelet gives


class KeeperBusyError(DeadlineError):
    """the keeper of container {container} is {state} and does not come to an end; it is left alone until then."""


class Node:
    """All instances of this node. Used from the event loop only."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.actors: dict[str, Actor] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self.source: Source
        self._endings: set[asyncio.Task[None]] = set()
        self._hooks = HookServer(services.config.run, self._answer)
        self._ready = asyncio.Event()
        self._next = asyncio.Event()  # one more has been taken up
        self._later: set[asyncio.Task[None]] = set()
        criu = services.config.criu
        self._patience = max(criu.dump_deadline_seconds, criu.restore_deadline_seconds) + FORWARD_SECONDS

    # --- start and stop ---

    async def open(self) -> None:
        """Serve the hook, then bring every instance that the journal knows to a true state."""
        await self._hooks.open()
        records = self.services.journal.records()
        actors = [actor for record in records if (actor := self._known(record)) is not None]
        await asyncio.gather(*(self._take_up(actor) for actor in actors))
        await asyncio.to_thread(wake.clear_mounts, self.services.config.run, set(self.actors))
        removed = await asyncio.to_thread(self.services.store.sweep)
        if removed:
            log.info("removed what a killed agent left: %s", ", ".join(removed))
        await self._remove_strays([record.pod for record in records])
        self._ready.set()
        self._next.set()
        for actor in actors:
            if actor.may == EARLY:
                self._admit(actor, tuple(Verb))

    def _known(self, record: Record) -> Actor | None:
        """The actor of a journalled instance. One whose manifest this agent cannot read is left as it is, and said."""
        try:
            return Actor(self.services, record, self.source.wanted(record))
        except InvalidError as error:
            log.error("%s: left alone, its manifest is not understood: %s", record.id, error)
            return None

    async def _take_up(self, actor: Actor) -> None:
        recovered = await self._recover_or_say(actor, self._patience)
        actor.may = EARLY if recovered else (Verb.END,)
        if recovered:
            await asyncio.to_thread(wake.clear_mounts_of, self.services.config.run, actor.record.id)
        else:
            task = asyncio.create_task(self._take_up_later(actor))
            self._later.add(task)
            task.add_done_callback(self._later.discard)
        self._run(actor)

    async def _take_up_later(self, actor: Actor) -> None:
        """Look again until that works. Meanwhile it can be ended, but not while it is looked at."""
        failed = True
        while failed:
            self._admit(actor, (Verb.END,))
            await asyncio.sleep(LATER_SECONDS)
            if actor.deleting:
                return
            actor.may = ()
            failed = not await self._recover_or_say(actor, 0.0)
        actor.record.clear_condition("Degraded", "Recovery")
        self._admit(actor, tuple(Verb) if self.ready else EARLY)

    def _admit(self, actor: Actor, verbs: tuple[Verb, ...]) -> None:
        actor.may = verbs
        actor.poke()

    async def _recover_or_say(self, actor: Actor, patience: float) -> bool:
        """One instance that cannot be taken up must not keep the agent from the others. False where nothing may be done
        with it yet: its keeper is at work still after `patience` seconds, or nobody could say whether it has one, and
        it would be started a second time."""
        record = actor.record
        before = record.phase, record.since, record.epoch, record.unproven
        try:
            await self._recover(actor, patience)
        except (KybernateError, OSError) as error:
            message = f"it cannot be taken up after the agent's start: {error}"
            if all(message != condition.message for condition in record.conditions):
                log.error("%s: %s", record.id, message)
            actor.say(Condition(type="Degraded", status="True", reason="Recovery", message=message, at=clock.now()))
            if not actor.keeper_watched:
                record.phase, record.since, record.epoch, record.unproven = before
                return False
        return True

    @property
    def ready(self) -> bool:
        """Every instance of the journal is in a true state."""
        return self._ready.is_set()

    async def close(self) -> None:
        """Leave every instance as it is, for the next agent."""
        tasks = [*self._later, *self._tasks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._hooks.close()

    async def _remove_strays(self, known: list[Pod]) -> None:
        """Pods of ours that no record names: their start was cut short. The kubelet sees to its own."""
        starter = self.services.starter
        if starter.kubelet:
            return
        sandboxes, uids = {pod.sandbox for pod in known}, {pod.uid for pod in known}
        for pod in await starter.find():
            if pod.sandbox not in sandboxes:
                log.info("removing sandbox %s, whose start was cut short", pod.sandbox)
                try:
                    await (starter.drop(pod) if pod.uid in uids else starter.remove(pod))
                except KybernateError as error:
                    log.error("pod %s stays for now: %s", pod.sandbox, error)

    async def _recover(self, actor: Actor, patience: float) -> None:
        record, services = actor.record, self.services
        steps = services.journal.steps(record.id)
        if services.starter.kubelet:
            actor.offer = await self._offered(record, patience)
        elif steps and steps[-1].verb in (Verb.START, Verb.RESCUE):
            await self._take_newest(record, patience)
        keeper = await _settled(services.config.run, record.pod.container, patience)
        last = keeper or (
            Keeper(services.config.run, record.pod.container).last_state() if record.pod.container else None
        )
        actor.last_keeper = last
        at_end = bool(steps) and steps[-1].step == "end-processes"
        dying = at_end and keeper is None and last is not None and await self._had_our_yes(last, actor.work)
        manifests = await asyncio.to_thread(services.store.manifests, record.id)
        found = Evidence(
            phase=record.phase,
            epoch=record.epoch,
            unproven=record.unproven,
            verb=Verb(steps[-1].verb) if steps else None,
            step=steps[-1].step if steps else "",
            keeper=keeper.state if keeper else None,
            processes_alive=last is not None and not dying and processes.is_alive(last.init_pid, last.init_start),
            epochs=tuple(m.epoch for m in manifests),
            kubelet=services.starter.kubelet,
            lived=last is not None and last.lived >= services.config.prove_seconds,
        )
        verdict = recover(found)
        log.info("%s: found %s; goes on as %s. %s", record.id, found, verdict.phase.value, verdict.message)
        if verdict.phase != record.phase:
            record.enter(verdict.phase, clock.now())
        record.epoch, record.unproven = verdict.epoch, verdict.unproven
        for manifest in manifests:
            if manifest.epoch in verdict.retire:
                await asyncio.to_thread(services.store.retire, manifest)
        if verdict.message == LOST_IN_MEMORY:
            record.event("Warning", "StateLost", verdict.message, clock.now())
        if verdict.phase == Phase.LOST and found.phase != Phase.LOST:
            actor.say(
                Condition(type="StateLost", status="True", reason="NoImages", message=verdict.message, at=clock.now())
            )
        if keeper:
            await self._take_over(actor, verdict.phase, verdict.wake)
        elif record.pod.netns and verdict.phase in (Phase.RUNNING, Phase.SUSPENDED, Phase.PARKED):
            with contextlib.suppress(NetnsGoneError):  # the node has started anew; its pod gets another one
                await actor.open_traffic()
                await actor.traffic.hold(record.pod.held_ports)
        if actor.layer_outside and await whole.outside(actor) is None:
            actor.over.set()
        services.journal.settle(record)

    async def _had_our_yes(self, last: KeeperState, work: Path) -> bool:
        """Whether CRIU had it when all of us were killed: then the images are the state, and what still lives ends."""
        if not Keeper(self.services.config.run, last.container).committed:
            return False
        if not await ended(last.init_pid, last.init_start, sleep.END_SECONDS):
            with contextlib.suppress(DeadlineError):
                await orphan.end(last, work)
        return True

    async def _offered(self, record: Record, patience: float) -> Pod | None:
        """A container that the kubelet had started for the instance, and that nobody has taken over."""
        for pod in await self.services.starter.find():
            if pod.uid == record.pod.uid and pod.container != record.pod.container:
                keeper = await _settled(self.services.config.run, pod.container, patience)
                if keeper is not None and keeper.started:
                    return pod
        return None

    async def _take_newest(self, record: Record, patience: float) -> None:
        """A start or a rescue was cut short. The container that it made counts, if it came as far as being started."""
        for pod in await self.services.starter.find():
            if pod.uid == record.pod.uid and pod.container and pod.container != record.pod.container:
                keeper = await _settled(self.services.config.run, pod.container, patience)
                if keeper is not None and keeper.started:
                    kept = {"upper": record.pod.upper, "held_ports": record.pod.held_ports}
                    record.pod = msgspec.structs.replace(pod, **kept)

    async def _take_over(self, actor: Actor, phase: Phase, wake: bool) -> None:
        await actor.adopt_keeper()
        ran_at = actor.last_keeper.ran_at if actor.last_keeper else 0.0
        actor.prove_at = (clock.at(ran_at) if ran_at else clock.now()) + self.services.config.prove_seconds
        await network.see_to(actor)  # where it fails the actor tries again
        if wake or (phase == Phase.PARKED and actor.record.wakes):
            actor.call(actor.record.wakes or "it was being woken")

    def _run(self, actor: Actor) -> None:
        self.actors[actor.record.id] = actor
        task = asyncio.create_task(self._guard(actor), name=actor.record.id)
        self._tasks[actor.record.id] = task
        self._next.set()
        self._next = asyncio.Event()

    async def _guard(self, actor: Actor) -> None:
        """An actor that fails for a reason nobody foresaw is said and begun again; the others go on."""
        while not actor.finished.is_set():
            try:
                await actor.run()
            except Exception:
                log.exception("%s: the actor failed; it begins again from what is known", actor.record.id)
                await asyncio.sleep(1.0)
        name = actor.record.id
        self.actors.pop(name, None)
        self._tasks.pop(name, None)
        self.services.changed(name)
        self.source.gone(actor.record)

    # --- workloads ---

    def find(self, name: str) -> Actor:
        """By instance or workload name. Raises NotFoundError."""
        actor = self.actors.get(name) or self.actors.get(f"{name}-0") or self._by_member(name)
        if actor is None:
            raise NotFoundError(f"no workload or instance is called {name!r}; `kybernate get` lists them")
        return actor

    def _by_member(self, name: str) -> Actor | None:
        """In a cluster ids have their namespace before them; the name alone will do where it is one instance's."""
        found = [a for a in self.actors.values() if a.record.member and a.record.member.name in (name, f"{name}-0")]
        return found[0] if len(found) == 1 else None

    def add(self, record: Record, wanted: Wanted) -> Actor:
        """A new instance."""
        self.services.journal.settle(record)
        actor = Actor(self.services, record, wanted)
        self._run(actor)
        self.services.changed(record.id)
        return actor

    def end(self, actor: Actor) -> asyncio.Future[None]:
        """End an instance for good. The future is done when it has."""
        task = asyncio.create_task(actor.delete())
        self._endings.add(task)
        task.add_done_callback(self._endings.discard)
        return asyncio.shield(task)

    # --- the hook's questions ---

    async def _answer(self, verb: str, message: dict[str, Any]) -> dict[str, Any]:
        container = str(message.get("container", ""))
        if verb == "post-dump":
            # Not after _ready: a dump that no actor of this agent began is vetoed at once.
            await self._by_container(container).post_dump(str(message.get("images", "")))
            return {}
        async with asyncio.timeout(EXEC_WAKE_SECONDS):
            while not self._ready.is_set() and not self._only_wakes(verb, container):
                await self._next.wait()
        match verb:
            case "sandbox":
                await self._until_kept(str(message.get("pod_uid", "")))
                return {}
            case "create":
                return await self.source.create(message)
            case "started":
                await self.source.started(container)
                return {}
            case "terminate":
                until = float(message.get("until", math.inf))
                return {"action": await self._terminate(container, int(message.get("signal", 15)), until)}
            case "exec":
                return await self._exec(container, message)
            case "signal":
                await self._by_container(container).until_awake(f"signal {message.get('signal')}", EXEC_WAKE_SECONDS)
                return {}
            case "target":
                return await self._target(container)
            case "delete":
                await self._delete(container)
                return {}
        raise RefusedError(f"the agent does not know the verb {verb!r}: hook and agent are of different versions")

    def _only_wakes(self, verb: str, container: str) -> bool:
        """Whether it is asked of one that has been taken up, and needs no other."""
        known = any(actor.record.pod.container == container for actor in self.actors.values())
        return known and verb in ("exec", "signal", "target")

    def _by_container(self, container: str) -> Actor:
        for actor in self.actors.values():
            if container and actor.record.pod.container == container:
                return actor
        raise NotFoundError(f"no instance on this node has container {container!r}")

    async def _terminate(self, container: str, signal: int, until: float) -> str:
        actor = next((a for a in self.actors.values() if container and a.record.pod.container == container), None)
        return "end" if actor is None else await self.source.terminate(actor, signal, until)

    async def _exec(self, container: str, message: dict[str, Any]) -> dict[str, Any]:
        actor = self._by_container(container)
        if is_declared(actor.record.probes, message):
            real = probed.is_carried_out(actor, int(message.get("pid", 0)))
            return {} if real else {"action": "pretend", "exit": 0}
        if actor.record.phase != Phase.RUNNING and not actor.policy.wake_on_exec:
            raise RefusedError(f"{actor.record.id} is {actor.record.phase.value} and spec.wake.onExec is false")
        await actor.until_awake("exec", EXEC_WAKE_SECONDS)
        return {}

    async def _delete(self, container: str) -> None:
        """containerd cleans up after a container; what its keeper left when it died must be safe first."""
        actor = next((a for a in self.actors.values() if a.record.pod.container == container), None)
        if actor is not None:
            await actor.container_deleted()

    async def _until_kept(self, pod_uid: str) -> None:
        """A container in this sandbox makes the one before it the kubelet's to remove, with all that it wrote."""
        for actor in list(self.actors.values()):
            if pod_uid and actor.record.pod.uid == pod_uid and actor.layer_outside:
                try:
                    async with asyncio.timeout(EXEC_WAKE_SECONDS):
                        await actor.over.wait()
                except TimeoutError as error:
                    raise RefusedError(f"{actor.record.id}: its layer is not put with its images yet") from error

    async def _target(self, container: str) -> dict[str, Any]:
        actor = self._by_container(container)
        await actor.until_awake("a debug container joins its namespaces", EXEC_WAKE_SECONDS)
        return {"init_pid": (await actor.keeper.state()).init_pid}


async def _settled(run: Path, container: str, patience: float) -> KeeperState | None:
    """The keeper's state once it is not in the midst of a verb; None where it is gone. Raises KeeperBusyError where it
    is after `patience` seconds.

    It has no event for this: only an agent that was killed needs it.
    """
    if not container:
        return None
    keeper, until = Keeper(run, container), time.monotonic() + patience
    while True:
        try:
            state = await keeper.state()
        except KeeperGoneError:
            return None
        except KybernateError as error:
            log.warning("the keeper of %s: %s", container, error)
            return None
        if state.state in SETTLED:
            return state
        if state.state == "ended":
            return None
        if time.monotonic() >= until:
            raise KeeperBusyError(container=container, state=state.state)
        await asyncio.sleep(SETTLE_SECONDS)
