"""The control groups of one container, on cgroup v1 and v2.

A container's groups are a table {controller: absolute folder}, read from /proc/<init>/cgroup and never computed, so
that both drivers (cgroupfs, systemd) look alike. v2 has one entry with the empty name; a hybrid machine has v1's
entries and that one beside them. The kernel says "frozen" by an event on v2 (cgroup.events, EPOLLPRI) and says nothing
on v1, where freezer.state has to be read again.
"""

import os
import time

ROOT = "/sys/fs/cgroup"
OWN = "kybernate"
Table = dict[str, str]


def _mounts() -> dict[str, tuple[str, str]]:
    """{controller: (mount point, root of the mount inside the hierarchy)} as this process sees them."""
    unified = os.path.exists(ROOT + "/cgroup.controllers")
    names = {name for line in read("/proc/self/cgroup").splitlines() for name in line.split(":")[1].split(",")}
    found: dict[str, tuple[str, str]] = {}
    with open("/proc/self/mountinfo") as lines:
        for line in lines:
            front, _, back = line.partition(" - ")
            root, point = front.split()[3:5]
            kind, _, options = back.split(None, 2)
            # Only the machine's own mounts: CRIU makes temporary ones elsewhere.
            if kind == "cgroup2" and point == (ROOT if unified else ROOT + "/unified"):
                found[""] = (point, root)
            elif kind == "cgroup" and not unified and os.path.dirname(point) == ROOT:
                for name in names.intersection(options.strip().split(",")):
                    found[name] = (point, root)
    return found


def of_process(pid: int | str) -> Table:
    """The groups of `pid`. Raises FileNotFoundError when it is gone."""
    mounts = _mounts()
    table: Table = {}
    with open(f"/proc/{pid}/cgroup") as lines:
        for line in lines:
            _, names, path = line.rstrip("\n").split(":", 2)
            for name in names.split(","):
                if name in mounts:
                    point, root = mounts[name]
                    inside = path[len(root) :] if root != "/" and path.startswith(root) else path
                    table[name] = (point + "/" + inside.strip("/")).rstrip("/")
    return table


def v2_path(table: Table) -> str:
    """The v2 group as /proc/<pid>/cgroup names it; "" where there is none."""
    point, root = _mounts().get("", ("", ""))
    return root.rstrip("/") + table[""][len(point) :] if "" in table and point else ""


def v1_places(table: Table) -> Table:
    """The groups by the names that the hierarchies have below /sys/fs/cgroup ("memory", "cpu,cpuacct"); none on v2."""
    return {os.path.basename(point): table[name] for name, (point, _) in _mounts().items() if name and name in table}


def of_path(path: str) -> Table:
    """The groups that runc will use for `linux.cgroupsPath`; either driver's way of writing it."""
    if path.count(":") == 2 and not path.startswith("/"):
        path = _scope(*path.split(":"))
    if not path.startswith("/"):
        raise ValueError(f"linux.cgroupsPath {path!r} is relative: containerd writes absolute ones")
    return {name: point + os.path.normpath(path) for name, (point, _) in _mounts().items()}


def _scope(slice_name: str, prefix: str, name: str) -> str:
    """systemd's folder of a scope: a-b.slice lies in a.slice."""
    folder, grown = "", ""
    stem = (slice_name or "system.slice").removesuffix(".slice")
    for part in stem.split("-") if stem != "-" else ():
        grown = f"{grown}-{part}" if grown else part
        folder += f"/{grown}.slice"
    return f"{folder}/{name}" if name.endswith(".slice") else f"{folder}/{prefix}-{name}.scope"


def own() -> Table:
    """The keeper's own groups, out of reach of what freezes the container."""
    return {name: f"{point}/{OWN}" for name, (point, _) in _mounts().items()}


def make(table: Table) -> None:
    """Create what is missing. A v1 cpuset refuses processes until it has been given cpus and memory nodes."""
    for name, folder in table.items():
        os.makedirs(folder, exist_ok=True)
        if name == "cpuset" and os.path.exists(folder + "/cpuset.cpus"):
            _fill_cpuset(folder)


