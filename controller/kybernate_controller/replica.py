"""One ordinal of a workload: its pod, its GpuInstance, and what both together say.

    pod      none, ours, ending (its deletion was asked for), ended (phase Failed or Succeeded), a stranger's
    instance none, ours, leaving (its deletion was asked for), a stranger's

A status that another node's agent wrote says nothing about the instance any more: its state was given up when the
GpuInstance got another node.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from kybernate.api import names
from kybernate.api.gpuworkload import GpuWorkloadObject
from kybernate_controller.objects import AWAKE, NVME, RAM, STATE_LOST, GpuNode, Instance, Meta, Node, Pod, controller_of


@dataclass
class Findings:
    """What the controller has learned from answers and no watch tells; lost when it ends, and learned anew."""

    templates: dict[str, str] = field(default_factory=dict)
    """By hash, the API server's objection to a template; empty: it has none."""
    taken: dict[int, str] = field(default_factory=dict)
    """By ordinal, who has the name of its pod."""
    refused: dict[int, str] = field(default_factory=dict)
    """By ordinal, why no pod could be made now (a quota)."""
    unsized: dict[str, str] = field(default_factory=dict)
    """By pod uid, why its requests could not be changed."""
    young: frozenset[str] = frozenset()
    """Names of pods that were made a moment ago. One that has failed already would fail again."""


@dataclass
class Snapshot:
    """All that a plan is made of: the workload, and what carries its name. `ended`: uids whose deletion was asked for,
    which a cache may not show yet."""

    namespace: str
    name: str
    workload: GpuWorkloadObject | None
    pods: list[Pod]
    instances: list[Instance]
    nodes: Mapping[str, Node]
    findings: Findings = field(default_factory=Findings)
    ended: frozenset[str] = frozenset()
    refusing: list[GpuNode] = field(default_factory=list)
    """Nodes that can take no new instance."""


@dataclass
class Replica:
    """One ordinal."""

    ordinal: int
    name: str
    pod: Pod | None = None
    instance: Instance | None = None
    ending: bool = False
    """The pod's deletion was asked for."""
    leaving: bool = False
    """The instance's deletion was asked for."""
    taken: str = ""
    """Who has the name, if it is not us."""
    orphan: bool = False
    """The pod has our labels and no owner."""
    cut_off: bool = False
    """The pod's node does not answer: nor does the pod, whatever was last said of it."""

    @property
    def exists(self) -> bool:
        """It counts as one of the workload's instances."""
        if self.leaving:
            return False
        return self.instance is not None or (self.pod is not None and not self.ending)

    @property
    def alive(self) -> Pod | None:
        """The pod, if it is one that may run."""
        return self.pod if self.pod is not None and not self.ending and not self.pod.terminal else None

    @property
    def node(self) -> str:
        """Where its pod runs or ran last."""
        return self.instance.spec.node_name if self.instance else ""

    @property
    def told(self) -> bool:
        """The agent's report is about the node on which the instance is."""
        return self.instance is not None and self.instance.status.node_name in ("", self.instance.spec.node_name)

    @property
    def tier(self) -> str:
        return self.instance.status.tier if self.instance is not None and self.told else ""

    @property
    def state(self) -> str:
        return self.instance.status.state if self.instance is not None and self.told else ""

    @property
    def asleep(self) -> bool:
        return self.tier in (RAM, NVME)

    @property
    def awake(self) -> bool:
        """Its processes run, in the pod that we know."""
        if self.instance is None or self.alive is None or self.tier != AWAKE:
            return False
        return self.instance.status.pod_uid in ("", self.alive.metadata.uid)

    @property
    def load(self) -> str:
        """How busy it is, of `wake.targetInFlight`; empty where nobody says."""
        return self.instance.status.load if self.instance is not None and self.awake and self.told else ""

    @property
    def held(self) -> bool:
        """Its agent has been told to keep it awake."""
        return self.instance is not None and self.instance.spec.policy.keep_awake

    @property
    def available(self) -> bool:
        """Its pod answers: awake, or asleep and to be woken by a call."""
        pod = self.alive
        if pod is None or self.cut_off:
            return False
        return pod.holds("ContainersReady") and self.state != STATE_LOST


def replicas_of(snapshot: Snapshot) -> dict[int, Replica]:
    """The ordinals of which anything exists."""
    workload = snapshot.workload
    if workload is None:
        return {}
    uid = workload.metadata.uid
    found: dict[int, Replica] = {}
    for pod in snapshot.pods:
        if (replica := _at(found, snapshot.name, pod.metadata.name)) is None:
            continue
        owner = controller_of(pod.metadata)
        if (owner is not None and owner.uid != uid) or pod.metadata.labels.get(names.WORKLOAD) != snapshot.name:
            replica.taken = f"a pod of the {owner.kind} {owner.name}" if owner else "a pod that is nobody's"
            continue
        replica.pod, replica.orphan = pod, owner is None
        replica.ending = _asked(pod.metadata, snapshot.ended)
        replica.cut_off = _cut_off(pod, snapshot.nodes)
    for instance in snapshot.instances:
        if (replica := _at(found, snapshot.name, instance.metadata.name)) is None:
            continue
        owner = controller_of(instance.metadata)
        if (owner is not None and owner.uid != uid) or instance.spec.workload != snapshot.name:
            whose = f"{owner.kind} {owner.name}" if owner else "pod of nobody's workload"
            replica.taken = replica.taken or f"the GpuInstance of a {whose}"
            continue
        replica.instance = instance
        replica.leaving = _asked(instance.metadata, snapshot.ended)
    for ordinal, who in snapshot.findings.taken.items():
        replica = found.setdefault(ordinal, Replica(ordinal, f"{snapshot.name}-{ordinal}"))
        if replica.pod is None:
            replica.taken = replica.taken or who
    return found


def ordinal_of(workload: str, name: str) -> int | None:
    """2 for chat-2 of chat; None where the name is not one that we give."""
    number = name.removeprefix(f"{workload}-")
    if number == name or not (number.isascii() and number.isdigit()) or (number != "0" and number[0] == "0"):
        return None
    return int(number)


def in_order(replicas: Iterable[Replica]) -> list[Replica]:
    return sorted(replicas, key=lambda replica: replica.ordinal)


def _at(found: dict[int, Replica], workload: str, name: str) -> Replica | None:
    ordinal = ordinal_of(workload, name)
    return None if ordinal is None else found.setdefault(ordinal, Replica(ordinal, name))


def _cut_off(pod: Pod, nodes: Mapping[str, Node]) -> bool:
    node = nodes.get(pod.spec.node_name)
    return bool(pod.spec.node_name) and (node is None or not node.ready)


def _asked(metadata: Meta, ended: frozenset[str]) -> bool:
    return metadata.deletion_timestamp is not None or metadata.uid in ended
