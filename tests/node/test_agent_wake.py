"""What a container finds when it comes back: the mounts, devices and groups of before; and runc, its container."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from agent_bed import Agent, agent_on, ask, eventually
from kybernate_agent.traffic.netlink import in_netns
from kybernate_agent.traffic.podsockets import PodSockets
from kybernate_shim import cgroup
from node_bed import NodeBed

from kybernate.errors import KybernateError
from kybernate.lab.containerd import has_cpu_controller

HAS_POD_GROUPS = has_cpu_controller()
"""On cgroup v2 without controllers the node's containers have no group above their own."""


@pytest.fixture(scope="module")
def agent(node_bed: NodeBed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    with agent_on(node_bed, tmp_path_factory.mktemp("agent")) as found:
        yield found


def init_of(agent: Agent, name: str) -> int:
    return int(record_of(agent, name)["init_pid"])


def record_of(agent: Agent, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((keeper_folder(agent, name) / "state.json").read_bytes())
    return found


def keeper_folder(agent: Agent, name: str) -> Path:
    return agent.bed.run / "keepers" / agent.get(name).container_id


def mounts_of(pid: int) -> set[tuple[str, ...]]:
    """Root, mount point, flags, type and options of each mount; no numbers, for they are new.

    Without masked files: runc binds the container's /dev/null over them, a restore the host's (as runc's own does).
    """
    found = []
    for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if before.split()[3] != "/null":
            found.append((*before.split()[3:6], *after.split()[0:1], *after.split()[2:3]))
    return set(found)


def entries_of(pid: int, folder: str) -> list[tuple[object, ...]]:
    root = f"/proc/{pid}/root{folder}"
    found: list[tuple[object, ...]] = []
    for name in sorted(os.listdir(root)):
        seen = os.lstat(f"{root}/{name}")
        target = os.readlink(f"{root}/{name}") if os.path.islink(f"{root}/{name}") else ""
        found.append((name, seen.st_mode, seen.st_uid, seen.st_gid, seen.st_rdev, target))
    return found


def test_mounts_and_devices_are_those_of_before_and_nothing_stays_on_the_host(agent: Agent) -> None:
    agent.apply("same")
    agent.wait("same", "Running")
    eventually(lambda: agent.ask("same").count, 30, "it serves")
    pid = init_of(agent, "same")
    before = mounts_of(pid), entries_of(pid, "/dev"), entries_of(pid, "/sys/fs/cgroup")
    for _ in range(2):
        agent.order("park", "same")
        assert agent.ask("same").count
        eventually(lambda: agent.get("same").state == "Running", 10, "it is awake")
        pid = init_of(agent, "same")
        now = mounts_of(pid)
        assert (now - before[0], before[0] - now) == (set(), set())
        assert (entries_of(pid, "/dev"), entries_of(pid, "/sys/fs/cgroup")) == before[1:]
        assert str(agent.bed.run / "mounts") not in Path("/proc/self/mountinfo").read_text()
    agent.delete_all()


def test_after_a_wake_runc_knows_its_container(agent: Agent) -> None:
    agent.apply("known")
    agent.wait("known", "Running")
    eventually(lambda: agent.ask("known").count, 30, "it serves")
    had_own = os.readlink(f"/proc/{init_of(agent, 'known')}/ns/cgroup") != os.readlink("/proc/self/ns/cgroup")
    for _ in range(2):
        agent.order("park", "known")
        assert (keeper_folder(agent, "known") / "runc-state.json").exists()
        agent.order("resume", "known")
        record = record_of(agent, "known")
        folder = agent.state / "lib" / "work" / "known-0" / "restore"
        logs = {path.name for path in folder.iterdir()}
        assert ("restore.log" in logs, "runc.log" in logs) == (True, False), "CRIU itself brought it back, not runc"
        runc = [str(record["runc"]), "--root", str(record["runc_root"])]
        said = subprocess.run([*runc, "state", str(record["container"])], capture_output=True, check=True, timeout=10)
        state = json.loads(said.stdout)
        assert (state["status"], state["pid"]) == ("running", record["init_pid"])
        inside = subprocess.run(
            [*runc, "exec", str(record["container"]), "readlink", "/proc/self/ns/pid"],
            capture_output=True, text=True, check=True, timeout=10,
        )  # fmt: skip
        assert inside.stdout.strip() == os.readlink(f"/proc/{record['init_pid']}/ns/pid")
        own = os.readlink(f"/proc/{record['init_pid']}/ns/cgroup") != os.readlink("/proc/self/ns/cgroup")
        assert own == had_own
    agent.delete_all()


if HAS_POD_GROUPS:

    def test_a_thaw_that_misses_its_deadline_leaves_a_sleeper_that_the_next_one_wakes(agent: Agent) -> None:
        """Somebody holds the pod's cgroup frozen, above the container's."""
        agent.apply("held")
        before = agent.ready("held")
        born = agent.ask("held").born
        agent.order("suspend", "held")
        freezer = Path(cgroup.freezer(dict(record_of(agent, "held")["cgroups"])))
        pod = {"freezer": str(freezer.parent)} if (freezer / "freezer.state").exists() else {"": str(freezer.parent)}
        cgroup.switch(pod, True)
        try:
            with pytest.raises(KybernateError, match="could not be thawed"):
                agent.order("resume", "held")
            found = agent.get("held")
            assert (found.state, found.tier) == ("Suspended", "RAM")
            said = {c.type: c for c in found.conditions}["Degraded"]
            assert (said.status, said.reason) == ("True", "ThawFailed")
            assert "ThawFailed" in [event.reason for event in found.events if event.type == "Warning"]
        finally:
            cgroup.switch(pod, False)
        assert agent.ask("held").born == born
        found = agent.wait("held", "Running")
        assert (found.container_id, list(found.conditions)) == (before.container_id, [])
        agent.delete_all()


def test_a_network_that_the_agent_cannot_take_up_is_said_and_taken_up_later(agent: Agent) -> None:
    """Another program has the pod's queue when the agent starts."""
    agent.apply("deaf")
    agent.ready("deaf")
    born = agent.ask("deaf").born
    agent.order("suspend", "deaf")
    ip = agent.get("deaf").ip
    agent.kill()
    other = in_netns(f"/proc/{init_of_kept(agent)}/ns/net", PodSockets)
    try:
        other.queue.bind()
        agent.start()
        said = eventually(lambda: {c.type: c for c in agent.get("deaf").conditions}.get("Degraded"), 30, "it is said")
        assert (said.status, said.reason) == ("True", "NoTraffic")
        assert "another listener" in said.message
        assert agent.get("deaf").state == "Suspended"
    finally:
        other.close()
    eventually(lambda: not agent.get("deaf").conditions, 120, "it is taken up")
    assert ask(ip).born == born
    agent.wait("deaf", "Running")
    agent.delete_all()


def init_of_kept(agent: Agent) -> int:
    """Of the one container, without asking the agent."""
    found = [json.loads(path.read_bytes()) for path in (agent.bed.run / "keepers").glob("*/state.json")]
    (init,) = [each["init_pid"] for each in found if each["state"] == "frozen"]
    return int(init)
