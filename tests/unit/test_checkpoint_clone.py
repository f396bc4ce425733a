"""A pod like another one: what is taken along, and what is not."""

from __future__ import annotations

import copy
from typing import Any

from kybernate_controller.clone import is_of, label_of, pod_of, template_of

from kybernate.api import names
from kybernate.api.objects import Metadata

TOKEN = "kube-api-access-x7k2p"
TOKEN_MOUNT = {"name": TOKEN, "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "readOnly": True}
HERE = {"key": "metadata.name", "operator": "In", "values": ["n1"]}
ZONE = {"key": "zone", "operator": "In", "values": ["a"]}
POD: dict[str, Any] = {
    "metadata": {
        "name": "chat-0",
        "uid": "u1",
        "labels": {"app": "chat", names.WORKLOAD: "chat", names.INSTANCE: "chat-0", names.TEMPLATE_HASH: "abc"},
        "annotations": {
            "team": "a",
            names.CONTAINERS: "server",
            names.STATE_NODE: "n1",
            names.ALLOW_MPTCP: "true",
            names.REQUESTS: '{"cpu": "2", "memory": "4Gi"}',
            "kubectl.kubernetes.io/last-applied-configuration": "{}",
        },
        "ownerReferences": [{"kind": "GpuWorkload", "uid": "w"}],
    },
    "spec": {
        "nodeName": "n1",
        "priority": 7,
        "priorityClassName": "high",
        "serviceAccount": "bot",
        "serviceAccountName": "bot",
        "overhead": {"cpu": "1m"},
        "runtimeClassName": "kybernate",
        "readinessGates": [{"conditionType": names.SERVING}, {"conditionType": "other"}],
        "affinity": {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [{"matchExpressions": [ZONE], "matchFields": [HERE]}]
                }
            }
        },
        "ephemeralContainers": [{"name": "debugger"}],
        "containers": [
            {
                "name": "server",
                "image": "chat:1",
                "env": [{"name": "KEY", "value": "v"}],
                "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": "8Gi"}},
                "volumeMounts": [{"name": "data", "mountPath": "/data"}, TOKEN_MOUNT],
            },
            {"name": "side", "image": "side:1", "resources": {"requests": {"cpu": "1"}}, "volumeMounts": [TOKEN_MOUNT]},
        ],
        "volumes": [{"name": "data", "emptyDir": {}}, {"name": TOKEN, "projected": {"sources": []}}],
    },
}


def test_the_template_is_the_pod_without_what_others_put_in() -> None:
    before = copy.deepcopy(POD)
    made = template_of(POD)
    assert before == POD
    assert made["metadata"] == {
        "labels": {"app": "chat"},
        "annotations": {"team": "a", names.CONTAINERS: "server", names.ALLOW_MPTCP: "true"},
    }
    spec = made["spec"]
    for gone in ("nodeName", "priority", "serviceAccount", "overhead", "ephemeralContainers"):
        assert gone not in spec
    assert (spec["priorityClassName"], spec["serviceAccountName"]) == ("high", "bot")
    assert spec["readinessGates"] == [{"conditionType": "other"}]
    assert spec["volumes"] == [{"name": "data", "emptyDir": {}}]
    server, side = spec["containers"]
    assert server["volumeMounts"] == [{"name": "data", "mountPath": "/data"}]
    assert side["volumeMounts"] == []
    assert server["env"] == [{"name": "KEY", "value": "v"}]
    assert server["resources"] == {"requests": {"cpu": "2", "memory": "4Gi"}, "limits": {"memory": "8Gi"}}
    assert side["resources"] == {"requests": {"cpu": "1"}}
    terms = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert terms == [{"matchExpressions": [ZONE]}]


def test_a_volume_that_only_looks_like_a_token_stays() -> None:
    pod = copy.deepcopy(POD)
    pod["spec"]["volumes"][1] = {"name": TOKEN, "emptyDir": {}}
    spec = template_of(pod)["spec"]
    assert len(spec["volumes"]) == 2
    assert len(spec["containers"][0]["volumeMounts"]) == 2


def test_the_new_pod_is_its_own() -> None:
    template = template_of(POD)
    made = pod_of(template, name="again", namespace="team", node="n2", job="to-again", uid="job-1")
    assert "ownerReferences" not in made["metadata"]
    assert made["metadata"]["labels"] == {"app": "chat", names.INSTANCE: "again", names.RESTORE_JOB: "to-again"}
    notes = made["metadata"]["annotations"]
    assert notes[names.CONTAINERS] == "server"
    assert notes[names.STATE_NODE] == "n2"
    assert is_of(Metadata(annotations=notes), "job-1")
    assert not is_of(Metadata(annotations=notes), "job-2")
    assert not is_of(Metadata(), "job-1")
    spec = made["spec"]
    terms = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert terms == [{"matchExpressions": [ZONE], "matchFields": [HERE | {"values": ["n2"]}]}]
    assert template_of(POD) == template  # nothing of it is shared
    assert template_of(made)["spec"] == template["spec"]  # a copy of a copy is the same


def test_a_bound_pod_without_affinity_of_its_own_is_let_free() -> None:
    pod = copy.deepcopy(POD)
    terms = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    terms["nodeSelectorTerms"] = [{"matchFields": [HERE]}]
    assert template_of(pod)["spec"]["affinity"] == {"nodeAffinity": {}}


def test_a_long_jobs_name_fits_a_label() -> None:
    assert label_of("a" * 62 + "." + "b") == "a" * 62


def test_a_deployments_replica_set_does_not_take_the_new_pod_for_one_of_its_own() -> None:
    """It would adopt a pod that nobody owns, find that it has one too many, and delete one."""
    pod = copy.deepcopy(POD)
    pod["metadata"]["labels"] = {"app": "chat", "pod-template-hash": "5d8", "batch.kubernetes.io/job-name": "j"}
    assert template_of(pod)["metadata"]["labels"] == {"app": "chat"}
