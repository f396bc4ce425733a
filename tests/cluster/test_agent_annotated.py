"""Pods of anybody's Deployment with our runtime and annotations: nothing else in it changes."""

from __future__ import annotations

import json
from typing import Any

from agent_bed import ask
from agent_in_cluster import NodeAgent, app_pod, eventually, processes_of
from cluster_bed import ClusterBed

LIMIT = 60


def deployment(name: str, replicas: int, **annotations: str) -> dict[str, Any]:
    pod = app_pod(name)
    notes = {f"kybernate.io/{key.replace('_', '-')}": value for key, value in annotations.items()}
    meta = {"labels": {"app": name}, "annotations": {**pod["metadata"]["annotations"], **notes}}
    spec = {
        "replicas": replicas,
        "selector": {"matchLabels": {"app": name}},
        "template": {"metadata": meta, "spec": pod["spec"]},
    }
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": spec}


def pods_of(bed: ClusterBed, name: str) -> list[dict[str, Any]]:
    """Those that are to stay."""
    return [pod for pod in bed.items("pods", "-l", f"app={name}") if "deletionTimestamp" not in pod["metadata"]]


def instances(bed: ClusterBed, name: str) -> dict[str, dict[str, Any]]:
    return {one["metadata"]["name"]: one for one in bed.items("gi") if one["metadata"]["name"].startswith(f"{name}-")}


def test_the_pods_of_a_deployment_sleep_and_wake(cluster_bed: ClusterBed, agent: NodeAgent) -> None:
    name = "shop"
    cluster_bed.apply(deployment(name, 2, suspend_after="2s", park_after="500ms"))
    try:
        cluster_bed.wait(f"deployment/{name}", "Available")
        pods = pods_of(cluster_bed, name)
        before = {p["metadata"]["name"]: ask(p["status"]["podIP"]) for p in pods}

        def parked() -> bool:
            found = instances(cluster_bed, name).values()
            return len(found) == 2 and all((one.get("status") or {}).get("state") == "Parked" for one in found)

        eventually(parked, LIMIT, "both are parked")
        assert processes_of(name) == []
        assert cluster_bed.get("deployment", name)["status"]["readyReplicas"] == 2
        for pod in pods:
            after = ask(pod["status"]["podIP"])
            assert after.born == before[pod["metadata"]["name"]].born
        owners = {one["metadata"]["ownerReferences"][0]["uid"] for one in instances(cluster_bed, name).values()}
        assert owners == {pod["metadata"]["uid"] for pod in pods}
        cluster_bed.kubectl("scale", "deployment", name, "--replicas=1")
        eventually(lambda: len(instances(cluster_bed, name)) == 1, LIMIT, "the instance went with its pod")
    finally:
        cluster_bed.delete(f"deployment/{name}")
    eventually(lambda: instances(cluster_bed, name) == {}, LIMIT, "all went")
    assert processes_of(name) == []
    eventually(lambda: cluster_bed.node.run(["ls", "/var/lib/kybernate/store/instances"]) == "", LIMIT, "no image")


def test_a_container_that_starts_again_in_its_pod_is_restored(cluster_bed: ClusterBed, agent: NodeAgent) -> None:
    name = "again"
    cluster_bed.apply(deployment(name, 1))
    try:
        cluster_bed.wait(f"deployment/{name}", "Available")
        (pod,) = pods_of(cluster_bed, name)
        before = ask(pod["status"]["podIP"])
        container = pod["status"]["containerStatuses"][0]["containerID"].removeprefix("containerd://")
        said = cluster_bed.node.run(["cat", f"/run/kybernate/keepers/{container}/state.json"])
        cluster_bed.node.run(["kill", "-KILL", str(json.loads(said)["keeper_pid"])])
        after = eventually(lambda: ask(pod["status"]["podIP"]), LIMIT, "it answers")
        assert after.born == before.born
        cluster_bed.delete(f"pod/{pod['metadata']['name']}")
        cluster_bed.wait(f"deployment/{name}", "Available")
        fresh = eventually(lambda: pods_of(cluster_bed, name)[0]["status"].get("podIP"), LIMIT, "another pod")
        assert eventually(lambda: ask(fresh), LIMIT, "it answers").born != before.born
    finally:
        cluster_bed.delete(f"deployment/{name}")


def test_a_wrong_annotation_is_said_where_the_pod_is_looked_at(cluster_bed: ClusterBed, agent: NodeAgent) -> None:
    name = "wrong"
    cluster_bed.apply(deployment(name, 1, suspend_after="soon"))
    try:
        (pod,) = eventually(lambda: pods_of(cluster_bed, name), LIMIT, "it is there")
        about = f"--field-selector=involvedObject.name={pod['metadata']['name']},involvedObject.kind=Pod"

        def told() -> str:
            events = cluster_bed.items("events", about)
            return next((e["message"] for e in events if e["reason"] == "InvalidAnnotation"), "")

        assert "kybernate.io/suspend-after" in eventually(told, LIMIT, "it is said")
        assert processes_of(name) == []
    finally:
        cluster_bed.delete(f"deployment/{name}")


def test_a_pod_that_lacks_the_runtime_class_is_told_so(cluster_bed: ClusterBed, agent: NodeAgent) -> None:
    name = "classless"
    manifest = deployment(name, 1, suspend_after="2s")
    del manifest["spec"]["template"]["spec"]["runtimeClassName"]
    cluster_bed.apply(manifest)
    try:
        (pod,) = eventually(lambda: pods_of(cluster_bed, name), LIMIT, "it is there")
        about = f"--field-selector=involvedObject.uid={pod['metadata']['uid']},type=Warning,reason=NotManaged"
        (event,) = eventually(lambda: cluster_bed.items("events", about), LIMIT, "it is said")
        assert "it needs runtimeClassName: kybernate; it runs but never sleeps" in event["message"]
        assert instances(cluster_bed, name) == {}
    finally:
        cluster_bed.delete(f"deployment/{name}")
