"""A GpuCheckpoint copies an instance, awake or asleep, which goes on; a GpuRestoreJob has a new pod go on from it."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from agent_in_cluster import Instance, app_pod, eventually, instance, make_instance, processes_of
from checkpoint_bed import DATA, KEEPING, Bed, open_bed
from cluster_bed import ClusterBed

from kybernate.lab.process import ProgramError


@pytest.fixture(scope="module")
def bed(cluster_bed: ClusterBed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    with open_bed(cluster_bed, tmp_path_factory.mktemp("checkpoints")) as made:
        yield made


@pytest.fixture(autouse=True)
def forgotten(bed: Bed) -> Iterator[None]:
    yield
    bed.forget()


def counted(answer: dict[str, Any], count: int) -> None:
    """In memory and in every place that a copy has to bring along."""
    numbers = [str(number) for number in range(1, count + 1)]
    assert answer["count"] == answer["page"] == count
    assert answer["layer"] == answer["data"] == answer["shm"] == numbers
    assert (answer["link"], answer["large"], answer["removed"]) == ("not open", 1 << 20, True)


@pytest.mark.parametrize("asleep", ["", "suspend", "park"])
def test_a_copy_goes_on_in_a_new_pod_and_its_source_as_it_was(bed: Bed, asleep: str) -> None:
    name = f"{asleep or 'awake'}-0"
    one = make_instance(bed.cluster, name, pod_spec=KEEPING)
    pods = [f"{name}-b", f"{name}-c"] if not asleep else [f"{name}-b"]
    try:
        bed.cluster.wait(f"pod/{name}")
        counted(eventually(lambda: bed.kept(name), 60, "it serves"), 1)
        state = "Running"
        if asleep:
            state = {"suspend": "Suspended", "park": "Parked"}[asleep]
            assert one.order(asleep)["outcome"] == "done"
            one.wait(state)
        status = bed.copied(f"{name}-copy")
        assert one.status["state"] == state
        assert "lastWake" not in one.status
        assert status["node"] == bed.cluster.node.name
        assert status["manifest"].startswith("checkpoint-")
        assert status["sizeBytes"] > 4 << 20
        assert (status["frozenSeconds"] > 0) == (not asleep)
        assert status["imageDigest"].startswith("sha256:")
        assert (status["criu"][:2], status["architecture"]) == ("4.", "amd64")
        for pod in pods:
            told = bed.restored(f"{name}-copy", pod)
            assert (told["pod"], told["node"]) == (pod, bed.cluster.node.name)
            assert told["seconds"]["restoring"] > 0
            answer = bed.kept(pod)
            counted(answer, 2)
            assert answer["host"] == pod
        assert one.status["state"] == state
        for pod in (*pods, name):  # each goes its own way
            counted(bed.kept(pod), 2 if pod == name else 3)
        made = bed.cluster.get("pod", pods[0])["metadata"]
        assert "ownerReferences" not in made
        assert made["labels"]["kybernate.io/restore-job"] == f"to-{pods[0]}"
        if asleep == "park":
            _sleeps_and_ends(bed, pods[0])
        assert bed.copies()
        bed.forget()
        assert bed.copies() == []
    finally:
        bed.gone(*pods, name)


def _sleeps_and_ends(bed: Bed, pod: str) -> None:
    """A restored one is an instance like any other, and goes with its pod."""
    restored = Instance(bed.cluster, pod)
    assert restored.order("park")["outcome"] == "done"
    counted(bed.kept(pod), 4)
    bed.cluster.delete(f"pod/{pod}")
    bed.cluster.wait(f"gi/{pod}", "delete")


def test_of_an_awake_one_no_request_is_lost(bed: Bed) -> None:
    with instance(bed.cluster, "busy-0", pod_spec=DATA) as one:
        over, errors, answers = threading.Event(), [], []

        def calls() -> None:
            """Over one connection, which has to live."""
            connection = http.client.HTTPConnection(one.ip, 8080, timeout=60)
            try:
                while not over.is_set():
                    connection.request("GET", "/")
                    answers.append(int(connection.getresponse().read().split()[0]))
            except (OSError, http.client.HTTPException) as error:
                errors.append(error)
            finally:
                connection.close()

        before = one.ask()
        threads = [threading.Thread(target=calls) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            said = bed.kybernate("checkpoint", "busy-0", "--as", "busy-0-copy", "--wait")
        finally:
            over.set()
            for thread in threads:
                thread.join()
        assert errors == []
        after = one.ask()
        assert sorted(answers) == list(range(before.count + 1, after.count))
        assert after.born == before.born
        assert one.restarts() == 0
        status = bed.phase("gck", "busy-0-copy", "Ready")
        assert status["frozenSeconds"] > 0
        assert f"Ready on n1, {status['sizeBytes']} bytes" in said
        try:
            assert "busy-0-b: runs on n1" in bed.kybernate("restore", "busy-0-copy", "--pod", "busy-0-b", "--wait")
            restored = Instance(bed.cluster, "busy-0-b").serving()
            assert restored.born == before.born
            assert before.count < restored.count <= after.count
            with pytest.raises(ProgramError, match="there is no GpuCheckpoint not-there"):
                bed.kybernate("restore", "not-there", "--pod", "busy-0-c", "--wait")
        finally:
            bed.gone("busy-0-b")


def test_one_that_is_not_left_running_is_gone_and_can_come_back(bed: Bed) -> None:
    one = make_instance(bed.cluster, "moved-0")
    try:
        before = one.serving()
        bed.checkpoint("moved-0-copy", source={"pod": "moved-0"}, leaveRunning=False)
        bed.phase("gck", "moved-0-copy", "Ready")
        bed.cluster.wait("pod/moved-0", "delete")
        bed.cluster.wait("gck/moved-0-copy", "SourceEnded")
        assert processes_of("moved-0") == []
        bed.restored("moved-0-copy", "moved-1")
        after = Instance(bed.cluster, "moved-1").serving()
        assert (after.count, after.born) == (before.count + 1, before.born)
    finally:
        bed.gone("moved-1", "moved-0")


def test_slips_are_told_and_touch_nobody(bed: Bed) -> None:
    with instance(bed.cluster, "slip-0") as one:
        born, uid = one.ask().born, one.pod["metadata"]["uid"]
        bed.checkpoint("nobody", source={"instance": "nobody-0"})
        bed.checkpoint("no-pod", source={"pod": "nobody-0"})
        bed.restore("early", "not-there", "slip-1")
        for kind, name, says in (
            ("gck", "nobody", "there is no GpuInstance nobody-0"),
            ("gck", "no-pod", "there is no pod nobody-0"),
            ("grj", "early", "there is no GpuCheckpoint not-there"),
        ):
            status = bed.phase(kind, name, "Failed")
            assert says in (status.get("message") or status["conditions"][0]["message"])
        bed.restore("of-failed", "nobody", "slip-1")
        assert "nobody is Failed" in bed.phase("grj", "of-failed", "Failed")["message"]
        bed.copied("slip-0-copy")
        bed.restore("taken", "slip-0-copy", "slip-0")
        assert "slip-0 exists already" in bed.phase("grj", "taken", "Failed")["message"]
        assert one.pod["metadata"]["uid"] == uid
        assert one.ask().born == born
        bed.checkpoint("short", source={"instance": "slip-0"}, expiresAfter="1s")
        bed.phase("gck", "short", "Expired")
        assert bed.copies() == [bed.phase("gck", "slip-0-copy", "Ready")["manifest"].split("@")[0]]
        bed.restore("late", "short", "slip-1")
        assert "is Expired" in bed.phase("grj", "late", "Failed")["message"]


def test_a_dump_that_comes_to_nothing_leaves_it_as_it_was(bed: Bed) -> None:
    with instance(bed.cluster, "dumped-0") as one:
        before = one.ask()
        over = threading.Event()

        def killing() -> None:
            """CRIU, again and again, in the node's own pid namespace."""
            while not over.is_set():
                bed.cluster.node.run(["sh", "-c", "for i in $(seq 200); do pkill -KILL -x criu; done; true"])

        killer = threading.Thread(target=killing)
        killer.start()
        try:
            bed.checkpoint("dumped-0-copy")
            status = bed.phase("gck", "dumped-0-copy", "Ready", "Failed")
        finally:
            over.set()
            killer.join()
        assert status["phase"] == "Failed", status
        assert status["conditions"][0]["message"]
        # On a new connection: one that a killed CRIU had in hand may be lost with it.
        after = one.ask()
        assert (after.count, after.born) == (before.count + 1, before.born)
        assert one.status["state"] == "Running"
        assert bed.copies() == []
        bed.copied("again", source={"instance": "dumped-0"})
        assert one.ask().count == after.count + 1


