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
from collections.abc import Sequence
from pathlib import Path

from kybernate.errors import KybernateError, RefusedError, StateLostError
from kybernate_agent import clock, life, network, processes, sleep, verbs
from kybernate_agent.checkpoint import Copy
from kybernate_agent.decide import Decision, decide
from kybernate_agent.instance import Condition, Leaving, Phase, Pod, Policy, Record, Verb, Wanted
from kybernate_agent.journal import JournalError
from kybernate_agent.keepers import Keeper, KeeperGoneError, KeeperState, Watch
from kybernate_agent.look import look
from kybernate_agent.orders import Callers, Orders
from kybernate_agent.probes import Entering
from kybernate_agent.services import Services
from kybernate_agent.traffic.activity import Activity
from kybernate_agent.traffic.load import Load
from kybernate_agent.traffic.pod import PodTraffic
from kybernate_agent.traffic.sockdiag import own_ports

log = logging.getLogger(__name__)

CRASH_FORGOTTEN_SECONDS = 600.0


class Actor:
    """See the module. Its public methods are called from the event loop only."""

    def __init__(self, services: Services, record: Record, wanted: Wanted) -> None:
        self.services = services
        self.record = record
        self.wanted = wanted
        self.decision = Decision()
        self.busy: Verb | None = None
        self.may: tuple[Verb, ...] = tuple(Verb)  # what it may do now
        self.wake_wanted = ""  # the reason
        self.expects = ""  # what the next `create` of its container is for: start, restore, or nothing
        self.rescued = asyncio.Event()  # no process of its container is needed any more
        self.over = asyncio.Event()  # the same of what it wrote, where the kubelet makes the next container
        self.parking: sleep.Parking | None = None
        self.copies: list[Copy] = []  # checkpoints of it that are waited for
        self.last_keeper: KeeperState | None = None
        self.prove_at = 0.0
        self.deleting = False
        self.offer: Pod | None = None  # a container that the kubelet made and that is to be taken over
        self.pod_goes = asyncio.Event()  # its pod is being deleted
        self.grace_seconds = 30.0  # that its pod has for that
        self.told_to_end = False  # its application has heard the signal
        self.down_since = 0.0
        self.container_ready = True  # as the kubelet said last
        self.starting = ""  # why it is awake and its idle time has not begun
        self.entering = Entering()  # commands of the kubelet on their way in
        self._keeper: Keeper | None = None
        self._watch: Watch | None = None
        self._traffic: PodTraffic | None = None
        self.activity: Activity | None = None
        self.load: Load | None = None
        self.deaf_until: float | None = None  # when it is tried again to take up its network; None: all is well
        self.deaf_tries = 0
        self.orders = Orders(record.id)
        self.callers = Callers()
        self.not_before: dict[Verb, float] = {}
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
    def policy(self) -> Policy:
        return self.wanted.policy

    @property
    def has_keeper(self) -> bool:
        return self._keeper is not None

    @property
    def layer_outside(self) -> bool:
        """Parked, and its container is over: what that wrote may lie with it alone, and the kubelet removes it."""
        parked = self.services.starter.kubelet and self.record.phase == Phase.PARKED
        return parked and not self.keeper_watched and not self.over.is_set()

    @property
    def keeper_watched(self) -> bool:
        return self._watch is not None

    @property
    def has_traffic(self) -> bool:
        return self._traffic is not None

    async def adopt(self) -> None:
        """Take up the container that the record names: its keeper, its network."""
        await self.adopt_keeper()
        await self.open_traffic()

    async def adopt_keeper(self) -> None:
        """Raises KeeperGoneError."""
        record = self.record
        self._keeper = Keeper(self.services.config.run, record.pod.container)
        self._started_at = clock.now()
        await self.watch_keeper()
        self.rescued.clear()
        self.over.clear()
        if (state := self.last_keeper) is not None:
            record.pod.upper = (
                processes.writable_layer(state.init_pid)
                or processes.writable_layer_of_bundle(Path(state.bundle))
                or record.pod.upper
            )

    async def open_traffic(self) -> None:
        if self._traffic is None:
            record, kubelet = self.record, self.services.kubelet
            traffic = PodTraffic(record.pod.netns, self.wanted.ports, self.call, record.probes, kubelet)
            await traffic.open()
            self._traffic = traffic

    async def close_traffic(self) -> None:
        """Rules and sockets go. The pod's namespace may be gone already, and the rules with it."""
        if self._traffic is not None:
            traffic, self._traffic = self._traffic, None
            with contextlib.suppress(KybernateError, OSError):
                await traffic.release()
            await traffic.close()

    async def shut_traffic(self) -> None:
        """Sockets go, rules stay as they are."""
        if self._traffic is not None:
            traffic, self._traffic = self._traffic, None
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

    def forget_keeper(self) -> None:
        if self._watch:
            self._watch.close()
        self._watch = None
        self._keeper = None

    def _keeper_ended(self) -> None:
        if self._keeper and (state := self._keeper.last_state()):
            self.last_keeper = state
        if self.offer and self._keeper and self.offer.container == self._keeper.container:
            self.offer = None
        if (told := life.end_of(self.last_keeper, clock.now() - self._started_at)) is not None:
            self._told_end(told)
        self._watch = None
        self._keeper = None
        self.poke()

    def _told_end(self, told: str) -> None:
        """A container that keeps ending is started again after 10 s, 20 s, ... 5 min, as the kubelet does it."""
        now = clock.now()
        self.record.event("Warning", "ContainerEnded", told, now)
        self._crashes = 0 if now - self._started_at > CRASH_FORGOTTEN_SECONDS else self._crashes + 1
        if self._crashes > 1 and not self.services.starter.kubelet:
            for verb in (Verb.START, Verb.RESCUE):
                self.back_off(verb, min(300.0, 10.0 * 2 ** min(self._crashes - 2, 10)))

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
        self.callers.awake()

    def say(self, condition: Condition) -> None:
        if self.record.set_condition(condition):
            reason = condition.type if condition.type == "StateLost" else condition.reason
            self.record.event("Warning", reason, condition.message, condition.at)
            what = f"{condition.type}={condition.status} {condition.reason}"
            log.warning("%s: %s: %s", self.record.id, what, condition.message)

    def failed(self, verb: Verb) -> int:
        """Count a failure of `verb`; the number of those before it since it last worked."""
        before = self._failures.get(verb, 0)
        self._failures[verb] = before + 1
        return before

    def worked(self, verb: Verb) -> None:
        """What was counted of its failures is over."""
        self._failures.pop(verb, None)
        self.not_before.pop(verb, None)

    def back_off(self, verb: Verb, seconds: float) -> None:
        self.not_before[verb] = clock.now() + seconds

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
            self.record.last_activity = clock.now()
            return
        self._refuse_deleted()
        self._refuse_down()
        if self.record.phase == Phase.LOST:
            raise StateLostError(f"{self.record.id}: its state is lost; see `kybernate describe {self.record.id}`")
        self.call(reason)
        try:
            await self.callers.wait(seconds)
        except TimeoutError as error:
            raise RefusedError(f"{self.record.id}: not awake after {seconds:g} s; see `kybernate describe`") from error

    async def order(self, verb: Verb, wait: bool) -> None:
        """What a person asks for, once. Raises what the verb raised, where `wait`."""
        if self.record.phase in verbs.SETTLED_BY[verb] and self.busy is None:
            return
        self._refuse_deleted()
        if self.record.phase not in (Phase.RUNNING, Phase.SUSPENDED, Phase.PARKED):
            raise RefusedError(f"{self.record.id}: cannot {verb.value} while it is {self.record.phase.value}")
        if verb == Verb.RESUME:
            self._refuse_down()
        elif self.policy.up:
            why = "idle.minAwake or wake.targetInFlight" if self.policy.keep_awake else "spec.state: Running"
            raise RefusedError(f"{self.record.id}: kept awake by {why}, it would be woken at once")
        done = self.orders.give(verb)
        self.not_before.pop(verb, None)
        self.poke()
        if wait:
            await asyncio.shield(done)

    def offered(self, pod: Pod) -> None:
        """The kubelet has started a container of it."""
        if self.record.pod.container != pod.container or not self.has_keeper:
            self.offer = pod
            self.poke()

    def leave(self, leaving: Leaving) -> None:
        """containerd told its container to end, and it is to be parked or woken before that."""
        if self.record.leaving is None:
            self.record.leaving = leaving
            self.not_before.pop(Verb.SUSPEND, None)
            if self.record.phase == Phase.RUNNING and not leaving.wake:
                self.record.wakes = "it was awake when its pod went"
            self.save()
            self.poke()

    def give_up(self, why: str) -> None:
        """Once its container has ended no state of it is kept."""
        self.record.given_up = why
        self.save()
        self.poke()

    def begin_anew(self) -> None:
        """That its state is lost is accepted."""
        self.give_up("that its state is lost was accepted: it begins anew")

    def _refuse_down(self) -> None:
        if self.policy.down:
            raise RefusedError(f"{self.record.id}: spec.state is {self.policy.state}, so nothing wakes it")

    def _refuse_deleted(self) -> None:
        if self.deleting:
            raise RefusedError(f"{self.record.id} is being deleted")

    def reconfigure(self, wanted: Wanted, text: str = "") -> None:
        """Another policy: nothing has to begin anew."""
        if wanted.policy.down and not self.policy.down:
            self.down_since = clock.now()
        self.wanted = wanted
        self.record.text = text
        if self.record.member:
            self.record.wanted = wanted
        self.save()
        self.poke()

    async def delete(self) -> None:
        """End the instance; returns when it is gone."""
        self.deleting = True
        gone = RefusedError(f"{self.record.id} is being deleted")
        self.orders.answer(gone)
        self.callers.fail(gone)
        self._ending.set()
        self.poke()
        await self.finished.wait()

    async def post_dump(self, images: str) -> None:
        """The commit, from CRIU's post-dump step. Raises to veto."""
        if self.parking is None or str(self.parking.staging.images) != images:
            raise RefusedError(f"{self.record.id}: no dump into {images} is under way")
        await self.parking.commit()

    async def container_deleted(self) -> None:
        """containerd wants to clean up after a dead keeper: not before what it leaves is safe, or not wanted."""
        if self.record.phase in (Phase.RUNNING, Phase.SUSPENDED, Phase.PARKED):
            await (self.over if self.services.starter.kubelet else self.rescued).wait()

    def leave_container(self) -> None:
        """Nothing of it is needed any more."""
        self.rescued.set()
        self.over.set()

    # --- the loop ---

    async def run(self) -> None:
        """Until the instance has ended. Cancel to leave it as it is, for the next agent."""
        try:
            while self.record.phase != Phase.ENDED:
                self._poked.clear()
                now = clock.now()
                await network.see_to(self)
                self.decision = decide(look(self, now), now)
                if self.decision.verb not in self.may:
                    await self._wait(self.decision.ask_at)
                    continue
                called = self.wake_wanted if self.decision.verb == Verb.RESUME else ""
                await self._do(self.decision.verb, called or self.decision.reason)
                self.services.changed(self.record.id)
            self.services.journal.forget(self.record.id)
            self.finished.set()
        except asyncio.CancelledError:
            self.forget_keeper()
            await asyncio.shield(self.shut_traffic())
            raise

    async def _wait(self, until: float | None) -> None:
        seconds = None if until is None else max(0.0, until - clock.now())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._poked.wait()

    async def _do(self, verb: Verb, reason: str) -> None:
        self.busy = verb
        self.services.changed(self.record.id)
        task = asyncio.create_task(verbs.perform(self, verb, reason), name=f"{self.record.id} {verb.value}")
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

    def save(self) -> None:
        """What is known is kept; a disk that is full keeps nobody from anything."""
        try:
            self.services.journal.save(self.record)
        except JournalError as error:
            log.error("%s: %s", self.record.id, error)
