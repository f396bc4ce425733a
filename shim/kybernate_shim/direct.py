"""The shorter way back: CRIU itself, without `runc restore` between.

runc costs a wake 20 ms beside CRIU's own work: its own start, a CRIU only to ask for the version, a conversation with
the one that restores. What it says to CRIU all stands in its state.json of the container, so for a container that was
parked in place, as it was at the dump, we say the same:

    root                the container's rootfs, which containerd keeps mounted
    external mounts     bind mounts; on cgroup v1 the groups under /sys/fs/cgroup; /dev/null over masked files
    namespaces          the pod's: network by descriptor, the others joined by path
    standard streams    the pipes of before, which the keeper has kept
    cgroup              CRIU begins in the container's, and what it makes is born there; a cgroup namespace (v2) is made
                        anew by CRIU, which for that has to know where the container's group is

Afterwards runc's state.json is put back with the new init in it, so state, kill, exec, update and delete are runc's
again. `plan` is pure and knows its limits: hooks, systemd's scopes, user namespaces and the like are for runc, and so
is a container that is restored where it never ran. Whatever fails here is undone as after `runc restore`, and the next
try is runc's.

Sources: runc libcontainer/criu_linux.go (Restore), libcontainer/container_linux.go (State); criu(8).
"""

from __future__ import annotations

import json
import os

from kybernate_shim import cgroup, process
from kybernate_shim import record as states

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    State = dict[str, Any]

KEPT = "runc-state.json"
JOINED = {"NEWIPC": "ipc", "NEWUTS": "uts"}
OWN = ("NEWPID", "NEWNS", "NEWNET", "NEWIPC", "NEWUTS", "NEWCGROUP", "NEWTIME")
FIRST_STREAM = 10
NETWORK = 20


def keep(record: states.Record) -> None:
    """Remember runc's state of a container that is parked; runc itself forgets it. Raises OSError."""
    states.replace(record.path(KEPT), cgroup.read(f"{record.runc_root}/{record.container}/state.json"))


def forget(record: states.Record) -> None:
    """From now on only runc knows how to restore it."""
    try:  # noqa: SIM105  (contextlib would cost every keeper memory)
        os.unlink(record.path(KEPT))
    except FileNotFoundError:
        pass


class Known:
    """A container that can come back this way: runc's state of it, CRIU, its arguments, the network namespace."""

    def __init__(self, state: State, criu: str, about: list[str], network: str) -> None:
        self.state, self.criu, self.about, self.network = state, criu, about, network


def ready(record: states.Record) -> Known | None:
    """None: this one is for runc."""
    try:
        state: State = json.loads(cgroup.read(record.path(KEPT)))
        places = cgroup.v1_places(record.cgroups)
        criu, found = program(os.environ.get("PATH", "")), plan(state, places, cgroup.v2_path(record.cgroups))
        if found is None or criu is None or not os.path.ismount(state["config"]["rootfs"]):
            return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # of another version of runc
        return None
    return Known(state, criu, *found)


def spawn(record: states.Record, known: Known, images: str, work: str) -> int:
    """Start CRIU. Returns its pid; when it has ended with 0 the processes run. Raises OSError."""
    pid_file = record.path("init.pid")
    if os.path.exists(pid_file):
        os.unlink(pid_file)
    descriptors = {FIRST_STREAM + number: number for number in (0, 1, 2)}
    network = os.open(known.network, os.O_RDONLY | os.O_CLOEXEC) if known.network else -1
    try:
        if network >= 0:
            descriptors[NETWORK] = network
        argv = [known.criu, "restore", "--config", record.path("criu.conf"), "--images-dir", images, "--work-dir", work]
        argv += ["--log-file", "restore.log", "-v4", "--pidfile", pid_file]
        # The new init becomes a sibling of CRIU: the keeper's child.
        argv += ["--evasive-devices", "--restore-detached", "--restore-sibling", *known.about]
        return process.spawn_in(sorted(set(record.cgroups.values())), argv, descriptors, record.path("stderr"))
    finally:
        if network >= 0:
            os.close(network)


