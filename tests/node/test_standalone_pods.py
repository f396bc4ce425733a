"""Pods on a real containerd, without a kubelet. The handler is plain runc here: what sleeps is tested elsewhere."""

from __future__ import annotations

import asyncio
import socket
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from kybernate_agent.config import AgentConfig
from kybernate_agent.instance import Pod
from kybernate_agent.standalone._pb import cri_pb2 as pb
from kybernate_agent.standalone.cri import Cri, CriError, CriNotFoundError, CriUnavailableError
from kybernate_agent.standalone.kubelet import KubeletSocketError
from kybernate_agent.standalone.logs import read_log
from kybernate_agent.standalone.pods import HandlerMissingError, Pods, RunAsGroupError
from node_bed import PYTHON_IMAGE, NodeBed

from kybernate.api import GpuWorkload, load
from kybernate.lab.process import cgroups_of, hierarchies

SERVER = """
import os, signal, socket, sys
signal.signal(signal.SIGTERM, lambda *_: os._exit(3))
server = socket.create_server(("::", 8080), family=socket.AF_INET6, dualstack_ipv6=True)
print("begin", os.environ["WORD"], sorted(os.listdir("/data")), os.getuid(), flush=True)
open("/data/seen", "w").close()
while True:
    peer, _ = server.accept()
    peer.sendall(b"hello")
    peer.close()
"""


def workload(name: str, extra: str = "", image: str = PYTHON_IMAGE) -> GpuWorkload:
    code = SERVER.replace("\n", "\n            ")
    text = f"""
apiVersion: kybernate.io/v1alpha1
kind: GpuWorkload
metadata: {{name: {name}}}
spec:
  template:
    spec:
      containers:
      - name: server
        image: {image}
        command: [python3, -u, -c]
        args:
          - |
            {code}
        env: [{{name: WORD, value: word}}]
        ports: [{{containerPort: 8080}}]
        resources: {{limits: {{memory: 64Mi, cpu: 500m}}}}
        volumeMounts: [{{name: data, mountPath: /data}}]
        {extra}
      volumes: [{{name: data, emptyDir: {{}}}}]
"""
    return load(text, f"{name}.yaml")[0]


def config(bed: NodeBed, state: Path) -> AgentConfig:
    return AgentConfig(state_dir=str(state), containerd_socket=str(bed.containerd.socket), runtime_handler="runc")


@pytest.fixture
async def pods(node_bed: NodeBed, tmp_path: Path) -> AsyncIterator[Pods]:
    made = await Pods.connect(config(node_bed, tmp_path))
    yield made
    for pod in await made.find_pods():
        await made.remove_pod(pod, grace_seconds=0)
    await made.close()


@pytest.fixture
async def cri(node_bed: NodeBed) -> AsyncIterator[Cri]:
    made = Cri(str(node_bed.containerd.socket))
    yield made
    await made.close()


async def logged(pods: Pods, instance: str, lines: int = 1) -> list[str]:
    """The first lines of the log, as soon as they are there."""
    found: list[str] = []
    async with asyncio.timeout(10):
        async for _, data in read_log(pods.log_folder(instance), follow=True):
            found.append(data.decode().strip())
            if len(found) == lines:
                break
    return found


async def ask(address: str) -> bytes:
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection(address, 8080)
        data = await reader.read()
        writer.close()
        return data


def cgroups(uid: str) -> list[Path]:
    return [path for root in hierarchies() for path in root.glob(f"kybernate-pods/*{uid}*")]


def new_uid() -> str:
    return str(uuid.uuid4())


async def test_a_pod_starts_with_network_volume_environment_and_log(pods: Pods, tmp_path: Path) -> None:
    pod = await pods.start_pod(workload("web"), "web-0", new_uid())
    assert await logged(pods, "web-0") == ["begin word [] 0"]
    assert await ask(pod.ip) == b"hello"
    assert Path(pod.netns).exists()
    assert (tmp_path / "pods" / pod.uid / "volumes" / "data" / "seen").exists()
    assert await pods.sandbox_ready(pod.sandbox)


