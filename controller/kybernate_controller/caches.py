"""What the controller holds of the cluster: an Informer for each kind that it looks at, and the methods it uses."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

from kybernate.api.gpuworkload import GpuWorkloadObject
from kybernate_controller.objects import GpuNode, Instance, Node, Pod

BY_WORKLOAD = "workload"
"""Index of pods and instances: the Key of their GpuWorkload, with an empty name for those of annotated pods."""
BY_NODE = "node"
"""Index of instances: the name of the node on which their state lies."""

BY_AVOIDED = "avoided"
"""Index of pods: the names of the nodes that they avoid."""
REFUSES = "refuses"
"""Index of GpuNodes: whether the node can take no new instance."""

T = TypeVar("T")


class Informed(Protocol[T]):
    """An Informer."""

    def get(self, namespace: str, name: str) -> T | None: ...
    def items(self) -> Collection[T]: ...
    def by_index(self, index: str, key: Hashable) -> list[T]: ...
    def absorb(self, object: T) -> None: ...


@dataclass
class Caches:
    """All five."""

    workloads: Informed[GpuWorkloadObject]
    instances: Informed[Instance]
    pods: Informed[Pod]
    nodes: Informed[Node]
    gpu_nodes: Informed[GpuNode]


class NodesByName(Mapping[str, Node]):
    """The cache of nodes as a plan looks at it: one at a time, without a copy of all."""

    def __init__(self, nodes: Informed[Node]) -> None:
        self._nodes = nodes

    def __getitem__(self, name: str) -> Node:
        if (node := self._nodes.get("", name)) is None:
            raise KeyError(name)
        return node

    def __iter__(self) -> Iterator[str]:
        return (node.metadata.name for node in self._nodes.items())

    def __len__(self) -> int:
        return len(self._nodes.items())