def _fill_cpuset(folder: str) -> None:
    for item in ("cpuset.cpus", "cpuset.mems"):
        missing, at = [], folder
        while not (value := read(f"{at}/{item}").strip()):
            missing.append(at)
            at = os.path.dirname(at)
        for at in reversed(missing):
            write(f"{at}/{item}", value)


def join(table: Table) -> None:
    """Move this process there."""
    for folder in table.values():
        write(folder + "/cgroup.procs", "0")


def remove(table: Table, seconds: float = 2.0) -> list[str]:
    """Remove the groups and what is below them; the folders that stay busy for `seconds` are returned.

    A group is busy for some moments more after its last process was reaped.
    """
    end = time.monotonic() + seconds
    while (busy := _remove_once(table)) and time.monotonic() < end:
        time.sleep(0.01)
    return busy


def _remove_once(table: Table) -> list[str]:
    points = {point for point, _ in _mounts().values()}
    busy = []
    for top in set(table.values()):
        if os.path.normpath(top) in points:
            continue
        for folder, _, _ in os.walk(top, topdown=False):
            try:
                os.rmdir(folder)
            except FileNotFoundError:
                pass
            except OSError:
                busy.append(folder)
    return busy


def freezer(table: Table) -> str:
    """The folder whose switch stops the container."""
    return table.get("freezer") or table[""]


def is_v1(table: Table) -> bool:
    return "freezer" in table


def processes(table: Table) -> list[int]:
    """Every process in the container's group and below."""
    found: list[int] = []
    for folder, _, _ in os.walk(freezer(table)):
        try:
            found += map(int, read(folder + "/cgroup.procs").split())
        except OSError:  # the group went away, or is threaded (v2), while we looked
            continue
    return found


def strangers(table: Table, init: int) -> list[int]:
    """Processes that came in from outside, by exec: neither the init nor children of anybody inside."""
    inside, found = set(processes(table)), []
    for pid in inside - {init, os.getpid()}:
        try:
            parent = int(read(f"/proc/{pid}/stat").rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        if parent not in inside:
            found.append(pid)
    return found


def told(table: Table) -> str:
    """The processes as messages name them: pid, name, state, and what the kernel does for it."""
    words = []
    for pid in processes(table):
        try:
            name, _, rest = read(f"/proc/{pid}/stat").partition(" (")[2].rpartition(") ")
            words.append(f"{pid} {name} {rest[:1]} {read(f'/proc/{pid}/wchan')}")
        except OSError:  # it has ended meanwhile
            continue
    return ", ".join(words) or "no process"


def switch(table: Table, frozen: bool) -> None:
    """Ask for frozen or thawed; `settled` tells when it is so. A group that is gone counts as thawed."""
    folder = freezer(table)
    try:
        if is_v1(table):
            write(folder + "/freezer.state", "FROZEN" if frozen else "THAWED")
        else:
            write(folder + "/cgroup.freeze", "1" if frozen else "0")
    except FileNotFoundError:
        if frozen:
            raise


def settled(table: Table, frozen: bool, events: int | None = None) -> bool:
    """Has the kernel done what `switch` asked? Reading through `events` re-arms that descriptor."""
    try:
        if is_v1(table):
            return read(freezer(table) + "/freezer.state").strip() == ("FROZEN" if frozen else "THAWED")
        text = read(freezer(table) + "/cgroup.events") if events is None else os.pread(events, 4096, 0).decode()
        return f"frozen {int(frozen)}\n" in text
    except (FileNotFoundError, ProcessLookupError):
        return not frozen


def open_events(table: Table) -> int | None:
    """A descriptor that gets EPOLLPRI when the frozen state changes; None on v1, which has no such event."""
    return None if is_v1(table) else os.open(freezer(table) + "/cgroup.events", os.O_RDONLY | os.O_CLOEXEC)


def read(path: str) -> str:
    with open(path) as file:
        return file.read()


def write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
