"""What `doctor` looks at, one generator per topic. Each looks (which changes nothing on the machine) and then judges.

Judging is pure, in functions that take what was seen. Every external program has a deadline. What stands in a check's
remedy is something that a person can do.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from kybernate.criu import Finding

KERNEL_LEAST = (5, 10)  # pidfd_open, time namespaces, cgroup.freeze, netns-safe NFQUEUE: all of them are older
CONTAINERD_LEAST = (1, 7)
STORE_LEAST_BYTES = 1 << 30
STORE_COMFORTABLE_BYTES = 10 << 30
DEADLINE_SECONDS = 15.0

# linux/capability.h
CAPABILITIES = {
    12: ("CAP_NET_ADMIN", "traffic of a sleeping instance cannot be held"),
    19: ("CAP_SYS_PTRACE", "processes cannot be dumped"),
    21: ("CAP_SYS_ADMIN", "namespaces and mounts of containers cannot be entered"),
}


class Status(StrEnum):
    OK = "ok"
    WARNING = "warning"  # it works, but slower, or not for all workloads
    FAILED = "failed"


class Check(NamedTuple):
    """One thing that was looked at. `remedy` is empty where all is well."""

    name: str
    status: Status
    says: str
    remedy: str = ""


def kernel() -> Iterator[Check]:
    yield judge_kernel(platform.release(), Path("/proc/sys/kernel/ns_last_pid").exists())


def judge_kernel(release: str, checkpoint_restore: bool) -> Check:
    """`checkpoint_restore`: the kernel has CONFIG_CHECKPOINT_RESTORE, on which ns_last_pid depends."""
    least = ".".join(map(str, KERNEL_LEAST))
    if version(release) < KERNEL_LEAST:
        return Check("kernel", Status.FAILED, f"{release} is older than {least}", f"Boot a kernel from {least} on.")
    if not checkpoint_restore:
        remedy = "Boot a kernel with that option; every general distribution's kernel has it."
        return Check("kernel", Status.FAILED, f"{release} lacks CONFIG_CHECKPOINT_RESTORE", remedy)
    return Check("kernel", Status.OK, f"{release}, CONFIG_CHECKPOINT_RESTORE")


def permissions() -> Iterator[Check]:
    status = Path("/proc/self/status").read_text()
    effective = re.search(r"^CapEff:\s*([0-9a-f]+)", status, re.MULTILINE)
    yield from judge_permissions(os.geteuid(), int(effective[1], 16) if effective else 0)


def judge_permissions(uid: int, effective: int) -> Iterator[Check]:
    if uid != 0:
        yield Check("permissions", Status.FAILED, f"this is user {uid}, not root", "Run it as the agent runs: as root.")
        return
    missing = [number for number in CAPABILITIES if not effective >> number & 1]
    for number in missing:
        name, without = CAPABILITIES[number]
        yield Check("permissions", Status.FAILED, f"{name} is missing: {without}", f"Give the agent {name}.")
    if not missing:
        yield Check("permissions", Status.OK, f"root with {', '.join(name for name, _ in CAPABILITIES.values())}")


def criu() -> Iterator[Check]:
    """CRIU, runc, and CRIU's cache of kernel features, as `kybernate.criu` sees them."""
    from kybernate.criu import preflight  # 30 ms that only this check pays

    facts = preflight(deadline_seconds=DEADLINE_SECONDS)
    yield from judge_criu(facts.criu, facts.runc, facts.findings)


def judge_criu(criu: Sequence[int] | None, runc: Sequence[int] | None, findings: Sequence[Finding]) -> Iterator[Check]:
    for name, found in (("criu", criu), ("runc", runc)):
        if found is not None and not any(finding.code.startswith(name) for finding in findings):
            yield Check(name, Status.OK, ".".join(map(str, found)))
    topics = {"criu": "criu", "runc": "runc", "cap": "permissions", "kdat": "kernel feature cache"}
    for finding in findings:
        topic = topics.get(finding.code.partition("-")[0], finding.code)
        yield Check(topic, Status.FAILED if finding.fatal else Status.WARNING, finding.message, finding.remedy)
    if not any(finding.code.startswith("kdat") for finding in findings):
        yield Check(topics["kdat"], Status.OK, "CRIU finds it, or can keep it")


