"""What the hook reads in, and writes into, a bundle's config.json. Pure: bytes and tables in, tables out."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Config = dict[str, Any]

MANAGED_MARK = b"kybernate.io/containers"
CONTAINERS = "kybernate.io/containers"
ALLOW_IO_URING = "kybernate.io/allow-io-uring"
ALLOW_MPTCP = "kybernate.io/allow-mptcp"
CRI_TYPE = "io.kubernetes.cri.container-type"
CRI_NAME = "io.kubernetes.cri.container-name"
CRI_SANDBOX = "io.kubernetes.cri.sandbox-id"
CRI_POD_UID = "io.kubernetes.cri.sandbox-uid"
CRIU_CONFIG = "org.criu.config"
IO_URING = ("io_uring_setup", "io_uring_enter", "io_uring_register")
ENOSYS = 38


def notes_of(config: Config) -> dict[str, str]:
    return config.get("annotations") or {}


def is_managed(config: Config) -> bool:
    """A container of a pod whose name stands in the pod's list; never the sandbox."""
    notes = notes_of(config)
    names = [name.strip() for name in notes.get(CONTAINERS, "").split(",")]
    return notes.get(CRI_TYPE) == "container" and notes.get(CRI_NAME, "") in names and bool(notes.get(CRI_NAME))


def is_managed_sandbox(config: Config) -> bool:
    """The sandbox of a pod with a managed container."""
    notes = notes_of(config)
    return notes.get(CRI_TYPE) == "sandbox" and bool(notes.get(CONTAINERS, "").strip(", "))


def pids_in_namespace_paths(raw: bytes) -> set[bytes]:
    """Every <pid> of a "/proc/<pid>/..." in the raw file: cheap enough for containers that are none of ours."""
    found = set()
    for part in raw.split(b'"/proc/')[1:]:
        pid, _, rest = part.partition(b"/")
        if pid.isdigit() and rest.partition(b'"')[0].find(b"ns/") >= 0:
            found.add(pid)
    return found


def redirect_namespaces(config: Config, real: dict[str, int]) -> None:
    """Point namespace paths at the real init: `real` maps a keeper's pid to it."""
    for space in (config.get("linux") or {}).get("namespaces") or []:
        words = space.get("path", "").split("/")
        if len(words) > 3 and words[1] == "proc" and words[2] in real:
            space["path"] = f"/proc/{real[words[2]]}/ns/{words[-1]}"


def prepare(config: Config, criu_conf: str, machine: str, mptcp_known: bool) -> None:
    """Make a managed container able to sleep: CRIU's options, no io_uring, no MPTCP."""
    notes = config.setdefault("annotations", {})
    linux = config.setdefault("linux", {})
    notes[CRIU_CONFIG] = criu_conf
    if notes.get(ALLOW_IO_URING) != "true":
        linux["seccomp"] = without_io_uring(linux.get("seccomp"), machine)
    has_network = any(space.get("type") == "network" for space in linux.get("namespaces") or [])
    if notes.get(ALLOW_MPTCP) != "true" and mptcp_known and has_network:
        linux["sysctl"] = {**(linux.get("sysctl") or {}), "net.mptcp.enabled": "0"}


def without_io_uring(profile: Config | None, machine: str) -> Config:
    """A seccomp profile that answers io_uring with ENOSYS, as a kernel without it does: programs then use epoll.

    CRIU cannot dump io_uring; newer libuv uses it whatever the environment says.
    """
    if not profile:
        architectures = {
            "x86_64": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
            "aarch64": ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
        }.get(machine, [])
        profile = {"defaultAction": "SCMP_ACT_ALLOW", "architectures": architectures, "syscalls": []}
    rules = []
    for rule in profile.get("syscalls") or []:
        names = [name for name in rule.get("names", []) if name not in IO_URING]
        if names:
            rules.append({**rule, "names": names})
    rules.append({"names": list(IO_URING), "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS})
    return {**profile, "syscalls": rules}


def merge_resources(config: Config, update: Config) -> None:
    """Lay an update over `linux.resources`; what it leaves out stays as it was (as `runc update` does)."""
    resources = config.setdefault("linux", {}).setdefault("resources", {})
    for section, values in update.items():
        if isinstance(values, dict):
            kept = {name: value for name, value in values.items() if value is not None}
            resources[section] = {**(resources.get(section) or {}), **kept}
        elif values is not None:
            resources[section] = values
