"""The kubelet starts the containers; what it started is found in the keepers' folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from kybernate.errors import NotFoundError, RefusedError
from kybernate_agent.config import AgentConfig
from kybernate_agent.instance import Pod, Record
from kybernate_agent.keepers import Keeper, KeeperState

POD_LOGS = Path("/var/log/pods")


class KubeletStarter:
    """See `kybernate_agent.starter`. `kubelet` keeps everybody from asking for a start or a removal."""

    kubelet = True

    def __init__(self, config: AgentConfig) -> None:
        self._run = config.run

    async def start(self, record: Record) -> Pod:
        raise RefusedError(f"{record.id}: the kubelet starts it")

    async def again(self, record: Record) -> Pod:
        raise RefusedError(f"{record.id}: the kubelet starts it")

    async def renew(self, record: Record) -> Pod:
        raise RefusedError(f"{record.id}: the kubelet starts it")

    async def drop(self, pod: Pod) -> None:
        raise RefusedError(f"pod {pod.uid} is the kubelet's")

    async def stands(self, pod: Pod) -> bool:
        return Path(pod.netns).exists()

    async def remove(self, pod: Pod) -> None:
        raise RefusedError(f"pod {pod.uid} is the kubelet's")

    async def find(self) -> list[Pod]:
        folders = sorted((self._run / "keepers").glob("*/"))
        states = [Keeper(self._run, folder.name).last_state() for folder in folders]
        return [pod_of(state) for state in states if state is not None and state.pod_uid]

    def log_folder(self, record: Record) -> Path:
        member, wanted = record.member, record.wanted
        if member is not None and wanted is not None:
            folder = POD_LOGS / f"{wanted.namespace}_{member.pod}_{record.pod.uid}" / wanted.container
            if folder.is_dir():
                return folder
        raise NotFoundError(f"{record.id} has no logs here; `kubectl logs` shows them")

    async def close(self) -> None:
        """Nothing is held."""


def pod_of(state: KeeperState) -> Pod:
    """What a keeper's record and its bundle say of the pod."""
    netns = network_of(Path(state.bundle), state.sandbox)
    return Pod(uid=state.pod_uid, sandbox=state.sandbox, container=state.container, netns=netns)


def network_of(bundle: Path, sandbox: str) -> str:
    """The path of the pod's network namespace; empty where none is named.

    The sandbox's own is the one that CNI made, /run/netns/...; the container's names the pause process, whose pid may
    one day be another's. containerd keeps all bundles of a namespace side by side.
    """
    for folder in (bundle.parent / sandbox, bundle):
        try:
            config = msgspec.json.decode((folder / "config.json").read_bytes(), type=dict[str, Any])
        except (OSError, msgspec.MsgspecError):
            continue
        for space in (config.get("linux") or {}).get("namespaces") or []:
            if space.get("type") == "network" and space.get("path"):
                return str(space["path"])
    return ""
