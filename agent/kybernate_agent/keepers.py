"""The agent's side of the keeper's protocol: one JSON line out, one back, over the keeper's socket.

A keeper is found by its folder `<run>/keepers/<container>`, whose `state.json` it rewrites at each change. The agent
holds a pidfd of each, so the death of one is an event.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from kybernate.errors import DeadlineError, ExternalError, RefusedError

log = logging.getLogger(__name__)

# A verb's own deadline is kept by the keeper; this is how much longer the agent waits for its answer.
GRACE_SECONDS = 5.0
FREEZE_SECONDS = 10.0
_NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE)


class KeeperGoneError(ExternalError):
    """The keeper of container {container} does not answer: {cause}."""


class KeeperError(ExternalError):
    """The keeper of container {container} could not {verb}: {cause}"""


class NoDescriptorError(ExternalError):
    """{what} cannot be asked, whether it lives or not: {cause}. Raise the limit of open files, of the agent
    (LimitNOFILE) or of the machine (fs.file-max)."""


class KeeperState(msgspec.Struct):
    """`state.json`, which the keeper rewrites at each change.

    `cgroups` maps controller to folder; {"": folder} on cgroup v2.
    """

    state: str
    container: str
    keeper_pid: int
    keeper_start: int = 0
    init_pid: int = 0
    init_start: int = 0
    started: bool = False
    paused: bool = False
    killed: bool = False
    exit: dict[str, int] = {}  # {"code": n} or {"signal": n}, once it has ended
    bundle: str = ""
    runc: str = "runc"
    runc_root: str = ""
    runc_globals: list[str] = []
    lib: str = ""
    cgroups: dict[str, str] = {}
    pod_uid: str = ""
    name: str = ""
    sandbox: str = ""
    since: float = 0.0
    ran_at: float = 0.0  # since it was started or restored, in seconds since the machine started
    ended_at: float = 0.0

    @property
    def lived(self) -> float:
        """How long it ran until it ended, in seconds; 0 where that is not known."""
        return self.ended_at - self.ran_at if self.state == "ended" and self.ran_at and self.ended_at else 0.0


async def _connect(folder: Path, name: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to a socket in `folder` through its descriptor: a socket's path may have 107 bytes at most (unix(7))."""
    handle = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return await asyncio.open_unix_connection(f"/proc/self/fd/{handle}/{name}", limit=1 << 20)
    finally:
        os.close(handle)


