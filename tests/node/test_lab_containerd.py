"""A private containerd takes nothing from the machine and leaves nothing on it."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from kybernate.lab import Containerd, pause_image
from kybernate.lab.process import argv_of, descendants, hierarchies, pids, run

NAME = f"lab-{os.getpid()}"
FORWARDING = [Path("/proc/sys/net/ipv4/ip_forward"), Path("/proc/sys/net/ipv6/conf/all/forwarding")]


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Containerd]:
    name = f"kybl-{os.getpid()}"
    containerd = Containerd(tmp_path / "data", name)
    yield containerd
    containerd.stop()


def traces(lab: Containerd) -> list[str]:
    """What on this machine still names the lab."""
    words = (str(lab.root), str(lab.state))
    found = [" ".join(argv_of(pid)) for pid in pids() if any(word in " ".join(argv_of(pid)) for word in words)]
    found += [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if any(w in line for w in words)]
    found += [str(path) for path in (lab.root, lab.state, Path("/sys/class/net", lab.bridge.name)) if path.exists()]
    return found + [str(path) for root in hierarchies() for path in root.glob("k8s.io/lab-*")]


def network(lab: Containerd) -> list[str]:
    """Routes and forwarding; other labs' and clusters' links may come and go meanwhile."""
    routes = (run(["ip", "route"]) + run(["ip", "-6", "route"])).splitlines()
    kept = [line for line in routes if lab.bridge.name in line or not re.search(r" dev (kyb|kyc|veth)", line)]
    return [*(path.read_text() for path in FORWARDING), *kept]


def start_container(lab: Containerd) -> None:
    lab.ctr("run", "--detach", "--cpu-shares", "0", "--runc-root", str(lab.state / "runc"), pause_image().name, NAME)


def test_nothing_is_left_after_stop(lab: Containerd) -> None:
    before = network(lab)
    lab.start()
    start_container(lab)
    assert traces(lab)
    lab.stop()
    assert traces(lab) == []
    assert network(lab) == before


def test_the_machines_network_is_as_it_was_but_for_the_bridge(lab: Containerd) -> None:
    before = network(lab)
    lab.start()
    assert [line for line in network(lab) if lab.bridge.name not in line] == before


def test_a_killed_run_is_cleaned_up_by_the_next(lab: Containerd) -> None:
    lab.start()
    start_container(lab)
    assert lab._process
    lab._process.kill()
    lab._process.wait()
    second = Containerd(lab.root, lab.name)
    second.start()
    assert "lab-" not in second.ctr("containers", "list", "--quiet")
    second.stop()
    assert traces(lab) == []


def test_a_frozen_container_is_ended_too(lab: Containerd) -> None:
    lab.start()
    start_container(lab)
    lab.ctr("task", "pause", NAME)
    lab.stop()
    assert traces(lab) == []


def test_a_process_that_a_container_left_behind_is_ended(lab: Containerd) -> None:
    lab.start()
    start_container(lab)
    shims = [
        pid for pid in pids() if any("shim" in word for word in argv_of(pid)[:1]) and str(lab.socket) in argv_of(pid)
    ]
    assert shims
    contained = descendants(shims) - set(shims)
    (daemon,) = [pid for pid in pids() if str(lab.root / "config.toml") in argv_of(pid)]
    for pid in (daemon, *shims):  # containerd first: it would end what a dead shim leaves
        os.kill(pid, signal.SIGKILL)
    assert any(argv_of(pid) for pid in contained)
    lab.stop()
    assert not any(argv_of(pid) for pid in contained)
    assert traces(lab) == []


def test_two_labs_live_side_by_side(lab: Containerd, tmp_path: Path) -> None:
    lab.start()
    with Containerd(tmp_path / "other", f"{lab.name}b") as other:
        assert other.bridge != lab.bridge
        other.stop()
    assert "kybernate-pause" in lab.ctr("images", "list")


def test_images_survive_a_restart_of_containerd_alone(lab: Containerd) -> None:
    lab.start()
    start_container(lab)
    lab.restart()
    assert "RUNNING" in lab.ctr("task", "list")


def test_a_containerd_that_cannot_start_says_why(lab: Containerd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab, "_config", lambda: "version = 2\nroot = 7\n")
    with pytest.raises(Exception, match="ended while it started"):
        lab.start()
    assert traces(lab) == []
