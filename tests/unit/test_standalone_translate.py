"""A workload as CRI's configurations."""

from __future__ import annotations

from pathlib import Path

import pytest
from kybernate_agent.standalone import translate
from kybernate_agent.standalone._pb import cri_pb2 as pb

from kybernate.api import GpuWorkload, load

PLACE = translate.Place(
    instance="chat-0", uid="u-1", agent="a", logs=Path("/lib/logs/chat-0"), volumes=Path("/lib/pods/u-1/volumes"),
    hosts=Path("/lib/pods/u-1/etc-hosts"),
    cgroup="/kybernate-pods/podu-1",
)  # fmt: skip


def workload(container: str = "", volumes: str = "[]", annotations: str = "{}") -> GpuWorkload:
    text = f"""
apiVersion: kybernate.io/v1alpha1
kind: GpuWorkload
metadata: {{name: chat, namespace: team}}
spec:
  template:
    metadata: {{annotations: {annotations}, labels: {{app: x}}}}
    spec:
      containers: [{{name: server, image: "localhost/x:1", {container}}}]
      volumes: {volumes}
"""
    return load(text, "chat.yaml")[0]


def test_the_sandbox_carries_identity_labels_and_the_managed_container() -> None:
    config = translate.sandbox_config(workload(annotations='{kybernate.io/allow-mptcp: "true", x: y}'), PLACE)
    assert (config.metadata.name, config.metadata.uid, config.metadata.namespace) == ("chat-0", "u-1", "team")
    assert dict(config.labels) == {
        "app": "x",
        "kybernate.io/workload": "chat",
        "kybernate.io/instance": "chat-0",
        "kybernate.io/agent": "a",
    }
    assert dict(config.annotations) == {
        "kybernate.io/allow-mptcp": "true",
        "x": "y",
        "kybernate.io/containers": "server",
    }
    assert (config.log_directory, config.hostname) == ("/lib/logs/chat-0", "chat-0")
    assert config.linux.cgroup_parent == "/kybernate-pods/podu-1"
    assert config.linux.security_context.namespace_options.pid == pb.CONTAINER


def test_command_environment_and_log_of_the_container() -> None:
    text = "command: [a], args: [b, c], env: [{name: K, value: v}], workingDir: /w"
    config = translate.container_config(workload(text), PLACE, 3)
    assert (list(config.command), list(config.args), config.working_dir) == (["a"], ["b", "c"], "/w")
    assert [(it.key, it.value) for it in config.envs] == [("K", "v")]
    assert (config.metadata.name, config.metadata.attempt, config.log_path) == ("server", 3, "server/3.log")
    assert "/proc/kcore" in config.linux.security_context.masked_paths


@pytest.mark.parametrize(
    ("resources", "shares", "quota", "memory"),
    [
        ("{}", 2, 0, 0),
        ("{limits: {cpu: 500m, memory: 64Mi}}", 512, 50_000, 64 << 20),
        ("{limits: {cpu: 2}, requests: {cpu: 250m}}", 256, 200_000, 0),
        ("{limits: {cpu: 1m}}", 2, 1_000, 0),
    ],
)
def test_resources_are_what_a_kubelet_makes_of_them(resources: str, shares: int, quota: int, memory: int) -> None:
    made = translate.container_config(workload(f"resources: {resources}"), PLACE, 0).linux.resources
    assert (made.cpu_shares, made.cpu_quota, made.memory_limit_in_bytes) == (shares, quota, memory)


def test_volumes_become_mounts() -> None:
    volumes = "[{name: d, emptyDir: {}}, {name: h, hostPath: {path: /srv}}]"
    mounts = "volumeMounts: [{name: d, mountPath: /data}, {name: h, mountPath: /srv, readOnly: true}]"
    made = workload(mounts, volumes)
    config = translate.container_config(made, PLACE, 0)
    assert [(it.container_path, it.host_path, it.readonly) for it in config.mounts] == [
        ("/data", "/lib/pods/u-1/volumes/d", False),
        ("/srv", "/srv", True),
        ("/etc/hosts", "/lib/pods/u-1/etc-hosts", False),
    ]
    assert translate.empty_dirs(made, PLACE) == [Path("/lib/pods/u-1/volumes/d")]


def test_a_volume_over_etc_hosts_wins() -> None:
    made = workload("volumeMounts: [{name: d, mountPath: /etc/hosts}]", "[{name: d, emptyDir: {}}]")
    assert len(translate.container_config(made, PLACE, 0).mounts) == 1


def test_the_hosts_file_has_the_pods_own_name() -> None:
    text = translate.hosts_file("chat-0", ["10.0.0.2", "fd00::2"])
    assert "10.0.0.2\tchat-0\nfd00::2\tchat-0\n" in text
    assert "127.0.0.1\tlocalhost" in text


def test_user_and_group() -> None:
    context = translate.container_config(
        workload("securityContext: {runAsUser: 0, runAsGroup: 7}"), PLACE, 0
    ).linux.security_context
    assert context.HasField("run_as_user")
    assert (context.run_as_user.value, context.run_as_group.value) == (0, 7)
    assert not translate.container_config(workload(), PLACE, 0).linux.security_context.HasField("run_as_user")


def test_the_cgroup_has_the_form_of_its_driver() -> None:
    assert translate.cgroup_of("a-b", systemd=False) == "/kybernate-pods/poda-b"
    assert translate.cgroup_of("a-b", systemd=True) == "/kybernate.slice/kybernate-poda_b.slice"
