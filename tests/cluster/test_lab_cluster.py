"""The test cluster itself: what tests on it rely on."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_bed import CLASS, ClusterBed, eventually, open_cluster, pod, service

from kybernate.errors import KybernateError, NotFoundError
from kybernate.lab.clean import TEST_CLUSTERS, remove_dead_clusters
from kybernate.lab.cluster import SHORT, Cluster, Node
from kybernate.lab.cluster.machine import cgroup_folders
from kybernate.lab.cluster.node import containerd_config
from kybernate.lab.cluster.wires import host_cable
from kybernate.lab.process import ProgramError, pids, run

KERNEL = ("vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops", "net/ipv4/ip_forward")
NAMESPACES = ("mnt", "net", "pid", "uts", "ipc")


@pytest.fixture
def web(cluster_bed: ClusterBed) -> Iterator[str]:
    """A pod that serves HTTP, behind a Service of the same name."""
    with serving(cluster_bed, "lab-web") as name:
        yield name


@pytest.fixture(scope="module")
def pair() -> Iterator[ClusterBed]:
    """Two nodes without the runtime; pods leave a silent one soon."""
    with open_cluster(nodes=2, patience=SHORT) as bed:
        yield bed


@contextlib.contextmanager
def serving(bed: ClusterBed, name: str, **spec: str) -> Iterator[str]:
    bed.apply(pod(name, **spec), service(name))
    try:
        bed.wait(f"pod/{name}")
        yield name
    finally:
        bed.delete(f"pod/{name}", f"service/{name}")


def answers(host: str, port: int = 8080) -> bool:
    with urllib.request.urlopen(f"http://{host}:{port}/", timeout=5) as answer:
        return bool(answer.status == 200)


def test_a_pod_answers_by_its_ip_and_by_its_service(cluster_bed: ClusterBed, web: str) -> None:
    assert eventually(lambda: answers(cluster_bed.pod_ip(web)), 30, "the pod answers the host")
    address = cluster_bed.get("service", web)["spec"]["clusterIP"]
    assert eventually(lambda: answers(address, 80), 30, "the Service answers the host")


def test_a_pod_reaches_a_service_by_its_name(cluster_bed: ClusterBed, web: str) -> None:
    ask = f"import urllib.request as u; print(u.urlopen('http://{web}.default.svc.cluster.local/', timeout=5).status)"
    caller = "lab-caller"
    cluster_bed.apply(pod(caller, command=["/bin/sleep", "1000"]))
    try:
        cluster_bed.wait(f"pod/{caller}")
        argv = ["exec", caller, "--", "/usr/bin/python3", "-c", ask]
        assert eventually(lambda: cluster_bed.kubectl(*argv), 30, "the Service answers a pod").strip() == "200"
    finally:
        cluster_bed.delete(f"pod/{caller}")


def test_the_preinstalled_runtime_runs_a_pod(cluster_bed: ClusterBed) -> None:
    """One that is not managed: its container is runc's. What is managed needs an agent."""
    with serving(cluster_bed, "lab-handled", runtimeClassName=CLASS) as name:
        assert eventually(lambda: answers(cluster_bed.pod_ip(name)), 30, "it answers")
    assert "kybernate.io/*" in cluster_bed.node.run(["cat", "/etc/containerd/config.toml"])
    assert {"keepers", "pids"} <= set(cluster_bed.node.run(["ls", "/run/kybernate"]).split())


@pytest.mark.parametrize("name", ["containerd", "kubelet", "kube-proxy"])
def test_a_killed_service_is_started_again_and_pods_live_on(cluster_bed: ClusterBed, web: str, name: str) -> None:
    before = cluster_bed.get("pod", web)["status"]["containerStatuses"][0]
    cluster_bed.node.machine.restart(name, signal.SIGKILL)
    with serving(cluster_bed, "lab-after"):
        after = cluster_bed.get("pod", web)["status"]["containerStatuses"][0]
        assert after == before
        assert eventually(lambda: answers(cluster_bed.pod_ip("lab-after")), 30, "a new pod answers")


def test_a_service_that_is_not_there_is_named(cluster_bed: ClusterBed) -> None:
    machine = cluster_bed.node.machine
    with pytest.raises(NotFoundError, match="containerd, kubelet, kube-proxy"):
        machine.restart("dockerd")
    with pytest.raises(ProgramError, match="n1: ls /nowhere failed"):
        machine.run(["ls", "/nowhere"])
    assert machine.services()["kubelet"].pid


def test_the_api_server_may_be_away_for_a_while(cluster_bed: ClusterBed, web: str) -> None:
    machine = cluster_bed.cluster.control_plane
    address = cluster_bed.pod_ip(web)
    machine.halt("kube-apiserver", signal.SIGKILL)
    try:
        with pytest.raises(KybernateError):
            cluster_bed.kubectl("get", "nodes")
        assert answers(address)
    finally:
        machine.resume("kube-apiserver")
    assert eventually(lambda: cluster_bed.get("pod", web), 60, "the API server is back")


def test_an_installer_registers_the_runtime_and_ends_containerd(pair: ClusterBed) -> None:
    """As a pod with the node's folders would: edit the file, end containerd, and it comes back with the handler."""
    pair.runtime_class()
    name, node = "lab-installed", pair.node
    pair.apply(pod(name, runtimeClassName=CLASS, nodeName=node.name))
    try:
        eventually(lambda: "no runtime for" in pair.kubectl("describe", f"pod/{name}"), 60, "the handler is unknown")
        node.run([sys.executable, "-m", "kybernate_shim.install"])
        node.run(["tee", "/etc/containerd/config.toml"], stdin=containerd_config(runtime=True).encode())
        node.machine.restart("containerd")
        pair.wait(f"pod/{name}")
        other = pair.cluster.nodes[1]
        assert other.run(["ls", "/opt/kybernate"]) == "", "a node's disk is its own"
    finally:
        pair.delete(f"pod/{name}")


