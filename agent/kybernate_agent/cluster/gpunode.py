"""GpuNode: what this node can do and how full it is. Written when the agent starts, and again when that has changed.

    look ──each minute──> Seen ──is_news(written, seen)? (pure)──> written

How full the disk is changes all the time: it is news when it changed by a twentieth of the disk or 1 GiB. While nothing
changes nothing is written.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from kybernate.api.gpunode import Capabilities, NodeStatus, NodeTiers, TierUsage
from kybernate.api.names import AGENT_MANAGER
from kybernate.api.objects import Condition, Metadata, Object, builtins
from kybernate.kube.backoff import Backoff
from kybernate.kube.client import Client
from kybernate.kube.errors import ApiError
from kybernate.kube.resource import GPU_NODES, NODES
from kybernate.sizes import of_bytes
from kybernate_agent.cluster.status import when
from kybernate_agent.services import Services

log = logging.getLogger(__name__)

LOOK_SECONDS = 60.0
NEWS_BYTES = 1 << 30
NEWS_SHARE = 0.05


class Named(Object, kw_only=True):
    metadata: Metadata


@dataclass(frozen=True, slots=True)
class Seen:
    """What the node is like."""

    capacity: int
    used: int
    free: int
    criu: str
    runc: str
    kernel: str
    cgroup: str
    refusal: str
    """Why nothing can be parked here; empty: it can."""
    instances: int


def look(services: Services, instances: int) -> Seen:
    """Raises OSError where the disk does not answer."""
    disk = os.statvfs(services.config.state)
    return Seen(
        capacity=disk.f_blocks * disk.f_frsize,
        used=(disk.f_blocks - disk.f_bfree) * disk.f_frsize,
        free=disk.f_bavail * disk.f_frsize,
        criu=services.criu_version,
        runc=services.runc_version,
        kernel=os.uname().release,
        cgroup="v2" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "v1",
        refusal=services.park_refusal,
        instances=instances,
    )


def is_news(written: Seen | None, seen: Seen) -> bool:
    """Whether it is worth a write."""
    if written is None or replace(written, used=0, free=0) != replace(seen, used=0, free=0):
        return True
    return abs(seen.free - written.free) > min(NEWS_BYTES, NEWS_SHARE * seen.capacity)


def node_status(seen: Seen, since: float) -> NodeStatus:
    """`since`: when it became able to park, or unable."""
    return NodeStatus(
        tiers=NodeTiers(
            nvme=TierUsage(capacity=of_bytes(seen.capacity), used=of_bytes(seen.used), free=of_bytes(seen.free))
        ),
        capabilities=Capabilities(
            criu=seen.criu, runc=seen.runc, kernel=seen.kernel, cgroup=seen.cgroup, hold="NFQUEUE"
        ),
        instances=seen.instances,
        conditions=[
            Condition(
                type="Ready",
                status="False" if seen.refusal else "True",
                reason="CannotPark" if seen.refusal else "AgentReady",
                message=seen.refusal,
                last_transition_time=when(since),
            )
        ],
    )


async def publish(client: Client, node: str, look: Callable[[], Seen], pause: float = LOOK_SECONDS) -> None:
    """Keep it true, until cancelled."""
    written: Seen | None = None
    since = time.time()
    while True:
        try:
            seen = await asyncio.to_thread(look)
            if written is not None and written.refusal != seen.refusal:
                since = time.time()
            if is_news(written, seen):
                await _write(client, node, node_status(seen, since))
                written = seen
        except OSError as error:
            log.warning("GpuNode %s: its disk cannot be looked at: %s", node, error)
        await asyncio.sleep(pause)


async def _write(client: Client, node: str, status: NodeStatus) -> None:
    """However long the API server is away. The object is owned by the Node, and goes with it."""
    backoff = Backoff(longest=10.0)
    while True:
        try:
            owner = await client.get(NODES, Named, node)
            reference = {"apiVersion": "v1", "kind": "Node", "name": node, "uid": owner.metadata.uid}
            body: dict[str, Any] = {"metadata": {"name": node, "ownerReferences": [reference]}}
            into = dict[str, msgspec.Raw]
            await client.apply(GPU_NODES, body, manager=AGENT_MANAGER, into=into)
            said = {**builtins(status), "instances": status.instances}  # also 0: people are to see that it is none
            body = {"metadata": {"name": node}, "status": said}
            await client.apply(GPU_NODES, body, manager=AGENT_MANAGER, subresource="status", into=into)
            return
        except ApiError as error:
            log.warning("GpuNode %s is not written yet: %s", node, error)
            await asyncio.sleep(backoff.next())