async def test_limits_reach_the_cgroup(pods: Pods, cri: Cri) -> None:
    pod = await pods.start_pod(workload("web"), "web-0", new_uid())
    names = ("memory.limit_in_bytes", "memory.max")
    files = [path / pod.container / name for path in cgroups(pod.uid) for name in names]
    # Version 2 in a private mount namespace has no controllers, so nothing to read.
    assert {file.read_text().strip() for file in files if file.exists()} <= {str(64 << 20)}


async def test_a_pod_answers_over_ipv6_where_the_machine_has_it(pods: Pods, cri: Cri) -> None:
    pod = await pods.start_pod(workload("web"), "web-0", new_uid())
    await logged(pods, "web-0")
    addresses = [address for address in await _addresses(cri, pod) if ":" in address]
    assert bool(addresses) == Path("/proc/net/if_inet6").exists()
    assert [await ask(address) for address in addresses] == [b"hello"] * len(addresses)


async def _addresses(cri: Cri, pod: Pod) -> list[str]:
    request = pb.PodSandboxStatusRequest(pod_sandbox_id=pod.sandbox)
    network = (await cri._runtime.PodSandboxStatus(request, timeout=5)).status.network
    return [network.ip, *(it.ip for it in network.additional_ips)]


async def test_a_container_is_made_anew_in_its_sandbox(pods: Pods, cri: Cri) -> None:
    first = await pods.start_pod(workload("web"), "web-0", new_uid())
    await logged(pods, "web-0")
    first.attempt += 1
    second = await pods.recreate_container(workload("web"), first)
    assert (second.sandbox, second.ip, second.netns) == (first.sandbox, first.ip, first.netns)
    assert second.container != first.container
    assert await logged(pods, "web-0", 2) == ["begin word [] 0", "begin word ['seen'] 0"]
    with pytest.raises(CriNotFoundError):
        await cri.container_status(first.container)


async def test_an_attempt_that_was_cut_short_does_not_stop_the_next(pods: Pods) -> None:
    known = await pods.start_pod(workload("web"), "web-0", new_uid())
    known.attempt += 1
    await pods.recreate_container(workload("web"), known)  # and the agent was killed before it wrote that down
    again = await pods.recreate_container(workload("web"), known)
    assert again.container
    assert [it.container for it in await pods.find_pods()] == [again.container]


async def test_a_removed_pod_leaves_nothing(pods: Pods, cri: Cri, tmp_path: Path) -> None:
    pod = await pods.start_pod(workload("web"), "web-0", new_uid())
    await logged(pods, "web-0")
    used = cgroups_of((await cri.sandbox_status(pod.sandbox)).pid)
    assert [path for path in used if path.exists() and path not in hierarchies()]
    await pods.remove_pod(pod)
    assert [path for path in used if path.exists() and path not in hierarchies()] == []
    assert cgroups(pod.uid) == []
    assert not Path(pod.netns).exists()
    assert not (tmp_path / "pods" / pod.uid).exists()
    assert not (tmp_path / "logs" / "web-0").exists()
    assert await pods.find_pods() == []
    assert not await pods.sandbox_ready(pod.sandbox)
    await pods.remove_pod(pod)


async def test_a_pod_is_asked_to_end_before_it_is_killed(pods: Pods, cri: Cri) -> None:
    pod = await pods.start_pod(workload("web"), "web-0", new_uid())
    await logged(pods, "web-0")
    await cri.stop_container(pod.container, 10)
    assert (await cri.container_status(pod.container)).exit_code == 3


async def test_pods_are_found_again_and_only_ones_own(pods: Pods, node_bed: NodeBed, tmp_path: Path) -> None:
    pod = await pods.start_pod(workload("web"), "web-0", new_uid())
    assert await pods.find_pods() == [pod]
    other = await Pods.connect(config(node_bed, tmp_path / "other"))
    assert await other.find_pods() == []
    await other.close()


async def test_a_second_start_replaces_what_the_first_left(pods: Pods) -> None:
    uid = new_uid()
    first = await pods.start_pod(workload("web"), "web-0", uid)
    second = await pods.start_pod(workload("web"), "web-0", uid)
    assert [it.sandbox for it in await pods.find_pods()] == [second.sandbox] != [first.sandbox]


async def test_a_start_that_fails_leaves_no_sandbox(pods: Pods) -> None:
    uid = new_uid()
    with pytest.raises(CriError, match="no-such-program"):
        await pods.start_pod(bad_command(), "bad-0", uid)
    assert await pods.find_pods() == []
    assert cgroups(uid) == []


