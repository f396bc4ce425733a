"""A GpuInstance's pod sleeps and wakes under a real kubelet, which sees it Running and Ready throughout."""

from __future__ import annotations

import re

import pytest
from agent_in_cluster import (
    Instance,
    NodeAgent,
    app_pod,
    eventually,
    instance,
    name_pod,
    processes_of,
    remove,
)
from cluster_bed import ClusterBed


def test_an_idle_instance_sinks_to_disk_and_a_call_brings_it_back(cluster_bed: ClusterBed, agent: NodeAgent) -> None:
    with instance(cluster_bed, "idle-0", suspendAfter="2s", parkAfter="500ms") as one:
        before = one.ask()
        parked = one.wait("Parked")
        assert (parked["tier"], parked["epoch"], parked["podUID"]) == ("NVME", 1, one.pod["metadata"]["uid"])
        assert parked["storedBytes"] > 4 << 20
        assert processes_of("idle-0") == []
        assert one.ready()
        after = one.ask()
        assert (after.count, after.born) == (before.count + 1, before.born)
        woken = eventually(lambda: (s := one.status).get("lastWake") and s, 20, "it says how it woke")
        assert woken["lastWake"]["from"] == "NVME"
        assert one.restarts() == 0
        told = {"Started", "Suspended", "Parked", "Resumed"}
        eventually(lambda: told <= set(one.events()), 20, "people are told")


def test_orders_are_carried_out_once(cluster_bed: ClusterBed, agent: NodeAgent) -> None:
    with instance(cluster_bed, "ordered-0") as one:
        born = one.ask().born
        assert one.order("park", "first")["outcome"] == "done"
        one.wait("Parked")
        assert one.ask().born == born
        one.wait("Running")
        with agent.away():
            pass
        one.patch({"policy": {"drainTimeout": "31s"}})
        eventually(lambda: one.status["observedGeneration"] == one.object["metadata"]["generation"], 20, "it is seen")
        assert one.status["state"] == "Running"
        wrong = one.order("archive")
        assert (wrong["outcome"], wrong["verb"]) == ("refused", "archive")


def test_ordered_to_sleep_calls_are_refused_until_it_may_wake(cluster_bed: ClusterBed, agent: NodeAgent) -> None:
    with instance(cluster_bed, "down-0") as one:
        born = one.ask().born
        for state in ("Suspended", "Parked"):
            one.patch({"state": state})
            one.wait(state)
            for _ in range(2):
                with pytest.raises(ConnectionError):
                    one.ask(seconds=20)
            refused = one.order("resume")
            assert refused["outcome"] == "refused"
            assert state in refused["message"]
        one.patch({"state": "Running"})
        one.wait("Running")
        assert one.ask().born == born


def test_ordered_to_run_it_does_not_sleep(cluster_bed: ClusterBed, agent: NodeAgent) -> None:
    with instance(cluster_bed, "up-0", suspendAfter="1s") as one:
        one.wait("Suspended")
        one.patch({"policy": {"keepAwake": True}})
        one.wait("Running")
        assert "next" not in one.status
        refused = one.order("park")
        assert (refused["outcome"], "kept awake" in refused["message"]) == ("refused", True)
        one.patch({"policy": {"keepAwake": False}})
        one.wait("Suspended")


def test_exec_wakes_a_parked_one(cluster_bed: ClusterBed, agent: NodeAgent) -> None:
    with instance(cluster_bed, "exec-0") as one:
        born = one.ask().born
        one.order("park")
        assert cluster_bed.kubectl("exec", one.name, "--", "/bin/echo", "hello").strip() == "hello"
        assert one.ask().born == born


def test_a_pod_that_nobody_named_is_not_started(cluster_bed: ClusterBed, agent: NodeAgent) -> None:
    stranger = app_pod("stranger-0")
    stranger["metadata"]["labels"]["kybernate.io/instance"] = "stranger-0"
    cluster_bed.apply(stranger)
    try:
        eventually(lambda: "pod default/stranger-0: not known yet" in agent.tail(), 30, "its container waits")
        one = Instance(cluster_bed, "stranger-0")
        assert processes_of("stranger-0") == []
        name_pod(cluster_bed, "stranger-0", 1)
        assert one.serving().count == 1
    finally:
        remove(cluster_bed, "stranger-0")


def test_what_it_says_to_prometheus_and_to_probes(cluster_bed: ClusterBed, agent: NodeAgent) -> None:
    assert agent.said("/healthz") == "ok\n"
    with instance(cluster_bed, "metric-0") as one:
        one.order("suspend")
        one.ask()
        one.wait("Running")
        said = agent.said("/metrics")
        assert 'kybernate_wake_seconds_count{tier="RAM"}' in said
        assert 'kybernate_instances{tier="-"} 1' in said


def test_the_node_tells_what_it_can(cluster_bed: ClusterBed, agent: NodeAgent) -> None:
    node = eventually(lambda: cluster_bed.get("gn", cluster_bed.node.name).get("status"), 20, "it is written")
    assert node["capabilities"]["criu"].startswith("4.")
    assert [c["status"] for c in node["conditions"] if c["type"] == "Ready"] == ["True"]
    disk = node["tiers"]["NVME"]
    assert all(re.fullmatch(r"(\d\.\d|\d+)[KMGT]i", disk[size]) for size in ("capacity", "used", "free")), disk
    header, row = (re.split(r" {2,}", line.strip()) for line in cluster_bed.kubectl("get", "gn").splitlines())
    shown = dict(zip(header, row, strict=True))
    assert (shown["NVME-USED"], shown["NVME-CAPACITY"]) == (disk["used"], disk["capacity"])
