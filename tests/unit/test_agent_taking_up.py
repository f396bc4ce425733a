"""An agent's start with instances whose keepers are at work, or were when all were killed."""

from __future__ import annotations

import asyncio
import subprocess
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio
from agent_services import services_in
from keeper_standin import KeeperStandin
from kybernate_agent import network, orphan, portable, sleep, wake
from kybernate_agent import node as node_module
from kybernate_agent.actor import Actor
from kybernate_agent.cluster import serve
from kybernate_agent.cluster.health import HealthServer
from kybernate_agent.config import ClusterConfig
from kybernate_agent.instance import Member, Phase, Pod, Policy, Record, Verb, Wanted
from kybernate_agent.keepers import process_start
from kybernate_agent.node import EARLY, Node
from kybernate_agent.server import News
from kybernate_agent.traffic.pod import Mode

from kybernate.store.archive import pack

KUBECONFIG = """apiVersion: v1
kind: Config
clusters: [{name: nobody, cluster: {server: "http://127.0.0.1:1"}}]
users: [{name: agent, user: {}}]
contexts: [{name: here, context: {cluster: nobody, user: agent}}]
current-context: here
"""


class Traffic:
    """Nothing comes and nothing is held."""

    mode = Mode.HOLDING

    async def release(self) -> None: ...
    async def close(self) -> None: ...
    async def watch(self, ports: list[int]) -> None: ...
    async def hold(self, ports: list[int]) -> None: ...
    def has_unread(self, known: object = None) -> bool:
        return False

    def oldest_held_at(self) -> float | None:
        return None


async def open_traffic(actor: Actor) -> None:
    traffic: Any = Traffic()
    actor._traffic = actor._traffic or traffic


class Bed:
    """A node of a cluster whose journal knows some instances, each with a stand-in for its keeper."""

    def __init__(self, folder: Path) -> None:
        self.run = folder / "run"
        self.run.mkdir(mode=0o700)
        self.services = services_in(folder, ClusterConfig(node_name="n1"))
        self.config, self.journal, self.store = self.services.config, self.services.journal, self.services.store
        self.node = Node(self.services)
        source: Any = SimpleNamespace(wanted=lambda record: record.wanted, gone=lambda record: None)
        self.node.source = source
        self.keepers: dict[str, KeeperStandin] = {}

    async def knows(self, name: str, phase: Phase, keeper: str, policy: Policy | None = None) -> KeeperStandin:
        self._journalled(name, phase, policy or Policy())
        self.keepers[name] = found = KeeperStandin(self.run, name, keeper)
        return await found.__aenter__()

    def parked(self, name: str, upper: str, *files: str) -> Record:
        """Without a keeper; with images, beside which are `files`."""
        record = self._journalled(name, Phase.PARKED, Policy(), epoch=1, upper=upper)
        staging = self.store.stage(name, 1, 0)
        for file in ("pages-1.img", *files):
            (staging.images / file).write_bytes(b"state")
        self.store.commit(staging, {})
        return record

    def _journalled(self, name: str, phase: Phase, policy: Policy, epoch: int = 0, upper: str = "") -> Record:
        wanted = Wanted(container="app", namespace="team", policy=policy)
        member = Member(name=name, uid="gi", pod_uid=f"uid-{name}")
        pod = Pod(uid=f"uid-{name}", container=name, upper=upper)
        record = Record(id=name, workload=name, phase=phase, epoch=epoch, wanted=wanted, member=member, pod=pod)
        self.journal.settle(record)
        return record


@pytest_asyncio.fixture
async def bed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bed]:
    monkeypatch.setattr(Actor, "open_traffic", open_traffic)
    monkeypatch.setattr(node_module, "LATER_SECONDS", 0.02)
    bed = Bed(tmp_path)
    try:
        yield bed
    finally:
        await bed.node.close()
        for keeper in bed.keepers.values():
            await keeper.__aexit__()