def bad_command() -> GpuWorkload:
    text = f"""
apiVersion: kybernate.io/v1alpha1
kind: GpuWorkload
metadata: {{name: bad}}
spec: {{template: {{spec: {{containers: [{{name: server, image: "{PYTHON_IMAGE}", command: [no-such-program]}}]}}}}}}
"""
    return load(text, "bad.yaml")[0]


async def test_an_image_that_nobody_has_is_said(pods: Pods) -> None:
    with pytest.raises(CriError, match="PullImage"):
        await pods.start_pod(workload("web", image="localhost:1/no/such:1"), "web-0", new_uid())


async def test_the_user_of_the_container(pods: Pods) -> None:
    await pods.start_pod(workload("web", "securityContext: {runAsUser: 1234, runAsGroup: 5}"), "web-0", new_uid())
    assert await logged(pods, "web-0") == ["begin word [] 1234"]
    with pytest.raises(RunAsGroupError, match="runAsGroup needs runAsUser"):
        await pods.start_pod(workload("b", "securityContext: {runAsGroup: 5}"), "b-0", new_uid())


async def test_exec_runs_in_the_container(pods: Pods, cri: Cri) -> None:
    pod = await pods.start_pod(workload("web"), "web-0", new_uid())
    code, out, err = await cri.exec_sync(pod.container, ["sh", "-c", "hostname; echo no >&2; exit 4"], 10)
    assert (code, out, err) == (4, b"web-0\n", b"no\n")


async def test_a_pod_knows_its_own_name_without_a_name_server(pods: Pods, cri: Cri) -> None:
    pod = await pods.start_pod(workload("web"), "web-0", new_uid())
    lookup = "import socket; print(socket.gethostbyname(socket.gethostname()))"
    assert await cri.exec_sync(pod.container, ["python3", "-c", lookup], 10) == (0, f"{pod.ip}\n".encode(), b"")


async def test_the_end_of_a_container_is_an_event(pods: Pods, cri: Cri) -> None:
    pod = await pods.start_pod(workload("web"), "web-0", new_uid())
    await logged(pods, "web-0")
    await cri.stop_container(pod.container, 10)
    seen = []
    async with asyncio.timeout(10):
        async for event in cri.events():
            if event.container_id == pod.container:
                seen.append(event.container_event_type)
            if seen[-1:] == [pb.CONTAINER_STOPPED_EVENT]:
                break
    assert seen[-1] == pb.CONTAINER_STOPPED_EVENT


async def test_a_handler_that_containerd_does_not_have_is_named(node_bed: NodeBed, tmp_path: Path) -> None:
    settings = AgentConfig(
        state_dir=str(tmp_path), containerd_socket=str(node_bed.containerd.socket), runtime_handler="other"
    )
    with pytest.raises(HandlerMissingError, match="kybernate, runc"):
        await Pods.connect(settings)


async def test_a_containerd_with_pods_that_are_not_ours_is_refused(cri: Cri, node_bed: NodeBed, tmp_path: Path) -> None:
    foreign = pb.PodSandboxConfig(
        metadata=pb.PodSandboxMetadata(name="coredns", uid=new_uid(), namespace="kube-system"),
        labels={"io.kubernetes.pod.name": "coredns"},
        hostname="coredns",
        linux=pb.LinuxPodSandboxConfig(cgroup_parent="/kybernate-pods/foreign"),
    )
    sandbox = await cri.run_sandbox(foreign, "runc")
    try:
        with pytest.raises(KubeletSocketError, match="coredns"):
            await Pods.connect(config(node_bed, tmp_path))
    finally:
        await cri.stop_sandbox(sandbox)
        await cri.remove_sandbox(sandbox)
        for path in [path for root in hierarchies() for path in root.glob("kybernate-pods/foreign")]:
            path.rmdir()


async def test_a_socket_where_nobody_listens_is_said(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "c.sock"))
        cri = Cri(str(tmp_path / "c.sock"))
        with pytest.raises(CriUnavailableError, match="does not answer"):
            await cri.ready(deadline_seconds=0.2)
        await cri.close()