def process_start(pid: int) -> int:
    """Start time of `pid` in clock ticks since boot; 0 where there is no such process, or only its zombie.

    Source: proc(5), /proc/pid/stat, field 22.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return 0
    return 0 if fields[0] in "ZX" else int(fields[19])


class Keeper:
    """One keeper. Its verbs raise KeeperGoneError, KeeperError, RefusedError (wrong state), DeadlineError or
    NoDescriptorError."""

    def __init__(self, run: Path, container: str) -> None:
        self.folder = run / "keepers" / container
        self.container = container

    def last_state(self) -> KeeperState | None:
        """What the keeper last wrote of itself; None where it left nothing readable."""
        with contextlib.suppress(OSError):
            return self._written()
        return None

    def _written(self) -> KeeperState | None:
        try:
            return msgspec.json.decode((self.folder / "state.json").read_bytes(), type=KeeperState)
        except msgspec.MsgspecError as error:
            log.error("%s/state.json: %s: hook and agent are of different versions", self.folder, error)
            return None

    @property
    def committed(self) -> bool:
        """Whether CRIU has the agent's yes to the container's newest dump (the mark that post-dump leaves)."""
        return (self.folder / "committed").exists()

    async def _ask(self, verb: str, seconds: float, **fields: Any) -> dict[str, Any]:
        try:
            async with asyncio.timeout(seconds + GRACE_SECONDS):
                reader, writer = await _connect(self.folder, "sock")
                try:
                    writer.write(msgspec.json.encode({"verb": verb, **fields}) + b"\n")
                    await writer.drain()
                    line = await reader.readline()
                finally:
                    writer.close()
        except TimeoutError as error:
            raise DeadlineError(f"the keeper of container {self.container} did not answer {verb} in time") from error
        except (OSError, ValueError) as error:
            self._refuse_passing(error)
            raise KeeperGoneError(container=self.container, cause=str(error)) from error
        if not line.endswith(b"\n"):
            raise KeeperGoneError(container=self.container, cause=f"it ended during {verb}")
        reply: dict[str, Any] = msgspec.json.decode(line)
        if reply.get("ok"):
            return reply
        cause = str(reply.get("message") or reply.get("error"))
        if reply.get("error") in ("wrong_state", "busy"):
            raise RefusedError(f"the keeper of container {self.container} refused {verb}: {cause}")
        raise KeeperError(container=self.container, verb=verb, cause=cause, reply=reply)

    def _refuse_passing(self, error: Exception) -> None:
        _refuse_without_descriptor(f"the keeper of container {self.container}", error)

    async def state(self) -> KeeperState:
        """What it is now, from a keeper that answers. Raises KeeperGoneError for one that does not."""
        reply = await self._ask("state", FREEZE_SECONDS)
        known = None
        try:
            known = self._written()
        except OSError as error:
            self._refuse_passing(error)
        if known is None:
            raise KeeperGoneError(container=self.container, cause="its state.json is gone")
        known.state, known.init_pid = reply["state"], reply["init_pid"]
        known.init_start = reply.get("init_start", known.init_start)  # state.json is behind where /run is full
        return known

    async def freeze(self) -> None:
        await self._ask("freeze", FREEZE_SECONDS, deadline_seconds=FREEZE_SECONDS)

    async def thaw(self) -> None:
        await self._ask("thaw", FREEZE_SECONDS)

    async def kill(self, signal: int = 9) -> None:
        """As containerd's kill: what runs gets the signal; what sleeps ends by it, and its keeper too."""
        await self._ask("kill", FREEZE_SECONDS, signal=signal)

    async def dump(self, images: Path, work: Path, conf: str, seconds: float) -> dict[str, Any]:
        return await self._ask("dump", seconds, images=str(images), work=str(work), conf=conf, deadline_seconds=seconds)

    async def restore(self, images: Path, work: Path, conf: str, seconds: float) -> dict[str, Any]:
        return await self._ask(
            "restore", seconds, images=str(images), work=str(work), conf=conf, deadline_seconds=seconds
        )


def stands(run: Path, state: KeeperState) -> bool:
    """Whether the container of `state` has not ended, towards containerd: then nobody has begun to remove its files.

    It ends with its keeper. Where that was killed the hook's `delete` waits for the agent as long as processes live,
    unless the keeper has written that the container ended.
    """
    if state.keeper_start and process_start(state.keeper_pid) == state.keeper_start:
        return True
    left = Keeper(run, state.container).last_state()
    there = left is not None and left.state != "ended" and state.init_start > 0
    return there and process_start(state.init_pid) == state.init_start


async def ended(pid: int, start: int, seconds: float) -> bool:
    """Whether the process that began at `start` (see process_start) is gone, now or within `seconds`. Raises
    NoDescriptorError."""
    gone = asyncio.Event()
    try:
        watch = Watch(pid, gone.set)
    except OSError as error:
        _refuse_without_descriptor(f"process {pid}", error)
        return True
    try:
        if process_start(pid) == start:
            async with asyncio.timeout(seconds):
                await gone.wait()
        return True
    except TimeoutError:
        return process_start(pid) != start
    finally:
        watch.close()


def _refuse_without_descriptor(what: str, error: Exception) -> None:
    """That we have too many files open says nothing of another: not that it is gone."""
    if isinstance(error, OSError) and error.errno in _NO_DESCRIPTOR:
        raise NoDescriptorError(what=what, cause=error.strerror) from error


class Watch:
    """Calls `on_exit` once, from the event loop, when the process that a keeper is ends."""

    def __init__(self, pid: int, on_exit: Callable[[], None]) -> None:
        """Raises ProcessLookupError where there is no such process."""
        self._fd: int | None = os.pidfd_open(pid)
        self._on_exit = on_exit
        asyncio.get_running_loop().add_reader(self._fd, self._ended)

    def _ended(self) -> None:
        self.close()
        self._on_exit()

    def close(self) -> None:
        if self._fd is not None:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = None
