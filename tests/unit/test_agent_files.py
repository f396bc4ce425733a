"""Too many open files are no end of anybody else; and the agent may open as many as the machine lets it."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kybernate_agent import __main__ as agent
from kybernate_agent.keepers import Keeper, KeeperGoneError, NoDescriptorError, ended, process_start

from kybernate.errors import RefusedError


@contextlib.contextmanager
def soft_limit(files: int) -> Iterator[int]:
    """The hard one is as it was."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    try:
        yield hard
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def lowest_free() -> int:
    fd = os.open("/dev/null", os.O_RDONLY)
    os.close(fd)
    return fd


async def test_a_keeper_that_cannot_be_asked_is_not_gone(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path, "c1")
    keeper.folder.mkdir(parents=True)
    with soft_limit(lowest_free()), pytest.raises(NoDescriptorError, match="container c1 cannot be asked"):
        await keeper.state()
    with pytest.raises(KeeperGoneError):
        await keeper.state()


async def test_a_process_that_cannot_be_watched_has_not_ended() -> None:
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    try:
        start = process_start(process.pid)
        with soft_limit(lowest_free()), pytest.raises(NoDescriptorError, match=f"process {process.pid} "):
            await ended(process.pid, start, 0)
        assert not await ended(process.pid, start, 0)
    finally:
        process.kill()
        process.communicate(timeout=60)
    assert await ended(process.pid, start, 0)


def test_the_agent_opens_as_many_files_as_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    async def serve(config: Any) -> None:
        seen.append(resource.getrlimit(resource.RLIMIT_NOFILE))
        raise RefusedError("enough")

    monkeypatch.setattr(agent, "serve", serve)
    monkeypatch.setattr(sys, "argv", ["kybernate agent"])
    with soft_limit(256) as most:
        assert agent.main() == RefusedError.exit_code
    assert seen == [(most, most)]
