"""kill -9 of a keeper in every state: never two live copies, never a cold start, what was written stays."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Iterator

import pytest
from agent_bed import Agent, agent_on, eventually
from fault_bed import Copies, keeper_of
from node_bed import NodeBed


@pytest.fixture(scope="module")
def agent(node_bed: NodeBed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    with agent_on(node_bed, tmp_path_factory.mktemp("keeper")) as found:
        yield found


@pytest.mark.parametrize("state", ["Running", "Suspended", "Parked"])
def test_a_killed_keeper_costs_nothing(agent: Agent, node_bed: NodeBed, state: str) -> None:
    name, mark = f"keeper-{state.lower()}", f"MARK=keeper-{state}"
    agent.apply(name, command=["/usr/bin/python3", "-u", "/apps/counting.py", "mine"], env={"MARK": f"keeper-{state}"})
    ip = agent.wait(name, "Running").ip
    eventually(lambda: agent.ask(name), 30, "it serves")
    before = agent.ask(name)
    with contextlib.closing(socket.create_connection((ip, 8080), timeout=60)) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = connection.makefile("rb")
        while answer.readline() != b"\r\n":
            pass
        answer.readline()
        if state != "Running":
            agent.order({"Suspended": "suspend", "Parked": "park"}[state], name)
        container = agent.get(name).container_id
        with Copies(mark) as copies:
            os.kill(keeper_of(node_bed, container), signal.SIGKILL)
            eventually(lambda: agent.get(name).container_id != container, 60, "its container is made anew")
            after = agent.ask(name, seconds=60)
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"200" in answer.readline()
        assert copies.most <= 1
    assert (after.born, after.count) == (before.born, before.count + 2)
    with agent.client() as client:
        argv = client.exec_target(name)
    done = subprocess.run([*argv, "cat", "/written"], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "mine"
    assert not (node_bed.run / "keepers" / container).exists()


@pytest.mark.parametrize("state", ["Suspended", "Parked"])
def test_a_keeper_that_dies_while_no_agent_runs(agent: Agent, node_bed: NodeBed, state: str) -> None:
    name = f"alone-{state.lower()}"
    agent.apply(name, env={"MARK": f"alone-{state}"})
    agent.wait(name, "Running")
    eventually(lambda: agent.ask(name), 30, "it serves")
    before = agent.ask(name)
    agent.order({"Suspended": "suspend", "Parked": "park"}[state], name)
    container = agent.get(name).container_id
    agent.kill()
    with Copies(f"MARK=alone-{state}") as copies:
        os.kill(keeper_of(node_bed, container), signal.SIGKILL)
        agent.start()
        after = eventually(lambda: agent.ask(name), 60, "it answers")
    assert copies.most <= 1
    assert (after.born, after.count) == (before.born, before.count + 1)


def test_containerd_that_starts_anew_changes_nothing_for_a_sleeper(agent: Agent, node_bed: NodeBed) -> None:
    agent.apply("restart")
    agent.wait("restart", "Running")
    eventually(lambda: agent.ask("restart"), 30, "it serves")
    for verb in ("suspend", "park"):
        before = agent.ask("restart")
        agent.order(verb, "restart")
        container = agent.get("restart").container_id
        node_bed.containerd.restart()
        tasks = [line.split() for line in node_bed.containerd.ctr("task", "list").splitlines()]
        assert [task[2] for task in tasks if task[0] == container] == ["RUNNING"]
        after = agent.ask("restart")
        assert (after.born, after.count) == (before.born, before.count + 1)
