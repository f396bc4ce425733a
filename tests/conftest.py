"""Fixtures that tests of several rooms share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from node_bed import NodeBed, open_node_bed


@pytest.fixture(scope="session")
def node_bed() -> Iterator[NodeBed]:
    """One containerd for the session. Tests use it one after the other, with names and state folders of their own."""
    with open_node_bed() as bed:
        yield bed
