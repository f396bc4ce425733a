"""The agent dies by SIGKILL at each step of what a cluster adds; the next one goes on, no state is lost or doubled."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from agent_in_cluster import (
    MortalAgent,
    eventually,
    evict,
    install_crds,
    instance,
    make_instance,
    next_pod,
    processes_of,
    remove,
)
from cluster_bed import ClusterBed
from test_agent_faults import keeper_of

GRACE = {"terminationGracePeriodSeconds": 60}
LIMIT = 120
PARK = ("stage", "hold", "dump", "commit", "end-processes")
EVICTION = [("suspend", "hold"), ("suspend", "freeze"), *(("park", step) for step in PARK), ("leave", "leave")]
MOMENTS = [(when, verb, step) for verb, step in EVICTION for when in ("before", "after")] + [
    ("before", verb, "settle") for verb in ("suspend", "park", "leave")
]


@pytest.fixture(scope="module")
def agent(cluster_bed: ClusterBed) -> Iterator[MortalAgent]:
    install_crds(cluster_bed)
    made = MortalAgent(cluster_bed)
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.mark.parametrize("moment", MOMENTS, ids="-".join)
def test_in_the_midst_of_an_eviction(cluster_bed: ClusterBed, agent: MortalAgent, moment: tuple[str, str, str]) -> None:
    name = f"killed-{'-'.join(moment)}-0"
    with instance(cluster_bed, name, pod_spec=GRACE) as one:
        before = one.ask()
        agent.dies_at(*moment)
        evict(cluster_bed, name, wait=False)
        agent.died()
        assert len(processes_of(name)) <= 1
        agent.start()
        cluster_bed.wait(f"pod/{name}", "delete", seconds=LIMIT)
        assert processes_of(name) == []
        next_pod(cluster_bed, name, 2, pod_spec=GRACE)
        after = one.serving()
        assert (after.count, after.born) == (before.count + 1, before.born)


@pytest.mark.parametrize("moment", [("before", "adopt"), ("after", "adopt"), ("before", "settle")], ids="-".join)
def test_while_it_takes_a_container_over(cluster_bed: ClusterBed, agent: MortalAgent, moment: tuple[str, str]) -> None:
    name = f"taken-{'-'.join(moment)}-0"
    agent.dies_at(moment[0], "adopt", moment[1])
    one = make_instance(cluster_bed, name)
    try:
        agent.died()
        eventually(lambda: len(processes_of(name)) == 1, LIMIT, "it runs without an agent")
        agent.start()
        assert one.serving().count == 1
        assert one.wait("Running")["podUID"] == one.pod["metadata"]["uid"]
        assert one.restarts() == 0
    finally:
        remove(cluster_bed, name)


@pytest.mark.parametrize("moment", [("before", "adopt"), ("after", "adopt"), ("before", "settle")], ids="-".join)
def test_while_it_takes_over_one_to_restore(
    cluster_bed: ClusterBed, agent: MortalAgent, moment: tuple[str, str]
) -> None:
    name = f"retaken-{'-'.join(moment)}-0"
    with instance(cluster_bed, name, pod_spec=GRACE) as one:
        before = one.ask()
        evict(cluster_bed, name)
        agent.dies_at(moment[0], "adopt", moment[1])
        next_pod(cluster_bed, name, 2, pod_spec=GRACE)
        agent.died()
        assert len(processes_of(name)) <= 1
        agent.start()
        after = one.serving()
        assert (after.count, after.born) == (before.count + 1, before.born)


@pytest.mark.parametrize("moment", [("before", "discard"), ("after", "discard"), ("before", "settle")], ids="-".join)
def test_while_what_has_ended_is_put_aside(
    cluster_bed: ClusterBed, agent: MortalAgent, moment: tuple[str, str]
) -> None:
    """The application was killed from outside: the kubelet's next container begins anew, and is the only one."""
    name = f"aside-{'-'.join(moment)}-0"
    with instance(cluster_bed, name) as one:
        before = one.ask()
        one.wait("Running")
        agent.dies_at(moment[0], "discard", moment[1])
        (pid,) = processes_of(name)
        os.kill(pid, signal.SIGKILL)
        agent.died()
        agent.start()
        eventually(lambda: one.restarts() == 1, LIMIT, "the kubelet has made another container")
        after = one.serving()
        assert (after.count, after.born != before.born) == (1, True)
        assert one.wait("Running")["tier"] == "-"
        assert len(processes_of(name)) == 1


@pytest.mark.parametrize("moment", [("before", "pack"), ("after", "pack"), ("before", "settle")], ids="-".join)
def test_while_a_layer_is_put_with_its_images(
    cluster_bed: ClusterBed, agent: MortalAgent, moment: tuple[str, str]
) -> None:
    name = f"packed-{'-'.join(moment)}-0"
    with instance(cluster_bed, name) as one:
        cluster_bed.kubectl("exec", name, "--", "/bin/sh", "-c", "echo kept > /note")
        before = one.ask()
        one.order("park")
        agent.dies_at(moment[0], "keep", moment[1])
        os.kill(keeper_of(cluster_bed, name), signal.SIGKILL)
        agent.died()
        assert processes_of(name) == []
        agent.start()
        eventually(lambda: one.restarts() == 1, LIMIT, "the kubelet has made another container")
        after = one.serving()
        assert (after.count, after.born) == (before.count + 1, before.born)
        assert cluster_bed.kubectl("exec", name, "--", "/bin/cat", "/note").strip() == "kept"
        assert one.wait("Running")["epoch"] == 2, "of images that have the layer"
        assert "LayerOutside" not in one.events()


@pytest.mark.parametrize("step", ["stop", "clean"])
def test_while_one_is_ended(cluster_bed: ClusterBed, agent: MortalAgent, step: str) -> None:
    name = f"ended-{step}-0"
    with instance(cluster_bed, name) as one:
        one.order("park")
        agent.dies_at("after", "end", step)
        cluster_bed.kubectl("delete", f"gi/{name}", f"pod/{name}", "--wait=false")
        agent.died()
        agent.start()
        cluster_bed.wait(f"gi/{name}", "delete", seconds=LIMIT)
        cluster_bed.wait(f"pod/{name}", "delete", seconds=LIMIT)
        found = cluster_bed.node.run(["ls", "/var/lib/kybernate/store/instances"]).split()
        assert f"default.{name}" not in found
