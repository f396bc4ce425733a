"""Which instances the node has, as the API server says: GpuInstances and pods of this node, followed by two informers.

What was learnt of an instance stands in its record, so everything but a new pod goes on without the API server: the
fence (`member.pod_uid`), the policy, the orders that were carried out. Handlers of the informers only note and poke;
what takes time is a task of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Coroutine, Mapping
from typing import Any

from kybernate.api import names
from kybernate.api.gpuinstance import GpuInstance
from kybernate.errors import InvalidError, KybernateError, RefusedError
from kybernate.kube.cache import Change, Informer
from kybernate.kube.client import Client
from kybernate.kube.errors import AlreadyExistsError, ApiError, ApiNotFoundError
from kybernate.kube.resource import GPU_INSTANCES, PODS
from kybernate_agent import probed
from kybernate_agent.actor import Actor
from kybernate_agent.cluster import doorway
from kybernate_agent.cluster.departure import depart
from kybernate_agent.cluster.finalizer import release
from kybernate_agent.cluster.objects import (
    Fate,
    Pod,
    annotated_instance,
    fate_of,
    id_of,
    is_annotated,
    is_managed,
    is_ready,
    probes_of,
    wanted_of,
)
from kybernate_agent.cluster.starter import pod_of
from kybernate_agent.config import ClusterConfig
from kybernate_agent.instance import Leaving, Member, Phase, Record, Verb, Wanted
from kybernate_agent.keepers import Keeper
from kybernate_agent.node import Node

log = logging.getLogger(__name__)

LOOK_AGAIN_SECONDS = 2.0
"""How often a waiting creation asks for what no informer tells: a GpuInstance whose nodeName is not set yet."""
SECOND_LOOK_SECONDS = 0.3
"""So long the word that a pod is evicted may be behind the signal: a kubelet under pressure writes it itself."""
ORDERS = {"suspend": Verb.SUSPEND, "park": Verb.PARK, "resume": Verb.RESUME}


class PodGoneError(RefusedError):
    """pod {uid} is gone, or is being deleted. Its container is not needed any more."""


class ClusterSource:
    """See `kybernate_agent.source`."""

    def __init__(self, node: Node, client: Client, config: ClusterConfig) -> None:
        self._node, self._client, self._config = node, client, config
        here = f"spec.nodeName={config.node}"
        self.instances: Informer[GpuInstance] = Informer(client, GPU_INSTANCES, GpuInstance, field_selector=here)
        self.pods: Informer[Pod] = Informer(
            client, PODS, Pod, field_selector=here, indexers={"uid": lambda pod: [pod.metadata.uid]}
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._happened = asyncio.Event()
        self._gone_pods: dict[str, Fate] = {}
        self._ordering: set[str] = set()
        self._unknown: set[str] = set()  # uids of pods that wait and have been said to

    # --- from start to end ---

    async def follow(self) -> None:
        """Until cancelled."""
        self.instances.subscribe(self._on_instance)
        self.pods.subscribe(self._on_pod)
        try:
            async with self.instances, self.pods:
                await self.instances.synced()
                await self._end_forgotten()
                await asyncio.Event().wait()
        finally:
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def happened(self, _: str = "") -> None:
        """Something is news to a creation that waits."""
        self._happened.set()
        self._happened = asyncio.Event()

    def _begin(self, doing: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(doing)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _end_forgotten(self) -> None:
        """Instances of the journal whose object went while no agent was here."""
        for actor in list(self._node.actors.values()):
            member = actor.record.member
            if member is None or self.instances.get(actor.wanted.namespace, member.name) is not None:
                continue
            with contextlib.suppress(ApiError):
                try:
                    found = await self._client.get(GPU_INSTANCES, GpuInstance, member.name, actor.wanted.namespace)
                except ApiNotFoundError:
                    found = None
                if found is None or found.metadata.uid != member.uid or found.metadata.deletion_timestamp:
                    log.info("%s: its GpuInstance is gone", actor.record.id)
                    self._node.end(actor)

    # --- what the informers tell ---

    def _on_instance(self, change: Change[GpuInstance]) -> None:
        if change.new is not None:
            self.take(change.new)
        elif change.old is not None:
            actor = self._of(change.old)
            if actor is not None:
                self._node.end(actor)
        self.happened()

    def _on_pod(self, change: Change[Pod]) -> None:
        if change.new is None and change.old is not None and is_managed(change.old):
            self._gone_pods[change.old.metadata.uid] = Fate(True, fate_of(change.old).evicted, 0.0)
            while len(self._gone_pods) > 1000:
                del self._gone_pods[next(iter(self._gone_pods))]
        elif change.new is not None and is_annotated(change.new) and change.new.metadata.deletion_timestamp is None:
            self._begin(self._introduce(change.new))
        if change.new is not None and is_managed(change.new):
            self._begin(self._tell_probes(change.new))
        self.happened()

    def _of(self, instance: GpuInstance) -> Actor | None:
        actor = self._node.actors.get(id_of(instance.metadata.namespace, instance.metadata.name))
        member = actor.record.member if actor else None
        return actor if member is not None and member.uid == instance.metadata.uid else None

    def take(self, instance: GpuInstance) -> Actor | None:
        """The instance as its object now says; None where it is to go, or what had its name before it still goes."""
        meta, spec = instance.metadata, instance.spec
        actor = self._of(instance)
        if meta.deletion_timestamp is not None:
            if actor is not None:
                self._node.end(actor)
            else:
                self._begin(release(self._client, meta.namespace, meta.name, meta.uid))
            return None
        if actor is None:
            name = id_of(meta.namespace, meta.name)
            if (other := self._node.actors.get(name)) is not None:
                self._node.end(other)  # `gone` takes this one
                return None
            member = Member(
                name=meta.name, uid=meta.uid, annotated=not spec.workload, start_anew=spec.start_anew,
            )  # fmt: skip
            record = Record(
                id=name, workload=spec.workload or meta.name, since=time.time(), wanted=wanted_of(instance),
                member=member,
            )  # fmt: skip
            self._learn(record, instance)
            actor = self._node.add(record, wanted_of(instance))
            for pod in self.pods.by_index("uid", spec.pod_uid) if self.pods.is_synced else []:
                self._begin(self._tell_probes(pod))
            return actor
        if not actor.deleting:
            self._update(actor, instance)
        return None if actor.deleting else actor

    def _update(self, actor: Actor, instance: GpuInstance) -> None:
        record, spec = actor.record, instance.spec
        wanted = wanted_of(instance, actor.wanted.image)
        if self._learn(record, instance) or wanted != actor.wanted:
            actor.reconfigure(wanted)
            self._node.services.changed(record.id)
        if record.member is not None and spec.start_anew > record.member.start_anew:
            record.member.start_anew = spec.start_anew
            if record.phase == Phase.LOST or any(
                c.type == "StateLost" and c.status == "True" for c in record.conditions
            ):
                actor.begin_anew()
        order = instance.metadata.annotations.get(names.ORDER, "")
        if order:
            self._order(actor, order)

    def _learn(self, record: Record, instance: GpuInstance) -> bool:
        """What the record has to know without the API server; True where something is new."""
        member, meta, spec = record.member, instance.metadata, instance.spec
        assert member is not None
        before = (member.pod, member.pod_uid, member.generation)
        member.pod, member.pod_uid, member.generation = spec.pod, spec.pod_uid, meta.generation
        return before != (member.pod, member.pod_uid, member.generation)

    # --- what the kubelet does to a pod, and finds ---

    async def _tell_probes(self, pod: Pod) -> None:
        for actor in list(self._node.actors.values()):
            member, container = actor.record.member, actor.wanted.container
            if member is None or member.pod_uid != pod.metadata.uid:
                continue
            try:
                await probed.learn(actor, probes_of(pod, container), is_ready(pod, container))
            except KybernateError as error:
                log.warning("%s: the probes of its pod: %s", actor.record.id, error)

    async def _find_probes(self, actor: Actor, uid: str) -> None:
        """At a container's start; where the API server does not say, the informer will."""
        found = self.pods.by_index("uid", uid) if self.pods.is_synced else []
        member = actor.record.member
        with contextlib.suppress(ApiError, TimeoutError):
            if not found and member is not None:
                async with asyncio.timeout(LOOK_AGAIN_SECONDS):
                    found = [await self._client.get(PODS, Pod, member.pod, actor.wanted.namespace)]
        for pod in found:
            await self._tell_probes(pod)

    # --- annotated pods ---

    async def _introduce(self, pod: Pod) -> None:
        """An annotated pod's GpuInstance is ours to make."""
        meta = pod.metadata
        try:
            made = annotated_instance(pod, self._config.node)
            try:
                self.take(await self._client.create(GPU_INSTANCES, made, meta.namespace))
            except AlreadyExistsError:
                found = await self._client.get(GPU_INSTANCES, GpuInstance, meta.name, meta.namespace)
                if found.spec.pod_uid == meta.uid:
                    self.take(found)
        except InvalidError as error:
            log.warning("%s", error)
        except ApiError as error:
            log.warning("pod %s/%s: its GpuInstance is not made yet: %s", meta.namespace, meta.name, error)
        self.happened()

    # --- orders ---

    def _order(self, actor: Actor, text: str) -> None:
        verb, _, key = text.strip().partition(" ")
        member = actor.record.member
        if member is None or key == member.order or key in self._ordering:
            return
        self._ordering.add(key)
        self._begin(self._carry_out(actor, member, verb, key))

    async def _carry_out(self, actor: Actor, member: Member, verb: str, key: str) -> None:
        try:
            if verb not in ORDERS or not key:
                raise InvalidError(f"expected `<verb> <id>` with one of {', '.join(ORDERS)}")
            await actor.order(ORDERS[verb], wait=True)
            outcome, message = "done", ""
        except KybernateError as error:
            outcome, message = "refused", str(error)
        finally:
            self._ordering.discard(key)
        member.order, member.order_verb, member.order_outcome, member.order_message = key, verb, outcome, message
        self._node.services.journal.save(actor.record)
        self._node.services.changed(actor.record.id)

    # --- what the node asks ---

    def wanted(self, record: Record) -> Wanted:
        if record.wanted is None or record.member is None:
            raise InvalidError(f"{record.id}: it was made by an agent without a cluster")
        return record.wanted

    async def create(self, message: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return await self._admit(message)
        finally:
            self._unknown.discard(str(message.get("pod_uid", "")))

    async def _admit(self, message: Mapping[str, Any]) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        until = loop.time() + self._config.create_wait_seconds
        while True:
            happened = self._happened
            self._refuse_deleted(str(message.get("pod_uid", "")))
            actor = await self._instance_of(message)
            answer = await doorway.ask(actor, message)
            if answer.action in ("start", "restore") and actor is not None:
                return await doorway.open(actor, message, answer.action)
            left = until - loop.time()
            if answer.action == "refuse" or left <= 0:
                raise RefusedError(f"pod {message.get('pod_uid')}: {answer.why}")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left, LOOK_AGAIN_SECONDS)):
                    await happened.wait()

    def _refuse_deleted(self, uid: str) -> None:
        """A pod that is to go must not wait for a creation that waits."""
        pods = self.pods.by_index("uid", uid) if self.pods.is_synced else []
        if uid in self._gone_pods or any(pod.metadata.deletion_timestamp for pod in pods):
            raise PodGoneError(uid=uid)

    async def _instance_of(self, message: Mapping[str, Any]) -> Actor | None:
        """The instance that this pod is, if that is known or can be found out now."""
        uid = str(message.get("pod_uid", ""))
        for actor in self._node.actors.values():
            member = actor.record.member
            if uid and member is not None and member.pod_uid == uid and actor.wanted.container == message.get("name"):
                return actor
        notes = message.get("annotations") or {}
        namespace, name = notes.get(doorway.SANDBOX_NAMESPACE, ""), notes.get(doorway.SANDBOX_NAME, "")
        try:
            async with asyncio.timeout(LOOK_AGAIN_SECONDS):
                pod = await self._client.get(PODS, Pod, name, namespace)
                if pod.metadata.uid != uid:
                    raise PodGoneError(uid=uid)
                if is_annotated(pod):
                    await self._introduce(pod)
                elif instance := pod.metadata.labels.get(names.INSTANCE):
                    found = await self._client.get(GPU_INSTANCES, GpuInstance, instance, namespace)
                    return self.take(found) if found.spec.pod_uid == uid else None
        except PodGoneError:
            raise
        except (KybernateError, TimeoutError) as error:
            if uid not in self._unknown:
                log.info("pod %s/%s: not known yet: %s", namespace, name, error)
            self._unknown.add(uid)
        return None

    async def started(self, container: str) -> None:
        state = await Keeper(self._node.services.config.run, container).state()
        actor = next((a for a in self._node.actors.values() if a.record.pod.uid == state.pod_uid), None)
        if actor is None:
            raise RefusedError(f"container {container} belongs to no instance of this node")
        await self._find_probes(actor, state.pod_uid)
        actor.offered(pod_of(state))

    async def terminate(self, actor: Actor, signal: int) -> str:
        record, policy = actor.record, actor.policy
        annotated = record.member is not None and record.member.annotated
        fate = await self._fate(actor)
        departure = depart(
            record.phase, fate, annotated=annotated, wake_to_end=policy.wake_to_end, drain_timeout=policy.drain_timeout
        )
        log.info("%s: told to end by signal %d: %s, %s", record.id, signal, fate, departure)
        if departure.given_up:
            actor.give_up(departure.given_up)
        if not departure.park and not departure.wake:
            return "end"
        now = time.time()
        actor.leave(
            Leaving(
                signal=signal, at=now, drain=departure.drain_seconds, until=now + departure.seconds, wake=departure.wake
            )
        )
        return "park"

    async def _fate(self, actor: Actor) -> Fate | None:
        """What becomes of its pod; None where nobody can say."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._config.terminate_seconds
        uid, member = actor.record.pod.uid, actor.record.member
        if (gone := self._gone_pods.get(uid)) is not None:
            return gone
        found = self.pods.by_index("uid", uid) if self.pods.is_synced else []
        if found and found[0].metadata.deletion_timestamp is not None:
            return fate_of(found[0])
        try:
            while member is not None:
                async with asyncio.timeout_at(until):
                    pod = await self._client.get(PODS, Pod, member.pod, actor.wanted.namespace)
                if pod.metadata.uid != uid:
                    return self._gone_pods.get(uid)
                fate = fate_of(pod)
                if fate.deleted or fate.evicted or loop.time() + 2 * SECOND_LOOK_SECONDS > until:
                    return fate
                await asyncio.sleep(SECOND_LOOK_SECONDS)
        except ApiNotFoundError:
            return self._gone_pods.get(uid)
        except (ApiError, TimeoutError) as error:
            log.warning("%s: what becomes of its pod is not known: %s", actor.record.id, error)
        return None

    def gone(self, record: Record) -> None:
        member, wanted = record.member, record.wanted
        if member is not None and wanted is not None:
            self._begin(self._let_go(member, wanted.namespace))

    async def _let_go(self, member: Member, namespace: str) -> None:
        await release(self._client, namespace, member.name, member.uid)
        held = self.instances.get(namespace, member.name) if self.instances.is_synced else None
        if held is not None and held.metadata.uid != member.uid:
            self.take(held)
        self.happened()