def test_an_agent_that_is_told_to_end_in_the_midst_leaves_it_awake(bed: Bed) -> None:
    made = app_pod("upgraded-0")["spec"]["containers"][0]["env"]
    large = {"container": {"env": [*made, {"name": "MIB", "value": "128"}]}}
    with instance(bed.cluster, "upgraded-0", pod_spec=large) as one:
        before = one.ask()
        bed.checkpoint("upgraded-0-copy")
        eventually(bed.copies, 60, "it has begun")
        bed.agent.stop()
        bed.agent.start()
        assert bed.phase("gck", "upgraded-0-copy", "Ready", "Failed")["phase"] == "Ready"
        one.wait("Running")
        after = one.ask()
        assert (after.count, after.born) == (before.count + 1, before.born)
        assert len(bed.copies()) == 1


def test_one_that_cannot_be_copied_goes_on_and_holds_up_nobody(bed: Bed) -> None:
    refused = {"container": {"command": ["/usr/bin/python3", "-u", "/apps/refused.py"]}}
    crashing = {"container": {"command": ["/usr/bin/python3", "-c", "raise SystemExit(1)"]}}
    crashes = make_instance(bed.cluster, "crashes-0", pod_spec=crashing)
    with instance(bed.cluster, "refused-0", pod_spec=refused) as one:
        try:
            before = one.ask()
            bed.checkpoint("crashes-0-copy", source={"pod": "crashes-0"})
            bed.checkpoint("refused-0-copy")
            status = bed.phase("gck", "refused-0-copy", "Ready", "Failed")
            condition = status["conditions"][0]
            assert (status["phase"], condition["status"]) == ("Failed", "False")
            assert condition["reason"]
            assert "message queue" in condition["message"]
            after = one.ask()
            assert (after.count, after.born) == (before.count + 1, before.born)
            assert one.status["state"] == "Running"
            assert bed.copies() == []
            assert bed.cluster.get("gck", "crashes-0-copy")["status"]["phase"] != "Ready"
        finally:
            bed.gone(crashes.name)
    assert bed.phase("gck", "crashes-0-copy", "Failed")["conditions"][0]["message"]


def test_what_is_gone_is_not_restored_and_what_is_to_stay_stays(bed: Bed) -> None:
    with instance(bed.cluster, "bytes-0"):
        status = bed.copied("bytes-0-copy", deletionPolicy="Retain")
        bed.cluster.node.run(["rm", "-r", f"/var/lib/kybernate/store/instances/{status['manifest'].split('@')[0]}"])
        bed.restore("lost", "bytes-0-copy", "bytes-1")
        told = bed.phase("grj", "lost", "Failed")
        assert "are not on this node" in told["message"]
        bed.cluster.wait("pod/bytes-1", "delete")
        assert processes_of("bytes-0") != []
        kept = bed.copied("kept", source={"instance": "bytes-0"}, deletionPolicy="Retain")["manifest"].split("@")[0]
        bed.cluster.delete("gck/kept")
        assert bed.copies() == [kept]
        bed.cluster.node.run(["rm", "-r", f"/var/lib/kybernate/store/instances/{kept}"])
