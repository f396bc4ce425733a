"""The controller with ten thousand workloads: its first look when there is nothing to do, and its memory after it.

An API server and etcd alone. Ten thousand GpuWorkloads become pods and GpuInstances by the controller itself; the
benchmark plays scheduler, kubelet and agent by what it writes, until everything is parked and the controller has
nothing left to write. Then, in turns: `curl` of the three lists, one after the other, and a controller that starts
(the lists and one look at each workload; not Python's own start). A look that writes anything ends the benchmark with
an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from bench.harness import Row, command, limit, note
from bench.overhead import memory_mib
from kybernate.api import crd
from kybernate.errors import DeadlineError, ExternalError
from kybernate.kube.client import Client
from kybernate.kube.connection import Request
from kybernate.kube.resource import CRDS, GPU_INSTANCES, GPU_WORKLOADS, NODES, PODS, Resource
from kybernate.lab.cluster.apiserver import ApiServerBed, free_ports
from kybernate.lab.process import run

WORKLOADS = int(os.environ.get("BENCH_WORKLOADS", "10000"))
SYNC_SECONDS = 3.0
MEMORY_MB = 150.0
_RUNS = 5
_AT_ONCE = 32
_WORKERS = 8  # the controller's own default
_MADE_SECONDS = 1200.0
_SYNCED_SECONDS = 120.0
_SPACE = "bench"
_NODE = "n1"
_RUNTIME_CLASSES = Resource("node.k8s.io", "v1", "runtimeclasses", "RuntimeClass", namespaced=False)
_CONDITIONS = [
    {"type": kind, "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    for kind in ("PodScheduled", "Initialized", "ContainersReady", "Ready")
]


class NotQuietError(ExternalError):
    """The controller wrote where nothing had changed: {wrote}. The figures would be of something else."""


class LateError(DeadlineError):
    """{what}: not within {seconds:g} s. The controller's log ends: {log}"""


class Process:
    """One controller, as a process of its own."""

    def __init__(self, bed: ApiServerBed, workers: int) -> None:
        self._port = free_ports(1)[0]
        self._log = bed.folder / "controller.log"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "kybernate_controller", "--kubeconfig", str(bed.admin_kubeconfig),
                 "--no-election", "--listen", f"127.0.0.1:{self._port}", "--workers", str(workers)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    @property
    def memory_mb(self) -> float:
        """Resident, in MB."""
        return memory_mib(self._process.pid)[0] * (1 << 20) / 1e6

    def metric(self, name: str) -> float:
        """A metric's sum over its labels; -1 while it does not answer."""
        with contextlib.suppress(OSError):
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(f"http://127.0.0.1:{self._port}/metrics", timeout=10) as answer:
                found = re.findall(rf"^kybernate_controller_{name}(?:{{.*}})? (\S+)$", answer.read().decode(), re.M)
                return sum(map(float, found))
        return -1.0

    def until(self, holds: Callable[[], bool], what: str, seconds: float, each: float = 0.05) -> None:
        limit_at = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > limit_at or self._process.poll() is not None:
                raise LateError(what=what, seconds=seconds, log=self._log.read_text()[-2000:])
            time.sleep(each)

    def end(self) -> None:
        self._process.terminate()
        self._process.wait(30)


@contextlib.contextmanager
def controller(bed: ApiServerBed, workers: int = _WORKERS) -> Iterator[Process]:
    process = Process(bed, workers)
    try:
        yield process
    finally:
        process.end()


