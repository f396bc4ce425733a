"""What every instance of the node uses, in one place: handed to each actor, owned by the node."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from kybernate.store import Store
from kybernate_agent.config import AgentConfig
from kybernate_agent.journal import Journal
from kybernate_agent.starter import Starter
from kybernate_agent.traffic import Kubelet


@dataclass(frozen=True, slots=True)
class Services:
    config: AgentConfig
    journal: Journal
    store: Store
    starter: Starter
    changed: Callable[[str], None]  # an instance has news
    criu_version: str
    runc_version: str
    sys_resource: bool  # CRIU may dump processes that are not root's
    kubelet: Kubelet | None = None  # who owns a connection; without a cluster nobody probes
    packing: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(2))
    """After a reboot the layers of all that is parked are packed, a few at a time: wakes need disk and threads too."""
    park_refusal: str = ""  # why nothing can be parked on this machine; empty: it can
