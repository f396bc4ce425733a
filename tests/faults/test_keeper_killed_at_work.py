"""kill -9 of a keeper in the midst of its work, and of one whose container nobody can save: still one copy, or none."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_bed import eventually, processes_with
from broken_criu import BrokenCriu, broken_criu
from fault_bed import Call, Copies, MortalAgent, in_background, keeper_of, mark, marked, mortal_agent_on
from node_bed import NodeBed

KILL_KEEPER = (
    "kill -9 $(sed -n 's/.*\"keeper_pid\": \\([0-9]*\\),*/\\1/p' {run}/keepers/$KYBERNATE_CONTAINER/state.json)"
)


@pytest.fixture(scope="module")
def criu(node_bed: NodeBed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokenCriu]:
    with broken_criu(node_bed, tmp_path_factory.mktemp("criu")) as made:
        yield made


@pytest.fixture(scope="module")
def agent(node_bed: NodeBed, criu: BrokenCriu, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MortalAgent]:
    with mortal_agent_on(node_bed, tmp_path_factory.mktemp("at-work"), "prove_seconds: 0.3\n") as made:
        yield made


@pytest.fixture(autouse=True)
def shown(agent: MortalAgent) -> Iterator[None]:
    with agent.log_shown():
        yield


@pytest.fixture
def app(agent: MortalAgent, request: pytest.FixtureRequest) -> Iterator[str]:
    """A workload of this test alone, awake and answering."""
    name = f"work{abs(hash(request.node.name)) % 10**6}"
    agent.apply(name, env=marked(mark(name)))
    agent.ready(name)
    yield name
    agent.gone(name)


@contextlib.contextmanager
def post_dump(bed: NodeBed, script: str) -> Iterator[None]:
    """`script` in place of the shim's post-dump script; `real` in it is that one."""
    ours = bed.prefix / "lib/post-dump"
    real = ours.with_name("post-dump.real")
    ours.rename(real)
    try:
        head = '#!/bin/sh\n[ "$CRTOOLS_SCRIPT_ACTION" = post-dump ] || exit 0\n'
        ours.write_text(f"{head}keeper() {{ {KILL_KEEPER.format(run=bed.run)}; }}\nreal={real}\n{script}\n")
        ours.chmod(0o755)
        yield
    finally:
        real.rename(ours)


def made_anew(agent: MortalAgent, name: str, container: str) -> None:
    eventually(lambda: agent.get(name).container_id != container, 60, "its container is made anew")


@pytest.mark.parametrize(
    "script", ["keeper; sleep 0.1; exec $real", "$real || exit 1; keeper"], ids=["before the commit", "after it"]
)
def test_keeper_dies_around_the_commit_of_a_dump(agent: MortalAgent, node_bed: NodeBed, app: str, script: str) -> None:
    before = agent.ask(app)
    agent.order("suspend", app)
    container = agent.get(app).container_id
    with Copies(mark(app)) as copies:
        with post_dump(node_bed, script):
            in_background(agent.order, "park", app)
            made_anew(agent, app, container)
        after = agent.ask(app)
    assert copies.most == 1
    assert (after.count, after.born) == (before.count + 1, before.born)
    eventually(lambda: not agent.staged(), 10, "nothing is staged")


@pytest.mark.parametrize("milliseconds", [0, 10, 20, 40, 60, 80, 120])
def test_keeper_dies_at_any_moment_of_a_park(
    agent: MortalAgent, node_bed: NodeBed, app: str, milliseconds: int
) -> None:
    before = agent.ask(app)
    found = agent.order("suspend", app)
    keeper = keeper_of(node_bed, found.container_id)
    with Copies(mark(app)) as copies:
        in_background(agent.order, "park", app)
        time.sleep(milliseconds / 1000)
        os.kill(keeper, signal.SIGKILL)
        made_anew(agent, app, found.container_id)
        after = agent.ask(app)
    assert copies.most == 1
    assert (after.count, after.born) == (before.count + 1, before.born)