def measure(root: Path) -> list[Row]:
    folder = root / "apiserver"
    folder.mkdir()
    bed = ApiServerBed(folder)
    bed.start()
    try:
        asyncio.run(_install(bed))
        _settle(bed)
        ours: list[float] = []
        lists: list[float] = []
        memory: list[float] = []
        for number in range(1, _RUNS + 1):
            lists.append(_curl(bed))
            seconds, used = _sync(bed)
            ours.append(seconds)
            memory.append(used)
            note(f"run {number}: curl {lists[-1]:.2f} s, sync {seconds:.2f} s, {used:.0f} MB")
        return [
            _sync_row(ours, lists),
            limit("controller memory after sync", sorted(memory)[_RUNS // 2], "MB", MEMORY_MB),
        ]
    finally:
        bed.stop()


def _sync_row(ours: Sequence[float], lists: Sequence[float]) -> Row:
    """Against its limit; curl's times stand beside it."""
    median, beside = sorted(ours)[_RUNS // 2], sorted(lists)[_RUNS // 2]
    detail = {
        "value": SYNC_SECONDS,
        "name": "limit",
        "medians": {"kybernate": round(median, 2), "limit": SYNC_SECONDS, "curl of the three lists": round(beside, 2)},
        "runs": {
            "kybernate": [round(value, 2) for value in ours],
            "curl of the three lists": [round(value, 2) for value in lists],
        },
    }
    ratio = median / SYNC_SECONDS
    quantity = f"controller sync, {WORKLOADS} workloads"
    return Row(quantity, round(median, 2), "s", detail, round(ratio, 3), 1.0, ratio <= 1)


def _sync(bed: ApiServerBed) -> tuple[float, float]:
    """Seconds from its first list, which begins when it answers, to the last look at a workload; its memory then."""
    with controller(bed) as process:
        process.until(lambda: process.metric("looks_total") >= 0, "it answers", _SYNCED_SECONDS, each=0.01)
        began = time.perf_counter()
        process.until(lambda: process.metric("looks_total") >= WORKLOADS, "all looked at", _SYNCED_SECONDS, each=0.1)
        seconds = time.perf_counter() - began
        process.until(lambda: process.metric("queue_length") == 0, "nothing waits", _SYNCED_SECONDS)
        if wrote := process.metric("actions_total"):
            raise NotQuietError(wrote=f"{wrote:g} actions")
        return seconds, process.memory_mb


def _curl(bed: ApiServerBed) -> float:
    """Seconds for the three lists, one after the other, each whole."""
    began = time.perf_counter()
    for resource in (GPU_WORKLOADS, GPU_INSTANCES, PODS):
        words = ["curl", "--silent", "--show-error", "--fail", "--noproxy", "*", "--output", "/dev/null"]
        words += ["--cacert", str(bed.pki.certificate), "--header", f"Authorization: Bearer {bed.token}"]
        run([*words, bed.server + resource.path()], deadline_seconds=120)
    return time.perf_counter() - began


async def _install(bed: ApiServerBed) -> None:
    bed.create_namespace(_SPACE)
    async with bed.client() as client:
        for kind in crd.KINDS:
            await client.apply(CRDS, crd.definition(kind), manager="bench")
        runtime = {"metadata": {"name": "kybernate"}, "handler": "kybernate"}
        await client.apply(_RUNTIME_CLASSES, runtime, manager="bench")
        node = {"metadata": {"name": _NODE}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}}
        await client.apply(NODES, {"metadata": node["metadata"]}, manager="bench", into=dict)
        await client.apply(NODES, node, manager="bench", subresource="status", into=dict)


def _settle(bed: ApiServerBed) -> None:
    """Everything made, everything parked, nothing left for the controller to write."""
    began = time.monotonic()
    with controller(bed, workers=_AT_ONCE) as process:
        asyncio.run(_each(bed, range(WORKLOADS), _workload))
        note(f"{WORKLOADS} workloads after {time.monotonic() - began:.0f} s")
        made = lambda: process.metric("instances") >= WORKLOADS  # noqa: E731
        process.until(made, "a pod and a GpuInstance for each workload", _MADE_SECONDS, each=1)
        note(f"their pods and instances after {time.monotonic() - began:.0f} s")
        asyncio.run(_each(bed, range(WORKLOADS), _running))
        note(f"played kubelet and agent after {time.monotonic() - began:.0f} s")
        last = [0.0, time.monotonic()]

        def quiet() -> bool:
            now = process.metric("actions_total")
            if now != last[0]:
                last[:] = [now, time.monotonic()]
            return time.monotonic() - last[1] > 5 and process.metric("queue_length") == 0

        process.until(quiet, "nothing left to write", _MADE_SECONDS, each=0.5)
    note(f"quiet after {time.monotonic() - began:.0f} s")


async def _each(bed: ApiServerBed, numbers: range, do: Callable[[Client, int], Awaitable[None]]) -> None:
    async with bed.client() as client:
        at_once = asyncio.Semaphore(_AT_ONCE)

        async def one(number: int) -> None:
            async with at_once:
                await do(client, number)

        async for batch in _batches(numbers):
            await asyncio.gather(*(one(number) for number in batch))


async def _batches(numbers: range) -> AsyncIterator[range]:
    for start in range(0, len(numbers), 1000):
        yield numbers[start : start + 1000]


async def _workload(client: Client, number: int) -> None:
    container = {
        "name": "server",
        "image": "localhost/chat:1",
        "args": ["--model", f"model-{number}"],
        "ports": [{"containerPort": 8080}],
        "env": [{"name": "CACHE", "value": "/cache"}],
        "resources": {"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"memory": "2Gi"}},
        "volumeMounts": [{"name": "cache", "mountPath": "/cache"}],
    }
    spec = {"containers": [container], "volumes": [{"name": "cache", "emptyDir": {}}]}
    idle = {"suspendAfter": "60s", "parkAfter": "10m", "releaseRequests": False}
    body: dict[str, Any] = {
        "metadata": {"name": f"chat-{number:05}"},
        "spec": {"template": {"metadata": {"labels": {"app": "chat"}}, "spec": spec}, "idle": idle},
    }
    await client.create(GPU_WORKLOADS, body, _SPACE, into=dict)


async def _running(client: Client, number: int) -> None:
    """The scheduler binds, the kubelet runs it, the agent parks it."""
    name = f"chat-{number:05}-0"
    binding = {"metadata": {"name": name}, "target": {"apiVersion": "v1", "kind": "Node", "name": _NODE}}
    path = PODS.path(_SPACE, name, "binding")
    body = {"apiVersion": "v1", "kind": "Binding", **binding}
    await client.request(Request("POST", "create", path, "pods/binding", body=msgspec.json.encode(body)))
    ready = {
        "name": "server", "ready": True, "restartCount": 0, "image": "localhost/chat:1", "imageID": "sha256:0",
        "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
    }  # fmt: skip
    pod = {"status": {"phase": "Running", "conditions": _CONDITIONS, "containerStatuses": [ready], "podIP": "10.0.0.1"}}
    await client.merge_patch(PODS, dict, name, pod, _SPACE, subresource="status")
    status = {"state": "Parked", "tier": "NVME", "since": "2026-01-01T00:00:00Z", "nodeName": _NODE, "epoch": 1}
    await client.merge_patch(GPU_INSTANCES, dict, name, {"status": status}, _SPACE, subresource="status")


if __name__ == "__main__":
    sys.exit(command(sys.argv[1:], __doc__ or "", measure))
