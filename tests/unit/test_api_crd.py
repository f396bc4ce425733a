"""The CRDs in `crds/`: made of the types, whole, and a manual."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from kybernate.api import crd, names
from kybernate.api.resource import CustomResource
from kybernate.kube import resource as served

STANDARD = {"apiVersion", "kind", "metadata"}


def parts(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Each schema in `schema` with its path."""
    yield path, schema
    for name, inner in schema.get("properties", {}).items():
        yield from parts(inner, f"{path}.{name}")
    for word in ("items", "additionalProperties"):
        if word in schema:
            yield from parts(schema[word], f"{path}[]")


def test_what_is_committed_is_what_the_types_make() -> None:
    committed = {path.name: path.read_text() for path in crd.FOLDER.glob("*.yaml")}
    assert committed == {f"{resource.plural}.yaml": crd.text(resource) for resource in crd.KINDS}


@pytest.mark.parametrize("resource", crd.KINDS, ids=lambda resource: resource.kind)
def test_the_client_knows_the_kind_by_the_same_names(resource: CustomResource) -> None:
    known = next(value for value in vars(served).values() if getattr(value, "plural", None) == resource.plural)
    assert (known.api_version, known.kind, known.namespaced) == (names.API_VERSION, resource.kind, resource.namespaced)
    fields = crd.schema(resource)["properties"]
    assert fields.keys() - {"spec"} == STANDARD | {"status"}


@pytest.mark.parametrize("resource", crd.KINDS, ids=lambda resource: resource.kind)
def test_every_field_is_described_and_no_status_has_a_default(resource: CustomResource) -> None:
    found = {path: part for path, part in parts(crd.schema(resource)) if path != ".metadata"}
    assert [path for path, part in found.items() if not part.get("description") and not path.endswith("[]")] == []
    assert [path for path, part in found.items() if path.startswith(".status") and "default" in part] == []


@pytest.mark.parametrize("resource", crd.KINDS, ids=lambda resource: resource.kind)
def test_columns_selectors_and_scale_name_fields_that_exist(resource: CustomResource) -> None:
    known = {path for path, _ in parts(crd.schema(resource))} | {".metadata.creationTimestamp"}
    scale = resource.scale
    paths = [column.path.split("[")[0] for column in resource.columns] + list(resource.selectable)
    paths += [scale.spec_replicas, scale.status_replicas, scale.selector] if scale else []
    assert [path for path in paths if path not in known] == []


def test_defaults_are_those_of_the_types() -> None:
    (workload,) = (resource for resource in crd.KINDS if resource.kind == "GpuWorkload")
    idle = crd.schema(workload)["properties"]["spec"]["properties"]["idle"]
    assert idle["default"] == {}
    assert {name: part.get("default") for name, part in idle["properties"].items()} == {
        "suspendAfter": None,
        "parkAfter": None,
        "drainTimeout": "30s",
        "maxInFlight": "10m",
        "ports": None,
        "minAwake": 0,
        "releaseRequests": True,
    }
