"""GpuNode: what this node can do, written when the agent starts."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from kybernate.api.gpunode import Capabilities, NodeStatus, NodeTiers, TierUsage
from kybernate.api.names import AGENT_MANAGER
from kybernate.api.objects import Condition, Metadata, Object
from kybernate.kube.backoff import Backoff
from kybernate.kube.client import Client
from kybernate.kube.errors import ApiError
from kybernate.kube.resource import GPU_NODES, NODES
from kybernate_agent.cluster.status import when
from kybernate_agent.services import Services

log = logging.getLogger(__name__)


class Named(Object, kw_only=True):
    metadata: Metadata


def node_status(services: Services, instances: int) -> NodeStatus:
    disk = os.statvfs(services.config.state)
    refusal = services.park_refusal
    return NodeStatus(
        tiers=NodeTiers(
            nvme=TierUsage(
                capacity_bytes=disk.f_blocks * disk.f_frsize, used_bytes=(disk.f_blocks - disk.f_bfree) * disk.f_frsize
            )
        ),
        capabilities=Capabilities(
            criu=services.criu_version,
            runc=services.runc_version,
            kernel=os.uname().release,
            cgroup="v2" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "v1",
            hold="NFQUEUE",
        ),
        instances=instances,
        conditions=[
            Condition(
                type="Ready",
                status="False" if refusal else "True",
                reason="CannotPark" if refusal else "AgentReady",
                message=refusal,
                last_transition_time=when(time.time()),
            )
        ],
    )


async def publish(client: Client, node: str, services: Services, instances: Callable[[], int]) -> None:
    """Write it, however long the API server is away. It is owned by the Node, and goes with it."""
    backoff = Backoff(longest=10.0)
    while True:
        try:
            owner = await client.get(NODES, Named, node)
            reference = {"apiVersion": "v1", "kind": "Node", "name": node, "uid": owner.metadata.uid}
            body: dict[str, Any] = {"metadata": {"name": node, "ownerReferences": [reference]}}
            into = dict[str, msgspec.Raw]
            await client.apply(GPU_NODES, body, manager=AGENT_MANAGER, into=into)
            status = await asyncio.to_thread(node_status, services, instances())
            body = {"metadata": {"name": node}, "status": status}
            await client.apply(GPU_NODES, body, manager=AGENT_MANAGER, subresource="status", into=into)
            return
        except ApiError as error:
            log.warning("GpuNode %s is not written yet: %s", node, error)
            await asyncio.sleep(backoff.next())
