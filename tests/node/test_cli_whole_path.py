"""The command line on a real agent and a real container: what a person does by hand, from apply to delete."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from agent_bed import Agent, agent_on, eventually, workload
from node_bed import NodeBed

PRINT = ["python3", "-c", "import os; print(os.environ['GREETING'])"]
ECHO = ["python3", "-c", "import sys; print(sys.stdin.read(), end=''); sys.exit(7)"]


@pytest.fixture(scope="module")
def agent(node_bed: NodeBed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    with agent_on(node_bed, tmp_path_factory.mktemp("cli")) as found:
        yield found


def kybernate(agent: Agent, *arguments: str, stdin: str = "", status: int = 0) -> str:
    """What the program writes to stdout; its exit status must be `status`."""
    done = subprocess.run(
        [sys.executable, "-m", "kybernate.cli", *arguments],
        input=stdin, capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "KYBERNATE_SOCKET": str(agent.bed.run / "agent.sock")},
    )  # fmt: skip
    assert done.returncode == status, f"{arguments}: {done}\n{agent.log.read_text()[-3000:]}"
    return done.stdout


def state(agent: Agent) -> str:
    found: str = json.loads(kybernate(agent, "get", "hand", "-o", "json"))["state"]
    return found


def test_from_apply_to_delete_by_hand(agent: Agent) -> None:
    manifest = workload("hand", env={"GREETING": "hello"})
    assert kybernate(agent, "apply", "-f", "-", "--wait", stdin=manifest) == "gpuworkload hand created\n"
    assert kybernate(agent, "apply", "-f", "-", stdin=manifest) == "gpuworkload hand unchanged\n"
    eventually(lambda: agent.ask("hand").count, 30, "the application answers")

    assert kybernate(agent, "suspend", "hand", "--wait") == "hand-0: Suspended, state in RAM\n"
    assert kybernate(agent, "exec", "hand", "--", *PRINT) == "hello\n"
    assert state(agent) == "Running"

    assert kybernate(agent, "park", "hand", "--wait") == "hand-0: Parked, state in NVME\n"
    assert "Parked" in kybernate(agent, "get")
    assert kybernate(agent, "exec", "-i", "hand", *ECHO, stdin="woken", status=7) == "woken"
    assert state(agent) == "Running"

    kybernate(agent, "park", "hand", "--wait")
    assert kybernate(agent, "resume", "hand", "--wait") == "hand-0: Running\n"
    described = kybernate(agent, "describe", "hand")
    assert "s from NVME" in described
    assert "park" in described.partition("History:")[2]
    kybernate(agent, "logs", "hand", "--tail", "1")

    assert kybernate(agent, "delete", "hand", "--wait") == "gpuworkload hand deleted\n"
    assert kybernate(agent, "get") == "No instances. `kybernate apply -f FILE` makes some.\n"
    kybernate(agent, "get", "hand", status=4)
