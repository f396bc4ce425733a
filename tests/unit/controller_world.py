"""A cluster for the controller's simulation: nodes, scheduler, kubelets, agents, a person; the dice say who acts.

What is truly on the nodes (`truth`) is kept apart from what the API server was told, so that a state that is left
behind, begun anew or given up unasked is seen: `wrongs` collects whatever must never happen.
"""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass, field
from typing import Any

from controller_api import WORKLOAD, Api, Brain, Dict, image_of

from kybernate.api import names
from kybernate.kube.resource import GPU_INSTANCES, GPU_NODES, GPU_WORKLOADS, NODES, PODS


@dataclass
class Held:
    """What is truly of an instance on a node. `uid`: of its GpuInstance."""

    uid: str
    pod_uid: str
    tier: str
    load: str = "Some"
    """While it is awake, of `wake.targetInFlight`."""


@dataclass
class World:
    """Everything, and the dice."""

    seed: int
    api: Api = field(default_factory=Api)
    truth: dict[tuple[str, str], Held] = field(default_factory=dict)
    """By node and instance name."""
    wrongs: list[str] = field(default_factory=list)
    history: list[str] = field(default_factory=list)
    nodes: tuple[str, ...] = ("n1", "n2", "n3")

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)
        for name in self.nodes:
            self.add_node(name)

    @property
    def pods(self) -> dict[str, Dict]:
        return self.api.objects[PODS.plural]

    @property
    def instances(self) -> dict[str, Dict]:
        return self.api.objects[GPU_INSTANCES.plural]

    @property
    def workload(self) -> Dict:
        return self.api.objects[GPU_WORKLOADS.plural][WORKLOAD]

    def note(self, what: str) -> None:
        self.history.append(what)

    def wrong(self, what: str) -> None:
        self.note(f"WRONG {what}")
        self.wrongs.append(what)

    def brain(self) -> Brain:
        """A new controller, or a controller's next life."""
        return Brain(self.api, self)

    # What a person does.

    def add_node(self, name: str) -> None:
        ready = {"type": "Ready", "status": "True"}
        self.api.put(NODES.plural, {"metadata": {"name": name}, "spec": {}, "status": {"conditions": [ready]}})

    def say_node(self, name: str, *, able: bool) -> None:
        """The agent of a node that can take new instances, or none."""
        ready = {"type": "Ready", "status": str(able), "reason": "AgentReady" if able else "CannotPark"}
        status = {"conditions": [ready]}
        if name in self.api.objects[GPU_NODES.plural]:
            self.api.change(GPU_NODES.plural, name, status=status)
        else:
            self.api.put(GPU_NODES.plural, {"metadata": {"name": name}, "status": status})

    def make_workload(self, **spec: Any) -> None:
        container = {
            "name": "server",
            "image": spec.pop("image", "one"),
            "resources": {"requests": {"cpu": "1", "memory": "1Gi"}},
        }
        body = {"template": {"spec": {"containers": [container]}}} | spec
        self.api.put(GPU_WORKLOADS.plural, {"metadata": {"name": WORKLOAD}, "spec": body, "status": {}})

    def order(self, **spec: Any) -> None:
        if image := spec.pop("image", None):
            template = copy.deepcopy(self.workload["spec"]["template"])
            template["spec"]["containers"][0]["image"] = image
            spec["template"] = template
        self.api.change(GPU_WORKLOADS.plural, WORKLOAD, spec=spec)

    def remove_node(self, name: str) -> None:
        self.api.remove(NODES.plural, name)
        for key in [key for key in self.truth if key[0] == name]:
            del self.truth[key]
        for pod in [p for p in self.pods.values() if p["spec"].get("nodeName") == name]:
            self.api.remove(PODS.plural, pod["metadata"]["name"])

    def evict(self, name: str) -> None:
        pod = self.pods[name]
        kept = [c for c in pod["status"].get("conditions", []) if c["type"] != "DisruptionTarget"]
        disrupted = {"type": "DisruptionTarget", "status": "True"}
        self.api.change(PODS.plural, name, status={"conditions": [*kept, disrupted]})
        self.api.ask_to_go(PODS.plural, name)

    # The players; each step does one thing for one object, if there is anything to do.

    def schedule(self, name: str) -> None:
        pod = self.pods[name]
        if pod["spec"].get("nodeName") or "deletionTimestamp" in pod["metadata"]:
            return
        notes = pod["metadata"].get("annotations", {})
        bound, avoided = notes.get(names.STATE_NODE), notes.get(names.AVOIDS, "").split(",")
        nodes = [n for n in self.api.objects[NODES.plural].values() if not n["spec"].get("unschedulable")]
        able = [n["metadata"]["name"] for n in nodes if bound in (None, n["metadata"]["name"])]
        able = [name for name in able if name not in avoided]
        if able:
            self.api.change(PODS.plural, name, spec={"nodeName": self.dice.choice(able)})
        else:
            unscheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
            self.api.change(PODS.plural, name, status={"conditions": [unscheduled]})

    def run(self, name: str) -> None:
        """The kubelet, and the hook that asks the agent, which asks for the fence."""
        pod = self.pods[name]
        uid, node = pod["metadata"]["uid"], pod["spec"].get("nodeName")
        if not node or node not in self.api.objects[NODES.plural]:
            return
        if "deletionTimestamp" in pod["metadata"]:
            self._end(name, pod)
            return
        instance = self.instances.get(name)
        if pod["status"]["phase"] != "Pending" or instance is None:
            return
        if (instance["spec"].get("podUID"), instance["spec"].get("nodeName")) != (uid, node):
            return
        self._start(name, node, instance, uid)
        # The kubelet sets its own conditions, and leaves those of others.
        ready = [{"type": kind, "status": "True"} for kind in ("PodScheduled", "ContainersReady", "Ready")]
        others = [c for c in pod["status"].get("conditions", []) if c["type"] in (names.SERVING, "DisruptionTarget")]
        self.api.change(PODS.plural, name, status={"phase": "Running", "conditions": ready + others})

    def _start(self, name: str, node: str, instance: Dict, pod_uid: str) -> None:
        uid = instance["metadata"]["uid"]
        here = self.truth.get((node, name))
        if here is not None and here.uid == uid:
            here.pod_uid = pod_uid
            return
        for (other, which), held in self.truth.items():
            if which == name and other != node and held.uid == uid:
                self.wrong(f"{name} starts anew on {node}, its state ({held.tier}) is on {other}")
        self.truth[node, name] = Held(uid, pod_uid, "-")

    def _end(self, name: str, pod: Dict) -> None:
        """A pod that was asked to go has ended: the state is kept, or given up."""
        held = self.truth.get((pod["spec"]["nodeName"], name))
        disrupted = any(
            c["type"] == "DisruptionTarget" and c["status"] == "True" for c in pod["status"].get("conditions", ())
        )
        if held is not None and self._is_of(held, name, pod):
            if disrupted:
                held.tier = "NVME" if held.tier == "-" else held.tier
            else:
                del self.truth[pod["spec"]["nodeName"], name]
        if name in self.pods:
            self.api.remove(PODS.plural, name)

    def vanished(self, name: str, pod: Dict) -> None:
        """A pod that has ended already went at once; its agent hears of it."""
        if pod["spec"].get("nodeName"):
            self._end(name, pod)

    def _is_of(self, held: Held, name: str, pod: Dict) -> bool:
        """To the agent, the pod is the instance whose state it has."""
        uid = pod["metadata"]["uid"]
        named = self.instances.get(name, {}).get("spec", {}).get("podUID")
        return uid in (held.pod_uid, named)

    def reject(self, name: str) -> None:
        """The kubelet does not take a pod that was bound to it: no room."""
        pod = self.pods[name]
        if pod["status"]["phase"] == "Pending" and pod["spec"].get("nodeName"):
            self.api.change(PODS.plural, name, status={"phase": "Failed", "reason": "OutOfcpu"})

    def fail(self, name: str) -> None:
        """The kubelet ends a pod for want of something: it stays as an object."""
        pod = self.pods[name]
        if pod["status"]["phase"] != "Running":
            return
        held = self.truth.get((pod["spec"]["nodeName"], name))
        if held is not None and held.pod_uid == pod["metadata"]["uid"] and held.tier == "-":
            held.tier = "NVME"
        conditions = [{"type": "ContainersReady", "status": "False"}, {"type": "DisruptionTarget", "status": "True"}]
        self.api.change(PODS.plural, name, status={"phase": "Failed", "reason": "Evicted", "conditions": conditions})

    def report(self, name: str) -> None:
        """The agent of the node on which the instance is."""
        instance = self.instances[name]
        node = instance["spec"].get("nodeName")
        if not node or node not in self.api.objects[NODES.plural]:
            return
        if "deletionTimestamp" in instance["metadata"]:
            self._end_processes(node, name)
            if names.STATE_FINALIZER in instance["metadata"].get("finalizers", ()):
                self.api.change(GPU_INSTANCES.plural, name, metadata={"finalizers": []})
                self.api.remove(GPU_INSTANCES.plural, name)
            return
        held = self.truth.get((node, name))
        if held and instance["spec"]["policy"].get("keepAwake"):
            self.sleep_or_wake(name, "-")
        states = {"-": "Running", "RAM": "Suspended", "NVME": "Parked", "": "Waiting"}
        tier = held.tier if held and held.uid == instance["metadata"]["uid"] else ""
        says = {"tier": tier, "state": states[tier], "nodeName": node, "podUID": held.pod_uid if held else ""}
        says["observedGeneration"] = instance["metadata"]["generation"]
        asked = "targetInFlight" in instance["spec"]["policy"]
        says["load"] = held.load if held and tier == "-" and asked else ""
        self.api.change(GPU_INSTANCES.plural, name, status=says)

    def _end_processes(self, node: str, name: str) -> None:
        """An instance goes before its pod: the container has ended, and the kubelet would start it again."""
        held, pod = self.truth.pop((node, name), None), self.pods.get(name)
        if held and pod and pod["metadata"]["uid"] == held.pod_uid and pod["status"]["phase"] == "Running":
            others = [c for c in pod["status"]["conditions"] if c["type"] in (names.SERVING, "DisruptionTarget")]
            self.api.change(PODS.plural, name, status={"phase": "Pending", "conditions": others})

    def sleep_or_wake(self, name: str, tier: str) -> None:
        for (_, which), held in self.truth.items():
            pod = self.pods.get(name)
            if which == name and pod and pod["metadata"]["uid"] == held.pod_uid and pod["status"]["phase"] == "Running":
                held.load = held.load if held.tier == tier else "Some"
                held.tier = tier

    def call(self, name: str, load: str) -> None:
        """It is as busy as that from now on."""
        for (_, which), held in self.truth.items():
            if which == name and held.tier == "-":
                held.load = load

    def collect(self) -> None:
        """Kubernetes' garbage collector."""
        uids = {w["metadata"]["uid"] for w in self.api.objects[GPU_WORKLOADS.plural].values()}
        for plural in (PODS.plural, GPU_INSTANCES.plural):
            for name, body in list(self.api.objects[plural].items()):
                owners = body["metadata"].get("ownerReferences", [])
                if owners and not any(owner["uid"] in uids for owner in owners):
                    self.api.ask_to_go(plural, name)

    def about_to(self, verb: str, plural: str, body: Dict) -> None:
        """Judge a write of the controller before it is done."""
        name = body["metadata"]["name"]
        self.note(f"controller: {verb} {plural}/{name}")
        self.api.writes[f"{verb} {plural}"] += 1
        if plural == GPU_INSTANCES.plural and verb == "delete":
            existing = [i for i in self.instances.values() if "deletionTimestamp" not in i["metadata"]]
            if len(existing) <= self.workload["spec"].get("replicas", 1):
                self.wrong(f"{name} is deleted, though only {len(existing)} exist")
        if plural == PODS.plural and verb == "delete":
            self._judge_deletion(name, body)
        if plural == GPU_INSTANCES.plural and verb == "apply":
            self._judge_intent(name, body)

    def _judge_deletion(self, name: str, pod: Dict) -> None:
        if not any(owner["uid"] for owner in pod["metadata"].get("ownerReferences", [])):
            self.wrong(f"a stranger's pod {name} is deleted")
        held = self.truth.get((pod["spec"].get("nodeName", ""), name))
        if held is None or not self._is_of(held, name, pod):
            return
        kept = any(c["type"] == "DisruptionTarget" for c in pod["status"].get("conditions", ()))
        instance = self.instances.get(name)
        leaving = instance is None or "deletionTimestamp" in instance["metadata"]
        outdated = image_of(pod) != image_of(self.workload["spec"]["template"])
        if not kept and not leaving and not outdated:
            self.wrong(f"the state of {name} is given up unasked")
        told = (instance or {}).get("status", {})
        sleeper = told.get("tier") in ("RAM", "NVME") and told.get("podUID") == pod["metadata"]["uid"]
        on_wake = self.workload["spec"].get("rollout", {}).get("sleeping", "OnWake") == "OnWake"
        if not kept and not leaving and sleeper and on_wake:
            self.wrong(f"{name} sleeps and is replaced, though sleeping: OnWake")

    def _judge_intent(self, name: str, body: Dict) -> None:
        old, new = self.instances[name]["spec"], body["spec"]
        if new.get("epoch", 0) < old.get("epoch", 0) or new.get("startAnew", 0) < old.get("startAnew", 0):
            self.wrong(f"{name}: epoch or startAnew falls")
        if new.get("podUID") != old.get("podUID") and new.get("podUID") and new.get("epoch") == old.get("epoch"):
            self.wrong(f"{name}: another pod without another epoch")
        held = self.truth.get((old.get("nodeName", ""), name))
        node = self.api.objects[NODES.plural].get(old.get("nodeName", ""))
        if new.get("nodeName") != old.get("nodeName") and held and node:
            self.wrong(f"{name}: leaves node {old['nodeName']}, where its state ({held.tier}) is")