def containerd() -> Iterator[Check]:
    yield judge_containerd(said(["containerd", "--version"]))


def judge_containerd(answer: str | None) -> Check:
    """`answer`: of `containerd --version`; None where it does not run."""
    least = ".".join(map(str, CONTAINERD_LEAST))
    remedy = f"Install containerd {least} or newer."
    found = re.search(r"\bv?(\d+\.\d+\.\d+\S*)", answer or "")
    if answer is None or found is None:
        return Check("containerd", Status.FAILED, "containerd does not answer", remedy)
    if version(found[1]) < CONTAINERD_LEAST:
        return Check("containerd", Status.FAILED, f"{found[1]} is older than {least}", remedy)
    return Check("containerd", Status.OK, found[1])


def cgroups() -> Iterator[Check]:
    from kybernate.criu.kdat import file_system

    mounts = Path("/proc/self/mounts").read_text()
    root = Path("/sys/fs/cgroup")
    kind = file_system(root) if root.is_dir() else ""
    freeze = root.is_dir() and any(root.glob("*/cgroup.freeze"))
    yield judge_cgroups(kind, mounts, freeze, lambda path: os.access(path, os.W_OK))


def judge_cgroups(root: str, mounts: str, freeze: bool, writable: Callable[[str], bool]) -> Check:
    """`root`: the kind of file system that is seen at /sys/fs/cgroup; where it is cgroup2, mounts of v1 are hidden.

    `mounts`: of /proc/self/mounts; `freeze`: some group below /sys/fs/cgroup has the file cgroup.freeze (v2).
    """
    v2 = root == "cgroup2"
    for _, path, kind, options, *_ in (line.split() for line in mounts.splitlines()):
        unified = v2 and freeze and kind == "cgroup2" and path == "/sys/fs/cgroup"
        if not unified and (v2 or kind != "cgroup" or "freezer" not in options.split(",")):
            continue
        says = f"version {2 if v2 else 1}, freezer at {path}"
        if not writable(path):
            return Check("cgroups", Status.FAILED, f"{says} cannot be written to", f"Mount {path} writable, be root.")
        return Check("cgroups", Status.OK, says)
    remedy = "Mount cgroup2 at /sys/fs/cgroup (or the v1 freezer), as systemd does."
    return Check("cgroups", Status.FAILED, "no freezer: neither of version 2 nor of version 1", remedy)


def disk(state: Path) -> Iterator[Check]:
    """The file system on which the tier store is or will be."""
    folder = next(path for path in (state, *state.absolute().parents) if path.exists())
    facts = os.statvfs(folder)
    yield judge_disk(state, facts.f_bavail * facts.f_frsize)


def judge_disk(state: Path, free_bytes: int) -> Check:
    says = f"{free_bytes / (1 << 30):.1f} GiB free for {state}"
    remedy = "A parked instance needs as much as its memory; free room, or put the store on another disk."
    if free_bytes < STORE_COMFORTABLE_BYTES:
        return Check("disk", Status.FAILED if free_bytes < STORE_LEAST_BYTES else Status.WARNING, says, remedy)
    return Check("disk", Status.OK, says)


def version(text: str) -> tuple[int, ...]:
    """`6.18.0-amd64` is (6, 18, 0)."""
    return tuple(int(number) for number in re.findall(r"\d+", re.split(r"[^\d.]", text)[0]))


def said(command: Sequence[str], stdin: str = "") -> str | None:
    """What a program writes to stdout; None where it is missing, fails, or passes the deadline."""
    try:
        done = subprocess.run(
            command, input=stdin, capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
