"""What the keeper tells CRIU without runc, out of runc's own state: pure."""

from __future__ import annotations

from typing import Any

import pytest
from kybernate_shim import direct

V1 = {"freezer": "/sys/fs/cgroup/freezer/pods/a", "memory": "/sys/fs/cgroup/memory/pods/a"}


def state(**config: Any) -> dict[str, Any]:
    mounts = [
        {"device": "tmpfs", "destination": "/dev", "source": "tmpfs"},
        {"device": "cgroup", "destination": "/sys/fs/cgroup", "source": "cgroup"},
        {"device": "bind", "destination": "/etc/hosts", "source": "/pods/a/hosts"},
    ]
    spaces = [{"type": kind, "path": ""} for kind in ("NEWPID", "NEWNS")]
    spaces += [{"type": kind, "path": f"/proc/7/ns/{name}"} for kind, name in (("NEWNET", "net"), ("NEWIPC", "ipc"))]
    base = {"rootfs": "/b/rootfs", "mounts": mounts, "namespaces": spaces, "mask_paths": ["/proc/keys"]}
    return {
        "config": {**base, "Hooks": {"prestart": None}, "cgroups": {"systemd": False}, **config},
        "external_descriptors": ["/dev/null", "pipe:[11]", "pipe:[12]"],
        "namespace_paths": {"NEWPID": "/proc/9/ns/pid", "NEWNET": "/proc/9/ns/net"},
        "init_process_pid": 9,
        "init_process_start": 1,
    }


def pairs(words: list[str]) -> list[tuple[str, str]]:
    words = [part for word in words for part in (word.split("=") if word.startswith("--manage") else [word])]
    return list(zip(words[::2], words[1::2], strict=True))


def test_criu_is_told_what_runc_would_tell_it() -> None:
    found = direct.plan(state(), V1, "")
    assert found is not None
    words, network = found
    assert network == "/proc/7/ns/net"
    assert pairs(words) == [
        ("--root", "/b/rootfs"),
        ("--manage-cgroups", "ignore"),
        ("--external", "mnt[/sys/fs/cgroup/freezer]:/sys/fs/cgroup/freezer/pods/a"),
        ("--external", "mnt[/sys/fs/cgroup/memory]:/sys/fs/cgroup/memory/pods/a"),
        ("--external", "mnt[/etc/hosts]:/pods/a/hosts"),
        ("--external", "mnt[/dev/null]:/dev/null"),
        ("--join-ns", "ipc:/proc/7/ns/ipc"),
        ("--inherit-fd", "fd[11]:pipe:[11]"),
        ("--inherit-fd", "fd[12]:pipe:[12]"),
        ("--inherit-fd", "fd[20]:extRootNetNS"),
    ]


SPACES = state()["config"]["namespaces"]
CGROUP_SPACE = {"namespaces": [*SPACES, {"type": "NEWCGROUP", "path": ""}]}


def test_a_cgroup_namespace_is_made_anew_at_the_containers_group() -> None:
    found = direct.plan(state(**CGROUP_SPACE), {}, "/pods/a")
    assert found is not None
    assert pairs(found[0])[1:3] == [("--manage-cgroups", "soft"), ("--cgroup-root", ":/pods/a")]
    assert not any("/sys/fs/cgroup" in word for word in found[0])


@pytest.mark.parametrize(
    "special",
    [
        {"Hooks": {"prestart": [{"path": "/usr/bin/nvidia-container-runtime-hook"}]}},
        {"cgroups": {"systemd": True}},
        {"cgroups": {"Systemd": True}},
        {"namespaces": [*SPACES, {"type": "NEWUSER", "path": ""}]},
        {"namespaces": [{"type": "NEWPID", "path": "/proc/7/ns/pid"}, {"type": "NEWNS", "path": ""}]},
        {"namespaces": [{"type": "NEWNS", "path": ""}]},
        {"mounts": [{"device": "bind", "destination": "/a]b", "source": "/c"}]},
        {"no_pivot_root": True},
        CGROUP_SPACE,
    ],
    ids=[
        "hooks",
        "systemd",
        "systemd as runc 1.1 writes it",
        "user namespace",
        "shared pid namespace",
        "host's pids",
        "bracket",
        "no pivot",
        "v1 group space",
    ],
)
def test_what_is_not_plain_is_left_to_runc(special: dict[str, Any]) -> None:
    assert direct.plan(state(**special), V1, "") is None


def test_runcs_state_names_the_new_init() -> None:
    renewed = direct.renewed(state(), 44, 5)
    assert (renewed["init_process_pid"], renewed["init_process_start"]) == (44, 5)
    assert renewed["namespace_paths"] == {"NEWPID": "/proc/44/ns/pid", "NEWNET": "/proc/44/ns/net"}
    assert all(space["type"] != "NEWTIME" for space in renewed["config"]["namespaces"])


def test_a_runc_that_knows_of_time_namespaces_is_told_of_the_new_one() -> None:
    known = state()
    known["namespace_paths"]["NEWTIME"] = "/proc/9/ns/time"
    renewed = direct.renewed(known, 44, 5)
    assert renewed["namespace_paths"]["NEWTIME"] == "/proc/44/ns/time"
    assert {"type": "NEWTIME", "path": ""} in renewed["config"]["namespaces"]
