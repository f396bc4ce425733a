"""Processes whose keeper died: freeze and dump them without it.

The kernel gives them to the next subreaper; containerd believes their container ended. runc still knows them, so the
dump is the keeper's, run by the agent: same configuration, same veto in CRIU's post-dump step.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kybernate.errors import DeadlineError
from kybernate_agent.config import AgentConfig
from kybernate_agent.keepers import KeeperError, KeeperState

FREEZE_SECONDS = 10.0


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
    until = time.monotonic() + FREEZE_SECONDS
    while shown not in look.read_text():
        if time.monotonic() > until:
            raise DeadlineError(f"{file.parent} did not freeze within {FREEZE_SECONDS:g} s")
        time.sleep(0.002)  # version 1 has no event for it


class Dump:
    """`runc checkpoint` of a container whose keeper is gone."""

    def __init__(self, state: KeeperState, config: AgentConfig, container: str) -> None:
        self._state = state
        self._config = config
        self._container = container

    async def run(self, images: Path, work: Path, conf: str, seconds: float) -> dict[str, Any]:
        """As Keeper.dump. Raises KeeperError, DeadlineError."""
        folder = self._config.run / "keepers" / self._container
        conf += f"action-script {self._state.postdump}\n"
        await asyncio.to_thread((folder / "criu.conf").write_text, conf)
        told = {
            "KYBERNATE_CONTAINER": self._container,
            "KYBERNATE_IMAGES": str(images),
            "KYBERNATE_UNTIL": str(time.monotonic() + seconds),
        }
        process = await asyncio.create_subprocess_exec(
            self._state.runc, "--root", self._state.runc_root, "checkpoint",
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
