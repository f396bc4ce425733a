"""Calling programs of the machine, and ending processes for certain.

Every call has a deadline. A process counts as ended when its pidfd says so, not when a signal was sent: what stands
in a frozen cgroup of version 1 takes SIGKILL only after it is thawed.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from kybernate.errors import DeadlineError, ExternalError

CGROUP_ROOT = Path("/sys/fs/cgroup")


class ProgramError(ExternalError):
    """{program} failed with exit code {code}: {stderr}"""


class ProgramMissingError(ExternalError):
    """{program} is not installed. `./dev setup` installs it."""


class ProgramDeadlineError(DeadlineError):
    """{program} did not end within {seconds} s. It was killed."""


class StuckProcessesError(DeadlineError):
    """These processes did not end within {seconds} s after SIGKILL: {pids}."""


def run(
    argv: Sequence[str | Path],
    *,
    deadline_seconds: float = 30,
    stdin: bytes | None = None,
    env: Mapping[str, str] | None = None,
) -> str:
    """Run a program and return what it wrote to stdout.

    Raises ProgramError, ProgramMissingError, ProgramDeadlineError.
    """
    program = " ".join(str(word) for word in argv[:4])
    try:
        done = subprocess.run(
            [str(word) for word in argv],
            input=stdin,
            capture_output=True,
            timeout=deadline_seconds,
            check=False,
            env=env,
        )
    except FileNotFoundError as error:
        raise ProgramMissingError(program=str(argv[0])) from error
    except subprocess.TimeoutExpired as error:
        raise ProgramDeadlineError(program=program, seconds=deadline_seconds) from error
    if done.returncode:
        raise ProgramError(program=program, code=done.returncode, stderr=done.stderr.decode(errors="replace").strip())
    return done.stdout.decode(errors="replace")


def end_by_signals() -> None:
    """SIGTERM and SIGHUP end this program as an exception, so that what it started goes with it. The first one counts:
    a shell and the kernel both say that a terminal is gone. What nohup(1) ignores stays ignored."""
    numbers = [it for it in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(it) is not signal.SIG_IGN]

    def ended(number: int, frame: object) -> None:
        for other in numbers:
            signal.signal(other, lambda number, frame: None)
        sys.exit(128 + number)

    for number in numbers:
        signal.signal(number, ended)


def pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def argv_of(pid: int) -> list[str]:
    """The command line of `pid`; empty for kernel threads and for what has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except OSError:
        return []


def descendants(of: Iterable[int]) -> set[int]:
    """Those pids and everything below them, at this moment."""
    children: dict[int, list[int]] = {}
    for pid in pids():
        with contextlib.suppress(OSError, ValueError, IndexError):
            parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(pid)
    found: set[int] = set()
    todo = list(of)
    while todo:
        pid = todo.pop()
        if pid not in found:
            found.add(pid)
            todo.extend(children.get(pid, ()))
    return found


def cgroups_of(pid: int) -> set[Path]:
    """The folder of `pid` in every cgroup hierarchy that is mounted below /sys/fs/cgroup."""
    found: set[Path] = set()
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except OSError:
        return found
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for hierarchy in hierarchies():
            if set(hierarchy.name.split(",")) & set(controllers.split(",")) or (
                not controllers and hierarchy in (CGROUP_ROOT, CGROUP_ROOT / "unified")
            ):
                found.add(hierarchy / path.lstrip("/"))
    return found


def hierarchies() -> list[Path]:
    """The roots of the cgroup hierarchies: one on version 2, one for each mounted controller on version 1."""
    if (CGROUP_ROOT / "cgroup.procs").exists():
        return [CGROUP_ROOT]
    return [path for path in CGROUP_ROOT.iterdir() if (path / "cgroup.procs").exists() and not path.is_symlink()]


def thaw(cgroups: Iterable[Path]) -> None:
    """Thaw these cgroups and what is above them; version 1 delivers SIGKILL only to the thawed."""
    for cgroup in cgroups:
        for folder in (cgroup, *cgroup.parents):
            if not folder.is_relative_to(CGROUP_ROOT):
                break
            for name, word in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
                with contextlib.suppress(OSError):
                    (folder / name).write_text(word)


def end(find: Callable[[], Iterable[int]], *, deadline_seconds: float = 10) -> set[Path]:
    """SIGKILL what `find` returns, again and again until it finds nothing; returns the cgroups they were in.

    Raises StuckProcessesError.
    """
    limit = time.monotonic() + deadline_seconds
    cgroups: set[Path] = set()
    while found := set(find()) - {os.getpid(), 1}:
        if time.monotonic() > limit:
            raise StuckProcessesError(seconds=deadline_seconds, pids=", ".join(map(str, sorted(found))))
        pidfds = []
        try:
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    pidfds.append(os.pidfd_open(pid))
                    cgroups |= cgroups_of(pid)
                    signal.pidfd_send_signal(pidfds[-1], signal.SIGKILL)
            thaw(cgroups)
            for pidfd in pidfds:
                ended_by(pidfd, limit)
        finally:
            for pidfd in pidfds:
                os.close(pidfd)
    return cgroups


def ended_by(pidfd: int, limit: float) -> bool:
    """Wait until the process of `pidfd` has ended, at most until `limit` on the monotonic clock."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(max(0.0, limit - time.monotonic()) * 1000))