def test_a_cut_cable_and_a_mended_one(pair: ClusterBed) -> None:
    name, node = "lab-cut", pair.node
    with serving(pair, name, nodeName=node.name):
        address = pair.pod_ip(name)
        assert eventually(lambda: answers(address), 30, "it answers")
        pair.cluster.cut(node)
        try:
            with pytest.raises(OSError):
                answers(address)
            assert node.machine.services()["kubelet"].pid, "the node goes on"
        finally:
            pair.cluster.mend(node)
        assert eventually(lambda: answers(address), 60, "it answers again")


def test_a_power_cut_and_a_node_that_comes_back(pair: ClusterBed) -> None:
    """Its pod is replaced on the other node. Its disk stays, memory does not; a frozen container is no hindrance."""
    name, cluster = "lab-deployed", pair.cluster
    meta = {"labels": {"app": name}}
    spec = {"selector": {"matchLabels": meta["labels"]}, "template": {"metadata": meta, "spec": pod(name)["spec"]}}
    pair.apply({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": spec})

    def place(*, without: str = "") -> str | None:
        found = pair.items("pods", "-l", f"app={name}")
        nodes = [one["spec"].get("nodeName") for one in found if one["status"]["phase"] == "Running"]
        return next((node for node in nodes if node != without), None)

    try:
        node = cluster.node(eventually(place, 60, "it runs"))
        for path in ("/var/lib/kybernate/kept", "/opt/kept", "/run/lost"):
            node.run(["touch", path])
        frozen = node.ctr("task", "list", "--quiet").split()
        for container in frozen:
            node.ctr("task", "pause", container)
        assert frozen
        hardware = hardware_address(node)
        cluster.take_away(node)
        assert not node.machine.running
        eventually(lambda: place(without=node.name), 120, "another one runs elsewhere")
        cluster.bring_back(node)
        assert hardware_address(node) == hardware  # as with any machine: others know it for a while
        node.run(["ls", "/var/lib/kybernate/kept", "/opt/kept"])
        with pytest.raises(KybernateError):
            node.run(["ls", "/run/lost"])
        with serving(pair, "lab-again"):
            pass
    finally:
        pair.delete(f"deployment/{name}")


def hardware_address(node: Node) -> str:
    return str(json.loads(node.run(["ip", "-j", "link", "show", "eth0"]))[0]["address"])


def test_a_second_cluster_beside_it_ends_without_a_trace(cluster_bed: ClusterBed, web: str) -> None:
    """Started by a process that is killed: found by its folder, and taken away, while the first goes on."""
    kernel = {name: Path("/proc/sys", name).read_text() for name in KERNEL}
    code = (
        "import os; from pathlib import Path; from kybernate.lab.cluster import Cluster\n"
        f"name = f'{TEST_CLUSTERS}{{os.getpid()}}-1'\n"
        "Cluster(Path('/var/tmp', name), name).up(); print(name, flush=True); input()"
    )
    starter = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with starter:
        assert starter.stdout
        name = starter.stdout.readline().strip()
        starter.kill()
    cluster = Cluster.open(Path("/var/tmp", name))
    assert cluster.plan != cluster_bed.cluster.plan
    with contextlib.ExitStack() as held:
        namespaces = set()
        for pid in (cluster.control_plane.pid, cluster.nodes[0].machine.pid):
            for kind in NAMESPACES:
                file = held.enter_context(open(f"/proc/{pid}/ns/{kind}"))  # so that its number is not used again
                namespaces.add(os.readlink(f"/proc/self/fd/{file.fileno()}"))
        assert len(namespaces) == 2 * len(NAMESPACES)
        assert namespaces <= namespaces_in_use()
        assert list(cgroup_folders(f"/{name}"))
        assert host_cable(name) in interfaces()
        assert name in "".join(map(traces, pids()))

        assert remove_dead_clusters() == [name]

        assert not namespaces & namespaces_in_use()
    assert not [pid for pid in pids() if name in traces(pid)]
    assert not list(cgroup_folders(f"/{name}"))
    assert name not in Path("/proc/self/mountinfo").read_text()
    assert host_cable(name) not in interfaces()
    assert f"{cluster.plan.prefix}." not in run(["ip", "route", "show", "table", "all"])
    assert not cluster.folder.exists()
    assert {name: Path("/proc/sys", name).read_text() for name in KERNEL} == kernel
    assert answers(cluster_bed.pod_ip(web)), "the other one goes on"


def interfaces() -> set[str]:
    return {link["ifname"] for link in json.loads(run(["ip", "-json", "link"]))}


def namespaces_in_use() -> set[str]:
    """Namespaces that a process lives in, or that are mounted somewhere here."""
    found = set()
    for pid in pids():
        for kind in NAMESPACES:
            with contextlib.suppress(OSError):
                found.add(os.readlink(f"/proc/{pid}/ns/{kind}"))
    return found | {line.split()[3] for line in Path("/proc/self/mountinfo").read_text().splitlines()}


def traces(pid: int) -> str:
    """Command line, environment and cgroups of a process."""
    found = ""
    for name in ("cmdline", "environ", "cgroup"):
        with contextlib.suppress(OSError):
            found += Path(f"/proc/{pid}/{name}").read_bytes().decode(errors="replace")
    return found
