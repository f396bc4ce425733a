"""Commands that the kubelet executes: carried out, or answered for a sleeper, as containerd sees it.

The calls are the kubelet's own (ExecSync of CRI) on a real containerd; the agent is the stand-in of the shim's bed,
which shows what the hook makes of each answer.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from kybernate_agent.config import AgentConfig
from kybernate_agent.instance import Pod
from kybernate_agent.probes import Declared, Entering, is_declared
from kybernate_agent.standalone.cri import Cri
from kybernate_agent.standalone.pods import Pods
from kybernate_shim import pretend, wire
from kybernate_shim.command import parse
from node_bed import NodeBed
from shim_bed import StandIn
from test_standalone_pods import workload
from traffic_lab import until

PRETEND = {"ok": True, "action": "pretend", "exit": 0}
FAILING = ["sh", "-c", "echo said; exit 3"]


@pytest.fixture
def agent(node_bed: NodeBed) -> Iterator[StandIn]:
    made = StandIn(node_bed.run)
    yield made
    made.close()


@pytest.fixture
async def cri(node_bed: NodeBed) -> AsyncIterator[Cri]:
    made = Cri(str(node_bed.containerd.socket))
    yield made
    await made.close()


@pytest.fixture
async def pod(node_bed: NodeBed, agent: StandIn, tmp_path: Path) -> AsyncIterator[Pod]:
    pods = await Pods.connect(
        AgentConfig(
            run_dir=str(node_bed.run), state_dir=str(tmp_path), containerd_socket=str(node_bed.containerd.socket)
        )
    )
    yield await pods.start_pod(workload("probed"), "probed-0", str(uuid.uuid4()))
    for made in await pods.find_pods():
        await made_away(node_bed, made)
        await pods.remove_pod(made, grace_seconds=0)
    await pods.close()


async def made_away(bed: NodeBed, pod: Pod) -> None:
    if pod.container:
        await keeper(bed, pod, "thaw")


async def keeper(bed: NodeBed, pod: Pod, verb: str) -> dict[str, Any]:
    return await asyncio.to_thread(wire.ask, f"{bed.run}/keepers/{pod.container}/sock", {"verb": verb}, 30)


async def test_a_command_of_a_sleeper_is_answered_and_not_carried_out(
    node_bed: NodeBed, agent: StandIn, cri: Cri, pod: Pod
) -> None:
    agent.answers["exec"] = PRETEND
    assert (await keeper(node_bed, pod, "freeze"))["ok"]
    for _ in range(5):
        assert await cri.exec_sync(pod.container, FAILING, 10) == (0, b"", b"")
    assert (await keeper(node_bed, pod, "state"))["state"] == "frozen"
    asked = agent.heard[-1]
    assert (asked["argv"], asked["terminal"], asked["container"]) == (FAILING, False, pod.container)


async def test_an_answer_has_the_status_that_the_agent_says(agent: StandIn, cri: Cri, pod: Pod) -> None:
    agent.answers["exec"] = {**PRETEND, "exit": 7}
    assert (await cri.exec_sync(pod.container, ["true"], 10))[0] == 7


async def test_many_answers_at_once_come_all(agent: StandIn, cri: Cri, pod: Pod) -> None:
    agent.answers["exec"] = PRETEND
    answers = await asyncio.gather(*(cri.exec_sync(pod.container, FAILING, 60) for _ in range(20)))
    assert answers == [(0, b"", b"")] * 20
    await until(lambda: not _children_of_shims(pod), 20)


def _children_of_shims(pod: Pod) -> list[str]:
    """Zombies, or processes of ours, below containerd's shim of this pod."""
    found = subprocess.run(["ps", "-wweo", "ppid,pid,stat,args"], check=True, capture_output=True, text=True).stdout
    lines = [line.split(None, 3) for line in found.splitlines()[1:]]
    shims = {line[1] for line in lines if "containerd-shim" in line[3] and pod.sandbox in line[3]}
    assert shims
    return [" ".join(line) for line in lines if line[0] in shims and ("Z" in line[2] or " exec " in line[3])]


async def test_a_command_of_an_awake_container_is_carried_out(agent: StandIn, cri: Cri, pod: Pod) -> None:
    assert await cri.exec_sync(pod.container, FAILING, 10) == (3, b"said\n", b"")
    (pid,) = [asked["pid"] for asked in agent.heard if asked["verb"] == "exec"]
    assert not Path(f"/proc/{pid}").exists(), "the hook became runc, and that has ended"


def question(tmp_path: Path, text: str | None, *words: str) -> dict[str, Any]:
    options = []
    if text is not None:
        (tmp_path / "process").write_text(text)
        options = ["--process", str(tmp_path / "process")]
    asked = pretend.question(parse(["--root", "/r", "exec", *options, "--detach", "c1", *words]))
    assert asked.pop("pid") == os.getpid()
    return asked


def test_what_the_agent_is_told(tmp_path: Path) -> None:
    ask = '{"args": ["cat", "/ready"], "terminal": %s}'
    told = {"container": "c1", "argv": ["cat", "/ready"]}
    assert question(tmp_path, ask % "false") == {**told, "terminal": False}
    assert question(tmp_path, ask % "true") == {**told, "terminal": True}
    assert question(tmp_path, None, "cat", "/ready") == {**told, "terminal": False}
    for broken in ("", "[]", "{}", '{"args": 3}'):
        assert question(tmp_path, broken) == {"container": "c1"}, broken
    assert question(tmp_path, None, "x" * (300 << 10)) == {"container": "c1"}


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"argv": ["cat", "/ready"], "terminal": False}, True),
        ({"argv": ["cat", "/ready"]}, True),
        ({"argv": ["cat", "/ready"], "terminal": True}, False),
        ({"argv": ["cat", "/other"]}, False),
        ({"argv": ["cat"]}, False),
        ({}, False),
        ({"argv": None}, False),
    ],
)
def test_a_declared_command_is_known_by_its_words(message: dict[str, Any], expected: bool) -> None:
    declared = Declared(commands=frozenset({("cat", "/ready")}))
    assert is_declared(declared, message) is expected
    assert not is_declared(Declared(), message)


async def test_a_suspend_can_wait_for_commands_on_their_way_in() -> None:
    entering = Entering()
    assert await entering.none(0)
    hooks = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", "input()", stdin=asyncio.subprocess.PIPE)
        for _ in range(2)
    ]
    for hook in hooks:
        entering.add(hook.pid)
    assert not await entering.none(0.01)
    for hook in hooks:
        await hook.communicate(b"\n")
    assert await entering.none(10)
    entering.add(hooks[0].pid)  # it has ended
    assert await entering.none(0)
    entering.add(os.getpid())
    entering.close()
    entering.close()
    assert await entering.none(0)
