"""Processes whose keeper died: freeze and dump them without it, or end them.

The kernel gives them to the next subreaper; containerd believes their container ended. runc still knows them, so the
dump is the keeper's, run by the agent: same configuration, same veto in CRIU's post-dump step. A keeper that died in
the midst of a dump or a restore leaves runc and CRIU at work; their processes are found by their command line.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kybernate.errors import DeadlineError
from kybernate_agent.config import AgentConfig
from kybernate_agent.keepers import KeeperError, KeeperState
from kybernate_agent.processes import is_alive, pids_of

log = logging.getLogger(__name__)

MNT_DETACH = 2
THAW_EACH = 200  # looks: a group of version 1 that stays FREEZING must run for a moment, as runc lets it
FREEZE_SECONDS = 10.0
END_SECONDS = 10.0
VETO_SECONDS = 5.0
REPLY_SECONDS = 2.0  # what post-dump leaves of the deadline for CRIU to undo or to end the processes


def freeze(cgroups: Mapping[str, str]) -> None:
    """Freeze a container's cgroup, v1 or v2, and wait until it is. Raises DeadlineError.

    Source: kernel documentation, cgroup-v1/freezer-subsystem and cgroup-v2 "cgroup.freeze".
    """
    if "freezer" in cgroups:
        file, word, shown = Path(cgroups["freezer"]) / "freezer.state", "FROZEN", "FROZEN"
        look = file
    else:
        folder = Path(cgroups[""])
        file, word, shown, look = folder / "cgroup.freeze", "1", "frozen 1", folder / "cgroup.events"
    file.write_text(word)
    until, looks = time.monotonic() + FREEZE_SECONDS, 0
    while shown not in look.read_text():
        if time.monotonic() > until:
            raise DeadlineError(f"{file.parent} did not freeze within {FREEZE_SECONDS:g} s")
        time.sleep(0.002)  # version 1 has no event for it
        looks += 1
        if looks % THAW_EACH == 0:
            thaw(cgroups)
            time.sleep(0.002)
        file.write_text(word)  # version 1 leaves a group FREEZING until it is asked again


def thaw(cgroups: Mapping[str, str]) -> None:
    """Let a container's cgroup run. Nothing where it is gone."""
    v1 = "freezer" in cgroups
    file = Path(cgroups["freezer"], "freezer.state") if v1 else Path(cgroups[""], "cgroup.freeze")
    with contextlib.suppress(FileNotFoundError):
        file.write_text("THAWED" if v1 else "0")


async def end(state: KeeperState, work: Path) -> None:
    """Kill what a dead keeper left: runc and CRIU at work for its container, then the container's processes. CRIU's
    mounts below `work` go too.

    Nothing where the keeper lives. Raises DeadlineError.
    """
    if is_alive(state.keeper_pid, state.keeper_start) or not state.cgroups:
        return
    until = time.monotonic() + END_SECONDS
    while left := [*_at_work(state), *pids_of(state.cgroups)]:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        thaw(state.cgroups)  # version 1 delivers nothing to a frozen group
        if time.monotonic() > until:
            raise DeadlineError(f"processes of container {state.container} do not end: {left}")
        await asyncio.sleep(0.005)
    await asyncio.to_thread(_detach_below, work)


def _detach_below(folder: Path) -> None:
    """A CRIU that is killed leaves the cgroup tree that it mounts in its work folder."""
    points = [Path(line.split()[4]) for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    libc = ctypes.CDLL(None, use_errno=True)
    for point in reversed([point for point in points if point.is_relative_to(folder)]):
        if libc.umount2(os.fsencode(point), MNT_DETACH):
            log.warning("%s stays mounted: %s", point, os.strerror(ctypes.get_errno()))


async def settle(state: KeeperState, work: Path) -> None:
    """End what the keeper, or an agent that is dead too, was at with the container. Raises DeadlineError.

    A restore would end in a copy that nobody knows of: it goes with all its processes. A dump holds the processes fast
    until it asks whether it may be committed. Nobody waits for it any more, so the answer is no, and CRIU undoes what
    it did. One that does not come to its end is killed: its parasites then cure themselves, for which they have to run,
    but connections stay in repair mode; and rarely CRIU's log stays open in a process, which no CRIU dumps after that.
    """
    if state.state == "restoring":
        await end(state, work)
        return
    if not (helpers := _at_work(state)):
        return
    until = time.monotonic() + VETO_SECONDS
    while helpers and time.monotonic() < until:
        await asyncio.sleep(0.02)
        helpers = _at_work(state)
    for pid in helpers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    thaw(state.cgroups)
    await _end_repair(state)


async def _end_repair(state: KeeperState) -> None:
    """Take the connections that a killed CRIU held out of repair mode."""
    pids = map(str, pids_of(state.cgroups))
    program = await asyncio.create_subprocess_exec(
        sys.executable, "-IS", f"{state.lib}/unrepair.py", *pids,
        stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        async with asyncio.timeout(END_SECONDS):
            await program.wait()
    except TimeoutError as error:
        program.kill()
        await program.wait()
        raise DeadlineError(f"the connections of container {state.container} were not given back") from error


def _at_work(state: KeeperState) -> list[int]:
    """runc and CRIU that the keeper began: the groups of processes that were told to dump or restore the container."""
    groups = set()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            argv = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
            if {"checkpoint", "restore"} & set(argv) and any(state.container in word for word in argv):
                groups.add(os.getpgid(int(entry.name)))
    for entry in Path("/proc").iterdir():
        if groups and entry.name.isdigit():
            with contextlib.suppress(OSError):
                if os.getpgid(int(entry.name)) in groups:
                    found.append(int(entry.name))
    return found


class Dump:
    """`runc checkpoint` of a container whose keeper is gone."""

    def __init__(self, state: KeeperState, config: AgentConfig, container: str) -> None:
        self._state = state
        self._config = config
        self._container = container

    def _into_node(self) -> list[str]:
        """An agent in a pod has runc run where the node has its mounts."""
        pid = self._config.cluster.enter_pid if self._config.cluster else 0
        return ["nsenter", "--target", str(pid), "--mount", "--"] if pid else []

    async def run(self, images: Path, work: Path, conf: str, seconds: float) -> dict[str, Any]:
        """As Keeper.dump. Raises KeeperError, DeadlineError."""
        folder = self._config.run / "keepers" / self._container
        conf += f"action-script {self._state.lib}/post-dump\n"
        (folder / "committed").unlink(missing_ok=True)  # the mark of an earlier yes
        (folder / "criu.conf").write_text(conf)
        told = {
            "KYBERNATE_CONTAINER": self._container,
            "KYBERNATE_IMAGES": str(images),
            "KYBERNATE_UNTIL": str(time.monotonic() + seconds - REPLY_SECONDS),
            "PATH": f"{self._config.prefix}/bin:{os.environ.get('PATH', os.defpath)}",  # there may be an own CRIU
        }
        process = await asyncio.create_subprocess_exec(
            *self._into_node(), self._state.runc, "--root", self._state.runc_root, "checkpoint",
            "--image-path", images, "--work-path", work, self._container,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
            start_new_session=True, env={**os.environ, **told},
        )  # fmt: skip
        try:
            async with asyncio.timeout(seconds):
                _, stderr = await process.communicate()
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
            if isinstance(error, TimeoutError):
                raise DeadlineError(
                    f"the dump of container {self._container} took longer than {seconds:g} s"
                ) from error
            raise
        if process.returncode:
            said = stderr.decode(errors="replace").strip()[-2000:]
            raise KeeperError(container=self._container, verb="dump", cause=said)
        return {"ok": True}