def program(path: str) -> str | None:
    """CRIU, where runc would find it."""
    places = (f"{folder}/criu" for folder in path.split(":") if folder.startswith("/"))
    return next((place for place in places if os.access(place, os.X_OK)), None)


def plan(state: State, v1_places: dict[str, str], v2_path: str) -> tuple[list[str], str] | None:
    """CRIU's arguments about this container, and the path of its network namespace ("": its own). Pure.

    `v1_places` maps the names of the machine's cgroup v1 mounts ("memory", "cpu,cpuacct") to the container's groups in
    them; where it is empty, `v2_path` is the container's group as /proc/<pid>/cgroup has it. None: this one is for
    runc.
    """
    config = state["config"]
    spaces = {space["type"]: space.get("path") or "" for space in config["namespaces"]}
    with_path = {kind for kind, path in spaces.items() if path}
    special = (
        any((config.get("Hooks") or {}).values()),
        has_systemd_scope(config),
        config.get("no_pivot_root"),
        state.get("rootless"),
        state.get("intel_rdt_path"),
        set(spaces) - set(OWN),
        with_path - {"NEWNET", *JOINED},
        "NEWCGROUP" in spaces and v1_places,
        any(mount.get("uid_mappings") or mount.get("id_mapping") for mount in config["mounts"]),
    )
    if any(special) or not {"NEWPID", "NEWNS"} <= set(spaces):
        return None
    words = ["--root", config["rootfs"]]
    words += ["--manage-cgroups=ignore"] if v1_places else ["--manage-cgroups=soft", "--cgroup-root", f":{v2_path}"]
    for key, source in _external(config, v1_places):
        if "]" in key or not source.startswith("/"):
            return None
        words += ["--external", f"mnt[{key}]:{source}"]
    for kind, name in JOINED.items():
        if path := spaces.get(kind):
            words += ["--join-ns", f"{name}:{path}"]
    for number, stream in enumerate(state.get("external_descriptors") or ()):
        if "pipe:" in stream:
            words += ["--inherit-fd", f"fd[{FIRST_STREAM + number}]:{stream}"]
    network = spaces.get("NEWNET", "")
    if network:
        words += ["--inherit-fd", f"fd[{NETWORK}]:extRootNetNS"]
    return words, network


def has_systemd_scope(config: dict[str, Any]) -> bool:
    """Whether runc keeps the container's cgroup through systemd. runc 1.1 writes the name as in Go, "Systemd"."""
    return any(value for name, value in (config.get("cgroups") or {}).items() if name.lower() == "systemd")


def _external(config: dict[str, Any], v1_places: dict[str, str]) -> list[tuple[str, str]]:
    """(key, source) of every mount that CRIU is to take from the host."""
    found = []
    for mount in config["mounts"]:
        if mount["device"] == "bind":
            found.append((mount["destination"].removeprefix(config["rootfs"]), mount["source"]))
        elif mount["device"] == "cgroup":
            found += [(f"{mount['destination']}/{name}", folder) for name, folder in v1_places.items()]
    if config.get("mask_paths"):
        found.append(("/dev/null", "/dev/null"))
    return found


def renewed(state: State, init: int, start: int) -> State:
    """runc's state with another init, as it writes it itself after a restore. Pure."""
    config, paths = state["config"], state["namespace_paths"]
    # CRIU puts processes into a time namespace; runc that knows of them lists them, and enters it for an exec.
    if "NEWTIME" in paths and all(space["type"] != "NEWTIME" for space in config["namespaces"]):
        config["namespaces"].append({"type": "NEWTIME", "path": ""})
    state["namespace_paths"] = {kind: f"/proc/{init}/ns/{path.rpartition('/')[2]}" for kind, path in paths.items()}
    state["init_process_pid"], state["init_process_start"] = init, start
    return state


def give_back(record: states.Record, known: Known, init: int, start: int) -> None:
    """runc knows the container again. Raises OSError."""
    folder = f"{record.runc_root}/{record.container}"
    os.makedirs(folder, 0o711, exist_ok=True)
    states.replace(folder + "/state.json", json.dumps(renewed(known.state, init, start)))
