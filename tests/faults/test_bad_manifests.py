"""Manifests that are wrong: file, line and field are named, nothing of them runs, and all others go on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_bed import Agent, Answer, agent_on, eventually, workload
from node_bed import NodeBed

from kybernate.errors import InvalidError, NotFoundError

GOOD = workload("bad")
LINES = GOOD.splitlines()
DEEP = "spec.template.spec.containers[0]"


def line(text: str) -> int:
    return next(number for number, found in enumerate(LINES, 1) if text in found)


def changed(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new, 1)


BAD = {
    "bracket": (changed("kind: GpuWorkload", "kind: [GpuWorkload"), line("kind:") + 1, "not YAML"),
    "tabulator": (changed("  name: bad", "\tname: bad"), line("  name: bad"), "not YAML"),
    "text": ("just text", 1, "expected a mapping"),
    "kind": (changed("GpuWorkload", "Deployment"), line("kind:"), "kind: expected GpuWorkload"),
    "version": (changed("v1alpha1", "v9"), line("apiVersion"), "apiVersion: expected"),
    "unknown": (changed("spec:", "spec:\n  replcias: 1"), line("spec:") + 1, "spec.replcias: unknown field"),
    "deep": (changed("image:", "imgae:"), line("image:"), f"{DEEP}.imgae: unknown field"),
    "type": (changed("containerPort: 8080", "containerPort: http"), line("containerPort"), f"{DEEP}.ports[0]"),
    "range": (changed("containerPort: 8080", "containerPort: 80800"), line("containerPort"), f"{DEEP}.ports[0]"),
    "duration": (changed("idle: {}", "idle: {suspendAfter: soon}"), line("idle:"), "spec.idle.suspendAfter"),
    "name": (changed("name: bad", "name: B_d"), line("name: bad"), "metadata.name: expected"),
    "later": (changed("spec:", "spec:\n  replicas: 3"), line("spec:") + 1, "spec.replicas: other than 1"),
    "second": (f"{GOOD}---\n{changed('idle:', 'idel:')}", len(LINES) + 1 + line("idle:"), "spec.idel: unknown field"),
}


@pytest.fixture(scope="module")
def agent(node_bed: NodeBed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    with agent_on(node_bed, tmp_path_factory.mktemp("manifests")) as made:
        made.apply("neighbour")
        made.ready("neighbour")
        yield made


@pytest.fixture(scope="module")
def before(agent: Agent) -> Answer:
    return agent.ask("neighbour")


@pytest.fixture
def file(agent: Agent, request: pytest.FixtureRequest) -> Iterator[Path]:
    made = agent.state / "lib/workloads" / f"{request.node.callspec.params['case']}.yaml"
    yield made
    made.unlink(missing_ok=True)


def runs(agent: Agent, name: str) -> bool:
    try:
        agent.get(name)
    except NotFoundError:
        return False
    return True


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_named_and_the_others_go_on(agent: Agent, before: Answer, file: Path, case: str) -> None:
    text, number, field = BAD[case]
    file.write_text(text)
    where = f"{file}:{number}:"
    eventually(lambda: where in agent.log.read_text(), 10, f"the log names {where}")
    said = next(found for found in agent.log.read_text().splitlines() if where in found)
    assert field in said
    assert not runs(agent, "bad")
    assert agent.ask("neighbour").born == before.born


@pytest.mark.parametrize("case", BAD)
def test_a_bad_manifest_is_refused_by_apply_with_the_same_words(agent: Agent, case: str) -> None:
    text, number, field = BAD[case]
    with agent.client() as client, pytest.raises(InvalidError) as raised:
        client.apply(text, "mine.yaml")
    assert f"mine.yaml:{number}:" in str(raised.value)
    assert field in str(raised.value)
    assert not runs(agent, "bad")


@pytest.mark.parametrize("case", ["binary"])
def test_a_file_that_is_no_text_is_named(agent: Agent, file: Path, case: str) -> None:
    file.write_bytes(b"\xff\xfe\x00spec")
    eventually(lambda: f"{file}: cannot be read: it is not UTF-8 text" in agent.log.read_text(), 10, "it is named")


@pytest.mark.parametrize("case", ["mended"])
def test_a_running_workload_outlives_a_bad_change_and_takes_the_good_one(agent: Agent, file: Path, case: str) -> None:
    file.write_text(workload("mended"))
    eventually(lambda: agent.get("mended").state == "Running", 30, "it runs")
    born = eventually(lambda: agent.ask("mended").born, 30, "it serves")
    file.write_text(workload("mended").replace("idle: {}", "idle: {suspendAfter: never-ever}"))
    eventually(lambda: "never-ever" in agent.log.read_text(), 10, "the slip is named")
    assert agent.ask("mended").born == born
    file.write_text(workload("mended", idle={"suspendAfter": "200ms"}))
    eventually(lambda: agent.get("mended").state == "Suspended", 30, "the new policy holds")
    assert agent.ask("mended").born == born
