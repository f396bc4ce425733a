"""The agent in the kubelet's place: it starts its instances' pods through CRI, from the manifests they came from."""

from __future__ import annotations

import logging
from pathlib import Path

from kybernate.api import GpuWorkload, load
from kybernate_agent.config import AgentConfig
from kybernate_agent.instance import Pod, Record
from kybernate_agent.standalone.pods import Pods

log = logging.getLogger(__name__)


def workload_of(record: Record) -> GpuWorkload:
    """The manifest that the record was made of. Raises InvalidError where this agent does not understand it."""
    return load(record.text, record.source)[0]


class CriStarter:
    """See `kybernate_agent.starter`."""

    kubelet = False

    def __init__(self, pods: Pods) -> None:
        self._pods = pods

    @classmethod
    async def connect(cls, config: AgentConfig) -> CriStarter:
        """Raises what `Pods.connect` raises."""
        log.info("asks containerd at %s", config.containerd_socket)
        return cls(await Pods.connect(config))

    async def start(self, record: Record) -> Pod:
        return await self._pods.start_pod(workload_of(record), record.id, record.pod.uid)

    async def again(self, record: Record) -> Pod:
        return await self._pods.recreate_container(workload_of(record), record.pod)

    async def renew(self, record: Record) -> Pod:
        return await self._pods.renew_pod(workload_of(record), record.pod, record.id)

    async def drop(self, pod: Pod) -> None:
        await self._pods.drop_sandbox(pod.sandbox)

    async def stands(self, pod: Pod) -> bool:
        return await self._pods.sandbox_ready(pod.sandbox)

    async def remove(self, pod: Pod) -> None:
        await self._pods.remove_pod(pod)

    async def find(self) -> list[Pod]:
        return await self._pods.find_pods()

    def log_folder(self, record: Record) -> Path:
        return self._pods.log_folder(record.id)

    async def close(self) -> None:
        await self._pods.close()
