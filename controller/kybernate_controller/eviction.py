"""Where an instance's state lies, and what follows for its next pod.

    spec.nodeName                 what is known                           the next pod
    empty                         -                                       anywhere
    of a node that exists         -                                       only there: state may be there; a node that
                                                                          cannot be reached counts as well
    of a node that exists         the next pod is the instance by now,    anywhere: nodeName is cleared, and a pod that
                                  not scheduled, and the agent, having    cannot be scheduled is made again
                                  read that, says: Waiting, no tier
    of no Node object, or one     a tier, or StateLost                    none: the state is lost, which is said; with
    out of service                                                        onStateLost: Start anywhere, begun anew

A pod may be gone before the agent has said whether it could park, or that there is anything at all. So its successor is
bound to that node first, and becomes the instance (spec.podUID) at once. That is a new generation of the spec; what the
agent says of it (status.observedGeneration) it says with all that the last pod did behind it. Only then is "nothing is
kept" believed: the other way round state would be left behind silently.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kybernate_controller.objects import STATE_LOST, WAITING, Node
from kybernate_controller.replica import Replica


@dataclass(frozen=True)
class Whereabouts:
    """`node`: where the state lies, empty if there is none. `lost`: why it is lost."""

    node: str = ""
    lost: str = ""


NOWHERE = Whereabouts()


def whereabouts(replica: Replica, nodes: Mapping[str, Node]) -> Whereabouts:
    """Where the next pod must be, or why there must be none."""
    if not replica.node or _nothing_is_kept(replica):
        return NOWHERE
    why = unanswered(replica.node, nodes)
    if not why:
        return Whereabouts(node=replica.node)
    if not replica.tier and replica.state != STATE_LOST:
        return NOWHERE
    return Whereabouts(lost=f"its state lay on {why}")


def unanswered(name: str, nodes: Mapping[str, Node]) -> str:
    """A node whose agent will never answer, and why; empty where it may."""
    node = nodes.get(name)
    if node is None:
        return f"node {name}, which no longer exists"
    return f"node {name}, which is out of service" if node.out_of_service else ""


def _nothing_is_kept(replica: Replica) -> bool:
    """The agent has said so, after the last pod had ended and before the next one could begin."""
    pod, instance = replica.alive, replica.instance
    if pod is None or pod.spec.node_name or instance is None or instance.spec.pod_uid != pod.metadata.uid:
        return False
    heard = instance.status.observed_generation >= instance.metadata.generation
    return heard and replica.state == WAITING and not replica.tier


def node_trouble(name: str, nodes: Mapping[str, Node]) -> str:
    """Why a pod that must be on this node cannot get there; empty if it can."""
    node = nodes.get(name)
    if node is None:
        return f"node {name} no longer exists"
    if not node.ready:
        return f"node {name} does not answer; nothing is started elsewhere while the instance may run there"
    if node.spec.unschedulable:
        return f"node {name} is cordoned; uncordon it, or delete the GpuInstance to begin anew elsewhere"
    return ""
