"""Which instances the node has, as the API server says: GpuInstances and pods of this node, followed by two informers.

What was learnt of an instance stands in its record, so everything but a new pod goes on without the API server: the
fence (`member.pod_uid`), the policy, the orders that were carried out. Handlers of the informers only note and poke;
what takes time is a task of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine, Mapping
from typing import Any

from kybernate.api import names
from kybernate.api.gpuinstance import GpuInstance
from kybernate.errors import InvalidError, KybernateError
from kybernate.kube.backoff import Backoff
from kybernate.kube.cache import Change, Informer
from kybernate.kube.client import Client
from kybernate.kube.errors import AlreadyExistsError, ApiError, ApiNotFoundError
from kybernate.kube.events import Recorder, Regarding
from kybernate.kube.resource import GPU_INSTANCES, PODS
from kybernate_agent import clock, probed
from kybernate_agent.actor import Actor
from kybernate_agent.cluster import restored
from kybernate_agent.cluster.finalizer import release
from kybernate_agent.cluster.lacking import lack_of
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
from kybernate_agent.cluster.orders import Orders
from kybernate_agent.cluster.questions import Questions
from kybernate_agent.config import ClusterConfig
from kybernate_agent.instance import Member, Phase, Record, Wanted
from kybernate_agent.journal import JournalError
from kybernate_agent.keepers import Keeper
from kybernate_agent.node import Node

log = logging.getLogger(__name__)

PROBES_SECONDS = 2.0
FORGOTTEN_PODS = 1000
"""Of so many pods that are gone it is remembered whether they were evicted."""


class ClusterSource:
    """See `kybernate_agent.source`."""

    def __init__(
        self, node: Node, client: Client, recorder: Recorder, config: ClusterConfig, digest_of: restored.DigestOf
    ) -> None:
        self._node, self._client, self._recorder, self._config = node, client, recorder, config
        here = f"spec.nodeName={config.node}"
        self.instances: Informer[GpuInstance] = Informer(client, GPU_INSTANCES, GpuInstance, field_selector=here)
        self.pods: Informer[Pod] = Informer(
            client, PODS, Pod, field_selector=here, indexers={"uid": lambda pod: [pod.metadata.uid]}
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self.next_happening = asyncio.Event()
        self.gone_pods: dict[str, Fate | None] = {}  # None: how it went nobody saw
        self._lacking: set[str] = set()  # uids of pods that were told what they lack
        self._orders = Orders()
        self._questions = Questions(self, node, client, config, digest_of)

    # --- from start to end ---

    async def follow(self) -> None:
        """Until cancelled."""
        self.instances.subscribe(self._on_instance)
        self.pods.subscribe(self._on_pod)
        try:
            async with self.instances, self.pods:
                await self.instances.synced()
                for actor in list(self._node.actors.values()):
                    if not self._is_held(actor):
                        self._begin(self._verify(actor))
                await asyncio.Event().wait()
        finally:
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def happened(self, _: str = "") -> None:
        """Something is news to a creation that waits."""
        self.next_happening.set()
        self.next_happening = asyncio.Event()

    def _begin(self, doing: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(doing)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _verify(self, actor: Actor) -> None:
        """The informer has no object of a known instance: it is gone, or it is not of this node, or not yet."""
        member, backoff = actor.record.member, Backoff(longest=10.0)
        while member is not None and not actor.deleting:
            try:
                found = await self._client.get(GPU_INSTANCES, GpuInstance, member.name, actor.wanted.namespace)
            except ApiNotFoundError:
                log.info("%s: its GpuInstance is gone", actor.record.id)
                self._node.end(actor)
                return
            except ApiError:
                await asyncio.sleep(backoff.next())
                continue
            elsewhere = found.spec.node_name != self._config.node
            nothing = actor.record.phase in (Phase.PENDING, Phase.BACKOFF, Phase.LOST)
            if self._of(found) is actor and elsewhere and (nothing or found.spec.start_anew > member.start_anew):
                log.info("%s: it begins anew elsewhere", actor.record.id)
                self._node.end(actor)
            else:
                self.take(found)
            return

    # --- what the informers tell ---

    def _on_instance(self, change: Change[GpuInstance]) -> None:
        if change.new is not None:
            try:
                self.take(change.new)
            except JournalError as error:  # a full disk: no reason to end, for what sleeps here can be woken
                log.error("%s: is not taken up now: %s", change.key, error)
        elif change.old is not None:
            actor = self._of(change.old)
            if actor is not None:
                self._begin(self._verify(actor))
        self.happened()

    def _on_pod(self, change: Change[Pod]) -> None:
        if change.new is None and change.old is not None and is_managed(change.old):
            fate = fate_of(change.old)
            seen = fate.deleted or fate.evicted or not change.unseen
            self.gone_pods[change.old.metadata.uid] = Fate(True, fate.evicted, 0.0) if seen else None
            for actor in self._node.actors.values():
                if actor.record.pod.uid == change.old.metadata.uid:
                    actor.pod_goes.set()
            while len(self.gone_pods) > FORGOTTEN_PODS:
                del self.gone_pods[next(iter(self.gone_pods))]
        elif change.new is not None and is_annotated(change.new) and not self._is_introduced(change.new):
            self._begin(self.introduce(change.new))
        self._tell_lack(change)
        if change.new is not None and is_managed(change.new):
            self._begin(self._tell_probes(change.new))
            self._begin(self._find_started(change.new))
        self.happened()

    def _is_held(self, actor: Actor) -> bool:
        """Whether the informer has its object."""
        member = actor.record.member
        return member is not None and self.instances.get(actor.wanted.namespace, member.name) is not None

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
                self._begin(release(self._client, meta.namespace, meta.name, meta.uid, self._config.node))
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
                id=name, workload=spec.workload or meta.name, since=clock.now(), wanted=wanted_of(instance),
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
            lost = any(c.type == "StateLost" and c.status == "True" for c in record.conditions)
            if record.phase == Phase.LOST or lost:
                actor.begin_anew()
            elif record.pod.uid not in ("", spec.pod_uid):
                # Not lost here, but for others: this node was away, and the instance may have lived elsewhere since.
                actor.give_up("it was taken for lost and began anew: what was kept here is of before")
        if names.ORDER in instance.metadata.annotations:
            self._begin(self._orders.carry_out(actor, instance))

    def _learn(self, record: Record, instance: GpuInstance) -> bool:
        """What the record has to know without the API server; True where something is new."""
        member, meta, spec = record.member, instance.metadata, instance.spec
        assert member is not None
        before = (member.pod, member.pod_uid, member.generation)
        member.pod, member.pod_uid, member.generation = spec.pod, spec.pod_uid, meta.generation
        member.restore_from = spec.restore_from
        return before != (member.pod, member.pod_uid, member.generation)

    # --- what the kubelet does to a pod, and finds ---

    async def _tell_probes(self, pod: Pod) -> None:
        for actor in list(self._node.actors.values()):
            member, container = actor.record.member, actor.wanted.container
            if member is None or member.pod_uid != pod.metadata.uid:
                continue
            self._see(actor, pod)
            try:
                await probed.learn(actor, probes_of(pod, container), is_ready(pod, container))
            except KybernateError as error:
                log.warning("%s: the probes of its pod: %s", actor.record.id, error)

    def _see(self, actor: Actor, pod: Pod) -> None:
        """What an instance's end and people need to know of its pod."""
        record, fate = actor.record, fate_of(pod)
        actor.grace_seconds = fate.grace_seconds
        if record.pod.uid == pod.metadata.uid:
            record.pod.ip = pod.status.pod_ip or record.pod.ip
            (actor.pod_goes.set if fate.deleted else actor.pod_goes.clear)()
            annotated = record.member is not None and record.member.annotated
            orphaned = record.phase in (Phase.RUNNING, Phase.SUSPENDED) and not actor.has_keeper
            if orphaned and fate.deleted and (annotated or not fate.evicted) and not record.given_up:
                # The kubelet takes its container for ended, so it will tell nobody to end.
                actor.give_up("its pod was deleted: the next one begins anew")

    async def find_probes(self, actor: Actor, uid: str) -> None:
        """At a container's start; where the API server does not say, the informer will."""
        found = self.pods.by_index("uid", uid) if self.pods.is_synced else []
        member = actor.record.member
        with contextlib.suppress(ApiError, TimeoutError):
            if not found and member is not None:
                async with asyncio.timeout(PROBES_SECONDS):
                    found = [await self._client.get(PODS, Pod, member.pod, actor.wanted.namespace)]
        for pod in found:
            await self._tell_probes(pod)

    async def _find_started(self, pod: Pod) -> None:
        """A container whose `started` never came to us, because nobody was there or nobody answered in time."""
        for actor in list(self._node.actors.values()):
            record = actor.record
            if record.pod.uid != pod.metadata.uid or actor.keeper_watched or actor.offer or actor.busy:
                continue
            run = self._node.services.config.run
            for found in await self._node.services.starter.find():
                with contextlib.suppress(KybernateError):
                    if found.uid == record.pod.uid and (await Keeper(run, found.container).state()).started:
                        actor.offered(found)

    # --- annotated pods ---

    def _is_introduced(self, pod: Pod) -> bool:
        members = [actor.record.member for actor in self._node.actors.values()]
        known = any(member and member.pod_uid == pod.metadata.uid for member in members)
        return known or pod.metadata.deletion_timestamp is not None

    def _tell_lack(self, change: Change[Pod]) -> None:
        """To who looks at the pod, once a pod: nothing else tells that its annotations have no effect."""
        pod = change.new
        if pod is None:
            self._lacking.discard(change.old.metadata.uid if change.old else "")
        elif pod.metadata.uid not in self._lacking and (lack := lack_of(pod)):
            self._lacking.add(pod.metadata.uid)
            self._recorder.record(Regarding.of(PODS, pod), "Warning", "NotManaged", lack)

    async def introduce(self, pod: Pod) -> None:
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
            self._recorder.record(Regarding.of(PODS, pod), "Warning", "InvalidAnnotation", str(error))
        except ApiError as error:
            log.warning("pod %s/%s: its GpuInstance is not made yet: %s", meta.namespace, meta.name, error)
        self.happened()

    # --- what the node asks ---

    def wanted(self, record: Record) -> Wanted:
        if record.wanted is None or record.member is None:
            raise InvalidError(f"{record.id}: it was made by an agent without a cluster")
        return record.wanted

    async def create(self, message: Mapping[str, Any]) -> dict[str, Any]:
        return await self._questions.create(message)

    async def started(self, container: str) -> None:
        await self._questions.started(container)

    async def terminate(self, actor: Actor, signal: int, until: float) -> str:
        return await self._questions.terminate(actor, signal, until)

    def gone(self, record: Record) -> None:
        member, wanted = record.member, record.wanted
        if member is not None and wanted is not None:
            self._begin(self._let_go(member, wanted.namespace))

    async def _let_go(self, member: Member, namespace: str) -> None:
        await release(self._client, namespace, member.name, member.uid, self._config.node)
        held = self.instances.get(namespace, member.name) if self.instances.is_synced else None
        if held is not None and held.metadata.deletion_timestamp is None:
            self.take(held)
        self.happened()
