"""The shared cluster, and what it looked like when a test failed."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest
from cluster_bed import cluster_bed, open_beds

__all__ = ["cluster_bed"]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Generator[None, Any, Any]:
    """While the test's clusters are still up: their state goes into its report."""
    report = yield
    if report.failed:
        for bed in open_beds():
            report.sections.append((f"cluster {bed.cluster.name}", bed.state()))
    return report
