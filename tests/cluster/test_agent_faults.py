"""What ends while an instance is in a cluster: the agent, a keeper, kubelet, containerd, the API server, the node."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from agent_bed import Answer, ask
from agent_in_cluster import PYTHON, Instance, NodeAgent, agent_on, eventually, instance, next_pod, processes_of, remove
from cluster_bed import ClusterBed, open_cluster

LIMIT = 120
READ_RECORD = """
import sqlite3, sys
db = sqlite3.connect("file:/var/lib/kybernate/journal.db?mode=ro", uri=True)
print(db.execute("select record from instance where id = ?", (sys.argv[1],)).fetchone()[0].decode())
"""


@pytest.fixture(scope="module")
def bed() -> Iterator[ClusterBed]:
    """A cluster of its own: its parts are ended here."""
    with open_cluster(runtime=True) as made:
        made.runtime_class()
        yield made


@pytest.fixture(scope="module")
def agent(bed: ClusterBed) -> Iterator[NodeAgent]:
    with agent_on(bed) as made:
        yield made


def container_of(bed: ClusterBed, name: str) -> str:
    found: str = bed.get("pod", name)["status"]["containerStatuses"][0]["containerID"]
    return found.removeprefix("containerd://")


def keeper_of(bed: ClusterBed, name: str) -> int:
    """The host's pid of the keeper of that pod's container; its own record has the node's."""
    container = container_of(bed, name)
    return next(int(entry) for entry in os.listdir("/proc") if entry.isdigit() and _is_keeper_of(entry, container))


def _is_keeper_of(pid: str, container: str) -> bool:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
        words = file.read().decode(errors="replace").split("\0")
        return any(word.endswith("/keeper.py") for word in words) and any(container in word for word in words)
    return False


def goes_on(one: Instance, before: Answer, ip: str) -> Answer:
    """It answers, and is the same."""

    def look() -> Answer:
        return ask(ip, seconds=30)

    after = eventually(look, LIMIT, f"{one.name} answers")
    assert after.born == before.born
    assert after.count > before.count
    return after


@pytest.mark.parametrize("asleep", ["awake", "suspend", "park"])
def test_an_agent_that_was_killed_finds_it_as_it_is(bed: ClusterBed, agent: NodeAgent, asleep: str) -> None:
    with instance(bed, f"agent-{asleep}-0") as one:
        before, ip = one.ask(), one.ip
        if asleep != "awake":
            one.order(asleep)
        with agent.away():
            pass
        goes_on(one, before, ip)
        assert one.restarts() == 0


@pytest.mark.parametrize("asleep", ["awake", "suspend", "park"])
def test_a_dead_keeper_costs_the_container_and_not_the_state(bed: ClusterBed, agent: NodeAgent, asleep: str) -> None:
    with instance(bed, f"keeper-{asleep}-0") as one:
        bed.kubectl("exec", one.name, "--", "/bin/sh", "-c", "echo kept > /note")
        before, ip = one.ask(), one.ip
        if asleep != "awake":
            one.order(asleep)
        os.kill(keeper_of(bed, one.name), signal.SIGKILL)
        goes_on(one, before, ip)
        eventually(lambda: one.restarts() == 1, LIMIT, "the kubelet made a container anew")
        assert len(processes_of(one.name)) == 1
        assert bed.kubectl("exec", one.name, "--", "/bin/cat", "/note").strip() == "kept"


def test_a_keeper_and_the_agent_die_together(bed: ClusterBed, agent: NodeAgent) -> None:
    with instance(bed, "both-0") as one:
        before, ip = one.ask(), one.ip
        keeper = keeper_of(bed, "both-0")
        with agent.away():
            os.kill(keeper, signal.SIGKILL)
        goes_on(one, before, ip)


