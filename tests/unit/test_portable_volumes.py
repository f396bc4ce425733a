"""What a mount is, told from its source; and whether two containers have the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from kybernate_agent.volumes import Mount, difference, mounts_of

UID, SANDBOX = "0a1b-uid", "5a9d"
KUBELET = f"/var/lib/kubelet/pods/{UID}"
BIND = ("rbind", "rprivate", "rw")

CASES = [
    ("/data", f"{KUBELET}/volumes/kubernetes.io~empty-dir/data", "emptyDir", "data"),
    ("/config", f"{KUBELET}/volumes/kubernetes.io~configmap/config", "configMap", "config"),
    ("/secret", f"{KUBELET}/volumes/kubernetes.io~secret/keys", "secret", "keys"),
    (
        "/var/run/secrets",
        f"{KUBELET}/volumes/kubernetes.io~projected/kube-api-access-x",
        "projected",
        "kube-api-access-x",
    ),
    ("/podinfo", f"{KUBELET}/volumes/kubernetes.io~downward-api/info", "downwardAPI", "info"),
    ("/models", f"{KUBELET}/volumes/kubernetes.io~csi/pvc-1/mount", "persistentVolumeClaim", "pvc-1"),
    ("/nfs", f"{KUBELET}/volumes/kubernetes.io~nfs/pv-2", "persistentVolumeClaim", "pv-2"),
    ("/etc/hosts", f"{KUBELET}/etc-hosts", "kubelet", ""),
    ("/dev/termination-log", f"{KUBELET}/containers/app/3f2a", "kubelet", ""),
    ("/etc/resolv.conf", f"/run/containerd/io.containerd.grpc.v1.cri/sandboxes/{SANDBOX}/resolv.conf", "sandbox", ""),
    ("/dev/shm", f"/run/containerd/io.containerd.grpc.v1.cri/sandboxes/{SANDBOX}/shm", "sandbox", ""),
    ("/host", "/srv/models", "hostPath", "/srv/models"),
    ("/other-pod", "/var/lib/kubelet/pods/other/volumes/kubernetes.io~empty-dir/data", "hostPath", None),
    ("/own", f"/var/lib/kybernate/pods/{UID}/volumes/scratch", "emptyDir", "scratch"),
    ("/gone", f"{KUBELET}/volume-subpaths/pv/app/0", "persistentVolumeClaim", "pv"),
]


@pytest.mark.parametrize(("destination", "source", "kind", "name"), CASES, ids=lambda it: str(it)[:40])
def test_a_mount_is_told_from_its_source(destination: str, source: str, kind: str, name: str | None) -> None:
    (mount,) = mounts_of(
        [{"destination": destination, "type": "bind", "source": source, "options": BIND}], UID, SANDBOX
    )
    assert (mount.kind, mount.name) == (kind, source if name is None else name)
    assert mount.volume == (source if kind == "emptyDir" else "")


def test_a_file_system_is_told_by_its_type() -> None:
    listed = [{"destination": "/proc", "type": "proc", "source": "proc"}, {"destination": "/dev", "type": "tmpfs"}]
    assert [(it.destination, it.kind) for it in mounts_of(listed, UID, SANDBOX)] == [
        ("/dev", "tmpfs"),
        ("/proc", "proc"),
    ]


@pytest.mark.parametrize(
    ("plugin", "kind"), [("empty-dir", "emptyDir"), ("csi", "persistentVolumeClaim"), ("configmap", "configMap")]
)
def test_a_subpath_is_of_its_volume(tmp_path: Path, plugin: str, kind: str) -> None:
    pod = tmp_path / "pods" / UID
    whole = pod / "volumes" / f"kubernetes.io~{plugin}" / "data"
    whole.mkdir(parents=True)
    source = f"{pod}/volume-subpaths/data/app/0"
    (mount,) = mounts_of([{"destination": "/d", "type": "bind", "source": source, "options": BIND}], UID, SANDBOX)
    assert (mount.kind, mount.name, mount.volume) == (kind, "data", str(whole) if kind == "emptyDir" else "")


def test_a_source_inside_of_an_empty_dir_belongs_to_the_whole() -> None:
    source = f"{KUBELET}/volumes/kubernetes.io~empty-dir/data/data/deeper"
    (mount,) = mounts_of([{"destination": "/d", "type": "bind", "source": source, "options": BIND}], UID, SANDBOX)
    assert mount.volume == f"{KUBELET}/volumes/kubernetes.io~empty-dir/data"


def mount(destination: str, kind: str, name: str = "", read_only: bool = False, **more: Any) -> Mount:
    return Mount(destination, kind, name, read_only, **more)


SAME = [
    (mount("/a", "emptyDir", "a", source="/pods/1/a"), mount("/a", "emptyDir", "a", source="/pods/2/a")),
    (mount("/t", "projected", "kube-api-access-x1"), mount("/t", "projected", "kube-api-access-z9")),
    (mount("/etc/hosts", "kubelet", source="/pods/1/etc-hosts"), mount("/etc/hosts", "kubelet", source="/pods/2/x")),
    (mount("/p", "persistentVolumeClaim", "pvc-1"), mount("/p", "persistentVolumeClaim", "pvc-1")),
]
OTHER = [
    (mount("/a", "emptyDir", "a"), mount("/a", "emptyDir", "b"), "/a was emptyDir a and is emptyDir b"),
    (mount("/a", "emptyDir", "a"), mount("/a", "configMap", "a"), "/a was emptyDir a and is configMap"),
    (mount("/h", "hostPath", "/x"), mount("/h", "hostPath", "/y"), "/h was hostPath /x and is hostPath /y"),
    (
        mount("/p", "persistentVolumeClaim", "1"),
        mount("/p", "persistentVolumeClaim", "2"),
        "was persistentVolumeClaim 1",
    ),
    (mount("/a", "emptyDir", "a"), mount("/a", "emptyDir", "a", True), "and is emptyDir a, read-only"),
    (mount("/a", "emptyDir", "a"), mount("/b", "emptyDir", "a"), "/a (emptyDir a) is mounted before only"),
]


@pytest.mark.parametrize(("old", "new"), SAME)
def test_what_differs_from_pod_to_pod_is_the_same(old: Mount, new: Mount) -> None:
    assert difference([old], [new]) == ""


@pytest.mark.parametrize(("old", "new", "said"), OTHER)
def test_a_difference_is_told_by_its_mount_point(old: Mount, new: Mount, said: str) -> None:
    assert said in difference([old], [new])


def test_a_mount_more_is_a_difference() -> None:
    assert difference([], [mount("/m", "hostPath", "/x")]) == "/m (hostPath /x) is mounted now only"