@pytest.mark.parametrize("milliseconds", [0, 20, 40, 60, 80, 100, 140])
def test_keeper_dies_at_any_moment_of_a_wake(
    agent: MortalAgent, node_bed: NodeBed, app: str, milliseconds: int
) -> None:
    before = agent.ask(app)
    found = agent.order("park", app)
    keeper = keeper_of(node_bed, found.container_id)
    with Copies(mark(app)) as copies:
        call = Call(found.ip)
        time.sleep(milliseconds / 1000)
        os.kill(keeper, signal.SIGKILL)
        made_anew(agent, app, found.container_id)
        first = call.answered()
        after = agent.ask(app)
    assert copies.most == 1
    assert (first.count, first.born) == (before.count + 1, before.born)
    assert (after.count, after.born) == (before.count + 2, before.born)


def test_keeper_dies_while_a_restore_hangs(agent: MortalAgent, node_bed: NodeBed, criu: BrokenCriu, app: str) -> None:
    before = agent.ask(app)
    found = agent.order("park", app)
    calls = len(criu.calls())
    criu.mode("hang")
    call = Call(found.ip)
    eventually(lambda: len(criu.calls()) > calls, 20, "CRIU is called")
    criu.mode("work")
    os.kill(keeper_of(node_bed, found.container_id), signal.SIGKILL)
    answer = call.answered()
    assert (answer.count, answer.born) == (before.count + 1, before.born)


def test_running_orphan_waits_for_an_agent(agent: MortalAgent, node_bed: NodeBed, app: str) -> None:
    before = agent.ask(app)
    found = agent.get(app)
    agent.kill()
    os.kill(keeper_of(node_bed, found.container_id), signal.SIGKILL)
    log = node_bed.containerd.log
    eventually(lambda: f'received exit event container_id:\\"{found.container_id}' in log.read_text(), 10, "it knows")
    assert len(processes_with(mark(app))) == 1
    with Copies(mark(app)) as copies:
        agent.begin()
        made_anew(agent, app, found.container_id)
        after = agent.ask(app)
    assert copies.most == 1
    assert (after.count, after.born) == (before.count + 1, before.born)


def test_orphan_that_cannot_be_dumped_runs_on_and_ends_with_its_workload(
    agent: MortalAgent, node_bed: NodeBed, criu: BrokenCriu, app: str
) -> None:
    found = agent.get(app)
    path = os.environ["PATH"]
    agent.stop()
    os.environ["PATH"] = f"{criu.folder}:{path}"
    try:
        agent.begin()
        criu.mode("fail")
        os.kill(keeper_of(node_bed, found.container_id), signal.SIGKILL)
        said = eventually(lambda: {c.type: c for c in agent.get(app).conditions}.get("Degraded"), 20, "it is said")
        assert "CRIU failed" in said.message
        assert agent.ask(app).born
        assert len(processes_with(mark(app))) == 1
        agent.gone(app)
        assert processes_with(mark(app)) == []
        assert not (node_bed.run / "keepers" / found.container_id).exists()
    finally:
        os.environ["PATH"] = path
        criu.mode("work")
        agent.stop()
        agent.begin()


def test_layer_survives_two_keepers(agent: MortalAgent, node_bed: NodeBed, app: str) -> None:
    """The second dies before the instance has run in the container that was made for the first."""
    before = agent.ask(app)
    agent.order("park", app)
    for _ in range(2):
        found = agent.get(app)
        upper = Path(agent.pod(app)["upper"])
        (upper / "written").write_text("mine")
        os.kill(keeper_of(node_bed, found.container_id), signal.SIGKILL)
        made_anew(agent, app, found.container_id)
        eventually(lambda: not agent.steps_in_journal(), 20, "it is settled")
        assert (Path(agent.pod(app)["upper"]) / "written").read_text() == "mine"
    answer = agent.ask(app)
    assert (answer.count, answer.born) == (before.count + 1, before.born)
