"""The pod that the controller makes of a template."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from controller_objects import CONTAINER, OWNER, Case, gi, gw, planned, pod
from kybernate_controller import actions, template

from kybernate.api import names
from kybernate.api.gpuworkload import GpuWorkloadObject
from kybernate.api.objects import encode


def made(workload: GpuWorkloadObject, bound: str = "") -> dict[str, Any]:
    return template.pod(workload, template.read(workload), "chat-0", bound)


def with_template(body: dict[str, Any], **spec: Any) -> GpuWorkloadObject:
    workload = gw(**spec)
    msgspec.structs.force_setattr(workload.spec, "template", msgspec.Raw(encode(body)))
    return workload


def test_a_pod_is_the_template_and_what_is_ours() -> None:
    body = {
        "metadata": {
            "labels": {"app": "chat", "kybernate.io/workload": "forged"},
            "annotations": {"note": "x", "kybernate.io/containers": "forged", names.ALLOW_IO_URING: "true"},
        },
        "spec": {"containers": [CONTAINER], "nodeSelector": {"gpu": "yes"}, "runtimeClassName": "runc"},
    }
    made_pod = made(with_template(body, replicas=2))
    labels, annotations = made_pod["metadata"]["labels"], made_pod["metadata"]["annotations"]
    assert labels["app"] == "chat"
    assert labels["kybernate.io/workload"] == "chat"
    assert labels["kybernate.io/instance"] == "chat-0"
    assert annotations["note"] == "x"
    assert annotations["kybernate.io/containers"] == "server"
    assert annotations[names.ALLOW_IO_URING] == "true"
    assert msgspec.json.decode(annotations[names.REQUESTS]) == {"cpu": "2", "memory": "1Gi"}
    assert made_pod["metadata"]["ownerReferences"] == [OWNER]
    spec = made_pod["spec"]
    assert spec["runtimeClassName"] == "kybernate"
    assert spec["nodeSelector"] == {"gpu": "yes"}
    assert spec["readinessGates"] == [{"conditionType": names.SERVING}]
    assert "affinity" not in spec


@pytest.mark.parametrize("workload", [gw(), gw(replicas=2, traffic="Spread")], ids=["one replica", "Spread"])
def test_no_gate_where_nobody_leaves_the_service(workload: GpuWorkloadObject) -> None:
    assert "readinessGates" not in made(workload)["spec"]


def test_state_binds_every_alternative_of_an_affinity() -> None:
    zones = [{"matchExpressions": [{"key": "zone", "operator": "In", "values": [zone]}]} for zone in "ab"]
    required = {"nodeSelectorTerms": zones}
    affinity = {
        "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required},
        "podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []},
    }
    workload = with_template({"spec": {"containers": [CONTAINER], "affinity": affinity}})
    found = made(workload, "n1")["spec"]["affinity"]
    terms = found["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    here = [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]
    assert terms == [zone | {"matchFields": here} for zone in zones]
    assert found["podAntiAffinity"] == affinity["podAntiAffinity"]
    assert "matchFields" not in zones[0]
    alone = made(gw(), "n1")["spec"]["affinity"]["nodeAffinity"]
    terms = alone["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert terms == [{"matchFields": here}]


def test_what_is_to_be_avoided_is_no_alternative() -> None:
    zones = [{"matchExpressions": [{"key": "zone", "operator": "In", "values": [zone]}]} for zone in "ab"]
    required = {"nodeSelectorTerms": zones}
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}
    own = with_template({"spec": {"containers": [CONTAINER], "affinity": affinity}})
    away = [{"key": "metadata.name", "operator": "NotIn", "values": [name]} for name in ("n1", "n2")]
    for workload, terms in ((own, zones), (gw(), [{}])):
        pod = template.pod(workload, template.read(workload), "chat-0", avoid=["n1", "n2"])
        found = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        assert found["nodeSelectorTerms"] == [term | {"matchFields": away} for term in terms]
        assert pod["metadata"]["annotations"][names.AVOIDS] == "n1,n2"
        bound = template.pod(workload, template.read(workload), "chat-0", "n1", ["n1", "n2"])
        assert names.AVOIDS not in bound["metadata"]["annotations"]
        assert "NotIn" not in str(bound["spec"]["affinity"])


def test_a_pod_waits_for_a_silent_node_unless_the_template_says_how_long() -> None:
    def tolerations(*given: dict[str, Any]) -> list[dict[str, Any]]:
        spec = {"containers": [CONTAINER], **({"tolerations": list(given)} if given else {})}
        found: list[dict[str, Any]] = made(with_template({"spec": spec}))["spec"]["tolerations"]
        return found

    not_ready, unreachable = (
        {"key": key, "operator": "Exists", "effect": "NoExecute"} for key in template.SILENT
    )  # fmt: skip
    own = not_ready | {"tolerationSeconds": 30}
    other = {"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}
    everything = {"operator": "Exists"}
    assert tolerations() == [not_ready, unreachable]
    assert tolerations(other) == [other, not_ready, unreachable]
    assert tolerations(own) == [own, unreachable]
    assert tolerations(everything) == [everything]


def test_the_hash_is_of_the_meaning() -> None:
    one = with_template({"spec": {"containers": [CONTAINER], "a": 1, "b": 2}})
    same = with_template({"spec": {"b": 2, "a": 1, "containers": [dict(reversed(CONTAINER.items()))]}})
    other = with_template({"spec": {"containers": [CONTAINER], "a": 1, "b": 3}})
    assert template.read(one).hash == template.read(same).hash != template.read(other).hash
    named = with_template({"spec": {"containers": [CONTAINER], "a": 1, "b": 2}}, replicas=3)
    assert template.read(named).hash == template.read(one).hash


def test_ports_are_those_of_the_container_that_sleeps() -> None:
    found = template.read(gw())
    assert found.ports == [8080]
    sidecar = {"name": "log", "image": "x", "ports": [{"containerPort": 9}]}
    found = template.read(with_template({"spec": {"containers": [sidecar, CONTAINER]}}, containers=["server"]))
    assert (found.container, found.ports) == ("server", [8080])
    found = template.read(with_template({"spec": {"containers": [sidecar, CONTAINER]}}))
    assert found.problem == "spec.containers: say which of the template's containers sleeps: log, server"


def with_slip(**spec: Any) -> dict[str, Any]:
    return {"spec": {"containers": [CONTAINER], **spec}}


LIMITS = [CONTAINER | {"resources": {"limits": ["2"]}}]
SLIPS: list[tuple[dict[str, Any], str]] = [
    (with_slip(tolerations={"key": "gpu"}), "spec.tolerations: expected array, got object"),
    (with_slip(tolerations=["gpu"]), "spec.tolerations[0]: expected object, got str"),
    (with_slip(readinessGates=[1]), "spec.readinessGates[0]: expected object, got int"),
    (with_slip(affinity={"nodeAffinity": []}), "spec.affinity.nodeAffinity: expected object, got array"),
    (with_slip(containers=LIMITS), "spec.containers[0].resources.limits: expected object, got array"),
    (with_slip() | {"metadata": {"labels": "app"}}, "metadata.labels: expected object, got str"),
]
"""What the CRD lets through, and the controller must not stumble over."""


@pytest.mark.parametrize(("body", "says"), SLIPS, ids=[says for _, says in SLIPS])
@pytest.mark.parametrize("exists", [False, True], ids=["of a new one", "of one that runs"])
def test_a_slip_in_the_template_is_said_and_nobody_is_touched(body: dict[str, Any], says: str, exists: bool) -> None:
    workload = with_template(body)
    pods, instances = ([pod(0)], [gi(0)]) if exists else ([], [])
    (said,) = planned(Case("slip", workload, pods, instances))
    assert isinstance(said, actions.WriteStatus)
    invalid = next(c for c in said.status.conditions if c.type == "TemplateInvalid")
    assert (invalid.status, invalid.message) == ("True", f"spec.template.{says}")
    assert next(c.status for c in said.status.conditions if c.type == "Ready") == str(exists)


def test_what_is_null_in_a_template_is_not_there() -> None:
    spec = {"containers": [CONTAINER | {"ports": None}], "tolerations": None, "affinity": None, "readinessGates": None}
    assert template.read(with_template({"metadata": None, "spec": spec})).problem == ""
