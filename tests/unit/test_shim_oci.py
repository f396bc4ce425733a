"""What the hook decides about a config.json and writes into it."""

from __future__ import annotations

from typing import Any

import pytest
from kybernate_shim import oci

CRI = {"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.container-name": "app"}


@pytest.mark.parametrize(
    ("notes", "managed"),
    [
        ({**CRI, "kybernate.io/containers": "app"}, True),
        ({**CRI, "kybernate.io/containers": "web, app"}, True),
        ({**CRI, "kybernate.io/containers": "web"}, False),
        ({**CRI, "kybernate.io/containers": "ap"}, False),
        (CRI, False),
        ({"io.kubernetes.cri.container-type": "sandbox", "kybernate.io/containers": ""}, False),
        ({**CRI, "io.kubernetes.cri.container-type": "sandbox", "kybernate.io/containers": "app"}, False),
        ({"io.kubernetes.cri.container-type": "container", "kybernate.io/containers": ""}, False),
    ],
)
def test_only_containers_named_by_their_pod_are_managed(notes: dict[str, str], managed: bool) -> None:
    assert oci.is_managed({"annotations": notes}) is managed


@pytest.mark.parametrize(
    ("notes", "managed"),
    [
        ({"io.kubernetes.cri.container-type": "sandbox", "kybernate.io/containers": "app"}, True),
        ({"io.kubernetes.cri.container-type": "sandbox", "kybernate.io/containers": " ,"}, False),
        ({"io.kubernetes.cri.container-type": "sandbox"}, False),
        ({**CRI, "kybernate.io/containers": "app"}, False),
    ],
)
def test_sandboxes_of_pods_with_a_managed_container_are_known(notes: dict[str, str], managed: bool) -> None:
    assert oci.is_managed_sandbox({"annotations": notes}) is managed


def test_config_without_annotations_is_not_managed() -> None:
    assert not oci.is_managed({"annotations": None})
    assert not oci.is_managed({})


def test_namespace_paths_are_found_in_raw_bytes() -> None:
    raw = (
        b'{"path":"/proc/12/ns/pid"} {"path":"/proc/7/task/7/ns/net"} "/proc/asound" "/proc/self/ns/pid" "/proc/9/fd/1"'
    )
    assert oci.pids_in_namespace_paths(raw) == {b"12", b"7"}


def test_only_a_keepers_paths_are_redirected() -> None:
    config = {"linux": {"namespaces": [{"type": "pid", "path": "/proc/12/ns/pid"}, {"path": "/proc/3/ns/net"}, {}]}}
    oci.redirect_namespaces(config, {"12": 99})
    assert config["linux"]["namespaces"] == [{"type": "pid", "path": "/proc/99/ns/pid"}, {"path": "/proc/3/ns/net"}, {}]


def prepared(**linux: Any) -> dict[str, Any]:
    notes = linux.pop("notes", {})
    config: dict[str, Any] = {"annotations": notes, "linux": linux}
    oci.prepare(config, "/run/k/criu.conf", "x86_64", mptcp_known=True)
    return config


def test_criu_reads_our_options_whatever_the_tenant_wrote() -> None:
    config = prepared(notes={"org.criu.config": "/tmp/evil"})
    assert config["annotations"]["org.criu.config"] == "/run/k/criu.conf"


def test_container_without_a_profile_gets_one_that_refuses_io_uring_alone() -> None:
    seccomp = prepared()["linux"]["seccomp"]
    assert seccomp["defaultAction"] == "SCMP_ACT_ALLOW"
    assert [rule["names"] for rule in seccomp["syscalls"]] == [list(oci.IO_URING)]
    assert seccomp["syscalls"][0]["errnoRet"] == 38


def test_existing_profile_keeps_its_other_rules() -> None:
    rules = [
        {"names": ["read", "io_uring_setup"], "action": "SCMP_ACT_ALLOW"},
        {"names": ["io_uring_enter"], "action": "SCMP_ACT_ALLOW"},
    ]
    profile = {"defaultAction": "SCMP_ACT_ERRNO", "listenerPath": "/x", "syscalls": rules}
    seccomp = prepared(seccomp=profile)["linux"]["seccomp"]
    assert seccomp["listenerPath"] == "/x"
    assert [rule["names"] for rule in seccomp["syscalls"]] == [["read"], list(oci.IO_URING)]
    assert rules[0]["names"] == ["read", "io_uring_setup"]


def test_each_change_can_be_switched_off() -> None:
    config = prepared(
        namespaces=[{"type": "network"}],
        notes={"kybernate.io/allow-io-uring": "true", "kybernate.io/allow-mptcp": "true"},
    )
    assert "seccomp" not in config["linux"]
    assert "sysctl" not in config["linux"]


def test_mptcp_is_off_only_where_the_container_has_a_network_namespace() -> None:
    assert prepared(namespaces=[{"type": "network", "path": "/x"}], sysctl={"a": "b"})["linux"]["sysctl"] == {
        "a": "b",
        "net.mptcp.enabled": "0",
    }
    assert "sysctl" not in prepared(namespaces=[{"type": "pid"}])["linux"]


def test_update_changes_what_it_names_and_keeps_the_rest() -> None:
    config = {"linux": {"resources": {"cpu": {"shares": 2, "quota": 5}, "devices": [1]}}}
    oci.merge_resources(config, {"cpu": {"shares": 512, "quota": None}, "memory": {"limit": 7}, "pids": None})
    assert config["linux"]["resources"] == {
        "cpu": {"shares": 512, "quota": 5},
        "devices": [1],
        "memory": {"limit": 7},
    }
