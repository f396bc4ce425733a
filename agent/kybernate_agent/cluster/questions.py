"""What the hook asks about a container: may it be created, and how; it was started; may it end at once?

A creation waits until its pod is known to be an instance and what was before it is in order, at most
`create_wait_seconds`. An answer to `terminate` has to come within the keeper's one second.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kybernate.api import names
from kybernate.api.gpuinstance import GpuInstance
from kybernate.errors import KybernateError, RefusedError
from kybernate.kube.client import Client
from kybernate.kube.errors import ApiError, ApiNotFoundError
from kybernate.kube.resource import GPU_INSTANCES, PODS
from kybernate_agent import clock
from kybernate_agent.actor import Actor
from kybernate_agent.cluster import doorway, restored
from kybernate_agent.cluster.departure import depart
from kybernate_agent.cluster.objects import Fate, Pod, fate_of, is_annotated
from kybernate_agent.cluster.starter import pod_of
from kybernate_agent.config import ClusterConfig
from kybernate_agent.instance import Leaving
from kybernate_agent.keepers import Keeper
from kybernate_agent.node import Node

if TYPE_CHECKING:
    from kybernate_agent.cluster.source import ClusterSource

log = logging.getLogger(__name__)

LOOK_AGAIN_SECONDS = 2.0
"""How often a waiting creation asks for what no informer tells: a GpuInstance whose nodeName is not set yet."""
ANSWER_SECONDS = 0.05
"""So long an answer may be on its way to the hook."""
SECOND_LOOK_SECONDS = 0.3
"""So long the word that a pod is evicted may be behind the signal: a kubelet under pressure writes it itself."""


class PodGoneError(RefusedError):
    """pod {uid} is gone, or is being deleted. Its container is not needed any more."""


class Questions:
    """Of one node's hook. `source` knows the instances and pods."""

    def __init__(
        self, source: ClusterSource, node: Node, client: Client, config: ClusterConfig, digest_of: restored.DigestOf
    ) -> None:
        self._source, self._node, self._client, self._config = source, node, client, config
        self._digest_of = digest_of
        self._unknown: set[str] = set()  # uids of pods that wait and have been said to

    async def create(self, message: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return await self._admit(message)
        finally:
            self._unknown.discard(str(message.get("pod_uid", "")))

    async def _admit(self, message: Mapping[str, Any]) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        until = loop.time() + self._config.create_wait_seconds
        while True:
            happened = self._source.next_happening
            self._refuse_deleted(str(message.get("pod_uid", "")))
            actor = await self._instance_of(message)
            if actor is not None and restored.awaits(actor, str(message.get("pod_uid", ""))):
                await restored.prepare(actor, doorway.image_of(message), self._digest_of)
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
        pods = self._source.pods.by_index("uid", uid) if self._source.pods.is_synced else []
        if uid in self._source.gone_pods or any(pod.metadata.deletion_timestamp for pod in pods):
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
                    await self._source.introduce(pod)
                elif instance := pod.metadata.labels.get(names.INSTANCE):
                    found = await self._client.get(GPU_INSTANCES, GpuInstance, instance, namespace)
                    # Named without its node it might begin here and be sought elsewhere: docs/design/03_cluster.md.
                    fenced = (found.spec.pod_uid, found.spec.node_name) == (uid, self._config.node)
                    return self._source.take(found) if fenced else None
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
        await self._source.find_probes(actor, state.pod_uid)
        actor.offered(pod_of(state))

    async def terminate(self, actor: Actor, signal: int, until: float) -> str:
        answer = await self._terminate(actor, signal, until)
        actor.told_to_end = answer == "end"
        actor.poke()
        return answer

    async def _terminate(self, actor: Actor, signal: int, until: float) -> str:
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
        # An application that was told to end already must not be kept as it ends; nor does one that is deleted park.
        if actor.deleting or time.monotonic() > until - ANSWER_SECONDS:
            return "end"
        now = clock.now()
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
        if (gone := self._source.gone_pods.get(uid)) is not None:
            return gone
        found = self._source.pods.by_index("uid", uid) if self._source.pods.is_synced else []
        if found and found[0].metadata.deletion_timestamp is not None:
            return fate_of(found[0])
        try:
            while member is not None:
                async with asyncio.timeout_at(until):
                    pod = await self._client.get(PODS, Pod, member.pod, actor.wanted.namespace)
                if pod.metadata.uid != uid:
                    return self._source.gone_pods.get(uid)
                fate = fate_of(pod)
                if fate.deleted or fate.evicted or loop.time() + 2 * SECOND_LOOK_SECONDS > until:
                    return fate
                await asyncio.sleep(SECOND_LOOK_SECONDS)
        except ApiNotFoundError:
            return self._source.gone_pods.get(uid)
        except (ApiError, TimeoutError) as error:
            log.warning("%s: what becomes of its pod is not known: %s", actor.record.id, error)
        return None
