"""The agent dies by SIGKILL while it copies an instance; the next one carries the checkpoint out, its source as it was.

There is no controller: the test says whose turn it is. One application goes through all of it, so that its count and
its birth tell at the end of each moment whether it is still the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from agent_in_cluster import Instance, MortalAgent, eventually, install_crds, instance, processes_of
from checkpoint_bed import STORE
from cluster_bed import ClusterBed

SUSPENDED, PARKED = "suspend", "park"
MOMENTS = [
    ("", "after", "hold"),
    ("", "after", "freeze"),
    ("", "before", "undo"),
    ("", "before", "settle"),
    (SUSPENDED, "after", "dump"),
    (PARKED, "after", "link"),
]
STATES = {"": "Running", SUSPENDED: "Suspended", PARKED: "Parked"}


@pytest.fixture(scope="module")
def agent(cluster_bed: ClusterBed) -> Iterator[MortalAgent]:
    install_crds(cluster_bed)
    made = MortalAgent(cluster_bed)
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def one(cluster_bed: ClusterBed, agent: MortalAgent) -> Iterator[Instance]:
    with instance(cluster_bed, "copied-0") as made:
        yield made


@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: " ".join(moment).strip())
def test_in_the_midst_of_a_copy(
    cluster_bed: ClusterBed, agent: MortalAgent, one: Instance, moment: tuple[str, str, str]
) -> None:
    asleep, when, step = moment
    before = one.ask()
    one.wait("Running")
    if asleep:
        assert one.order(asleep)["outcome"] == "done"
        one.wait(STATES[asleep])
    woken = one.status.get("lastWake")
    agent.dies_at(when, "checkpoint", step)
    order(cluster_bed, one)
    try:
        agent.died()
        agent.start()
        status = eventually(lambda: over(cluster_bed), 120, "it is carried out")
        assert status["phase"] == "Ready", status
        said = cluster_bed.node.run(["ls", f"{STORE}/instances", f"{STORE}/staging"]).split()
        assert [word for word in said if "checkpoint" in word] == [status["manifest"].split("@")[0]]
        one.wait(STATES[asleep])
        if asleep:
            assert one.status.get("lastWake") == woken
        assert len(processes_of(one.name)) == (0 if asleep == PARKED else 1)
        after = one.ask()
        assert (after.count, after.born) == (before.count + 1, before.born)
        assert one.restarts() == 0
    finally:
        cluster_bed.delete("gck/copy")
    assert "checkpoint" not in cluster_bed.node.run(["ls", f"{STORE}/instances", f"{STORE}/staging"])


def order(bed: ClusterBed, one: Instance) -> None:
    """A GpuCheckpoint, as the controller hands it to the node."""
    notes = {"kybernate.io/source-pod": one.pod["metadata"]["uid"]}
    meta = {"name": "copy", "namespace": "default", "finalizers": ["kybernate.io/state"], "annotations": notes}
    kind = {"apiVersion": "kybernate.io/v1alpha1", "kind": "GpuCheckpoint", "metadata": meta}
    bed.apply({**kind, "spec": {"source": {"instance": one.name}}})
    status = {"status": {"phase": "Pending", "node": bed.node.name}}
    bed.kubectl("patch", "gck", "copy", "--subresource=status", "--type=merge", "-p", json.dumps(status))


def over(bed: ClusterBed) -> dict[str, str] | None:
    status = bed.get("gck", "copy")["status"]
    return status if status["phase"] in ("Ready", "Failed") else None
