"""The node: every instance's actor, and what reaches them from outside.

Instances come from workloads; the journal says which exist already. At start the hook's socket opens first, so that a
dump left by a killed agent is vetoed at once and not at its deadline; then each instance is brought to a true state
(`recover.py`), and only then do workloads and people get a word.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from kybernate.api import GpuWorkload, load
from kybernate.errors import InvalidError, KybernateError, NotFoundError, RefusedError
from kybernate_agent import life, processes, sleep, wake
from kybernate_agent.actor import Actor
from kybernate_agent.hookserver import HookServer
from kybernate_agent.instance import Condition, Phase, Record, Verb
from kybernate_agent.keepers import Keeper, KeeperGoneError, KeeperState, ended
from kybernate_agent.recover import SETTLED, Evidence, recover
from kybernate_agent.services import Services

log = logging.getLogger(__name__)

SETTLE_SECONDS = 0.02
GIVEN_UP = "its template changed, so it begins anew and what it was is given up"
EXEC_WAKE_SECONDS = 110.0  # less than the two minutes that the kubelet gives


@dataclass(frozen=True, slots=True)
class Wish:
    """A workload that somebody wants, the manifest it stands in, and what that says."""

    workload: GpuWorkload
    source: str
    text: str
    instead: bool = False  # of one whose template changed


class Node:
    """All instances of this node. Used from the event loop only."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.actors: dict[str, Actor] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._wishes: dict[str, Wish] = {}  # what is to come when an instance that is ending is gone
        self._endings: set[asyncio.Task[None]] = set()
        self._hooks = HookServer(services.config.run, self._answer)
        self._ready = asyncio.Event()

    # --- start and stop ---

    async def open(self) -> None:
        """Serve the hook, then bring every instance that the journal knows to a true state."""
        await self._hooks.open()
        records = self.services.journal.records()
        actors = [actor for record in records if (actor := self._known(record)) is not None]
        await asyncio.gather(*(self._recover_or_say(actor) for actor in actors))
        await asyncio.to_thread(wake.clear_mounts, self.services.config.run)
        removed = await asyncio.to_thread(self.services.store.sweep)
        if removed:
            log.info("removed what a killed agent left: %s", ", ".join(removed))
        await self._remove_strays({record.pod.sandbox for record in records})
        for actor in actors:
            self._run(actor)
        self._ready.set()

    def _known(self, record: Record) -> Actor | None:
        """The actor of a journalled instance. One whose manifest this agent cannot read is left as it is, and said."""
        try:
            return Actor(self.services, record, load(record.text, record.source)[0])
        except InvalidError as error:
            log.error("%s: left alone, its manifest is not understood: %s", record.id, error)
            return None

    async def _recover_or_say(self, actor: Actor) -> None:
        """One instance that cannot be taken up must not keep the agent from the others."""
        try:
            await self._recover(actor)
        except (KybernateError, OSError) as error:
            log.exception("%s: could not be taken up", actor.record.id)
            message = f"it could not be taken up after the agent's start: {error}"
            actor.say(Condition(type="Degraded", status="True", reason="Recovery", message=message, at=time.time()))

    async def close(self) -> None:
        """Leave every instance as it is, for the next agent."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        await self._hooks.close()

    async def _remove_strays(self, known: set[str]) -> None:
        """Pods of ours that no record names: their start was cut short."""
        for pod in await self.services.pods.find_pods():
            if pod.sandbox not in known:
                log.info("removing pod %s, whose start was cut short", pod.sandbox)
                try:
                    await self.services.pods.remove_pod(pod)
                except KybernateError as error:
                    log.error("pod %s stays for now: %s", pod.sandbox, error)

    async def _recover(self, actor: Actor) -> None:
        record, services = actor.record, self.services
        steps = services.journal.steps(record.id)
        if steps and steps[-1].verb in (Verb.START, Verb.RESCUE):
            await self._take_newest(record)
        keeper = await _settled(services.config.run, record.pod.container)
        last = keeper or (
            Keeper(services.config.run, record.pod.container).last_state() if record.pod.container else None
        )
        actor.last_keeper = last
        at_end = bool(steps) and steps[-1].step == "end-processes"
        if at_end and keeper is None and last is not None and Keeper(services.config.run, last.container).committed:
            await ended(last.init_pid, last.init_start, sleep.END_SECONDS)  # CRIU has our yes and is at it
        manifests = await asyncio.to_thread(services.store.manifests, record.id)
        found = Evidence(
            phase=record.phase,
            epoch=record.epoch,
            unproven=record.unproven,
            verb=Verb(steps[-1].verb) if steps else None,
            step=steps[-1].step if steps else "",
            keeper=keeper.state if keeper else None,
            processes_alive=last is not None and processes.is_alive(last.init_pid, last.init_start),
            epochs=tuple(m.epoch for m in manifests),
        )
        verdict = recover(found)
        log.info("%s: found %s; goes on as %s. %s", record.id, found, verdict.phase.value, verdict.message)
        if verdict.phase != record.phase:
            record.enter(verdict.phase, time.time())
        record.epoch, record.unproven = verdict.epoch, verdict.unproven
        for manifest in manifests:
            if manifest.epoch in verdict.retire:
                await asyncio.to_thread(services.store.retire, manifest)
        if verdict.phase == Phase.LOST and found.phase != Phase.LOST:
            actor.say(
                Condition(type="StateLost", status="True", reason="NoImages", message=verdict.message, at=time.time())
            )
        if keeper:
            await self._take_up(actor, verdict.phase, verdict.wake)
        elif record.pod.netns and verdict.phase in (Phase.RUNNING, Phase.SUSPENDED, Phase.PARKED):
            await actor.open_traffic()
            await actor.traffic.hold(record.pod.held_ports)
        services.journal.settle(record)

    async def _take_newest(self, record: Record) -> None:
        """A start or a rescue was cut short. The container that it made counts, if it came as far as being started."""
        for pod in await self.services.pods.find_pods():
            if pod.uid == record.pod.uid and pod.container and pod.container != record.pod.container:
                keeper = await _settled(self.services.config.run, pod.container)
                if keeper is not None and keeper.started:
                    kept = {"upper": record.pod.upper, "held_ports": record.pod.held_ports}
                    record.pod = msgspec.structs.replace(pod, **kept)

    async def _take_up(self, actor: Actor, phase: Phase, wake: bool) -> None:
        await actor.adopt()
        actor.prove_at = time.time() + self.services.config.prove_seconds
        ports = actor.record.pod.held_ports
        if phase == Phase.SUSPENDED:
            await actor.traffic.watch(ports)
            # What came while nobody listened was dropped and comes again; what came before lies in the sockets.
            if actor.traffic.has_unread():
                actor.call("data arrived while no agent ran")
        elif phase == Phase.PARKED:
            await actor.traffic.hold(ports)
        else:
            await actor.traffic.release()
        if wake:
            actor.call("it was being woken")

    def _run(self, actor: Actor) -> None:
        self.actors[actor.record.id] = actor
        task = asyncio.create_task(self._guard(actor), name=actor.record.id)
        self._tasks[actor.record.id] = task

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
        if (wish := self._wishes.pop(name, None)) is not None:
            self._create_instance(name, wish)

    # --- workloads ---

    def find(self, name: str) -> Actor:
        """By instance or workload name. Raises NotFoundError."""
        actor = self.actors.get(name) or self.actors.get(f"{name}-0")
        if actor is None:
            raise NotFoundError(f"no workload or instance is called {name!r}; `kybernate get` lists them")
        return actor

    def want(self, workload: GpuWorkload, source: str, text: str) -> str:
        """A workload as its manifest now says: `created`, `configured` or `unchanged`. Never waits."""
        name = f"{workload.name}-0"
        wish = Wish(workload, source, text)
        actor = self.actors.get(name)
        if actor is None:
            self._create_instance(name, wish)
            return "created"
        if actor.deleting:
            self._wishes[name] = wish  # when the old one is gone
            return "created"
        actor.record.source = source
        if actor.workload == workload:
            return "unchanged"
        if actor.workload.spec.template != workload.spec.template:
            log.warning("%s: %s", name, GIVEN_UP)
            self._wishes[name] = Wish(workload, source, text, instead=True)
            self._end(actor)
            return f"replaced: {GIVEN_UP}"
        actor.reconfigure(workload, text)
        return "configured"

    def _create_instance(self, name: str, wish: Wish) -> None:
        now = time.time()
        record = Record(id=name, workload=wish.workload.name, source=wish.source, text=wish.text, since=now)
        if wish.instead:
            record.event("Warning", "StateGivenUp", GIVEN_UP, now)
        self.services.journal.settle(record)
        self._run(Actor(self.services, record, wish.workload))
        self.services.changed(name)

    def unwant(self, workload: str) -> asyncio.Future[None]:
        """The workload is gone: its instance ends. The future is done when it has; at once where there is none."""
        name = f"{workload}-0"
        self._wishes.pop(name, None)
        actor = self.actors.get(name)
        if actor is not None:
            return self._end(actor)
        nothing: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        nothing.set_result(None)
        return nothing

    def _end(self, actor: Actor) -> asyncio.Future[None]:
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
            await self._ready.wait()
        match verb:
            case "create":
                return await self._create(message)
            case "started":
                return {}
            case "exec":
                return await self._exec(container)
            case "signal":
                await self._by_container(container).until_awake(f"signal {message.get('signal')}", EXEC_WAKE_SECONDS)
                return {}
            case "target":
                return await self._target(container)
            case "delete":
                await self._delete(container)
                return {}
        raise RefusedError(f"the agent does not know the verb {verb!r}: hook and agent are of different versions")

    def _by_container(self, container: str) -> Actor:
        for actor in self.actors.values():
            if container and actor.record.pod.container == container:
                return actor
        raise NotFoundError(f"no instance on this node has container {container!r}")

    async def _create(self, message: Mapping[str, Any]) -> dict[str, Any]:
        for actor in self.actors.values():
            mine = actor.record.pod.uid == message.get("pod_uid") and actor.workload.container.name == message.get(
                "name"
            )
            if actor.record.pod.uid and mine:
                return dict(await life.prepare_create(actor, Path(str(message.get("bundle", "")))))
        raise RefusedError(f"no workload of this node has a pod with uid {message.get('pod_uid')!r}")

    async def _exec(self, container: str) -> dict[str, Any]:
        actor = self._by_container(container)
        if actor.record.phase != Phase.RUNNING and not actor.policy.wake_on_exec:
            raise RefusedError(f"{actor.record.id} is {actor.record.phase.value} and spec.wake.onExec is false")
        await actor.until_awake("exec", EXEC_WAKE_SECONDS)
        return {}

    async def _delete(self, container: str) -> None:
        """containerd cleans up after a container; what lives without a keeper must be safe first."""
        actor = next((a for a in self.actors.values() if a.record.pod.container == container), None)
        if actor is not None:
            await actor.container_deleted()

    async def _target(self, container: str) -> dict[str, Any]:
        actor = self._by_container(container)
        await actor.until_awake("a debug container joins its namespaces", EXEC_WAKE_SECONDS)
        return {"init_pid": (await actor.keeper.state()).init_pid}


async def _settled(run: Path, container: str) -> KeeperState | None:
    """The keeper's state once it is not in the midst of a verb; None where it is gone.

    The keeper's own deadlines bound the wait. It has no event for this: only an agent that was killed needs it.
    """
    if not container:
        return None
    keeper = Keeper(run, container)
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
        await asyncio.sleep(SETTLE_SECONDS)
