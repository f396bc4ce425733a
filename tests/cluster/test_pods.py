"""Pods of every kind: containers beside the one that sleeps, and all volumes that change while it does."""

from __future__ import annotations

import contextlib
import json
import signal
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from agent_in_cluster import evict
from cluster_bed import ClusterBed
from product_bed import LIMIT, PYTHON_IMAGE, One, Product, Workload, eventually, manifest

from kybernate.lab.process import ProgramError

SERVES = ["/bin/sh", "-c", "trap exit TERM; /usr/bin/python3 -u -m http.server $0 & wait"]
"""And ends when it is told to, which a container's first process has to care for itself."""
COUNTS = "counts"
FOLDERS = ("data", "fast", "work")
"""A claim, memory, disk: the application keeps a file open in each."""


def claim(folder: Path) -> list[dict[str, Any]]:
    """A volume in this folder of the node, and the claim that has it."""
    both: dict[str, Any] = {"accessModes": ["ReadWriteOnce"], "storageClassName": "", "volumeMode": "Filesystem"}
    size = {"storage": "1Mi"}
    volume: dict[str, Any] = {
        **both, "capacity": size, "hostPath": {"path": str(folder), "type": "DirectoryOrCreate"},
        "claimRef": {"namespace": "default", "name": "every"},
    }  # fmt: skip
    return [
        {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "every"}, "spec": volume},
        {
            "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "every"},
            "spec": {**both, "resources": {"requests": size}, "volumeName": "every"},
        },
    ]  # fmt: skip


def beside(name: str, port: int, **more: Any) -> dict[str, Any]:
    mounts = [{"name": "work", "mountPath": "/work"}]
    return {"name": name, "image": PYTHON_IMAGE, "command": [*SERVES, str(port)], "volumeMounts": mounts, **more}


def every() -> dict[str, Any]:
    """A workload that has it all."""
    items = [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]
    volumes: dict[str, dict[str, Any]] = {
        "data": {"persistentVolumeClaim": {"claimName": "every"}},
        "fast": {"emptyDir": {"medium": "Memory"}},
        "work": {"emptyDir": {}},
        "config": {"configMap": {"name": "every"}},
        "token": {"projected": {"sources": [{"serviceAccountToken": {"path": "token", "expirationSeconds": 600}}]}},
        "about": {"downwardAPI": {"items": items}},
    }
    first = beside("first", 1, command=["/bin/sh", "-c", "echo made >> /work/first"])
    pod = {
        "initContainers": [first, beside("sidecar", 9000, restartPolicy="Always")],
        "containers": [beside("beside", 9001)],
        "volumes": [{"name": name, **what} for name, what in volumes.items()],
    }
    container = {
        "command": ["/usr/bin/python3", "-u", "/apps/reading.py"],
        "env": [
            {"name": "WRITES", "value": " ".join(f"/{name}" for name in FOLDERS)},
            {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        ],
        "volumeMounts": [{"name": name, "mountPath": f"/{name}"} for name in volumes],
    }
    return manifest("every", spec={"containers": ["app"]}, pod=pod, container=container)


@pytest.fixture(scope="module")
def workload(product: Product) -> Iterator[Workload]:
    bed = product.bed
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "every"}, "data": {"word": "old"}}
    bed.apply(config, *claim(bed.cluster.folder / "claimed"), every())
    made = Workload(product, "every")
    try:
        yield made.ready()
    finally:
        made.delete()
        bed.delete("pvc/every", "pv/every", "configmap/every")


@pytest.fixture
def before(workload: Workload) -> list[str]:
    """What it answered before it was parked."""
    answer: list[str] = eventually(lambda: call(workload[0], "/"), LIMIT, "it answers")
    return answer


@pytest.fixture
def one(workload: Workload, before: list[str]) -> One:
    """Parked, after a call."""
    one = workload[0]
    one.order("park")
    assert one.wait("Parked")["tier"] == "NVME"
    return one


def call(one: One, path: str, port: int = 8080) -> list[str]:
    with urllib.request.urlopen(f"http://{one.ip}:{port}{path}", timeout=60) as answer:
        return str(answer.read().decode()).splitlines()


def on_node(bed: ClusterBed, one: One, kind: str, path: str) -> str:
    """A file of one of the pod's volumes, as the kubelet has it."""
    return bed.node.run(["cat", f"/var/lib/kubelet/pods/{one.uid}/volumes/kubernetes.io~{kind}/{path}"])


def check_same(one: One, before: list[str]) -> None:
    """It answers, as the one that it was, and its open files go on."""
    count, born = call(one, "/")[0].split()
    assert [str(int(count) - 1), born] == before[0].split()
    for folder in FOLDERS:
        assert call(one, f"/{folder}/{COUNTS}")[1:][: int(count)] == [str(n) for n in range(1, int(count) + 1)]


def test_its_open_files_go_on_in_every_volume(one: One, before: list[str]) -> None:
    check_same(one, before)


