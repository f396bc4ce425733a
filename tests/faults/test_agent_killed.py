"""The agent dies by SIGKILL at each step of its journal; the next one finds a true state, and nobody's state is lost.

Each step of the table in 01_ARCHITECTURE is a moment twice: right after it was written (nothing of it is done) and
right before it is written (all of the step before it is done). One workload goes through all of them, so its count and
its birth tell at the end of each whether it is still the same application.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from agent_bed import eventually, processes_with
from broken_criu import BrokenCriu, broken_criu
from fault_bed import Call, Copies, MortalAgent, in_background, keeper_of, mark, marked, mortal_agent_on
from journal_steps import listed, verb_of
from node_bed import NodeBed

from kybernate.errors import NotFoundError

TABLE = listed()
SETTLED = "settle"
SETTINGS = "prove_seconds: 0.3\n"
MARK, RESET, STARTED, ENDED = mark("killed"), mark("reset"), mark("started"), mark("ended")


def moments(*ways: str) -> list[tuple[str, str, str]]:
    """(way, when, step) of every moment at which the agent can die on these ways."""
    return [(way, when, step) for way in ways for step in TABLE[way] for when in ("before", "after")] + [
        (way, "before", SETTLED) for way in ways
    ]


def named(moment: tuple[str, str, str]) -> str:
    way, when, step = moment
    return f"{way}, {when} {step}"


@pytest.fixture(scope="module")
def criu(node_bed: NodeBed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokenCriu]:
    with broken_criu(node_bed, tmp_path_factory.mktemp("criu")) as made:
        yield made


@pytest.fixture(scope="module")
def agent(node_bed: NodeBed, criu: BrokenCriu, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MortalAgent]:
    with mortal_agent_on(node_bed, tmp_path_factory.mktemp("killed"), SETTINGS) as made:
        yield made


@pytest.fixture(autouse=True)
def shown(agent: MortalAgent) -> Iterator[None]:
    """The agent's log stands beside a failure."""
    with agent.log_shown():
        yield


@pytest.fixture
def app(agent: MortalAgent) -> str:
    """The workload that all share, awake and answering; anew where a test before this one spoilt it."""
    name = "killed"
    try:
        agent.ask(name, seconds=10)
    except (NotFoundError, OSError, ValueError):
        agent.gone(name)
        agent.apply(name, env=marked(MARK))
        agent.ready(name)
    eventually(lambda: not agent.images(name), 20, "what it came from is gone")
    return name


def dies(agent: MortalAgent, moment: tuple[str, str, str], doing: Callable[[], object]) -> None:
    """Tell the agent to die at that moment, do what leads there, and look at the journal that it left."""
    way, when, step = moment
    agent.dies_at(when, verb_of(way), step)
    doing()
    assert agent.died() == -signal.SIGKILL, agent.tail()
    steps = TABLE[way]
    begun = steps if step == SETTLED else steps[: steps.index(step) + (when == "after")]
    assert agent.steps_in_journal() == [(verb_of(way), step) for step in begun]


def order(agent: MortalAgent, verb: str, name: str) -> None:
    in_background(agent.order, verb, name)


def still_itself(agent: MortalAgent, name: str, before_count: int, born: str, word: str = MARK) -> None:
    """One live copy at most, no leftovers; it answers, is the same, and can sleep and wake again."""
    found = agent.settled(name)
    assert len(processes_with(word)) == (0 if found.state == "Parked" else 1), found
    eventually(lambda: not agent.staged(), 10, "nothing is staged")
    assert len(agent.images(name)) <= 1
    assert agent.rules(name) == (found.state != "Running")
    answer = agent.ask(name)
    assert (answer.count, answer.born) == (before_count + 1, born)
    assert len(processes_with(word)) == 1
    eventually(lambda: not agent.rules(name), 10, "an awake pod has no rules")
    agent.order("suspend", name)
    assert agent.rules(name)
    assert agent.ask(name).born == born
    eventually(lambda: not agent.images(name), 20, "images go when it has lived")


@pytest.mark.parametrize("moment", moments("suspend"), ids=named)
def test_suspend(agent: MortalAgent, app: str, moment: tuple[str, str, str]) -> None:
    before = agent.ask(app)
    dies(agent, moment, lambda: order(agent, "suspend", app))
    agent.begin()
    still_itself(agent, app, before.count, before.born)


@pytest.mark.parametrize("moment", moments("park"), ids=named)
def test_park(agent: MortalAgent, app: str, moment: tuple[str, str, str]) -> None:
    before = agent.ask(app)
    agent.order("suspend", app)
    dies(agent, moment, lambda: order(agent, "park", app))
    agent.begin()
    still_itself(agent, app, before.count, before.born)


@pytest.mark.parametrize("moment", moments("resume from RAM", "resume from NVME"), ids=named)
def test_resume_and_the_caller_is_answered(agent: MortalAgent, app: str, moment: tuple[str, str, str]) -> None:
    before = agent.ask(app)
    found = agent.order("park" if "NVME" in moment[0] else "suspend", app)
    calls: list[Call] = []
    dies(agent, moment, lambda: calls.append(Call(found.ip)))
    agent.begin()
    answer = calls[0].answered()
    assert (answer.count, answer.born) == (before.count + 1, before.born)
    still_itself(agent, app, answer.count, before.born)


