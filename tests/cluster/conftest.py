"""What tests with an API server or a whole cluster share, and what the clusters looked like when a test failed."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

import pytest
from cluster_bed import ClusterBed, open_beds, open_shared_bed

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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Generator[None, Any, Any]:
    """While the test's clusters are still up: their state goes into its report."""
    report = yield
    if report.failed:
        for bed in open_beds():
            report.sections.append((f"cluster {bed.cluster.name}", bed.state()))
    return report
