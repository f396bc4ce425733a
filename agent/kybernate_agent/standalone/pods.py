"""A pod's life without a kubelet: sandbox, volumes, cgroup and logs, and the one container in it.

The agent's journal knows which pod an instance has; what containerd has under our label and the journal does not know
is a start that was cut short. All calls may be repeated: what is there is taken away before it is made anew, what is
gone counts as removed.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from pathlib import Path

import msgspec

from kybernate.api import GpuWorkload
from kybernate.api.names import INSTANCE
from kybernate.errors import InvalidError, KybernateError, NotFoundError, RefusedError
from kybernate_agent.config import AgentConfig
from kybernate_agent.instance import Pod
from kybernate_agent.standalone import translate
from kybernate_agent.standalone.cri import Cri, CriNotFoundError, Sandbox
from kybernate_agent.standalone.kubelet import refuse_kubelets
from kybernate_agent.standalone.translate import Place

GRACE_SECONDS = 10
"""How long an awake application has to end after SIGTERM. One that sleeps ends at once."""
CGROUP_SECONDS = 2.0
_CGROUPS = Path("/sys/fs/cgroup")


class HandlerMissingError(RefusedError):
    """containerd at {socket} has no runtime handler {handler}; it has: {handlers}. Install the shim and register it in
    containerd's configuration; `kybernate doctor` shows how."""


class RunAsGroupError(InvalidError):
    """{workload}: spec.template.spec.containers[0].securityContext.runAsGroup needs runAsUser."""