@pytest.mark.parametrize("moment", moments("prove"), ids=named)
def test_prove(agent: MortalAgent, app: str, moment: tuple[str, str, str]) -> None:
    before = agent.ask(app)
    found = agent.order("park", app)
    dies(agent, moment, lambda: Call(found.ip))
    agent.begin()
    still_itself(agent, app, before.count + 1, before.born)


@pytest.mark.parametrize("moment", moments("rescue"), ids=named)
def test_rescue(agent: MortalAgent, app: str, node_bed: NodeBed, moment: tuple[str, str, str]) -> None:
    before = agent.ask(app)
    keeper = keeper_of(node_bed, agent.get(app).container_id)
    dies(agent, moment, lambda: os.kill(keeper, signal.SIGKILL))
    agent.begin()
    still_itself(agent, app, before.count, before.born)


@pytest.mark.parametrize("asleep", [False, True], ids=["awake", "parked"])
def test_create_for_a_dead_agent_is_no_cold_start(
    agent: MortalAgent, app: str, node_bed: NodeBed, asleep: bool
) -> None:
    before = agent.ask(app)
    if asleep:
        agent.order("park", app)
    keeper = keeper_of(node_bed, agent.get(app).container_id)
    agent.dies_at("before", "create", "answer")
    with Copies(MARK) as copies:
        os.kill(keeper, signal.SIGKILL)
        assert agent.died() == -signal.SIGKILL
        agent.begin()
        still_itself(agent, app, before.count, before.born)
    assert copies.most == 1


@pytest.mark.parametrize("moment", moments("reset"), ids=named)
def test_reset(agent: MortalAgent, criu: BrokenCriu, moment: tuple[str, str, str]) -> None:
    name = "reset"
    agent.apply(name, wake={"timeout": "300ms"}, env=marked(RESET))
    agent.ready(name)
    before = agent.ask(name)
    found = agent.order("park", name)
    try:
        calls: list[Call] = []
        criu.mode("fail")
        dies(agent, moment, lambda: calls.append(Call(found.ip)))
        criu.mode("work")
        agent.begin()
        agent.order("resume", name)
        calls[0].join(20)  # reset or answered: that depends on whether the agent came to it
        again = agent.ask(name)
        assert again.born == before.born
        still_itself(agent, name, again.count, again.born, RESET)
    finally:
        criu.mode("work")
        agent.gone(name)


def taken_up(moment: tuple[str, str, str], pids: list[int], word: str) -> None:
    """One live copy; where the container was started already it is that one."""
    assert len(processes_with(word)) == 1
    if moment[1:] in (("before", "adopt"), ("after", "adopt"), ("before", SETTLED)):
        assert processes_with(word) == pids


@pytest.mark.parametrize("moment", moments("start"), ids=named)
def test_start(agent: MortalAgent, moment: tuple[str, str, str]) -> None:
    name = "started"
    try:
        dies(agent, moment, lambda: in_background(lambda: agent.apply(name, env=marked(STARTED))))
        pids = processes_with(STARTED)
        agent.begin()
        agent.wait(name, "Running")
        taken_up(moment, pids, STARTED)
        first = eventually(lambda: agent.ask(name), 30, "it starts in the end")
        still_itself(agent, name, first.count, first.born, STARTED)
    finally:
        agent.gone(name)


@pytest.mark.parametrize("moment", moments("start"), ids=named)
def test_start_again_after_the_application_ended(agent: MortalAgent, app: str, moment: tuple[str, str, str]) -> None:
    before = agent.ask(app)
    dies(agent, moment, lambda: os.kill(agent.get(app).pid, signal.SIGTERM))
    pids = processes_with(MARK)
    agent.begin()
    agent.wait(app, "Running")
    taken_up(moment, pids, MARK)
    first = eventually(lambda: agent.ask(app), 30, "it starts again")
    assert first.born != before.born
    still_itself(agent, app, first.count, first.born)


@pytest.mark.parametrize("moment", [*moments("end"), ("end", "before", "forget")], ids=named)
def test_end(agent: MortalAgent, node_bed: NodeBed, moment: tuple[str, str, str]) -> None:
    name = "ended"
    agent.apply(name, env=marked(ENDED))
    found = agent.ready(name)
    if moment[2] == "forget":
        agent.dies_at(*moment[1:2], "end", "forget")
        in_background(agent.gone, name)
        assert agent.died() == -signal.SIGKILL
    else:
        dies(agent, moment, lambda: in_background(agent.gone, name))
    agent.begin()
    eventually(lambda: f"{name}-0" not in agent.instances_in_journal(), 60, f"it is gone: {agent.tail()}")
    assert processes_with(ENDED) == []
    assert not (node_bed.run / "keepers" / found.container_id).exists()
    assert not agent.images(name)
    assert not (agent.state / f"lib/pods/{found.uid}").exists()
    assert not any(found.uid in str(path) for path in Path("/sys/fs/cgroup").glob("*/kybernate-pods/*"))
    assert found.container_id not in node_bed.containerd.ctr("containers", "list", "--quiet").split()