@pytest.mark.parametrize("part", ["kubelet", "containerd"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["restarted", "killed"])
def test_a_part_of_the_node_begins_anew(bed: ClusterBed, agent: NodeAgent, part: str, number: int) -> None:
    name = f"{part}-{'killed' if number == signal.SIGKILL else 'restarted'}-0"
    with instance(bed, name) as one:
        before, ip = one.ask(), one.ip
        one.order("park")
        bed.node.machine.restart(part, number)
        goes_on(one, before, ip)
        one.wait("Running")
        eventually(one.ready, LIMIT, "it is ready")
        assert one.restarts() == 0


def test_without_the_api_server_the_node_goes_on_and_then_reports_once(bed: ClusterBed, agent: NodeAgent) -> None:
    with instance(bed, "alone-0", suspendAfter="1s", parkAfter="300ms") as one:
        before, ip = one.ask(), one.ip
        one.wait("Parked")
        writes = status_writes(agent)
        bed.cluster.control_plane.halt("kube-apiserver", signal.SIGKILL)
        try:
            for epoch in (2, 3, 4):
                before = goes_on(one, before, ip)
                parked = ("Parked", epoch)
                eventually(lambda parked=parked: in_journal(bed, "default.alone-0") == parked, LIMIT, "parked again")  # type: ignore[misc]
        finally:
            bed.cluster.control_plane.resume("kube-apiserver")
        eventually(lambda: one.status.get("epoch") == 4, LIMIT, "what is true is reported")
        status = one.status
        assert (status["state"], status["tier"]) == ("Parked", "NVME")
        assert status_writes(agent) == writes + 1


def status_writes(agent: NodeAgent) -> int:
    lines = agent.said("/metrics").splitlines()
    return int(next(line for line in lines if line.startswith("kybernate_status_writes_total ")).split()[1])


def record_of(bed: ClusterBed, name: str) -> dict[str, Any]:
    """An instance as the journal has it."""
    record: dict[str, Any] = json.loads(bed.node.run([PYTHON, "-c", READ_RECORD, name]))
    return record


def in_journal(bed: ClusterBed, name: str) -> tuple[str, int]:
    """Phase and epoch of an instance."""
    record = record_of(bed, name)
    return str(record["phase"]), int(record["epoch"])


def test_an_agent_that_starts_without_the_api_server_serves_what_it_knows(bed: ClusterBed, agent: NodeAgent) -> None:
    with instance(bed, "known-0", suspendAfter="1s", parkAfter="300ms") as one:
        before, ip = one.ask(), one.ip
        one.wait("Parked")
        agent.kill()
        bed.cluster.control_plane.halt("kube-apiserver", signal.SIGKILL)
        try:
            agent.start()
            goes_on(one, before, ip)
        finally:
            bed.cluster.control_plane.resume("kube-apiserver")
        eventually(lambda: one.status.get("epoch", 0) >= 2, LIMIT, "what is true is reported")


def test_a_node_that_starts_anew_brings_back_what_was_parked(bed: ClusterBed, agent: NodeAgent) -> None:
    """What ran begins anew, as any container does; what slept in memory begins anew, and that is said."""
    names = {"boot-parked-0": "park", "boot-ram-0": "suspend", "boot-awake-0": ""}
    with contextlib.ExitStack() as stack:
        them = {name: stack.enter_context(instance(bed, name)) for name in names}
        bed.kubectl("exec", "boot-parked-0", "--", "/bin/sh", "-c", "echo kept > /note")
        born = {name: one.ask().born for name, one in them.items()}
        for name, verb in names.items():
            if verb:
                them[name].order(verb)
        uids = {name: one.pod["metadata"]["uid"] for name, one in them.items()}
        bed.cluster.take_away(bed.node)
        bed.cluster.bring_back(bed.node)
        agent.start()
        for name, one in them.items():
            eventually(lambda one=one: one.restarts() >= 1 and one.ready(), LIMIT, f"{name} is ready again")  # type: ignore[misc]
        assert uids == {name: one.pod["metadata"]["uid"] for name, one in them.items()}
        assert them["boot-parked-0"].wait("Parked")["tier"] == "NVME"
        assert them["boot-parked-0"].ask().born == born["boot-parked-0"]
        assert bed.kubectl("exec", "boot-parked-0", "--", "/bin/cat", "/note").strip() == "kept"
        for name in ("boot-ram-0", "boot-awake-0"):
            assert them[name].serving().born != born[name]
        assert "StateLost" in them["boot-ram-0"].events()
        assert "StateLost" not in them["boot-awake-0"].events()


WAITING = """
import glob, json, sys
for path in glob.glob("/proc/[0-9]*/cmdline"):
    try:
        words = open(path).read().split("\\0")
        if "create" in words and "--bundle" in words and any("hook" in word for word in words[:5]):
            notes = json.load(open(words[words.index("--bundle") + 1] + "/config.json"))["annotations"]
            print(notes["io.kubernetes.cri.sandbox-name"], notes["io.kubernetes.cri.container-type"])
    except OSError:
        continue
"""
"""For each container of the runtime that waits to be created: its pod, and whether it is a sandbox."""


def waiting(bed: ClusterBed) -> str:
    return bed.node.run([PYTHON, "-c", WAITING]).strip()


def test_a_node_that_is_up_long_before_its_agent_keeps_what_was_parked(bed: ClusterBed, agent: NodeAgent) -> None:
    """Its pods do not get so far that the kubelet could remove their dead containers, and the layers with them."""
    with instance(bed, "early-0") as one:
        bed.kubectl("exec", "early-0", "--", "/bin/sh", "-c", "echo kept > /note")
        born = one.ask().born
        one.order("park")
        bed.cluster.take_away(bed.node)
        bed.cluster.bring_back(bed.node)
        said = eventually(lambda: waiting(bed), LIMIT, "the hook waits for an agent")
        assert said == "early-0 sandbox"
        agent.start()
        eventually(lambda: one.restarts() >= 1 and one.ready(), LIMIT, "it is ready again")
        assert one.wait("Parked")["tier"] == "NVME"
        assert one.ask().born == born
        assert bed.kubectl("exec", "early-0", "--", "/bin/cat", "/note").strip() == "kept"


@contextlib.contextmanager
def kubelet_still(bed: ClusterBed) -> Iterator[None]:
    bed.node.machine.signal("kubelet", signal.SIGSTOP)
    try:
        yield
    finally:
        bed.node.machine.signal("kubelet", signal.SIGCONT)


@pytest.mark.parametrize("what", ["keeper", "node"])
def test_the_kubelet_removes_the_layer_while_the_next_container_is_made(
    bed: ClusterBed, agent: NodeAgent, what: str
) -> None:
    """It removes dead containers once a minute but for the newest, and takes one that does not run yet for that."""
    with instance(bed, f"layer-{what}-0") as one, contextlib.ExitStack() as still:
        bed.kubectl("exec", one.name, "--", "/bin/sh", "-c", "echo kept > /note")
        born = one.ask().born
        one.order("park")
        upper = record_of(bed, f"default.{one.name}")["pod"]["upper"]
        keepers = f"/run/kybernate/keepers/{container_of(bed, one.name)}"
        assert is_there(bed, upper)
        assert is_there(bed, keepers)
        if what == "node":
            bed.cluster.take_away(bed.node)
            bed.cluster.bring_back(bed.node)
            eventually(lambda: waiting(bed) == f"{one.name} sandbox", LIMIT, "its sandbox waits for an agent")
        with kubelet_still(bed):
            if what == "node":
                agent.start()
            else:
                os.kill(keeper_of(bed, one.name), signal.SIGKILL)
            kept = ("Parked", 2)
            eventually(lambda: in_journal(bed, f"default.{one.name}") == kept, LIMIT, "its layer is with its images")
            eventually(lambda: waiting(bed) == "", LIMIT, "its sandbox is made")
            eventually(lambda: not is_there(bed, keepers), LIMIT, "containerd has cleaned up after the keeper")
            still.enter_context(agent.still())
        eventually(lambda: not is_there(bed, upper), LIMIT, "the kubelet has removed the container before")
        made = f"{one.name} container"
        eventually(lambda: waiting(bed) == made, LIMIT, "the next one is made, and waits for the agent")
        still.close()
        eventually(lambda: one.restarts() >= 1 and one.ready(), LIMIT, "it is ready again")
        assert one.wait("Parked")["tier"] == "NVME"
        assert one.ask().born == born
        assert bed.kubectl("exec", one.name, "--", "/bin/cat", "/note").strip() == "kept"
        assert "StateLost" not in one.events()


def is_there(bed: ClusterBed, folder: str) -> bool:
    return bool(bed.node.run(["sh", "-c", 'test ! -d "$1" || echo yes', "sh", folder]))


def test_an_eviction_that_nobody_saw_keeps_the_state(bed: ClusterBed, agent: NodeAgent) -> None:
    """The agent is away while the kubelet ends the pod."""
    with instance(bed, "unseen-0") as one:
        before = one.ask()
        one.order("park")
        with agent.away():
            bed.kubectl("delete", "pod", "unseen-0", "--wait=false")
            bed.wait("pod/unseen-0", "delete")
        assert one.wait("Parked")["tier"] == "NVME"
        assert before.born
        assert "StateGivenUp" not in one.events()
        next_pod(bed, "unseen-0", 2)
        lost = eventually(lambda: _condition(one, "StateLost"), LIMIT, "its layer went with its container")
        assert lost["status"] == "True"
        one.patch({"startAnew": 1})
        assert one.serving().count == 1
        assert one.wait("Running").get("conditions", []) == []


def _condition(one: Instance, type_: str) -> dict[str, str] | None:
    return next((c for c in one.status.get("conditions") or [] if c["type"] == type_), None)


@pytest.mark.parametrize("on_loss", ["Hold", "Start"])
def test_a_state_that_is_damaged_is_said_and_waits(bed: ClusterBed, agent: NodeAgent, on_loss: str) -> None:
    name = f"damaged-{on_loss.lower()}-0"
    with instance(bed, name, onStateLost=on_loss) as one:
        before = one.ask()
        one.order("park")
        folder = f"/var/lib/kybernate/store/instances/default.{name}/1/images"
        bed.node.run([PYTHON, "-c", f"import glob; open(glob.glob('{folder}/pages-*.img')[0], 'r+b').write(b'x' * 99)"])
        caller = threading.Thread(target=_call, args=(one.ip,))
        caller.start()
        eventually(lambda: "StateLost" in one.events(), LIMIT, "it is said")
        if on_loss == "Hold":
            assert "tier" not in one.wait("StateLost")
            assert processes_of(name) == []
            one.patch({"startAnew": 1})
        after = eventually(one.ask, LIMIT, "it begins anew")
        assert after.born != before.born
        assert one.wait("Running").get("conditions", []) == []
        caller.join(LIMIT)


def _call(ip: str) -> None:
    """Whatever becomes of it."""
    with contextlib.suppress(OSError, ValueError):
        ask(ip, seconds=20)


def test_calls_while_the_agent_is_replaced_are_answered(bed: ClusterBed, agent: NodeAgent) -> None:
    """As a DaemonSet's rolling update: the old one is told to end, the new one starts."""
    with instance(bed, "rolling-0", suspendAfter="200ms", parkAfter="100ms") as one:
        ip, over = one.ip, threading.Event()
        answers: list[Answer] = []
        errors: list[BaseException] = []

        def caller() -> None:
            while not over.is_set():
                try:
                    answers.append(ask(ip, seconds=60))
                except BaseException as error:
                    errors.append(error)
                over.wait(0.5)

        thread = threading.Thread(target=caller)
        thread.start()
        try:
            for _ in range(3):
                agent.stop()
                agent.start()
        finally:
            over.set()
            thread.join()
        assert errors == []
        assert len({answer.born for answer in answers}) == 1
        remove(bed, "rolling-0")
