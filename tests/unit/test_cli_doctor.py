"""What `doctor` makes of what it sees, as tables; and the program on a machine that lacks everything."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kybernate.cli.checks import (
    CAPABILITIES,
    Check,
    judge_cgroups,
    judge_containerd,
    judge_criu,
    judge_disk,
    judge_kernel,
    judge_permissions,
)
from kybernate.cli.netfilter import judge_queue, judge_rule
from kybernate.criu import Finding

ALL = sum(1 << number for number in CAPABILITIES)
V1 = "cgroup /sys/fs/cgroup/freezer cgroup rw,freezer 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n"
OVER = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n" + V1 + "none /sys/fs/cgroup cgroup2 rw 0 0\n"  # v1 is hidden
V2 = "proc /proc proc rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw,nsdelegate 0 0\n"
GIB = 1 << 30


def anywhere(path: str) -> bool:
    return True


def nowhere(path: str) -> bool:
    return False


CASES = [
    (judge_kernel("6.18.44-amd64", True), "ok", "6.18.44-amd64, CONFIG_CHECKPOINT_RESTORE"),
    (judge_kernel("5.4.0-90-generic", True), "failed", "older than 5.10"),
    (judge_kernel("6.1.0", False), "failed", "lacks CONFIG_CHECKPOINT_RESTORE"),
    (judge_containerd("containerd github.com/containerd/containerd 1.7.24~ds1 1.7.24~ds1-6+b2"), "ok", "1.7.24~ds1"),
    (judge_containerd("containerd github.com/containerd/containerd/v2 v2.1.3 c787fb"), "ok", "2.1.3"),
    (judge_containerd("containerd containerd.io 1.6.33 d2d58"), "failed", "1.6.33 is older than 1.7"),
    (judge_containerd(None), "failed", "does not answer"),
    (judge_cgroups("tmpfs", V1, False, anywhere), "ok", "version 1, freezer at /sys/fs/cgroup/freezer"),
    (judge_cgroups("cgroup2", OVER, True, anywhere), "ok", "version 2, freezer at /sys/fs/cgroup"),
    (judge_cgroups("cgroup2", OVER, False, anywhere), "failed", "no freezer"),
    (judge_cgroups("cgroup2", V2, True, anywhere), "ok", "version 2, freezer at /sys/fs/cgroup"),
    (judge_cgroups("cgroup2", V2, False, anywhere), "failed", "no freezer"),
    (judge_cgroups("cgroup2", V2, True, nowhere), "failed", "cannot be written to"),
    (judge_cgroups("", "", False, anywhere), "failed", "no freezer"),
    (judge_disk(Path("/s"), 50 * GIB), "ok", "50.0 GiB free for /s"),
    (judge_disk(Path("/s"), 5 * GIB), "warning", "5.0 GiB free for /s"),
    (judge_disk(Path("/s"), GIB // 2), "failed", "0.5 GiB free for /s"),
    (judge_rule("iptables", True, 0, ""), "ok", "iptables takes an NFQUEUE rule"),
    (judge_rule("ip6tables", False, 0, ""), "failed", "ip6tables-restore is missing"),
    (judge_rule("iptables", True, 2, "no match mark\nmore"), "failed", "takes no NFQUEUE rule: no match mark"),
    (judge_rule("iptables", True, 3, ""), "failed", "exit status 3"),
    (judge_queue(0), "ok", "packets can be queued"),
    (judge_queue(errno.EINVAL), "failed", "no packet queues: Invalid argument"),
]


@pytest.mark.parametrize(("check", "status", "says"), CASES, ids=lambda it: it.says if isinstance(it, Check) else "")
def test_a_machine_is_judged(check: Check, status: str, says: str) -> None:
    assert (check.status, bool(check.remedy)) == (status, status != "ok")
    assert says in check.says


@pytest.mark.parametrize(
    ("uid", "effective", "says"),
    [
        (0, ALL, ["root with CAP_NET_ADMIN, CAP_SYS_PTRACE, CAP_SYS_ADMIN"]),
        (0, ALL & ~(1 << 12), ["CAP_NET_ADMIN is missing: traffic of a sleeping instance cannot be held"]),
        (1000, 0, ["this is user 1000, not root"]),
    ],
)
def test_permissions_are_judged(uid: int, effective: int, says: list[str]) -> None:
    assert [check.says for check in judge_permissions(uid, effective)] == says


def test_what_criu_finds_becomes_checks() -> None:
    findings = [
        Finding("criu-too-old", True, "criu is 3.17.", "Install CRIU 4.2 or newer."),
        Finding("kdat-stale", False, "criu.kdat.tmp is left over.", "Remove it."),
    ]
    assert [check[:3] for check in judge_criu((3, 17), (1, 1, 15), findings)] == [
        ("runc", "ok", "1.1.15"),
        ("criu", "failed", "criu is 3.17."),
        ("kernel feature cache", "warning", "criu.kdat.tmp is left over."),
    ]
    assert [check.name for check in judge_criu((4, 2), (1, 2), [])] == ["criu", "runc", "kernel feature cache"]


def doctor(path: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kybernate.cli", "doctor", *arguments]
    environment = {**os.environ, "PATH": path}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)


def test_each_failure_says_what_to_do(tmp_path: Path) -> None:
    done = doctor(str(tmp_path), "-o", "json")
    failed = {check["check"]: check["remedy"] for check in json.loads(done.stdout) if check["status"] == "failed"}
    assert done.returncode == 5
    assert {"criu", "runc", "containerd", "netfilter"} <= failed.keys()
    assert all(failed.values())


def test_people_get_a_list_and_a_verdict(tmp_path: Path) -> None:
    done = doctor(str(tmp_path), "--state", str(tmp_path / "not" / "yet"))
    assert (done.returncode, done.stderr) == (5, "")
    assert "failed   containerd: containerd does not answer\n         Install containerd 1.7 or newer.\n" in done.stdout
    assert done.stdout.endswith(" failed: workloads cannot sleep and wake here.\n")