class Pods:
    """The pods of one agent on one containerd."""

    def __init__(self, cri: Cri, config: AgentConfig, systemd: bool) -> None:
        self._cri = cri
        self._handler = config.runtime_handler
        self._state = config.state.absolute()
        self._agent = translate.agent_label(config.state)
        self._systemd = systemd

    @classmethod
    async def connect(cls, config: AgentConfig) -> Pods:
        """Wait for containerd and look whether it is ours to use.

        Raises CriUnavailableError, CriError, KubeletSocketError, HandlerMissingError.
        """
        cri = Cri(config.containerd_socket)
        try:
            await cri.ready()
            await refuse_kubelets(cri)
            runtime = await cri.runtime()
            if runtime.handlers and config.runtime_handler not in runtime.handlers:
                known = ", ".join(sorted(runtime.handlers))
                raise HandlerMissingError(socket=cri.socket, handler=config.runtime_handler, handlers=known)
        except BaseException:
            await cri.close()
            raise
        return cls(cri, config, config.runtime_handler in runtime.systemd)

    async def close(self) -> None:
        await self._cri.close()

    async def start_pod(self, workload: GpuWorkload, instance: str, uid: str) -> Pod:
        """A new sandbox with the started container in it. What a pod of this uid left is removed first, but for its
        volumes and logs; a failure leaves nothing but these.

        Raises the errors of `Cri`, RunAsGroupError.
        """
        place = self._place(instance, uid)
        _check(workload)
        await self._remove_sandboxes(uid)
        await self._prepare(workload, place)
        sandbox = ""
        try:
            sandbox = await self._cri.run_sandbox(translate.sandbox_config(workload, place), self._handler)
            found = await self._cri.sandbox_status(sandbox)
            await asyncio.to_thread(_write_hosts, place, found)
            container = await self._start_container(workload, place, sandbox, 0)
        except BaseException:
            await asyncio.shield(self._remove_sandboxes(uid))
            raise
        return Pod(uid=uid, sandbox=sandbox, container=container, netns=found.netns, ip=found.ip)

    async def recreate_container(self, workload: GpuWorkload, pod: Pod) -> Pod:
        """A new container, as attempt `pod.attempt`, in the sandbox that stands. The old one is ended
        first and removed last: until then its writable layer can be read. A failure leaves it.

        Raises the errors of `Cri`.
        """
        sandbox = await self._cri.sandbox_status(pod.sandbox)
        place = self._place(sandbox.labels[INSTANCE], pod.uid)
        for container in await self._cri.containers(pod.sandbox):
            await self._cri.stop_container(container.id, 0)  # never two live ones
            if container.id != pod.container and container.metadata.attempt >= pod.attempt:
                await self._cri.remove_container(container.id)  # of a start that was cut short
        await self._prepare(workload, place)
        new = await self._start_container(workload, place, pod.sandbox, pod.attempt)
        for container in await self._cri.containers(pod.sandbox):
            if container.id != new:
                await self._cri.remove_container(container.id)
        return msgspec.structs.replace(pod, container=new, netns=sandbox.netns, ip=sandbox.ip)

    async def renew_pod(self, workload: GpuWorkload, pod: Pod, instance: str) -> Pod:
        """As `recreate_container`, where the sandbox is gone (the machine started anew): in a new one of the same pod,
        with its volumes. A failure leaves what was before."""
        place = self._place(instance, pod.uid)
        old = [it for it in await self._cri.sandboxes({translate.AGENT: self._agent}) if it.uid == pod.uid]
        for sandbox in old:
            await self._cri.stop_sandbox(sandbox.id)  # never two live ones
        await self._prepare(workload, place)
        attempt = max((it.attempt for it in old), default=-1) + 1
        new = await self._cri.run_sandbox(translate.sandbox_config(workload, place, attempt), self._handler)
        try:
            found = await self._cri.sandbox_status(new)
            await asyncio.to_thread(_write_hosts, place, found)
            container = await self._start_container(workload, place, new, pod.attempt, attempt)
        except BaseException:
            await asyncio.shield(self.drop_sandbox(new))
            raise
        for sandbox in old:
            await self.drop_sandbox(sandbox.id)
        return msgspec.structs.replace(pod, sandbox=new, container=container, netns=found.netns, ip=found.ip)

    async def drop_sandbox(self, sandbox: str) -> None:
        """End and remove it with its containers. Nothing where it is gone."""
        await self._cri.stop_sandbox(sandbox)
        await self._cri.remove_sandbox(sandbox)

    async def sandbox_ready(self, sandbox: str) -> bool:
        """Whether the sandbox stands, with its network."""
        try:
            return (await self._cri.sandbox_status(sandbox)).ready
        except CriNotFoundError:
            return False

    async def remove_pod(self, pod: Pod, grace_seconds: int = GRACE_SECONDS) -> None:
        """End the container, then remove sandbox, network, volumes, logs and cgroup. Nothing where all that is gone."""
        if pod.container:
            await self._cri.stop_container(pod.container, grace_seconds)
        if pod.sandbox:
            with contextlib.suppress(CriNotFoundError):
                instance = (await self._cri.sandbox_status(pod.sandbox)).labels.get(INSTANCE, "")
                await self._remove_logs(instance)
        if pod.uid:
            await self._remove_sandboxes(pod.uid)
            await asyncio.to_thread(shutil.rmtree, self._state / "pods" / pod.uid, ignore_errors=True)

    async def find_pods(self) -> list[Pod]:
        """The pods that containerd has of this agent."""
        found = []
        for listed in await self._cri.sandboxes({translate.AGENT: self._agent}):
            with contextlib.suppress(CriNotFoundError):
                sandbox = await self._cri.sandbox_status(listed.id)
                newest = next(iter(await self._cri.containers(listed.id)), None)
                found.append(
                    Pod(
                        uid=sandbox.uid,
                        sandbox=sandbox.id,
                        netns=sandbox.netns,
                        ip=sandbox.ip,
                        container=newest.id if newest else "",
                        attempt=newest.metadata.attempt if newest else 0,
                    )
                )
        return found

    def log_folder(self, instance: str) -> Path:
        """The folder with the log files of an instance's container. Raises NotFoundError before its first start."""
        folders = sorted(self._logs(instance).glob("*/"))
        if not folders:
            raise NotFoundError(f"{instance} has no logs yet: its container has not been started")
        return folders[0]

    def _logs(self, instance: str) -> Path:
        return self._state / "logs" / instance

    def _place(self, instance: str, uid: str) -> Place:
        own = self._state / "pods" / uid
        cgroup = translate.cgroup_of(uid, self._systemd)
        return Place(instance, uid, self._agent, self._logs(instance), own / "volumes", own / "etc-hosts", cgroup)

    async def _prepare(self, workload: GpuWorkload, place: Place) -> None:
        if not await self._cri.has_image(workload.container.image):
            await self._cri.pull(workload.container.image)
        await asyncio.to_thread(_make_folders, workload, place)

    async def _start_container(
        self, workload: GpuWorkload, place: Place, sandbox: str, attempt: int, sandbox_attempt: int = 0
    ) -> str:
        config = translate.container_config(workload, place, attempt)
        pod_config = translate.sandbox_config(workload, place, sandbox_attempt)
        container = await self._cri.create_container(sandbox, config, pod_config)
        try:
            await self._cri.start_container(container)
        except BaseException:
            with contextlib.suppress(KybernateError):
                await asyncio.shield(self._cri.remove_container(container))
            raise
        return container

    async def _remove_sandboxes(self, uid: str) -> None:
        for sandbox in await self._cri.sandboxes({translate.AGENT: self._agent}):
            if sandbox.uid == uid:
                await self.drop_sandbox(sandbox.id)
        await asyncio.to_thread(_remove_cgroup, translate.cgroup_of(uid, self._systemd))

    async def _remove_logs(self, instance: str) -> None:
        if instance:
            await asyncio.to_thread(shutil.rmtree, self._logs(instance), ignore_errors=True)


def _check(workload: GpuWorkload) -> None:
    context = workload.container.security_context
    if context.run_as_group is not None and context.run_as_user is None:
        raise RunAsGroupError(workload=workload.name)


def _make_folders(workload: GpuWorkload, place: Place) -> None:
    (place.logs / workload.container.name).mkdir(parents=True, exist_ok=True)
    for folder in translate.empty_dirs(workload, place):
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o777)  # as the kubelet: the container may run as any user


def _write_hosts(place: Place, sandbox: Sandbox) -> None:
    place.hosts.parent.mkdir(parents=True, exist_ok=True)
    place.hosts.write_text(translate.hosts_file(place.instance, [sandbox.ip, *sandbox.more_ips]))
    place.hosts.chmod(0o644)


def _remove_cgroup(path: str) -> None:
    """The pod's cgroup in every hierarchy; the runtime removes only those of containers, and some moments after their
    last process was reaped. What stays busy is left: it costs nothing."""
    until = time.monotonic() + CGROUP_SECONDS
    roots = [root for root in (_CGROUPS, *_CGROUPS.glob("*/")) if (root / "cgroup.procs").exists()]
    while busy := [root for root in roots if not _removed(root / path.lstrip("/"))]:
        if time.monotonic() > until:
            return
        roots = busy
        time.sleep(0.01)


def _removed(folder: Path) -> bool:
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
