"""A real Kubernetes cluster on one machine: etcd, API server, scheduler, controllers, and nodes with real kubelets.

A machine of it is a set of namespaces that hang on one process (`init`, `machine`). The control plane is one, each node
is one; a bridge in the control plane's network namespace connects them, and one cable leads to the host. So a node can
be taken away as if its power were cut, and what a killed run leaves is one process per machine, found by its folder.
"""

from kybernate.lab.cluster.cluster import Cluster
from kybernate.lab.cluster.control_plane import SHORT, Patience
from kybernate.lab.cluster.node import Node

__all__ = ["SHORT", "Cluster", "Node", "Patience"]
