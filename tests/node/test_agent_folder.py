"""The folder of manifests and the agent's restarts: what is written there is never lost by a slip."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_bed import Agent, agent_on, eventually, workload
from node_bed import NodeBed


@pytest.fixture
def agent(node_bed: NodeBed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    with agent_on(node_bed, tmp_path_factory.mktemp("folder")) as found:
        yield found


def parked(agent: Agent, name: str) -> str:
    """A parked instance with a count of at least one; its birth."""
    agent.wait(name, "Running")
    born = eventually(lambda: agent.ask(name).born, 30, f"{name} serves")
    agent.order("park", name)
    return born


def test_a_manifest_that_is_broken_while_the_agent_starts_anew_ends_nobody(agent: Agent) -> None:
    agent.apply("typo")
    born = parked(agent, "typo")
    file = agent.state / "lib/workloads/typo.yaml"
    right = file.read_text()
    agent.stop()
    file.write_text(right.replace("template:", "tempalte:"))
    agent.start()
    eventually(lambda: "tempalte" in agent.log.read_text(), 20, "the slip is named")
    file.write_text(right)
    assert agent.ask("typo").born == born


def test_a_manifest_that_is_renamed_ends_nobody(agent: Agent) -> None:
    folder = agent.state / "lib/workloads"
    (folder / "a.yaml").write_text(workload("moved"))
    eventually(lambda: agent.get("moved").state == "Running", 30, "it runs")
    born = parked(agent, "moved")
    (folder / "a.yaml").rename(folder / "b.yaml")
    (folder / "other.yaml").write_text(workload("other"))
    eventually(lambda: agent.get("other").state == "Running", 30, "the folder is followed on")
    assert agent.ask("moved").born == born
    with agent.client() as client:
        client.delete("moved", wait=True)
    assert not (folder / "b.yaml").exists()


def test_a_second_agent_on_the_same_folder_is_refused(agent: Agent) -> None:
    second = subprocess.run(
        [sys.executable, "-m", "kybernate_agent", "--config", str(agent.config)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert second.returncode == 20
    assert "another agent uses this folder" in second.stderr
    agent.apply("still")
    agent.wait("still", "Running")


def test_one_that_dies_right_after_its_restore_comes_back_from_its_images(
    node_bed: NodeBed, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with agent_on(node_bed, tmp_path_factory.mktemp("prove"), "prove_seconds: 60\n") as agent:
        agent.apply("dies")
        born = parked(agent, "dies")
        count = agent.ask("dies").count
        pid = eventually(
            lambda: Path("/proc", str(agent.get("dies").pid)).exists() and agent.get("dies").pid, 10, "pid"
        )
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: "rescue" in [t.verb for t in agent.get("dies").history], 30, "it is rescued")
        again = eventually(lambda: agent.ask("dies"), 30, "it answers again")
        assert (again.born, again.count) == (born, count)
