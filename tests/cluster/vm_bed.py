"""A cluster whose second node is a virtual machine with systemd, with everything on it by `kubectl apply -k`.

The first node is as ever and comes first, so the controller's pods are there: nothing but the agent and the workloads
is emulated. `VmInstance` is asked as any other; what is on its node is asked for through ssh.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agent_bed import APPS, Answer, ask, eventually
from cluster_bed import PYTHON_IMAGE, ClusterBed, open_cluster
from deploy_bed import NAMESPACE, PREFIX, workload
from product_bed import One, service
from product_remains import REMAINS

from kybernate.lab import python_image
from kybernate.lab.product_image import ROOT, product_image
from kybernate.lab.vm.node import VmNode

LIMIT = 600.0
"""Seconds: on a quiet machine of two cores nothing here takes a minute, emulated beside other work it may."""
MEMORY_BYTES = 200 << 20
CPU_MAX = "50000 100000"
_PYTHON = f"{PREFIX}/current/own/python/bin/python3"
_KEEPERS = "/run/kybernate/keepers"


class VmBed:
    """The cluster and the node in the virtual machine."""

    def __init__(self, bed: ClusterBed, node: VmNode) -> None:
        self.bed, self.node = bed, node

    def agent_ready(self) -> None:
        """The agent of the node is at work. Not `rollout status`: after a reboot that is the word of before."""

        def look() -> bool:
            about = f"--field-selector=spec.nodeName={self.node.name}"
            found = self.bed.items("pods", about, namespace=NAMESPACE)
            return [it for pod in found for it in pod["status"].get("containerStatuses", []) if it["ready"]] != []

        eventually(look, LIMIT, f"the agent on {self.node.name} is ready")

    @contextlib.contextmanager
    def running(self, *names: str) -> Iterator[list[VmInstance]]:
        """Workloads on the node that sleep when they are ordered to, each behind a Service; gone at the end."""
        self.bed.apply(*(it for name in names for it in (_workload(name, self.node.name), service(name))))
        try:
            instances = [VmInstance(self, f"{name}-0") for name in names]
            for one in instances:
                one.wait("Running", LIMIT)
                one.serving()
            yield instances
        finally:
            self.bed.kubectl("delete", "--ignore-not-found", "--wait=false", *(f"gw/{name}" for name in names))
            self.bed.delete(*(f"service/{name}" for name in names))
            for name in names:
                self.bed.wait(f"gi/{name}-0", "delete", seconds=LIMIT)
                self.bed.wait(f"pod/{name}-0", "delete", seconds=LIMIT)

    def remains(self) -> dict[str, list[str]]:
        """All that a workload could leave on the node."""
        found: dict[str, list[str]] = json.loads(self.node.run([_PYTHON, "-c", REMAINS, "/kubepods.slice"]))
        scopes = ["systemctl", "list-units", "--all", "--plain", "--no-legend", "--type=scope,slice"]
        return {**found, "units": [line.split()[0] for line in self.node.run(scopes).splitlines()]}

    def await_nothing_left(self, before: dict[str, list[str]]) -> None:
        seen: dict[str, list[str]] = {}

        def nothing() -> bool:
            seen.clear()
            seen.update({key: sorted(set(more) - set(before[key])) for key, more in self.remains().items()})
            return not any(seen.values())

        try:
            eventually(nothing, LIMIT, "nothing is left")
        except AssertionError as error:
            raise AssertionError(f"{error}: {json.dumps(seen, indent=1)}") from None


class VmInstance(One):
    """One on the node in the virtual machine."""

    def __init__(self, vm: VmBed, name: str) -> None:
        super().__init__(vm.bed, name)
        self.vm = vm

    def serving(self) -> Answer:
        """What it answers once it does; its pod is Ready."""
        eventually(self.ready, LIMIT, f"{self.name} is ready")
        return eventually(self.call, LIMIT, f"{self.name} serves")

    def call(self) -> Answer:
        """By pod IP."""
        return ask(self.ip, seconds=LIMIT)

    def call_service(self) -> Answer:
        found = self.bed.cluster.api.get(f"/api/v1/namespaces/default/services/{self.name.removesuffix('-0')}")
        return ask(found["spec"]["clusterIP"], port=80, seconds=LIMIT)

    def goes_to(self, verb: str, state: str, tier: str) -> None:
        """Ordered to sleep, it does."""
        order = f"kybernate.io/order={verb} {time.monotonic_ns()}"
        self.bed.kubectl("annotate", "gi", self.name, order, "--overwrite")
        status = self.wait(state, LIMIT)
        assert status["tier"] == tier

    def container(self) -> str:
        """The one that the kubelet speaks of; none while it makes another one."""
        return super().container().removeprefix("containerd://")

    def await_another_container(self, before: str) -> None:
        eventually(
            lambda: self.container() not in ("", before), LIMIT, f"{self.name} is in another container than {before}"
        )

    def scope(self) -> Path:
        """The cgroup of its container; there is exactly one."""
        name = f"cri-containerd-{self.container()}.scope"
        (path,) = self.vm.node.run(["find", "/sys/fs/cgroup", "-name", name]).split()
        return Path(path)

    def limits(self) -> dict[str, str]:
        """What the kernel has for that cgroup, and what systemd believes of the unit."""
        scope = self.scope()
        files = {name: self.vm.node.run(["cat", scope / name]).strip() for name in ("memory.max", "cpu.max")}
        said = self.vm.node.run(["systemctl", "show", "-p", "ActiveState", "-p", "MemoryMax", scope.name])
        return {**files, "path": str(scope), **dict(line.split("=", 1) for line in said.splitlines())}

    def processes(self) -> list[str]:
        """Command lines of its processes, wherever on the node they are: an application knows its pod's name."""
        code = 'for p in /proc/[0-9]*; do tr "\\0" "\\n" 2>/dev/null <$p/environ | grep -qx "HOSTNAME=$1" && '
        code += '{ tr "\\0" " " <$p/cmdline; echo; }; done; true'
        return self.vm.node.run(["sh", "-c", code, "sh", self.name]).splitlines()


def _workload(name: str, node: str) -> dict[str, Any]:
    made = workload(name)
    spec = made["spec"]["template"]["spec"]
    spec["nodeSelector"] = {"kubernetes.io/hostname": node}
    limits = {"memory": str(MEMORY_BYTES), "cpu": "500m"}
    spec["containers"][0]["resources"] = {"limits": limits, "requests": {"cpu": "50m"}}  # an emulated machine has one
    return made


@contextlib.contextmanager
def open_vm() -> Iterator[VmBed]:
    """The cluster with the virtual machine, ready; nothing of it is left afterwards."""
    images = [python_image(PYTHON_IMAGE), product_image()]
    with open_cluster(guests=1, images=images) as bed:
        bed.kubectl("apply", "--server-side", "-k", ROOT / "deploy/base")
        node = VmNode(bed.cluster, images=images, trees=[APPS])
        try:
            node.up()
            vm = VmBed(bed, node)
            vm.agent_ready()
            bed.kubectl("rollout", "status", "deploy/kybernate-controller", "-n", NAMESPACE, f"--timeout={LIMIT:g}s")
            node.run(["mkdir", "-p", "-m", "700", _KEEPERS])  # the first container of ours would make it
            yield vm
        finally:
            node.machine.cut_power()


__all__ = ["CPU_MAX", "LIMIT", "MEMORY_BYTES", "VmBed", "VmInstance", "eventually", "open_vm"]
