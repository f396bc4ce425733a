"""A pod goes: evicted, its state stays for the next pod; deleted, the next one begins anew and that is said."""

from __future__ import annotations

import contextlib
import threading

import pytest
from agent_bed import ask
from agent_in_cluster import (
    NodeAgent,
    eventually,
    evict,
    instance,
    next_pod,
    processes_of,
    remove,
)
from cluster_bed import ClusterBed

GRACE = {"terminationGracePeriodSeconds": 60}


@pytest.mark.parametrize("asleep", ["awake", "suspend", "park"])
def test_an_evicted_one_goes_on_in_the_next_pod(cluster_bed: ClusterBed, agent: NodeAgent, asleep: str) -> None:
    name = f"evicted-{asleep}-0"
    with instance(cluster_bed, name, pod_spec=GRACE) as one:
        cluster_bed.kubectl("exec", name, "--", "/bin/sh", "-c", "echo kept > /note")
        before = one.ask()
        if asleep != "awake":
            one.order(asleep)
        evict(cluster_bed, name)
        assert processes_of(name) == []
        assert one.wait("Parked")["tier"] == "NVME"
        next_pod(cluster_bed, name, 2, pod_spec=GRACE)
        after = one.serving()
        assert (after.count, after.born) == (before.count + 1, before.born)
        assert cluster_bed.kubectl("exec", name, "--", "/bin/cat", "/note").strip() == "kept"
        status = one.wait("Running")
        assert status["podUID"] == one.pod["metadata"]["uid"]
        assert "StateGivenUp" not in one.events()


def test_an_evicted_one_that_was_awake_is_awake_again(cluster_bed: ClusterBed, agent: NodeAgent) -> None:
    with instance(cluster_bed, "batch-0", pod_spec=GRACE) as one:
        evict(cluster_bed, "batch-0")
        next_pod(cluster_bed, "batch-0", 2, pod_spec=GRACE)
        one.wait("Running")
        assert len(processes_of("batch-0")) == 1


def test_requests_under_way_do_not_hold_an_eviction_for_ever(cluster_bed: ClusterBed, agent: NodeAgent) -> None:
    with instance(cluster_bed, "busy-0", pod_spec=GRACE, drainTimeout="1s") as one:
        born, ip = one.ask().born, one.ip
        over = threading.Event()

        def callers() -> None:
            while not over.is_set():
                with contextlib.suppress(OSError, ValueError):
                    ask(ip, seconds=5)

        threads = [threading.Thread(target=callers) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            evict(cluster_bed, "busy-0")
        finally:
            over.set()
            for thread in threads:
                thread.join()
        assert one.wait("Parked")["epoch"] >= 1
        next_pod(cluster_bed, "busy-0", 2, pod_spec=GRACE)
        assert one.serving().born == born


@pytest.mark.parametrize("asleep", ["awake", "suspend", "park"])
def test_a_deleted_pod_is_followed_by_a_cold_start(cluster_bed: ClusterBed, agent: NodeAgent, asleep: str) -> None:
    name = f"deleted-{asleep}-0"
    with instance(cluster_bed, name) as one:
        born = one.ask().born
        if asleep != "awake":
            one.order(asleep)
        cluster_bed.delete(f"pod/{name}", seconds=30)
        one.wait("Waiting")
        assert processes_of(name) == []
        next_pod(cluster_bed, name, 2)
        after = one.serving()
        assert after.count == 1
        assert after.born != born
        eventually(lambda: "StateGivenUp" in one.events(), 20, "it is said")


def test_a_state_waits_for_a_pod_like_the_one_it_was_made_in(cluster_bed: ClusterBed, agent: NodeAgent) -> None:
    name = "other-0"
    with instance(cluster_bed, name, pod_spec=GRACE) as one:
        born = one.ask().born
        evict(cluster_bed, name)
        more = {
            "mounts": [{"name": "more", "mountPath": "/more"}],
            "volumes": [{"name": "more", "emptyDir": {}}],
        }
        next_pod(cluster_bed, name, 2, pod_spec={**GRACE, **more})
        lost = eventually(lambda: _condition(one.status, "StateLost"), 60, "it is said")
        assert lost["reason"] == "MountDiffers"
        assert processes_of(name) == []
        cluster_bed.delete(f"pod/{name}")
        next_pod(cluster_bed, name, 3, pod_spec=GRACE)
        assert one.serving().born == born


def _condition(status: dict[str, object], type_: str) -> dict[str, str] | None:
    conditions = status.get("conditions") or []
    assert isinstance(conditions, list)
    return next((c for c in conditions if c["type"] == type_), None)


@pytest.mark.parametrize("on_terminate", ["Wake", "Drop"])
def test_a_sleeper_that_is_deleted_is_woken_to_end_where_that_is_asked_for(
    cluster_bed: ClusterBed, agent: NodeAgent, on_terminate: str
) -> None:
    name = f"bye-{on_terminate.lower()}-0"
    folder = cluster_bed.cluster.folder / name
    folder.mkdir()
    words = "import atexit, runpy; atexit.register(lambda: open('/end/said', 'w').write('bye'))"
    command = ["/usr/bin/python3", "-u", "-c", f"{words}; runpy.run_path('/apps/counting.py')"]
    more = {
        **GRACE,
        "container": {"command": command},
        "mounts": [{"name": "end", "mountPath": "/end"}],
        "volumes": [{"name": "end", "hostPath": {"path": str(folder)}}],
    }
    with instance(cluster_bed, name, pod_spec=more, onTerminate=on_terminate) as one:
        one.order("park")
        cluster_bed.delete(f"pod/{name}", seconds=60)
        assert (folder / "said").exists() == (on_terminate == "Wake")
        one.wait("Waiting")


def test_scaled_away_it_ends_and_leaves_nothing(cluster_bed: ClusterBed, agent: NodeAgent) -> None:
    node = cluster_bed.node
    for asleep in ("awake", "suspend", "park"):
        name = f"scaled-{asleep}-0"
        with instance(cluster_bed, name) as one:
            if asleep != "awake":
                one.order(asleep)
            remove(cluster_bed, name)
            assert processes_of(name) == []
    assert node.run(["ls", "/var/lib/kybernate/store/instances"]).split() == []
    eventually(lambda: node.run(["ls", "/run/kybernate/keepers"]).split() == [], 20, "no keeper's folder is left")
    journal = "import sqlite3; print(sqlite3.connect('file:/var/lib/kybernate/journal.db?mode=ro', uri=True)"
    said = node.run(["python3", "-c", journal + ".execute('select id from instance').fetchall())"])
    assert said.strip() == "[]"
