"""One of two nodes goes: drained, without power, without a cable. A state waits for its node, and has no copy."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from cluster_bed import ClusterBed, open_cluster, pod
from product_bed import LIMIT, HesitantAgent, One, Product, Workload, eventually, open_product, processes_of

from kybernate.lab.cluster import Node
from kybernate.lab.cluster.control_plane import SHORT


class Second(ClusterBed):
    """The same cluster, seen from its second node."""

    @property
    def node(self) -> Node:
        return self.cluster.nodes[1]


@pytest.fixture(scope="module")
def bed() -> Iterator[ClusterBed]:
    with open_cluster(nodes=2, runtime=True, patience=SHORT) as made:
        yield made


@pytest.fixture(scope="module")
def product(bed: ClusterBed) -> Iterator[Product]:
    with open_product(bed) as made:
        second = HesitantAgent(Second(bed.cluster))
        try:
            second.start()
            yield made
        finally:
            second.stop()


@contextlib.contextmanager
def on_the_first(product: Product, name: str) -> Iterator[tuple[Workload, One, One]]:
    """Two instances on the first node, the first parked and the second awake. Nothing but their states binds them."""
    bed = product.bed
    bed.kubectl("cordon", bed.cluster.nodes[1].name)
    try:
        with product.workload(name, replicas=2, pod={"terminationGracePeriodSeconds": 30}) as workload:
            bed.kubectl("uncordon", bed.cluster.nodes[1].name)
            parked, awake = workload[0], workload[1]
            parked.serving()
            awake.serving()
            parked.order("park")
            yield workload, parked, awake
    finally:
        bed.kubectl("uncordon", bed.cluster.nodes[1].name)


def conditions(workload: Workload) -> dict[str, str]:
    """Reasons of those that are true."""
    found = workload.status.get("conditions", [])
    return {one["type"]: one["reason"] for one in found if one["status"] == "True"}


def places(workload: Workload) -> set[str]:
    """Nodes on which a pod of it is."""
    pods = workload.bed.items("pods", "-l", f"kybernate.io/workload={workload.name}")
    return {pod["spec"].get("nodeName", "") for pod in pods} - {""}


@contextlib.contextmanager
def witness(bed: ClusterBed) -> Iterator[None]:
    """A pod of nobody's on the first node: once that is given up the node was silent for long enough."""
    bed.apply(pod("witness", nodeSelector={"kubernetes.io/hostname": bed.node.name}))
    try:
        bed.wait("pod/witness")
        yield
    finally:
        bed.delete("pod/witness")


def given_up(bed: ClusterBed) -> bool:
    return "deletionTimestamp" in bed.get("pod", "witness")["metadata"]


def await_silence(workload: Workload) -> None:
    """The control plane has given the node up, and the workload says so."""
    eventually(lambda: given_up(workload.bed), LIMIT, "the node's pods are given up")
    eventually(lambda: conditions(workload).get("Degraded") == "NodeUnreachable", LIMIT, "it is said")


def test_drained_they_wait_for_their_node(product: Product) -> None:
    bed, node = product.bed, product.bed.node
    with on_the_first(product, "drained") as (workload, parked, awake):
        before = awake.ask()
        bed.kubectl("drain", node.name, "--delete-emptydir-data", "--force", "--ignore-daemonsets", "--timeout=60s")
        assert processes_of("drained") == []
        eventually(lambda: conditions(workload).get("Degraded") == "WaitsForNode", LIMIT, "it is said")
        assert places(workload) == set()
        assert {one.status["tier"] for one in (parked, awake)} == {"NVME"}
        bed.kubectl("uncordon", node.name)
        workload.ready()
        assert places(workload) == {node.name}
        assert parked.ask().count == 2
        assert awake.ask().born == before.born


def test_without_power_nothing_is_started_elsewhere(product: Product) -> None:
    """It is away for longer than other pods wait. What was parked is there again; what ran begins anew in its pod."""
    bed, node = product.bed, product.bed.node
    with on_the_first(product, "dark") as (workload, parked, awake), witness(bed):
        uids, born = [parked.uid, awake.uid], awake.ask().born
        old = {one: one.container() for one in (parked, awake)}
        bed.cluster.take_away(node)
        try:
            await_silence(workload)
            assert conditions(workload).get("Ready") is None
            assert places(workload) == {node.name}
            assert processes_of("dark") == []
        finally:
            bed.cluster.bring_back(node)
            product.agent.start()
        for one, before in old.items():
            one.restarted(before)
        workload.ready()
        assert [parked.uid, awake.uid] == uids
        assert parked.status["state"] == "Parked"
        assert parked.ask().count == 2
        assert awake.serving().born != born


def test_without_a_cable_there_is_no_second_copy(product: Product) -> None:
    """The node goes on alone, and is found as it was."""
    bed, node = product.bed, product.bed.node
    with on_the_first(product, "cut") as (workload, parked, awake), witness(bed):
        uids, before = [parked.uid, awake.uid], awake.ask()
        bed.cluster.cut(node)
        try:
            await_silence(workload)
            assert places(workload) == {node.name}
            assert len(processes_of("cut")) == 1
        finally:
            bed.cluster.mend(node)
        workload.ready()
        after = awake.serving()
        assert (after.count, after.born) == (before.count + 1, before.born)
        assert parked.ask().count == 2
        assert [parked.uid, awake.uid] == uids
        assert len(processes_of("cut")) == 2
