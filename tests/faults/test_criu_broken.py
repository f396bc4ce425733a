"""CRIU that hangs, fails or refuses: the application runs on or stays parked, the reason is said, kill works."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import yaml
from agent_bed import Agent, agent_on, ask, eventually, processes_with, workload
from broken_criu import BrokenCriu, broken_criu
from node_bed import NodeBed

from kybernate.errors import KybernateError

SETTINGS = "criu: {dump_deadline_seconds: 4, restore_deadline_seconds: 4}\n"


@pytest.fixture(scope="module")
def criu(node_bed: NodeBed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokenCriu]:
    with broken_criu(node_bed, tmp_path_factory.mktemp("criu")) as found:
        yield found


@pytest.fixture(scope="module")
def agent(node_bed: NodeBed, criu: BrokenCriu, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    with agent_on(node_bed, tmp_path_factory.mktemp("broken"), SETTINGS) as found:
        yield found


@pytest.fixture(autouse=True)
def working_again(criu: BrokenCriu) -> Iterator[None]:
    yield
    criu.mode("work")


def started(agent: Agent, name: str, **more: object) -> str:
    agent.apply(name, **more)
    ip = agent.wait(name, "Running").ip
    eventually(lambda: agent.ask(name), 30, "it serves")
    return ip


@pytest.mark.parametrize("mode", ["hang", "fail"])
def test_a_dump_that_hangs_or_fails_leaves_the_application(agent: Agent, criu: BrokenCriu, mode: str) -> None:
    name = f"dump-{mode}"
    started(agent, name)
    born = agent.ask(name).born
    criu.mode(mode)
    with pytest.raises(KybernateError):
        agent.order("park", name)
    found = agent.get(name)
    assert found.state == "Suspended"
    assert "NotParkable" in {c.type for c in found.conditions}
    assert agent.ask(name).born == born
    criu.mode("work")
    assert agent.order("park", name).state == "Parked"
    assert agent.ask(name).born == born


@pytest.mark.parametrize("verb", ["park", "resume"])
def test_a_deletion_pre_empts_a_criu_that_hangs(agent: Agent, criu: BrokenCriu, verb: str) -> None:
    name = f"ends-{verb}"
    ip = started(agent, name, env={"MARK": f"ends-{verb}"})
    if verb == "resume":
        agent.order("park", name)
    criu.mode("hang")
    before = len(criu.calls())
    with agent.client() as client:
        client.order(verb, name, wait=False)
        eventually(lambda: len(criu.calls()) > before, 20, "CRIU is called")
        began = time.monotonic()
        client.delete(name, wait=True)
    assert time.monotonic() - began < 20
    assert processes_with(f"MARK=ends-{verb}") == []
    with pytest.raises(OSError):
        ask(ip, seconds=1)


@pytest.mark.parametrize("mode", ["hang", "fail"])
def test_a_restore_that_hangs_or_fails_deletes_nothing_and_is_tried_again(
    agent: Agent, criu: BrokenCriu, mode: str
) -> None:
    name = f"restore-{mode}"
    ip = started(agent, name)
    born = agent.ask(name).born
    agent.order("park", name)
    criu.mode(mode)
    with pytest.raises(OSError):
        ask(ip, seconds=2)
    said = eventually(lambda: {c.type: c for c in agent.get(name).conditions}.get("RestoreFailed"), 40, "it is said")
    assert "nothing was deleted" in said.message
    assert list((agent.state / f"lib/store/instances/{name}-0").iterdir())
    criu.mode("work")
    assert agent.ask(name, seconds=60).born == born
    eventually(lambda: not {c.type for c in agent.get(name).conditions} & {"RestoreFailed"}, 10, "it is over")


def test_a_program_that_criu_refuses_runs_on_and_the_reason_is_said(agent: Agent) -> None:
    started(agent, "refused", app="refused.py")
    born = agent.ask("refused").born
    with pytest.raises(KybernateError) as raised:
        agent.order("park", "refused")
    condition = next(c for c in agent.get("refused").conditions if c.type == "NotParkable")
    assert condition.message == str(raised.value)
    assert "message queue" in condition.message
    assert agent.ask("refused").born == born


def test_io_uring_that_the_author_allowed_is_refused_with_its_remedy(agent: Agent) -> None:
    uses = "import ctypes; assert ctypes.CDLL(None).syscall(425, 4, ctypes.create_string_buffer(120)) > 0; "
    command = ["/usr/bin/python3", "-u", "-c", uses + "exec(open('/apps/counting.py').read())"]
    manifest = yaml.safe_load(workload("uring", command=command))
    manifest["spec"]["template"]["metadata"] = {"annotations": {"kybernate.io/allow-io-uring": "true"}}
    with agent.client() as client:
        client.apply(yaml.safe_dump(manifest), "uring.yaml")
    agent.wait("uring", "Running")
    born = eventually(lambda: agent.ask("uring").born, 30, "it serves")
    with pytest.raises(KybernateError, match="io_uring"):
        agent.order("park", "uring")
    condition = next(c for c in agent.get("uring").conditions if c.type == "NotParkable")
    assert condition.reason == "io_uring"
    assert "kybernate.io/allow-io-uring" in condition.message
    assert agent.ask("uring").born == born
