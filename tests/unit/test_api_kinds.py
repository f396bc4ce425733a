"""The kinds as our programs read them from an API server: leniently, small, of the fields that a person writes."""

from __future__ import annotations

import sys
from typing import Any

import msgspec
import pytest

from kybernate.api import objects
from kybernate.api.gpuworkload import (
    GpuWorkload,
    GpuWorkloadObject,
    GpuWorkloadSpec,
    Idle,
    Wake,
    WorkloadIdle,
    WorkloadSpec,
    WorkloadWake,
)
from kybernate.api.kind import WITHOUT_CLUSTER, Fields

SPEC = {"template": {"spec": {"containers": [{"name": "server", "image": "a", "tty": True}]}}}


def workload(**spec: Any) -> GpuWorkloadObject:
    raw = {"metadata": {"name": "chat", "managedFields": []}, "spec": {**SPEC, **spec}, "later": 1}
    return objects.decode(msgspec.json.encode(raw), GpuWorkloadObject)


def test_defaults_are_those_of_a_manifest_and_the_clusters_own() -> None:
    spec = workload().spec
    assert (spec.replicas, spec.state, spec.traffic, spec.on_state_lost) == (1, "Auto", "Pack", "Hold")
    assert (spec.rollout.max_unavailable, spec.rollout.sleeping) == (1, "OnWake")
    assert (spec.idle.min_awake, spec.idle.release_requests, spec.idle.drain_timeout) == (0, True, 30.0)
    assert (spec.wake.timeout, spec.on_terminate) == (120.0, "Drop")


def test_unknown_fields_are_passed_over_and_durations_read() -> None:
    found = workload(idle={"suspendAfter": "1m", "later": 1}, wake={"later": {}}, rollout={"later": 0}, later=[])
    assert found.spec.idle.suspend_after == 60.0
    assert found.status.conditions == []


def test_the_template_is_kept_as_it_came_without_the_rest_of_the_answer() -> None:
    raw = msgspec.json.encode({"metadata": {"name": "chat"}, "spec": SPEC})
    before = sys.getrefcount(raw)
    found = objects.decode(raw, GpuWorkloadObject)
    assert msgspec.json.decode(found.spec.template) == SPEC["template"]
    assert sys.getrefcount(raw) == before


def test_what_was_read_is_written_as_it_was() -> None:
    found = workload(state="Parked", idle={"suspendAfter": "90s"})
    written = msgspec.json.decode(objects.encode(found))
    assert written == objects.builtins(found)
    assert (written["spec"]["template"], written["spec"]["state"]) == (SPEC["template"], "Parked")
    assert written["spec"]["idle"]["suspendAfter"] == "1m30s"
    assert objects.decode(objects.encode(found), GpuWorkloadObject).spec.idle == found.spec.idle
    assert not {"containers", "traffic", "replicas"} & written["spec"].keys()


@pytest.mark.parametrize(
    ("strict", "cluster"), [(GpuWorkloadSpec, WorkloadSpec), (Idle, WorkloadIdle), (Wake, WorkloadWake)]
)
def test_what_a_cluster_adds_is_refused_by_name_without_one(strict: type[Fields], cluster: type[Fields]) -> None:
    def names(kind: type[Fields]) -> set[str]:
        return {info.encode_name for info in msgspec.structs.fields(kind)}

    refused = {name for name, why in strict.refused.items() if why == WITHOUT_CLUSTER}
    assert names(cluster) - names(strict) == refused
    assert names(strict) <= names(cluster)


def test_the_kind_is_the_same() -> None:
    strict = {info.encode_name for info in msgspec.structs.fields(GpuWorkload)}
    assert strict | {"status"} == {info.encode_name for info in msgspec.structs.fields(GpuWorkloadObject)}
