"""Refused before a dump, by what /proc says of real processes."""

from __future__ import annotations

import ctypes
import os
import pty
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from criu_container import PYTHON, eventually

from kybernate.criu import (
    ExecSessionError,
    OtherUserError,
    StoppedError,
    TerminalError,
    TracedError,
    refuse_unsuitable,
)
from kybernate.criu.mounts import mounts

# PYTHON is the distribution's: any user may run it, wherever this repository lies.
CHILD = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(1, flush=True); input()'])"


@contextmanager
def process(code: str = "print(1, flush=True); input()", **options: object) -> Iterator[subprocess.Popen[bytes]]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE} | options
    with subprocess.Popen([PYTHON, "-c", code], **pipes) as started:  # type: ignore[call-overload]
        try:
            if started.stdout is not None:
                started.stdout.readline()
            yield started
        finally:
            started.send_signal(signal.SIGCONT)
            started.kill()


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def refuse(pid: int, *others: int, sys_resource: bool = False, allow_other_users: bool = False) -> None:
    refuse_unsuitable(
        "chat-0/server",
        [pid, *others],
        init=pid,
        destinations=[mount.mountpoint for mount in mounts("self")],  # these processes see the host's mounts
        sys_resource=sys_resource,
        allow_other_users=allow_other_users,
    )


def suitable(pid: int, *others: int) -> bool:
    refuse(pid, *others)
    return True


def test_a_plain_tree_of_processes_is_suitable() -> None:
    with process(CHILD) as init:
        (child,) = children(init.pid)
        assert suitable(init.pid, child)
        assert suitable(init.pid, child, 1 << 22)  # a process that is gone is nobody's concern
        os.kill(child, signal.SIGKILL)


def test_another_user_needs_the_capability_or_a_stand_in() -> None:
    with process(user=65534, group=65534) as init:
        with pytest.raises(OtherUserError, match=r"chat-0/server: process \d+ .* runs as user 65534"):
            refuse(init.pid)
        refuse(init.pid, sys_resource=True)
        refuse(init.pid, allow_other_users=True)


def test_a_process_that_came_by_exec_is_refused() -> None:
    with process() as init, process() as stranger, pytest.raises(ExecSessionError, match=str(stranger.pid)):
        refuse(init.pid, stranger.pid)


def test_a_stopped_process_is_refused() -> None:
    with process() as init:
        init.send_signal(signal.SIGSTOP)
        eventually(lambda: "\nState:\tT" in Path(f"/proc/{init.pid}/status").read_text())
        with pytest.raises(StoppedError):
            refuse(init.pid)


def test_a_traced_process_is_refused() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    seize, detach = 0x4206, 17
    with process() as init:
        assert libc.ptrace(seize, init.pid, 0, 0) == 0
        with pytest.raises(TracedError, match=f"traced by process {os.getpid()}"):
            refuse(init.pid)
        libc.ptrace(detach, init.pid, 0, 0)


def test_a_terminal_as_stdio_is_refused() -> None:
    master, slave = pty.openpty()
    with process("input()", stdin=slave, stdout=None) as init, pytest.raises(TerminalError, match="/dev/pts/"):
        refuse(init.pid)
    os.close(master)
    os.close(slave)
