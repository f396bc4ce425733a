"""Which nodes a new pod does not go to, by what their agents say in their GpuNodes.

    condition Ready is False        nothing could be parked there (no CRIU that works, for example)
    the store has less than 1 GiB   what is parked would not fit
    no GpuNode                      nobody says anything: the scheduler decides, as the RuntimeClass lets it

The pod gets a required node affinity away from them, beside the template's own, and an annotation that names them. The
scheduler goes on choosing; `spec.nodeName` is its word alone. An affinity cannot be changed: a pod that finds no node
is made again when one that it avoids can take it. A pod whose instance's state lies on a node goes there in any case.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from kybernate.api import names
from kybernate.api.quantity import Quantity
from kybernate_controller.objects import GpuNode, Pod

LEAST_FREE_BYTES = 1 << 30
MOST = 64
"""So many nodes are avoided at most: an affinity has a limit somewhere, and where all are ill it does not help."""


def refusal(node: GpuNode) -> str:
    """Why the node can take no new instance; empty: it can, or nobody says."""
    ready = next((c for c in node.status.conditions if c.type == "Ready"), None)
    if ready is not None and ready.status == "False":
        return ready.reason or "NotReady"
    store = node.status.tiers.nvme if node.status.tiers else None
    if store is None or not store.free:
        return ""
    try:
        full = Quantity(store.free).whole < LEAST_FREE_BYTES
    except ValueError:
        return ""  # of another version of the agent
    return "StoreFull" if full else ""


def refuses(node: GpuNode) -> tuple[bool]:
    """For an index."""
    return (bool(refusal(node)),)


def avoided(refusing: Iterable[GpuNode]) -> dict[str, str]:
    """By name, why. In order, so that two looks say the same."""
    found = {node.metadata.name: why for node in refusing if (why := refusal(node))}
    return dict(sorted(found.items()))


def said(avoid: Mapping[str, str]) -> str:
    """For an event: some of them."""
    if not avoid:
        return ""
    some = [f"{name} ({why})" for name, why in list(avoid.items())[:3]]
    return ", not on " + ", ".join(some) + (f" and {len(avoid) - 3} more" if len(avoid) > 3 else "")


def avoided_by(pod: Pod) -> tuple[str, ...]:
    """The nodes that the pod avoids, as long as no node has it."""
    text = pod.metadata.annotations.get(names.AVOIDS, "")
    return tuple(text.split(",")) if text and not pod.spec.node_name else ()


def in_vain(pod: Pod, avoid: Mapping[str, str]) -> str:
    """Why a pod that finds no node is to be made again; empty where it is not."""
    able = [name for name in avoided_by(pod) if name not in avoid]
    return f"node {able[0]} can take it by now" if able else ""