def test_who_is_beside_it_works_on_while_it_sleeps(one: One) -> None:
    for port in (9000, 9001):
        assert "made" in call(one, "/work/first", port)
    assert one.status["state"] == "Parked"


def test_who_is_beside_it_may_end_and_start_again(product: Product, one: One) -> None:
    def restarts() -> dict[str, int]:
        status = one.pod["status"]
        them = status["containerStatuses"] + status["initContainerStatuses"]
        return {each["name"]: each["restartCount"] for each in them}

    before = restarts()
    for name in ("beside", "sidecar"):
        with contextlib.suppress(ProgramError):  # it may go before kubectl hears how its command ended
            product.bed.kubectl("exec", one.name, "-c", name, "--", "/bin/sh", "-c", "kill -TERM 1")
    eventually(lambda: restarts()["beside"] > before["beside"], LIMIT, "the second container was started again")
    eventually(lambda: restarts()["sidecar"] > before["sidecar"], LIMIT, "the sidecar was started again")
    assert restarts()["app"] == before["app"]
    assert one.status["state"] == "Parked"


def test_a_changed_config_map_is_seen_after_the_wake(product: Product, one: One) -> None:
    bed, word = product.bed, f"new-{time.monotonic_ns()}"
    bed.kubectl("patch", "configmap", "every", "--type=merge", "-p", json.dumps({"data": {"word": word}}))
    eventually(lambda: poked(bed, one) and on_node(bed, one, "configmap", "config/word") == word, LIMIT, "it is there")
    assert one.status["state"] == "Parked"
    assert call(one, "/config/word")[1:] == [word]


def poked(bed: ClusterBed, one: One) -> bool:
    """The kubelet looks at a pod's volumes once a minute, and when the pod changes."""
    bed.kubectl("annotate", "pod", one.name, f"poked={time.monotonic_ns()}", "--overwrite")
    return True


def test_what_the_pod_says_of_itself_is_seen_after_the_wake(product: Product, one: One) -> None:
    bed = product.bed
    bed.kubectl("label", "pod", one.name, "mood=fresh", "--overwrite")
    eventually(lambda: "fresh" in on_node(bed, one, "downward-api", "about/labels"), LIMIT, "it is there")
    assert one.status["state"] == "Parked"
    assert 'mood="fresh"' in call(one, "/about/labels")


def test_a_token_that_was_renewed_is_seen_after_the_wake(product: Product, one: One) -> None:
    """A kubelet that starts anew fetches another token for a pod's volume."""
    bed = product.bed
    before = on_node(bed, one, "projected", "token/token")
    bed.node.machine.restart("kubelet", signal.SIGTERM)
    eventually(lambda: on_node(bed, one, "projected", "token/token") != before, LIMIT, "it was renewed")
    assert one.status["state"] == "Parked"
    assert call(one, "/token/token")[1:] == on_node(bed, one, "projected", "token/token").splitlines()


def test_evicted_it_comes_back_with_all_its_volumes(product: Product, one: One, before: list[str]) -> None:
    """The claim's are where they were, the pod's own come along; what an init container makes there anew gives way."""
    uid = one.uid
    evict(product.bed, one.name)
    eventually(lambda: one.uid != uid, LIMIT, "there is another pod")
    product.bed.wait(f"pod/{one.name}")
    check_same(one, before)
    assert call(one, "/work/first")[1:] == ["made"]


def test_a_file_that_it_holds_open_and_that_is_replaced_is_named(product: Product) -> None:
    """The kubelet removes the old file of a changed ConfigMap: that program cannot come back, which is said."""
    bed = product.bed
    code = "import http.server as h; held = open('/held/word'); h.test(h.BaseHTTPRequestHandler, port=8080)"
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "held"}, "data": {"word": "old"}}
    bed.apply(config)
    mounts = [{"name": "held", "mountPath": "/held"}]
    container = {"command": ["/usr/bin/python3", "-c", code], "volumeMounts": mounts}
    pod = {"volumes": [{"name": "held", "configMap": {"name": "held"}}], "terminationGracePeriodSeconds": 1}
    with product.workload("holds", pod=pod, container=container) as workload:
        one = workload[0]
        one.order("park")
        bed.apply({**config, "data": {"word": "new"}})
        eventually(
            lambda: poked(bed, one) and on_node(bed, one, "configmap", "held/word") == "new", LIMIT, "it is there"
        )
        one.order("resume")
        (failed,) = [c for c in one.status["conditions"] if c["type"] == "RestoreFailed"]
        assert (failed["reason"], one.status["state"]) == ("file-missing", "Parked")

        def degraded() -> str:
            found = workload.status["conditions"]
            return next((c["message"] for c in found if c["type"] == "Degraded" and c["status"] == "True"), "")

        assert "holds-0: it cannot be woken (file-missing)" in eventually(degraded, LIMIT, "the workload says so")
    bed.delete("configmap/held")
