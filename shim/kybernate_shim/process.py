"""Programs that the keeper runs: each a process group of its own, so that one signal reaches runc, CRIU and scripts."""

from __future__ import annotations

import os
import signal

TAIL_BYTES = 2000
OURS = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2,
        signal.SIGPIPE, signal.SIGALRM, signal.SIGXFSZ)  # fmt: skip


def spawn(argv: list[str], stderr: str | None, env: dict[str, str] | None = None) -> int:
    """Start `argv` with its stderr in that file; with None it gets the container's own stdin, stdout and stderr.

    Signals have their default meaning again in the new program: what the keeper ignores the application may want.
    Returns its pid. Raises OSError.
    """
    actions: list[tuple[int, int, str, int, int]] = []
    if stderr is not None:
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
            (os.POSIX_SPAWN_OPEN, 2, stderr, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600),
        ]
    environ = {**os.environ, **(env or {})}
    return os.posix_spawn(argv[0], argv, environ, file_actions=actions, setpgroup=0, setsigmask=(), setsigdef=OURS)


def kill_group(pid: int) -> bool:
    """SIGKILL for the whole group that `spawn` made. False when nobody is left in it."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    """A process that is gone already needs no signal."""
    try:  # noqa: SIM105  (contextlib would cost every keeper memory)
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def tail(path: str) -> str:
    """The last words of a program."""
    try:
        with open(path, "rb") as file:
            file.seek(max(os.path.getsize(path) - TAIL_BYTES, 0))
            return file.read().decode(errors="replace").strip()
    except FileNotFoundError:
        return ""
