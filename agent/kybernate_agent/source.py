"""Who says which instances a node has: the folder of manifests, or the API server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from kybernate_agent.actor import Actor
from kybernate_agent.instance import Record, Wanted


class Source(Protocol):
    def wanted(self, record: Record) -> Wanted:
        """What a journalled instance is to be. Raises InvalidError."""
        ...

    async def create(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """The hook asks whether a container begins anew or is restored. Raises KybernateErrors to refuse it."""
        ...

    async def started(self, container: str) -> None:
        """containerd has started it."""
        ...

    async def terminate(self, actor: Actor, signal: int, until: float) -> str:
        """containerd wants it to end: `end`, or `park` where the agent sees to its end. Nobody hears an answer after
        `until` (monotonic): the signal has been passed on."""
        ...

    def gone(self, record: Record) -> None:
        """The instance has ended; nothing of it is left on the node."""
        ...
