"""The demo, as a user runs it, and the node that it stands on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kybernate.errors import KybernateError
from kybernate.lab.images import pause_image
from kybernate.lab.node import LabNode, alone
from kybernate.lab.process import argv_of, pids

NAME = f"kybdemo-{os.getpid()}"


@pytest.fixture
def node() -> Iterator[LabNode]:
    made = LabNode(NAME)
    yield made
    made.down()


def traces(node: LabNode) -> list[str]:
    """What on this machine still names the node."""
    lines = [" ".join(argv_of(pid)) for pid in pids() if pid != os.getpid()]
    lines += Path("/proc/self/mountinfo").read_text().splitlines()
    found = [line for line in lines if NAME in line and "kybernate.lab.demo" not in line]
    links = [node.containerd.bridge.name] if Path("/sys/class/net", node.containerd.bridge.name).exists() else []
    return found + links + [str(path) for path in (node.lib, node.run) if path.exists()]


def test_the_demo_shows_the_whole_path_and_leaves_nothing(node: LabNode) -> None:
    argv = [sys.executable, "-m", "kybernate.lab.demo", "--name", NAME]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for word in (
        "cold start",
        "suspended",
        "woken from RAM",
        "parked",
        "sees a container that is RUNNING",
        "woken from NVME",
    ):
        assert word in done.stdout
    assert traces(node) == []


def test_a_node_that_was_killed_is_taken_away_by_the_next(node: LabNode) -> None:
    node.up([pause_image()])
    for pid in pids():
        if NAME in " ".join(argv_of(pid)) and {"kybernate_agent", "--config"} & set(argv_of(pid)):
            os.kill(pid, signal.SIGKILL)
    second = LabNode(NAME)
    second.up([])
    assert second.client().instances() == []
    second.down()
    assert traces(node) == []


def test_two_demos_at_once_do_not_meet(node: LabNode) -> None:
    argv = [sys.executable, "-m", "kybernate.lab.demo", "--name", NAME]
    with alone(NAME):
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, traces(node)) == (20, [])
    assert "Another process" in done.stderr


def test_a_node_that_cannot_start_says_why_and_leaves_nothing(node: LabNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(KybernateError, match="not installed"):
        node.up([])
    monkeypatch.undo()
    assert traces(node) == []
