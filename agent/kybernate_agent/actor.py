"""One instance, run by one task: look, decide, do, look again.

Everything from outside (a packet, an order, a hook's question, a process that ends) only changes what the actor knows
and pokes it. Verbs run one at a time, in the actor's own task, so no two of them ever meet. An end cancels the verb
under way; the keeper lets a kill pre-empt whatever it does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from kybernate.api import GpuWorkload
from kybernate.errors import KybernateError, RefusedError, StateLostError
from kybernate_agent import processes, sleep, verbs
from kybernate_agent.decide import Decision, decide
from kybernate_agent.instance import Condition, Phase, Policy, Record, Verb, View
from kybernate_agent.journal import JournalError
from kybernate_agent.keepers import Keeper, KeeperGoneError, KeeperState, Watch
from kybernate_agent.orders import Callers, Orders
from kybernate_agent.policy import policy_of
from kybernate_agent.services import Services
from kybernate_agent.stage import AbortedError, Stage
from kybernate_agent.traffic.activity import Activity, fold
from kybernate_agent.traffic.pod import PodTraffic
from kybernate_agent.traffic.sockdiag import State, own_ports

log = logging.getLogger(__name__)

CRASH_FORGOTTEN_SECONDS = 600.0
TOLD = {
    Verb.START: "Started",
    Verb.SUSPEND: "Suspended",
    Verb.PARK: "Parked",
    Verb.RESUME: "Resumed",
    Verb.RESCUE: "Rescued",
}
SETTLED_BY = {Verb.SUSPEND: (Phase.SUSPENDED, Phase.PARKED), Verb.PARK: (Phase.PARKED,), Verb.RESUME: (Phase.RUNNING,)}


class Actor:
    """See the module. Its public methods are called from the event loop only."""

    def __init__(self, services: Services, record: Record, workload: GpuWorkload) -> None:
        self.services = services
        self.record = record
        self.workload = workload
        self.policy: Policy = policy_of(workload)
        self.decision = Decision()
        self.busy: Verb | None = None
        self.wake_wanted = ""  # the reason
        self.expects = ""  # what the next `create` of its container is for: start, restore, or nothing
        self.rescued = asyncio.Event()
        self.parking: sleep.Parking | None = None
        self.last_keeper: KeeperState | None = None
        self.prove_at = 0.0
        self.deleting = False
        self._keeper: Keeper | None = None
        self._watch: Watch | None = None
        self._traffic: PodTraffic | None = None
        self._activity: Activity | None = None
        self._orders = Orders(record.id)
        self._callers = Callers()
        self._not_before: dict[Verb, float] = {}
        self._failures: dict[Verb, int] = {}
        self._started_at = 0.0
        self._crashes = 0
        self._poked = asyncio.Event()
        self._ending = asyncio.Event()
        self.finished = asyncio.Event()

    # --- what the verbs use ---

    @property
    def keeper(self) -> Keeper:
        if self._keeper is None:
            raise KeeperGoneError(container=self.record.pod.container or "?", cause="it has none")
        return self._keeper

    @property
    def traffic(self) -> PodTraffic:
        if self._traffic is None:
            raise RefusedError(f"{self.record.id}: its pod has no network yet")
        return self._traffic

    @property
    def has_keeper(self) -> bool:
        return self._keeper is not None

    @property
    def has_traffic(self) -> bool:
        return self._traffic is not None

    async def adopt(self) -> None:
        """Take up the container that the record names: its keeper, its network."""
        record = self.record
        self._keeper = Keeper(self.services.config.run, record.pod.container)
        self._started_at = time.time()
        await self.watch_keeper()
        self.rescued.clear()
        if (state := self.last_keeper) is not None:
            record.pod.upper = (
                processes.writable_layer(state.init_pid)
                or processes.writable_layer_of_bundle(Path(state.bundle))
                or record.pod.upper
            )
        await self.open_traffic()

    async def open_traffic(self) -> None:
        if self._traffic is None:
            traffic = PodTraffic(self.record.pod.netns, self.workload.ports, self.call)
            await traffic.open()
            self._traffic = traffic

    async def close_traffic(self) -> None:
        """Rules and sockets go. The pod's namespace may be gone already, and the rules with it."""
        if self._traffic is not None:
            traffic, self._traffic = self._traffic, None
            with contextlib.suppress(KybernateError, OSError):
                await traffic.release()
            await traffic.close()

    async def watch_keeper(self) -> None:
        """Ask the keeper for its state and hold a pidfd of it. Raises KeeperGoneError."""
        self.last_keeper = await self.keeper.state()
        if self._watch is None:
            try:
                self._watch = Watch(self.last_keeper.keeper_pid, self._keeper_ended)
            except ProcessLookupError as error:
                raise KeeperGoneError(container=self.record.pod.container, cause="its process is gone") from error

    async def end_sleeper(self) -> None:
        """A sleeper ends without waking, whatever signal its image asks to be stopped with."""
        if self._keeper is not None and self.record.phase in (Phase.SUSPENDED, Phase.PARKED):
            with contextlib.suppress(KybernateError):
                await self._keeper.kill()

    @property
    def somebody_waits(self) -> bool:
        """An exec, a signal or a debug container needs it awake."""
        return self._callers.any

    def forget_keeper(self) -> None:
        if self._watch:
            self._watch.close()
        self._watch = None
        self._keeper = None

    def _keeper_ended(self) -> None:
        if self._keeper and (state := self._keeper.last_state()):
            self.last_keeper = state
        self._restart_later()
        self._watch = None
        self._keeper = None
        self.poke()

    def _restart_later(self) -> None:
        """A container that keeps ending is started again after 10 s, 20 s, ... 5 min, as the kubelet does it.

        A keeper that dies alone, its application living or parked, is no end of the container.
        """
        state = self.last_keeper
        if state and (state.state == "parked" or processes.is_alive(state.init_pid, state.init_start)):
            return
        lived = time.time() - self._started_at
        how = " ".join(f"{kind} {number}" for kind, number in state.exit.items()) if state else ""
        told = f"its container ended after {lived:.0f} s with {how or 'an unknown status'}"
        self.record.event("Warning", "ContainerEnded", told, time.time())
        self._crashes = 0 if lived > CRASH_FORGOTTEN_SECONDS else self._crashes + 1
        if self._crashes > 1:
            for verb in (Verb.START, Verb.RESCUE):
                self.back_off(verb, min(300.0, 10.0 * 2 ** (self._crashes - 2)))

    async def own_ports(self, pids: Sequence[int]) -> list[int]:
        """Local ports of the processes' own TCP sockets: what listens, declared or not, and what is connected."""
        return sorted(await asyncio.to_thread(own_ports, pids, self.record.pod.netns))

    @property
    def work(self) -> Path:
        """Where CRIU writes its logs, and mounts what it needs."""
        return self.services.config.state / "work" / self.record.id

    def work_folder(self, name: str) -> Path:
        """An empty folder for CRIU's logs; the one before it is gone."""
        folder = self.work / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700, parents=True)
        return folder

    def remove_work(self) -> None:
        shutil.rmtree(self.work, ignore_errors=True)

    def awake(self) -> None:
        """The processes run: whoever waited for that goes on."""
        self.wake_wanted = ""
        self._callers.awake()

    def say(self, condition: Condition) -> None:
        if self.record.set_condition(condition):
            self.record.event("Warning", condition.reason, condition.message, condition.at)
            log.warning(
                "%s: %s=%s %s: %s",
                self.record.id,
                condition.type,
                condition.status,
                condition.reason,
                condition.message,
            )

    def failed(self, verb: Verb) -> int:
        """Count a failure of `verb`; the number of those before it since it last worked."""
        before = self._failures.get(verb, 0)
        self._failures[verb] = before + 1
        return before

    def back_off(self, verb: Verb, seconds: float) -> None:
        self._not_before[verb] = time.time() + seconds

    # --- what comes from outside ---

    def poke(self) -> None:
        self._poked.set()

    def call(self, reason: str) -> None:
        """Somebody calls the sleeping instance."""
        if not self.wake_wanted:
            self.wake_wanted = reason
            self.poke()

    async def until_awake(self, reason: str, seconds: float) -> None:
        """Wake the instance and return when its processes run. Raises DeadlineError, StateLostError."""
        if self.record.phase == Phase.RUNNING and self.busy in (None, Verb.PROVE, Verb.RESET):
            self.record.last_activity = time.time()
            return
        self._refuse_deleted()
        if self.record.phase == Phase.LOST:
            raise StateLostError(f"{self.record.id}: its state is lost; see `kybernate describe {self.record.id}`")
        self.call(reason)
        try:
            await self._callers.wait(seconds)
        except TimeoutError as error:
            raise RefusedError(f"{self.record.id}: not awake after {seconds:g} s; see `kybernate describe`") from error

    async def order(self, verb: Verb, wait: bool) -> None:
        """What a person asks for, once. Raises what the verb raised, where `wait`."""
        if self.record.phase in SETTLED_BY[verb] and self.busy is None:
            return
        self._refuse_deleted()
        if self.record.phase not in (Phase.RUNNING, Phase.SUSPENDED, Phase.PARKED):
            raise RefusedError(f"{self.record.id}: cannot {verb.value} while it is {self.record.phase.value}")
        done = self._orders.give(verb)
        self._not_before.pop(verb, None)
        self.poke()
        if wait:
            await asyncio.shield(done)

    def _refuse_deleted(self) -> None:
        if self.deleting:
            raise RefusedError(f"{self.record.id} is being deleted")

    def moved_since_decision(self) -> bool:
        """Whether data moved, a connection came or a request is in flight that the last decision did not know of."""
        before, now = self.record.last_activity, time.time()
        found = self._sample(now)
        if found is None:
            return False
        return self.record.last_activity > before or any(
            now < since + self.policy.max_in_flight for since in found.in_flight.values()
        )

    def reconfigure(self, workload: GpuWorkload, text: str) -> None:
        """The same template with another policy: nothing has to begin anew."""
        self.workload, self.policy = workload, policy_of(workload)
        self.record.text = text
        self.services.journal.save(self.record)
        self.poke()

    async def delete(self) -> None:
        """End the instance; returns when it is gone."""
        self.deleting = True
        gone = RefusedError(f"{self.record.id} is being deleted")
        self._orders.answer(gone)
        self._callers.fail(gone)
        self._ending.set()
        self.poke()
        await self.finished.wait()

    async def post_dump(self, images: str) -> None:
        """The commit, from CRIU's post-dump step. Raises to veto."""
        if self.parking is None or str(self.parking.staging.images) != images:
            raise RefusedError(f"{self.record.id}: no dump into {images} is under way")
        await self.parking.commit()

    async def container_deleted(self) -> None:
        """containerd wants to clean up what lives without its keeper: not before that is safe, or to be ended."""
        await self.rescued.wait()

    # --- the loop ---

    def view(self, now: float) -> View:
        record, state = self.record, self.last_keeper
        activity = self._sample(now)
        return View(
            phase=record.phase,
            since=record.since,
            policy=self.policy,
            last_activity=record.last_activity,
            # The newest: while one of them is younger than maxInFlight, work is going on.
            in_flight_since=max(activity.in_flight.values(), default=None) if activity else None,
            wake_wanted=bool(self.wake_wanted),
            held_since=self._held_since(now),
            order=self._orders.current,
            not_before=dict(self._not_before),
            keeper_alive=self._watch is not None,
            processes_alive=state is not None and processes.is_alive(state.init_pid, state.init_start),
            killed=state is not None and state.state == "ended" and state.killed,
            unproven=record.unproven != 0,
            prove_at=self.prove_at,
            deleting=self.deleting,
            sample_seconds=min(5.0, max(0.1, (self.policy.suspend_after or 5.0) / 10)),
        )

    def _held_since(self, now: float) -> float | None:
        since = self._traffic.oldest_held_at() if self._traffic else None
        return None if since is None else now - (time.monotonic() - since)

    def _sample(self, now: float) -> Activity | None:
        if self.record.phase != Phase.RUNNING or self._traffic is None or self.deleting:
            return None
        if self.policy.suspend_after is None and self._orders.current is None:
            return None
        sample = self._traffic.sample()
        self._activity = fold(self._activity, sample, now, self.workload.ports)
        listening = {found.local_port for found in sample.sockets if found.state == State.LISTEN}
        # One that does not listen yet is starting, however silent: it loads its model.
        starting = not listening.intersection(self.workload.ports)
        self.record.last_activity = max(self.record.last_activity, now if starting else self._activity.last_activity)
        return self._activity

    async def run(self) -> None:
        """Until the instance has ended. Cancel to leave it as it is, for the next agent."""
        try:
            while self.record.phase != Phase.ENDED:
                self._poked.clear()
                now = time.time()
                self.decision = decide(self.view(now), now)
                if self.decision.verb is None:
                    await self._wait(self.decision.ask_at)
                    continue
                called = self.wake_wanted if self.decision.verb == Verb.RESUME else ""
                await self._do(self.decision.verb, called or self.decision.reason)
                self.services.changed(self.record.id)
            self.services.journal.forget(self.record.id)
            self.finished.set()
        except asyncio.CancelledError:
            self.forget_keeper()
            if self._traffic:
                await asyncio.shield(self._traffic.close())
            raise

    async def _wait(self, until: float | None) -> None:
        seconds = None if until is None else max(0.0, until - time.time())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._poked.wait()

    async def _do(self, verb: Verb, reason: str) -> None:
        self.busy = verb
        self.services.changed(self.record.id)
        task = asyncio.create_task(self._perform(verb, reason), name=f"{self.record.id} {verb.value}")
        ending = asyncio.create_task(self._ending.wait())
        try:
            await asyncio.wait({task, ending} if verb != Verb.END else {task}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                task.cancel()
            await asyncio.wait({task})
            if not task.cancelled():
                task.result()
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.wait({task})
            raise
        finally:
            ending.cancel()
            self.busy = None

    async def _perform(self, verb: Verb, reason: str) -> None:
        order = given = self._orders.current
        ordered = order is not None and order.verb in (verb, Verb.PARK)
        try:
            try:
                async with Stage(self.services.journal, self.record, verb, reason) as stage:
                    await verbs.do(self, verb, stage, ordered)
            finally:
                self.busy = None
                if self.record.phase == Phase.RUNNING:
                    self.awake()
        except AbortedError as error:
            if ordered:
                self._orders.answer(error)
        except KybernateError as error:
            self._note_failure(verb, error)
            self._orders.answer(error)
        except Exception as error:
            # Nobody foresaw it: it must not end the actor, and the log must say where it came from.
            log.exception("%s: %s", self.record.id, verb.value)
            foreseen = KybernateError(f"{self.record.id}: {verb.value}: {type(error).__name__}: {error}")
            self._note_failure(verb, foreseen)
            self._orders.answer(foreseen)
        else:
            self._failures.pop(verb, None)
            self._not_before.pop(verb, None)
            if (told := TOLD.get(verb)) is not None:
                self.record.event("Normal", told, f"{reason}; took {stage.seconds:.3f} s", time.time())
                self._save()
            order = self._orders.current
            if order is not None and self.record.phase in SETTLED_BY[order.verb]:
                self._orders.answer()
            elif verb == Verb.RESUME and order is not None and order is given and order.verb != Verb.RESUME:
                self._orders.answer(RefusedError(f"{self.record.id}: a call came and it was woken"))

    def _note_failure(self, verb: Verb, error: KybernateError) -> None:
        verbs.failed(self, verb, error)
        if isinstance(error, StateLostError):
            self._callers.fail(error)
        self._save()

    def _save(self) -> None:
        try:
            self.services.journal.save(self.record)
        except JournalError as error:
            log.error("%s: %s", self.record.id, error)
