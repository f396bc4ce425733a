"""Who starts an instance's container: the agent itself, through CRI, or the kubelet.

Where it is the kubelet, the agent learns of a container from the hook's `create` and `started`; then nobody calls what
starts or removes something here, and `kubelet` says so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from kybernate_agent.instance import Pod, Record


class Starter(Protocol):
    """All of it may be repeated; what is gone counts as removed. Raises KybernateErrors."""

    @property
    def kubelet(self) -> bool: ...

    async def start(self, record: Record) -> Pod:
        """A new pod with the started container in it; what a pod of this uid left is removed first."""
        ...

    async def again(self, record: Record) -> Pod:
        """A new container in the sandbox that stands, as attempt `record.pod.attempt`."""
        ...

    async def renew(self, record: Record) -> Pod:
        """A new sandbox in place of one that is gone, with the volumes of before, and a new container in it. What is
        left of the old one goes last: until then its writable layer can be read."""
        ...

    async def stands(self, pod: Pod) -> bool:
        """Whether the sandbox is there, with its network."""
        ...

    async def remove(self, pod: Pod) -> None:
        """End the container, then all of the pod."""
        ...

    async def drop(self, pod: Pod) -> None:
        """One sandbox of a pod whose other one counts. The volumes stay."""
        ...

    async def find(self) -> list[Pod]:
        """The pods with managed containers of ours, each with its newest container."""
        ...

    def log_folder(self, record: Record) -> Path:
        """The folder with the log files of its container. Raises NotFoundError where there is none."""
        ...

    async def close(self) -> None: ...