async def eventually(found: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not found():
            await asyncio.sleep(0.01)


async def test_a_keeper_at_work_keeps_nobody_else_asleep(bed: Bed) -> None:
    slow = await bed.knows("slow", Phase.SUSPENDED, "dumping")
    await bed.knows("called", Phase.SUSPENDED, "frozen")
    await bed.knows("parks", Phase.SUSPENDED, "frozen", Policy(state="Parked"))
    bed.journal.step("called", "resume", "thaw", 0)  # it was being woken
    opening = asyncio.create_task(bed.node.open())
    await eventually(lambda: "called" in bed.node.actors and bed.node.actors["called"].record.phase == Phase.RUNNING)
    await eventually(lambda: "parks" in bed.node.actors and bed.node.actors["parks"].decision.verb == Verb.PARK)
    exec_of = {"container": "called", "process": {}}
    assert await asyncio.wait_for(bed.node._answer("exec", exec_of), 20) == {}
    creation = asyncio.create_task(bed.node._answer("create", {"container": "new"}))
    assert bed.node.actors["parks"].busy is None, "its staging would go with those that a killed agent left"
    assert "slow" not in bed.node.actors
    assert not bed.node.ready
    assert not opening.done()
    assert not creation.done()
    creation.cancel()

    slow.state = "frozen"
    await asyncio.wait_for(opening, 20)
    assert bed.node.ready
    assert {actor.may for actor in bed.node.actors.values()} == {tuple(Verb)}
    await eventually(lambda: bool(bed.node.actors["parks"]._failures))  # it tried, and there is nothing to park


@pytest.mark.parametrize("keeper", ["dumping", "restoring"])
async def test_one_whose_keeper_does_not_come_to_an_end_is_left_alone_until_it_does(bed: Bed, keeper: str) -> None:
    slow = await bed.knows("slow", Phase.RUNNING, keeper)
    await bed.knows("other", Phase.SUSPENDED, "frozen")
    bed.node._patience = 0.1
    await asyncio.wait_for(bed.node.open(), 20)
    assert bed.node.ready
    actor = bed.node.actors["slow"]
    assert bed.node.actors["other"].may == tuple(Verb)
    assert actor.may in ((Verb.END,), ())
    assert [c.reason for c in actor.record.conditions] == ["Recovery"]
    assert keeper in actor.record.conditions[0].message
    asked = len(slow.asked)
    await eventually(lambda: len(slow.asked) > asked + 2)
    assert actor.record.phase == Phase.RUNNING
    assert set(slow.asked) == {"state"}, "nothing is done with it"
    assert len(actor.record.events) == 1, "it is said once"

    slow.state = "frozen"
    await eventually(lambda: actor.may == tuple(Verb))
    assert (actor.record.conditions, actor.has_keeper) == ([], True)


async def test_one_of_which_nobody_can_say_what_it_is_is_looked_at_again(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its keeper it would be taken for one that has ended, and be started a second time."""
    living = await bed.knows("living", Phase.RUNNING, "running")
    manifests, failures = bed.store.manifests, [OSError(5, "Input/output error")] * 3

    def broken(instance: str) -> Any:
        if failures:
            raise failures.pop()
        return manifests(instance)

    monkeypatch.setattr(bed.store, "manifests", broken)
    await asyncio.wait_for(bed.node.open(), 20)
    actor = bed.node.actors["living"]
    assert (actor.has_keeper, actor.may in ((Verb.END,), ())) == (False, True)
    assert "Input/output error" in actor.record.conditions[0].message
    await eventually(lambda: actor.may == tuple(Verb))
    assert (actor.record.phase, actor.record.conditions, actor.has_keeper) == (Phase.RUNNING, [], True)
    assert set(living.asked) <= {"state"}


async def test_a_sandbox_waits_until_the_layer_of_what_is_parked_lies_with_its_images(
    bed: Bed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine has started anew: keepers and bundles are gone, images and layers are there."""
    upper, go_on = tmp_path / "upper", threading.Event()
    upper.mkdir()
    (upper / "note").write_text("kept")
    record = bed.parked("parked", str(upper))

    def packing(*arguments: Any, **named: Any) -> int:
        assert go_on.wait(60)
        return pack(*arguments, **named)

    monkeypatch.setattr(portable, "pack", packing)
    opening = asyncio.create_task(bed.node.open())
    sandbox = asyncio.create_task(bed.node._answer("sandbox", {"pod_uid": record.pod.uid}))
    await asyncio.wait_for(opening, 20)
    assert await asyncio.wait_for(bed.node._answer("sandbox", {"pod_uid": "uid-other"}), 20) == {}
    await eventually(lambda: bed.node.actors["parked"].busy == Verb.KEEP)
    assert not sandbox.done()
    go_on.set()
    assert await asyncio.wait_for(sandbox, 20) == {}
    (made,) = bed.store.manifests("parked")
    assert (made.epoch, "layer.tar" in {file.name for file in made.files}) == (2, True)


async def test_nothing_is_kept_twice_nor_of_what_is_gone(bed: Bed, tmp_path: Path) -> None:
    bed.parked("kept", str(tmp_path), "layer.tar")
    bed.parked("gone", str(tmp_path / "removed"))
    await asyncio.wait_for(bed.node.open(), 20)
    for name in ("kept", "gone"):
        actor = bed.node.actors[name]
        assert (actor.layer_outside, actor.record.history, actor.record.epoch) == (False, [], 1)


async def test_one_that_is_left_alone_can_be_ended(bed: Bed) -> None:
    slow = await bed.knows("slow", Phase.SUSPENDED, "dumping")
    slow.write(keeper_start=1, init_start=1)  # as if both were gone: nothing is killed here
    bed.node._patience = 0.0
    await asyncio.wait_for(bed.node.open(), 20)
    actor = bed.node.actors["slow"]
    actor.pod_goes.set()
    await asyncio.wait_for(bed.node.end(actor), 20)
    await eventually(lambda: not bed.node.actors and not bed.node._later)
    assert bed.journal.records() == []


async def test_health_is_answered_while_instances_are_taken_up(
    bed: Bed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    await bed.knows("slow", Phase.SUSPENDED, "dumping")
    servers: list[HealthServer] = []

    def health(address: str, *more: Any) -> HealthServer:
        servers.append(HealthServer("127.0.0.1:0", *more))
        return servers[0]

    monkeypatch.setattr(serve, "HealthServer", health)
    (tmp_path / "kubeconfig").write_text(KUBECONFIG)
    config = ClusterConfig(node_name="n1", kubeconfig=str(tmp_path / "kubeconfig"))
    serving = asyncio.create_task(serve.serve_cluster(bed.services, config, News(), asyncio.Event()))
    try:
        await eventually(lambda: serving.done() or bool(servers and servers[0]._server))
        assert not serving.done()
        await eventually(lambda: len(bed.keepers["slow"].asked) > 1)  # it waits for that one
        assert await get(servers[0], "/healthz") == b"200"
        assert await get(servers[0], "/readyz") == b"503"
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


async def get(server: HealthServer, path: str) -> bytes:
    assert server._server is not None
    reader, writer = await asyncio.open_connection(*server._server.sockets[0].getsockname())
    writer.write(f"GET {path} HTTP/1.1\r\n\r\n".encode())
    async with asyncio.timeout(20):
        answer = await reader.read()
    writer.close()
    return answer.split()[1]


async def test_the_network_of_one_that_is_looked_at_is_left_to_who_looks(bed: Bed) -> None:
    await bed.knows("slow", Phase.SUSPENDED, "frozen")
    [record] = bed.journal.records()
    actor = Actor(bed.services, record, record.wanted or Wanted(container="app"))
    await actor.adopt_keeper()
    actor.may = ()
    await network.see_to(actor)
    assert not actor.has_traffic
    actor.may = EARLY
    await network.see_to(actor)
    assert actor.has_traffic
    actor.forget_keeper()


def test_mounts_of_who_may_be_at_a_restore_stay(tmp_path: Path) -> None:
    for name in ("wakes", "left"):
        (tmp_path / "mounts" / name / "0").mkdir(parents=True)
    wake.clear_mounts(tmp_path, {"wakes"})
    assert [folder.name for folder in (tmp_path / "mounts").iterdir()] == ["wakes"]
    wake.clear_mounts_of(tmp_path, "wakes")
    assert not list((tmp_path / "mounts").iterdir())


@pytest.mark.parametrize("yes", [True, False])
async def test_what_dies_after_our_yes_does_not_live(bed: Bed, yes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """All were killed between the commit and the end of the processes, and those hang in the kernel."""
    monkeypatch.setattr(sleep, "END_SECONDS", 0.05)
    monkeypatch.setattr(orphan, "END_SECONDS", 0.05)
    keeper = await bed.knows("dies", Phase.SUSPENDED, "dumping")
    await keeper.__aexit__()
    (keeper.folder / "sock").unlink()
    staging = bed.store.stage("dies", 1, 0)
    (staging.images / "pages-1.img").write_bytes(b"state")
    bed.store.commit(staging, {})
    bed.journal.step("dies", "park", "end-processes", 1)
    if yes:
        keeper.mark()
    process = subprocess.Popen(["sleep", "60"])
    try:
        keeper.write(init_pid=process.pid, init_start=process_start(process.pid))
        [record] = bed.journal.records()
        actor = Actor(bed.services, record, record.wanted or Wanted(container="app"))
        assert await bed.node._recover_or_say(actor, 0.0)
    finally:
        process.kill()
        process.wait()
    assert record.phase == (Phase.PARKED if yes else Phase.SUSPENDED)
    assert [m.epoch for m in bed.store.manifests("dies")] == ([1] if yes else [])
