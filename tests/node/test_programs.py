"""Real programs sleep and wake in containers as they come: images of their own, not a setting by the user."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from agent_bed import Agent, agent_on
from node_bed import NodeBed
from programs import build
from programs.bed import Program, Said, called, running, sleeps_and_wakes

from kybernate.errors import KybernateError

PROGRAMS = [
    Program("go", build.go, lambda said: int(said.split(".")[1]) >= 24),
    Program("node", build.node, lambda said: int(said.removeprefix("v").split(".")[0]) >= 22),
    Program("uvicorn", build.uvicorn, lambda said: said.startswith("uvloop")),
    Program("onnx", build.onnx, lambda said: len(said.split(",")) == 8),
]


@pytest.fixture(scope="module")
def agent(node_bed: NodeBed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    with agent_on(node_bed, tmp_path_factory.mktemp("agent")) as found:
        yield found


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_it_sleeps_as_it_comes_and_wakes_with_its_state(node_bed: NodeBed, agent: Agent, program: Program) -> None:
    with running(node_bed, agent, program) as ip:
        assert sleeps_and_wakes(agent, ip, program) == ["RAM", "NVME", "NVME"]


@pytest.mark.parametrize(
    ("program", "annotation", "reason"),
    [(PROGRAMS[0], "kybernate.io/allow-mptcp", "MPTCP"), (PROGRAMS[2], "kybernate.io/allow-io-uring", "io_uring")],
    ids=["go", "uvicorn"],
)
def test_who_keeps_what_cannot_sleep_is_told_so_and_runs_on(
    node_bed: NodeBed, agent: Agent, program: Program, annotation: str, reason: str
) -> None:
    with running(node_bed, agent, program, {annotation: "true"}) as ip:
        before = called(ip, program)
        with pytest.raises(KybernateError, match=reason):
            agent.order("park", program.name)
        assert called(ip, program) == Said(before.count + 1, before.rest)
        (condition,) = [c for c in agent.get(program.name).conditions if c.type == "NotParkable"]
        assert reason in condition.message
