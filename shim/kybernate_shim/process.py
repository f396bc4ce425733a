"""Programs that the keeper runs: each a process group of its own, so that one signal reaches runc, CRIU and scripts."""

from __future__ import annotations

import os
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

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


def spawn_in(groups: list[str], argv: list[str], descriptors: dict[int, int], stderr: str) -> int:
    """Start `argv` as a member of these cgroups, with `descriptors` {its number: ours} and its stderr in that file.

    posix_spawn knows no cgroups, and a program that is moved after its start may have children by then.
    Returns its pid; what fails before the program begins ends it with 127, and stderr says why. Raises OSError.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # no handler of ours runs in the child
    try:
        pid = os.fork()
        if pid == 0:
            _become(groups, argv, descriptors, stderr)
        os.setpgid(pid, pid)
        return pid
    except PermissionError:
        return pid  # it has begun already, as the leader of its group
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _become(groups: list[str], argv: list[str], descriptors: dict[int, int], stderr: str) -> NoReturn:
    keeper = os.getppid()
    try:
        os.setpgid(0, 0)
        for folder in groups:
            fd = os.open(folder + "/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
            os.write(fd, b"0")
            os.close(fd)
        for number, ours in descriptors.items():
            os.dup2(ours, number)
        os.dup2(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC), 0)
        os.dup2(0, 1)
        os.dup2(os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), 2)
        for number in OURS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        if os.getppid() == keeper:  # else it died meanwhile, and nobody would know what we do
            os.execv(argv[0], argv)  # noqa: S606
    except OSError as error:
        os.write(2, f"{argv[0]} cannot begin: {error}".encode())
    finally:
        os._exit(127)


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
