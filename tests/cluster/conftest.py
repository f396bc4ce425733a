"""What tests with an API server or a whole cluster share, and what the clusters looked like when a test failed."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any, Protocol, runtime_checkable

import pytest
from agent_in_cluster import NodeAgent, agent_on
from cluster_bed import ClusterBed, open_beds, open_shared_bed
from product_bed import Product, open_product

from kybernate.lab.cluster.apiserver import ApiServerBed, open_apiserver_bed


@pytest.fixture(scope="session")
def apiserver() -> Iterator[ApiServerBed]:
    """An API server alone. Tests work in namespaces of their own, or reset it first."""
    with open_apiserver_bed() as bed:
        yield bed


@pytest.fixture(scope="session")
def cluster_bed() -> Iterator[ClusterBed]:
    """One node with the runtime, and its RuntimeClass. Tests leave it as they found it."""
    with open_shared_bed() as bed:
        yield bed


@pytest.fixture(scope="module")
def agent(cluster_bed: ClusterBed) -> Iterator[NodeAgent]:
    """The agent alone on that node, for one file of tests."""
    with agent_on(cluster_bed) as made:
        yield made


@pytest.fixture(scope="module")
def product(cluster_bed: ClusterBed) -> Iterator[Product]:
    """Controller and agent on that cluster, for one file of tests."""
    with open_product(cluster_bed) as made:
        yield made


@runtime_checkable
class Tells(Protocol):
    """A fixture that knows why a test may have failed: an agent by its log."""

    def tell(self) -> str: ...


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Generator[None, Any, Any]:
    """While the test's clusters are still up: their state goes into its report, and the logs of its programs."""
    report = yield
    if report.failed:
        told = {name: it.tell() for name, it in getattr(item, "funcargs", {}).items() if isinstance(it, Tells)}
        report.sections.extend(told.items())
        for bed in open_beds():
            report.sections.append((f"cluster {bed.cluster.name}", bed.state()))
    return report
