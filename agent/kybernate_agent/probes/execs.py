"""Commands that the kubelet has executed in a container: exec probes, and exec hooks of the lifecycle.

They come as any exec does, from containerd through the hook; their words tell them. While the application does not run
such a command is not executed: the hook stands a process in for it that ends at once, with status 0. While it runs the
command is real, and counts as nobody's use.

A real one takes a moment to get in: the hook asks, becomes runc, and ends when the command runs in the container. A
freeze in between would stop runc half way, so a suspend waits for that moment (`Entering.none`); afterwards the
command is a process of the container like any other that came by exec.

A person who executes the same words without a terminal gets the same answer: nothing in the call tells the two apart.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Any

from .declared import Declared


def is_declared(declared: Declared, message: dict[str, Any]) -> bool:
    """Whether the hook's question `exec` (`argv`, `terminal`) is for a command that the pod declares."""
    argv = message.get("argv")
    return isinstance(argv, Sequence) and not message.get("terminal") and tuple(map(str, argv)) in declared.commands


class Entering:
    """The hooks that have been told to go on, as long as they live. Used from the event loop only."""

    def __init__(self) -> None:
        self._handles: set[int] = set()
        self._none = asyncio.Event()
        self._none.set()

    def add(self, pid: int) -> None:
        """The hook with this pid has been told to go on; one that has ended already is none."""
        try:
            handle = os.pidfd_open(pid)
        except (OSError, OverflowError):
            return
        self._handles.add(handle)
        self._none.clear()
        asyncio.get_running_loop().add_reader(handle, self._ended, handle)

    async def none(self, seconds: float) -> bool:
        """True once none of them lives any more; False after `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                await self._none.wait()
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        """Idempotent."""
        for handle in list(self._handles):
            self._ended(handle)

    def _ended(self, handle: int) -> None:
        asyncio.get_running_loop().remove_reader(handle)
        os.close(handle)
        self._handles.discard(handle)
        if not self._handles:
            self._none.set()
