"""What the processes in images may do, against what a container's configuration allows.

A restore gives every thread the rights that stand in its image: CRIU asks nobody. In place that is what the container
had. Into another container it must not be more than its own configuration (config.json of the OCI runtime) would let
it have: a template that was made stricter meanwhile must not be passed by with old images.

    capabilities       all sets of every thread lie within the bounding set of the configuration
    users and groups   the configuration's own; any where a program starts as root and may become them (CAP_SETUID,
                       CAP_SETGID); and what the dumped container had come to, where it was configured the same
    noNewPrivileges    if the configuration has it, every thread has it
    seccomp            if the configuration has a profile, the dumped container had the same, and every process has a
                       filter (it can only add to it; where all threads have the same, only the first one's is dumped)
    AppArmor, SELinux  if the configuration names a profile or a type, every thread is in it

Sources: CRIU images/creds.proto and core.proto; capabilities(7); OCI runtime specification, config.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from kybernate.criu import images
from kybernate.criu._pb import criu_images_pb2 as pb
from kybernate.criu.errors import ImageFormatError, PrivilegesExceedError

CAPABILITIES = (
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
    "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
    "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
    "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
    "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
    "CHECKPOINT_RESTORE",
)  # fmt: skip
"""By number, as in linux/capability.h."""

_SECCOMP_FILTER = 2
# What the shim adds to every managed container: no part of what an author asked for.
_IO_URING = {"io_uring_setup", "io_uring_enter", "io_uring_register"}
_ALLOW_ALL = "SCMP_ACT_ALLOW"


@dataclass(frozen=True)
class Held:
    """The rights of one thread; `capabilities` is the union of all its sets, as a mask; `first` of its process."""

    thread: int
    first: bool
    name: str
    users: frozenset[int]
    groups: frozenset[int]
    capabilities: int
    no_new_privileges: bool
    seccomp: int
    profile: str


@dataclass(frozen=True)
class Allowed:
    """What a configuration lets a container have. `seccomp` is the profile's digest, "" for none."""

    user: int
    groups: frozenset[int]
    bounding: int
    no_new_privileges: bool
    seccomp: str
    apparmor: str
    selinux: str


def held(folder: Path) -> list[Held]:
    """Of every thread in the images. Raises ImageFormatError, OSError."""
    found = []
    for path in sorted(folder.glob("core-*.img")):
        (core,) = images.load(path, images.CORE, pb.Core) or (None,)
        if core is None or not core.thread_core.HasField("creds"):
            raise ImageFormatError(path=str(path), problem="holds no credentials")
        found.append(_held(int(path.stem.removeprefix("core-")), core))
    if not found:
        raise ImageFormatError(path=str(folder), problem="holds no process")
    return found


def _held(thread: int, core: pb.Core) -> Held:
    creds = core.thread_core.creds
    sets = (creds.cap_inh, creds.cap_prm, creds.cap_eff, creds.cap_bnd, creds.cap_amb)
    capabilities = 0
    for words in sets:
        capabilities |= sum(word << 32 * place for place, word in enumerate(words))
    return Held(
        thread=thread,
        first=core.HasField("tc"),
        name=core.tc.comm or core.thread_core.comm,
        users=frozenset((creds.uid, creds.euid, creds.suid, creds.fsuid)),
        groups=frozenset((creds.gid, creds.egid, creds.sgid, creds.fsgid, *creds.groups)),
        capabilities=capabilities,
        no_new_privileges=bool(creds.no_new_privs),
        seccomp=core.thread_core.seccomp_mode or core.tc.old_seccomp_mode,
        profile=creds.lsm_profile,
    )


