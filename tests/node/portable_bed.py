"""Pods that are parked and come back elsewhere: real containerd, keeper, CRIU, store; the agent is a stand-in.

The stand-in answers the hook as it is told to: begin, or restore what the store has. Who may come back, and when, is
the agent's to decide and shown elsewhere; here is what has to happen to the files.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import yaml
from kybernate_agent import portable, processes
from kybernate_agent.config import AgentConfig
from kybernate_agent.instance import Pod
from kybernate_agent.keepers import Keeper
from kybernate_agent.standalone.pods import Pods
from node_bed import PYTHON_IMAGE, NodeBed
from shim_bed import StandIn

from kybernate import criu
from kybernate.api import GpuWorkload, load
from kybernate.criu import skeleton
from kybernate.errors import KybernateError
from kybernate.store import FolderStore, Manifest

APPS = Path(__file__).parent.parent / "apps"
SECONDS = 60.0


def workload(
    name: str, container: dict[str, Any] | None = None, mounts: list[dict[str, Any]] | None = None
) -> GpuWorkload:
    return load(manifest(name, container, mounts), f"{name}.yaml")[0]


def manifest(name: str, container: dict[str, Any] | None = None, mounts: list[dict[str, Any]] | None = None) -> str:
    """`keeping.py` with an emptyDir at /data; `container` and `mounts` change and add to it."""
    spec = {
        "name": "app",
        "image": PYTHON_IMAGE,
        "command": ["/usr/bin/python3", "-u", "/apps/keeping.py"],
        "ports": [{"containerPort": 8080}],
        "volumeMounts": [
            {"name": "apps", "mountPath": "/apps", "readOnly": True},
            {"name": "data", "mountPath": "/data"},
            *(mounts or []),
        ],
        **(container or {}),
    }
    listed = [{"name": "apps", "hostPath": {"path": str(APPS)}}, {"name": "data", "emptyDir": {}}]
    listed += [{"name": it["name"], "emptyDir": {}} for it in mounts or []]
    template = {"spec": {"containers": [spec], "volumes": listed}}
    whole = {
        "apiVersion": "kybernate.io/v1alpha1",
        "kind": "GpuWorkload",
        "metadata": {"name": name},
        "spec": {"template": template},
    }
    return yaml.safe_dump(whole)


class Bed:
    """The pods of one test, and what their hook is answered. `refused` is what a restore was refused for."""

    def __init__(self, bed: NodeBed, pods: Pods, hook: StandIn, folder: Path) -> None:
        self.bed, self.pods, self.hook = bed, pods, hook
        self.store = FolderStore(folder / "store", bytes(32))
        self.folder = folder
        self.refused: KybernateError | None = None
        self.carried = True
        self._epoch = 0

    async def start(self, made: GpuWorkload, instance: str = "keep-0") -> Pod:
        """A new pod, begun anew."""
        self.hook.answers["create"] = {"ok": True, "action": "start"}
        return await self.pods.start_pod(made, instance, str(uuid.uuid4()))

    async def start_restored(self, made: GpuWorkload, manifest: Manifest, instance: str = "keep-0") -> Pod:
        """A new pod whose container is filled and awaits its restore."""

        def answer(request: dict[str, Any]) -> dict[str, Any]:
            try:
                self.store.check(manifest)
                facts = asyncio.run(portable.facts_of(Path(request["bundle"]), str(self.bed.containerd.socket)))
                self.carried = not asyncio.run(portable.restore(self.store.images(manifest), facts))
            except KybernateError as error:
                self.refused = error
                return {"ok": False, "error": type(error).__name__, "message": str(error)}
            return {"ok": True, "action": "restore"}

        self.hook.answers["create"] = answer
        return await self.pods.start_pod(made, instance, str(uuid.uuid4()))

    async def park(self, pod: Pod, *, whole: bool = True, dump_conf: str = "") -> Manifest:
        keeper = Keeper(self.bed.run, pod.container)
        await keeper.freeze()
        state = await keeper.state()
        facts = await portable.facts_of(Path(state.bundle), str(self.bed.containerd.socket))
        self._epoch += 1
        staging = self.store.stage("keep-0", self._epoch, await portable.needed_bytes(facts, whole))
        known = skeleton.skeletons(state.init_pid)
        made: list[Manifest] = []

        def commit(request: dict[str, Any]) -> dict[str, Any]:
            skeleton.save(staging.images, known)
            asyncio.run(portable.save(staging.images, facts, whole=whole))
            made.append(self.store.commit(staging, {}))
            return {"ok": True}

        self.hook.answers["post-dump"] = commit
        work = self.folder / f"dump-{self._epoch}"
        work.mkdir()
        conf = dump_conf or criu.dump_conf(external={one.mountpoint: one.key for one in known})
        await keeper.dump(staging.images, work, conf, SECONDS)
        return made[0]

    async def wake(self, pod: Pod, manifest: Manifest) -> criu.Cause | None:
        """Restore; None, or why CRIU could not."""
        keeper, images = Keeper(self.bed.run, pod.container), self.store.images(manifest)
        moved = portable.has_moved(images, pod.sandbox)
        stand = criu.Stand(self.folder / "mounts")
        work = self.folder / f"restore-{uuid.uuid4().hex[:6]}"
        work.mkdir()
        try:
            source = await portable.images_for(images, Path((await keeper.state()).bundle), work / "images")
            conf = criu.restore_conf(external=stand.make(skeleton.load(images)), keep_connections=not moved)
            await keeper.restore(source if moved else images, work, conf, SECONDS)
        except KybernateError as error:
            return criu.explain(work / "restore.log", str(error))
        finally:
            stand.clear()
        state = await keeper.state()
        if moved:
            await portable.name_host(state.init_pid, Path(state.bundle))
        return None

    async def upper(self, pod: Pod) -> Path:
        state = await Keeper(self.bed.run, pod.container).state()
        return Path(processes.writable_layer(state.init_pid))


class Client:
    """One connection to the application."""

    def __init__(self, pod: Pod) -> None:
        self.socket = socket.create_connection((pod.ip, 8080), SECONDS)
        self.lines = self.socket.makefile("r")

    def ask(self) -> dict[str, Any]:
        self.socket.sendall(b"x\n")
        found: dict[str, Any] = json.loads(self.lines.readline())
        return found

    def close(self) -> None:
        self.lines.close()
        self.socket.close()


async def first(pod: Pod) -> Client:
    """The first connection that is accepted: the application is up then."""
    async with asyncio.timeout(SECONDS):
        while True:
            with contextlib.suppress(OSError):
                return Client(pod)
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def portable_bed(bed: NodeBed, folder: Path) -> AsyncIterator[Bed]:
    config = AgentConfig(state_dir=str(folder / "lib"), containerd_socket=str(bed.containerd.socket))
    pods = await Pods.connect(config)
    hook = StandIn(bed.run)
    try:
        yield Bed(bed, pods, hook, folder)
    finally:
        for pod in await pods.find_pods():
            await pods.remove_pod(pod, grace_seconds=0)
        await pods.close()
        hook.close()
