"""What is known about one managed container, in RUN/keepers/<container id>/state.json.

The keeper alone writes it once it runs; the hook and the agent read it. Each change replaces the file at once, so a
reader sees the old or the new, and what it says survives the keeper.
"""

from __future__ import annotations

import json
import os
import time

TYPE_CHECKING = False  # the typing module would cost each hook call 4 ms
if TYPE_CHECKING:
    from typing import Any

CREATING = "creating"
CREATED = "created"
AWAITING = "awaiting-restore"
RUNNING = "running"
FROZEN = "frozen"
DUMPING = "dumping"
PARKED = "parked"
RESTORING = "restoring"
ENDED = "ended"


class Record:
    """One container's facts as attributes, saved with `save`."""

    def __init__(self, folder: str, facts: dict[str, Any]) -> None:
        self.folder = folder
        self.container: str = facts["container"]
        self.state: str = facts.get("state", CREATING)
        self.started: bool = facts.get("started", False)
        self.paused: bool = facts.get("paused", False)
        self.killed: bool = facts.get("killed", False)
        self.keeper_pid: int = facts.get("keeper_pid", 0)
        self.keeper_start: int = facts.get("keeper_start", 0)
        self.init_pid: int = facts.get("init_pid", 0)
        self.init_start: int = facts.get("init_start", 0)
        self.bundle: str = facts["bundle"]
        self.runc: str = facts["runc"]
        self.runc_root: str = facts["runc_root"]
        self.runc_globals: list[str] = facts["runc_globals"]
        self.create_options: list[str] = facts.get("create_options", [])
        self.pid_file: str = facts.get("pid_file", "")
        self.lib: str = facts.get("lib", "")
        self.cgroups: dict[str, str] = facts.get("cgroups", {})
        self.pod_uid: str = facts.get("pod_uid", "")
        self.name: str = facts.get("name", "")
        self.sandbox: str = facts.get("sandbox", "")
        self.created: str = facts.get("created", "")
        self.exit: dict[str, int] = facts.get("exit", {})
        self.since: float = facts.get("since", 0.0)
        # In seconds since the machine started, which no change of the clock moves; 0: it does not run, or ended asleep.
        self.ran_at: float = facts.get("ran_at", 0.0)
        self.ended_at: float = facts.get("ended_at", 0.0)

    @classmethod
    def load(cls, folder: str) -> Record:
        """Raises FileNotFoundError, ValueError."""
        with open(folder + "/state.json") as file:
            return cls(folder, json.load(file))

    def enter(self, state: str) -> None:
        """Change the state, and save."""
        if state == RUNNING and self.state in (CREATED, RESTORING):
            self.ran_at = time.clock_gettime(time.CLOCK_BOOTTIME)
        elif state in (PARKED, RESTORING):
            self.ran_at = 0.0
        elif state == ENDED and self.state != ENDED:
            self.ended_at = time.clock_gettime(time.CLOCK_BOOTTIME)
        self.state, self.since = state, time.time()
        self.save()

    def save(self) -> None:
        facts = {name: value for name, value in vars(self).items() if name != "folder"}
        replace(self.folder + "/state.json", json.dumps(facts, indent=1))

    def path(self, name: str) -> str:
        return f"{self.folder}/{name}"


def replace(path: str, text: str, mode: int = 0o600) -> None:
    """Write a file so that it is there whole or not at all."""
    fresh = f"{path}.{os.getpid()}.new"
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(fd, "w") as file:
            file.write(text)
        os.rename(fresh, path)
    except OSError:
        os.unlink(fresh)
        raise


def remove_tree(path: str) -> None:
    """Remove a folder of ours and all in it; what is gone already is no error. (shutil would cost a megabyte.)"""
    for folder, folders, files in os.walk(path, topdown=False):
        for name in files:
            os.unlink(f"{folder}/{name}")
        for name in folders:
            at = f"{folder}/{name}"
            os.unlink(at) if os.path.islink(at) else os.rmdir(at)
    try:  # noqa: SIM105  (contextlib would cost every hook call)
        os.rmdir(path)
    except FileNotFoundError:
        pass


def discard(folder: str, keeper_pid: int) -> None:
    """Remove what RUN holds about a container that is over."""
    link = f"{os.path.dirname(os.path.dirname(folder))}/pids/{keeper_pid}"
    try:
        if os.path.basename(os.readlink(link)) == os.path.basename(folder):
            os.unlink(link)
    except FileNotFoundError:
        pass
    remove_tree(folder)


def start_time(pid: int) -> int:
    """When a process began, in clock ticks since boot (/proc/<pid>/stat, field 22); 0 when it is gone."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 0 if fields[0] in "ZX" else int(fields[19])