def allowed(config: Mapping[str, Any]) -> Allowed:
    """What a container's config.json allows. Pure."""
    process: Mapping[str, Any] = config.get("process") or {}
    user: Mapping[str, Any] = process.get("user") or {}
    return Allowed(
        user=int(user.get("uid", 0)),
        groups=frozenset((int(user.get("gid", 0)), *map(int, user.get("additionalGids") or ()))),
        bounding=_mask((process.get("capabilities") or {}).get("bounding") or ()),
        no_new_privileges=bool(process.get("noNewPrivileges")),
        seccomp=seccomp_digest((config.get("linux") or {}).get("seccomp")),
        apparmor=str(process.get("apparmorProfile") or "").removeprefix("unconfined"),
        selinux=str(process.get("selinuxLabel") or ""),
    )


def seccomp_digest(profile: Mapping[str, Any] | None) -> str:
    """Of a seccomp profile without what the shim adds; "" where nothing else is in it. Pure."""
    if not profile:
        return ""
    rules = []
    for rule in profile.get("syscalls") or ():
        names = [name for name in rule.get("names") or () if name not in _IO_URING]
        if names:
            rules.append({**rule, "names": names})
    if not rules and profile.get("defaultAction") == _ALLOW_ALL:
        return ""
    text = msgspec.json.encode({**profile, "syscalls": rules}, order="deterministic")
    return hashlib.sha256(text).hexdigest()


def refuse_exceeding(container: str, threads: Iterable[Held], limits: Allowed, dumped: Allowed) -> None:
    """Raises PrivilegesExceedError that names the first thread and right beyond `limits`. Pure.

    `dumped` is what the configuration of the dumped container allowed.
    """
    identity = _identity(limits) == _identity(dumped)
    for thread in threads:
        problem = _exceeding(thread, limits, identity)
        if problem:
            raise PrivilegesExceedError(
                container=container, thread=thread.thread, name=thread.name or "a thread", problem=problem
            )
    if limits.seccomp and dumped.seccomp != limits.seccomp:
        raise PrivilegesExceedError(
            container=container, thread=1, name="its init", problem="has another seccomp profile, or none"
        )


def _identity(of: Allowed) -> tuple[int, frozenset[int], bool]:
    return of.user, of.groups, of.no_new_privileges


def _exceeding(thread: Held, limits: Allowed, same_identity: bool) -> str:
    more = thread.capabilities & ~limits.bounding
    if more:
        return f"has {', '.join(_names(more))}"
    users = thread.users - {limits.user}
    if users and not same_identity and not _may_become(limits, "SETUID"):
        return f"runs as user {min(users)}"
    groups = thread.groups - limits.groups
    if groups and not same_identity and not _may_become(limits, "SETGID"):
        return f"is in group {min(groups)}"
    if limits.no_new_privileges and not thread.no_new_privileges:
        return "may gain privileges (noNewPrivileges is off)"
    if limits.seccomp and thread.first and thread.seccomp != _SECCOMP_FILTER:
        return "has no seccomp filter"
    return _unconfined(thread.profile, limits)


def _may_become(limits: Allowed, capability: str) -> bool:
    return limits.user == 0 and bool(limits.bounding >> CAPABILITIES.index(capability) & 1)


def _unconfined(profile: str, limits: Allowed) -> str:
    if limits.apparmor and profile != limits.apparmor and not profile.startswith(f"{limits.apparmor}//"):
        return f"is in the AppArmor profile {profile or 'unconfined'}, not in {limits.apparmor}"
    # The levels (categories) are each pod's own; user, role and type are what the template asks for.
    if limits.selinux and profile.split(":")[:3] != limits.selinux.split(":")[:3]:
        return f"has the SELinux label {profile or 'unconfined'}, not {limits.selinux}"
    return ""


def _mask(names: Sequence[str]) -> int:
    """A name that this list lacks is newer than it, and allows nothing."""
    known = [
        CAPABILITIES.index(name.removeprefix("CAP_")) for name in names if name.removeprefix("CAP_") in CAPABILITIES
    ]
    return sum(1 << number for number in set(known))


def _names(mask: int) -> list[str]:
    numbers = [number for number in range(mask.bit_length()) if mask >> number & 1]
    return [f"CAP_{CAPABILITIES[n]}" if n < len(CAPABILITIES) else f"capability {n}" for n in numbers]
