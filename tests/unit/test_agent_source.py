"""What the agent makes of that which the API server tells it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest_asyncio
from kybernate_agent.actor import Actor
from kybernate_agent.cluster.source import ClusterSource
from kybernate_agent.cluster.starter import KubeletStarter
from kybernate_agent.config import AgentConfig, ClusterConfig
from kybernate_agent.journal import Journal
from kybernate_agent.node import Node
from kybernate_agent.services import Services

from kybernate.api.gpuinstance import GpuInstance, InstancePolicy, InstanceSpec
from kybernate.api.objects import Metadata
from kybernate.kube.cache import Change, key_of
from kybernate.store import FolderStore

NOBODY: Any = None


class Bed:
    """An agent's node that hears of GpuInstances; there is no API server to ask."""

    def __init__(self, folder: Path) -> None:
        self.journal = Journal(folder / "journal.db")
        config = AgentConfig(run_dir=str(folder / "run"), state_dir=str(folder))
        services = Services(
            config=config, journal=self.journal, store=FolderStore(folder / "store", b"k" * 32, 0),
            starter=KubeletStarter(config), changed=lambda name: None, criu_version="4.2", runc_version="1.1",
            sys_resource=True,
        )  # fmt: skip
        self.node = Node(services)
        self.source = ClusterSource(self.node, NOBODY, NOBODY, ClusterConfig(node_name="n1"), NOBODY)
        self.node.source = self.source

    def hears(self, instance: GpuInstance) -> Actor | None:
        self.source._on_instance(Change(key_of(instance), None, instance))
        return self.node.actors.get("team.chat-0")


@pytest_asyncio.fixture
async def bed(tmp_path: Path) -> AsyncIterator[Bed]:
    bed = Bed(tmp_path)
    try:
        yield bed
    finally:
        await bed.node.close()


def instance(**spec: Any) -> GpuInstance:
    meta = Metadata(name="chat-0", namespace="team", uid="gi-1", generation=spec.get("start_anew", 0) + 1)
    known = {"node_name": "n1", "pod": "chat-0", "pod_uid": "pod-1", "epoch": 1} | spec
    return GpuInstance(
        metadata=meta, spec=InstanceSpec(workload="chat", policy=InstancePolicy(container="app"), **known)
    )


async def test_a_full_disk_does_not_end_the_one_who_hears_it(bed: Bed) -> None:
    bed.journal.close()  # whatever it is to write fails
    assert bed.hears(instance()) is None
