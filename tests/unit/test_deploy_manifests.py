"""What is deployed, as it is written: versions that agree, and rights that are no more than they look."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from kybernate_agent.config import load_config

import kybernate
from kybernate.api import crd, names
from kybernate.lab.product_image import NAME, ROOT

AGENT, CONTROLLER, BASE = ROOT / "agent/manifests", ROOT / "controller/manifests", ROOT / "deploy/base"


def read(path: Path, kind: str = "") -> dict[str, Any]:
    found = [item for item in yaml.safe_load_all(path.read_text()) if not kind or item["kind"] == kind]
    assert len(found) == 1, (path, kind)
    return dict(found[0])


def test_the_base_runs_the_image_of_this_version() -> None:
    images = read(BASE / "kustomization.yaml")["images"]
    assert images == [{"name": "kybernate", "newName": NAME, "newTag": kybernate.__version__}]


def test_every_kind_is_deployed() -> None:
    assert {f"{kind.plural}.yaml" for kind in crd.KINDS} == set(read(crd.FOLDER / "Kustomization")["resources"])


def test_people_of_a_namespace_write_what_is_theirs_and_no_instance() -> None:
    roles = list(yaml.safe_load_all((BASE / "users.yaml").read_text()))
    writing = {"create", "update", "patch", "delete", "deletecollection"}
    theirs = [role for role in roles if role["metadata"].get("labels")]
    assert [role["metadata"]["name"] for role in roles if role not in theirs] == ["kybernate-operate"]
    written = {
        resource
        for role in theirs
        for rule in role["rules"]
        for resource in rule["resources"]
        if writing & set(rule["verbs"])
    }
    assert written == {"gpuworkloads", "gpucheckpoints", "gpurestorejobs", "gpuworkloads/scale"}
    assert {group for role in roles for rule in role["rules"] for group in rule["apiGroups"]} == {names.GROUP}


def test_the_runtime_class_is_the_handler_that_the_agent_knows() -> None:
    runtime_class = read(BASE / "runtimeclass.yaml")
    assert runtime_class["handler"] == runtime_class["metadata"]["name"] == names.RUNTIME_HANDLER


def test_the_agents_configuration_is_one_that_it_reads() -> None:
    config = load_config(AGENT / "agent.yaml")
    assert config.cluster is not None
    assert config.cluster.enter_pid == 1
    daemon_set = read(AGENT / "daemonset.yaml")["spec"]["template"]["spec"]
    assert daemon_set["hostPID"] is True
    _, _, port = config.cluster.health_address.rpartition(":")
    (container,) = daemon_set["containers"]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["port"] == int(port)
    places = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert {config.run_dir, config.state_dir, config.prefix} <= places | {"/run/kybernate"}


def test_what_an_agent_may() -> None:
    """Nothing but reading pods, and writing what is its own; least of all anything with secrets or pods."""
    rules = read(AGENT / "rbac.yaml", "ClusterRole")["rules"]
    allowed = {(r["apiGroups"][0], resource): sorted(r["verbs"]) for r in rules for resource in r["resources"]}
    assert allowed == {
        ("kybernate.io", "gpuinstances"): ["create", "get", "list", "patch", "watch"],
        ("kybernate.io", "gpuinstances/status"): ["patch"],
        ("kybernate.io", "gpucheckpoints"): ["get", "list", "patch", "watch"],
        ("kybernate.io", "gpucheckpoints/status"): ["patch"],
        ("kybernate.io", "gpunodes"): ["create", "patch"],
        ("kybernate.io", "gpunodes/status"): ["patch"],
        ("", "pods"): ["get", "list", "watch"],
        ("", "nodes"): ["get"],
        ("", "events"): ["create", "patch"],
    }


@pytest.mark.parametrize("kind", ["instances", "checkpoints", "nodes", "events"])
def test_what_an_agent_writes_is_held_to_its_node(kind: str) -> None:
    name = f"kybernate-agent-{kind}"
    items = [
        item for item in yaml.safe_load_all((AGENT / "admission.yaml").read_text()) if item["metadata"]["name"] == name
    ]
    policy, binding = items
    assert policy["spec"]["failurePolicy"] == "Fail"
    (condition,) = policy["spec"]["matchConditions"]
    assert (
        condition["expression"]
        == "request.userInfo.username == 'system:serviceaccount:kybernate-system:kybernate-agent'"
    )
    assert binding["spec"] == {"policyName": name, "validationActions": ["Deny"]}


def test_the_controller_can_do_nothing_on_its_node() -> None:
    pod = read(CONTROLLER / "deployment.yaml", "Deployment")["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert "volumes" not in pod
