"""The CRDs in a real API server: each rule, and what kubectl, autoscalers and our programs build on."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
import yaml
from crd_bed import (
    KINDS,
    LIMIT_SECONDS,
    NAMESPACE,
    SPECS,
    Spec,
    change,
    descriptions,
    get,
    install,
    merged,
    sample,
    send,
)
from crd_rules import BOUNDS, CHANGES, LATER, RULES

from kybernate.api import Duration, crd, names, objects
from kybernate.api.gpuinstance import GpuInstance
from kybernate.api.gpuworkload import GpuWorkloadObject
from kybernate.kube.client import Client
from kybernate.kube.errors import ApiError, ApiInvalidError
from kybernate.lab.cluster.apiserver import ApiServerBed

pytestmark = pytest.mark.asyncio(loop_scope="module")

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(apiserver: ApiServerBed) -> AsyncIterator[ApiServerBed]:
    """The API server with the CRDs, and a namespace."""
    await install(apiserver)
    apiserver.create_namespace(NAMESPACE)
    yield apiserver
    apiserver.reset()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(served: ApiServerBed) -> AsyncIterator[Client]:
    async with served.client() as client:
        yield client


def assert_says(refusal: ApiError, says: str) -> None:
    """`says`: the field below spec, and what is wrong with it."""
    field, message = says.split(": ", 1) if not says.startswith(": ") else ("", says[2:])
    wanted = f"spec.{field}: " if field else "spec: "
    assert wanted in str(refusal)
    assert message in str(refusal).split(wanted, 1)[1]


@pytest.mark.parametrize(("kind", "accepted", "refused", "says"), RULES + BOUNDS)
async def test_a_spec(client: Client, kind: str, accepted: str, refused: str, says: str) -> None:
    await send(client, kind, merged(SPECS[kind], yaml.safe_load(accepted)))
    with pytest.raises(ApiInvalidError) as caught:
        await send(client, kind, merged(SPECS[kind], yaml.safe_load(refused)))
    assert_says(caught.value, says)


@pytest.mark.parametrize(("kind", "accepted", "refused", "says"), CHANGES)
async def test_a_change(client: Client, kind: str, accepted: str, refused: str, says: str) -> None:
    await send(client, kind, SPECS[kind], "changes", dry=False)
    try:
        with pytest.raises(ApiInvalidError) as caught:
            await change(client, kind, "changes", {"spec": yaml.safe_load(refused)})
        assert_says(caught.value, says)
        await change(client, kind, "changes", {"spec": yaml.safe_load(accepted), "metadata": {"labels": {"a": "b"}}})
    finally:
        await client.delete(KINDS[kind], "changes", NAMESPACE)


NAMES = [("c" * 57, "c" * 58), ("chat-7", "chat.7"), ("0", "a-.b")]


@pytest.mark.parametrize(("accepted", "refused"), NAMES)
async def test_the_name_of_a_workload(client: Client, accepted: str, refused: str) -> None:
    await send(client, "GpuWorkload", SPECS["GpuWorkload"], accepted)
    with pytest.raises(
        ApiInvalidError, match=r"metadata\.name: expected lower case letters, digits and '-', at most 57"
    ):
        await send(client, "GpuWorkload", SPECS["GpuWorkload"], refused)


def durations(kind: str) -> Iterator[str]:
    """Paths of the durations below spec."""
    (resource,) = (resource for resource in crd.KINDS if resource.kind == kind)
    for group, part in crd.schema(resource)["properties"].get("spec", {}).get("properties", {}).items():
        if part.get("maxLength") == 32:
            yield group
        for name, inner in part.get("properties", {}).items():
            if inner.get("maxLength") == 32:
                yield f"{group}.{name}"


DURATIONS = [(kind, path) for kind in SPECS for path in durations(kind)]


@pytest.mark.parametrize(("kind", "path"), DURATIONS)
async def test_every_duration(client: Client, kind: str, path: str) -> None:
    def spec(text: str) -> Spec:
        value: Any = text
        for name in reversed(path.split(".")):
            value = {name: value}
        before = {"idle": {"suspendAfter": "1m"}} if path == "idle.parkAfter" else {}
        return merged(merged(SPECS[kind], before), value)  # type: ignore[no-any-return]

    await send(client, kind, spec("1h1.5s"))
    with pytest.raises(ApiInvalidError) as caught:
        await send(client, kind, spec("60"))
    assert_says(caught.value, f"{path}: expected a duration such as 60s, 10m or 1h30m, of at most 100 years")


LENGTHS = (
    *("60s", "1.5h", ".5s", "5.s", "1h30m", "1ms", "1us", "1µs", "1ns", "878400h", "0s"),
    *("0", "-1s", "60", "1d", "5_s", "1h30", "s", "h", "878401h", "99999999999999h", "1e3s", "1H"),
)


async def test_durations_are_those_that_we_read(client: Client) -> None:
    for text in LENGTHS:
        try:
            Duration.parse(text)
            ours = True
        except ValueError:
            ours = False
        try:
            await send(client, "GpuCheckpoint", {**SPECS["GpuCheckpoint"], "expiresAfter": text})
            theirs = True
        except ApiInvalidError:
            theirs = False
        assert (text, theirs) == (text, ours)


async def test_every_rule_has_a_case() -> None:
    """Those of durations and names have tests of their own."""

    def rules(schema: Any) -> Iterator[str]:
        for rule in schema.get("x-kubernetes-validations", ()):
            yield rule["message"]
        for inner in [*schema.get("properties", {}).values(), *([schema["items"]] if "items" in schema else [])]:
            yield from rules(inner)

    tried = {(kind, says) for kind, _, _, says in [*RULES, *CHANGES]}
    for resource in crd.KINDS:
        for message in set(rules(crd.schema(resource))):
            if not message.startswith(("metadata.name: ", "expected a duration")):
                assert any(kind == resource.kind and says.split(": ", 1)[1][:40] in message for kind, says in tried)


@pytest.mark.parametrize("field", LATER)
async def test_what_comes_later_does_not_exist(client: Client, field: str) -> None:
    group, _, name = field.rpartition(".")
    spec = merged(SPECS["GpuWorkload"], {group: {name: "1h"}} if group else {name: {}})
    with pytest.raises(ApiInvalidError, match=f'strict decoding error: unknown field "spec.{field}"'):
        await send(client, "GpuWorkload", spec)


@pytest.mark.parametrize("kind", KINDS)
async def test_unknown_fields_are_refused(client: Client, kind: str) -> None:
    with pytest.raises(ApiInvalidError, match='strict decoding error: unknown field "colour"'):
        await send(client, kind, SPECS.get(kind), colour="red")


async def test_a_template_is_kept_as_it_is_written(client: Client) -> None:
    template = {
        "metadata": {"creationTimestamp": None, "labels": {"a": "b"}},
        "spec": {
            "initContainers": [{"name": "init", "restartPolicy": "Always", "image": "a"}],
            "containers": [{"name": "a", "resources": {"limits": {"cpu": 0.5}, "requests": {"memory": "1Gi"}}}],
            "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}],
            "terminationGracePeriodSeconds": 5,
        },
    }
    made = await send(client, "GpuWorkload", {"template": template})
    assert made["spec"]["template"] == template


async def test_defaults_appear_and_are_those_of_the_types(client: Client) -> None:
    made = await send(client, "GpuWorkload", SPECS["GpuWorkload"])
    defaults = {name: value for name, value in made["spec"].items() if name != "template"}
    assert defaults == {
        "replicas": 1,
        "idle": {"drainTimeout": "30s", "maxInFlight": "10m", "minAwake": 0, "releaseRequests": True},
        "wake": {"timeout": "2m", "onExec": True},
        "onTerminate": "Drop",
        "state": "Auto",
        "traffic": "Pack",
        "onStateLost": "Hold",
        "rollout": {"maxUnavailable": 1, "sleeping": "OnWake"},
    }
    bare = {"metadata": {}, "spec": SPECS["GpuWorkload"]}
    ours = objects.decode(msgspec.json.encode(bare), GpuWorkloadObject).spec
    theirs = objects.decode(msgspec.json.encode(made), GpuWorkloadObject).spec
    for field in ours.__struct_fields__:
        assert field == "template" or getattr(theirs, field) == getattr(ours, field)
    instance = await send(client, "GpuInstance", SPECS["GpuInstance"])
    assert (instance["spec"]["state"], instance["spec"]["policy"]["wakeTimeout"]) == ("Auto", "2m")
    checkpoint = await send(client, "GpuCheckpoint", SPECS["GpuCheckpoint"])
    assert (checkpoint["spec"]["leaveRunning"], checkpoint["spec"]["deletionPolicy"]) == (True, "Delete")


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*/workload.yaml")), ids=lambda path: path.parent.name)
async def test_examples_are_accepted(client: Client, path: Path) -> None:
    for document in yaml.safe_load_all(path.read_text()):
        if document["kind"] == "GpuWorkload":
            made = await send(client, "GpuWorkload", document["spec"], document["metadata"]["name"])
            assert made["spec"]["template"] == document["spec"]["template"]


async def test_scale(client: Client) -> None:
    await send(client, "GpuWorkload", SPECS["GpuWorkload"], "scaled", dry=False)
    selector = f"{names.WORKLOAD}=scaled"
    await change(client, "GpuWorkload", "scaled", {"status": {"replicas": 1, "selector": selector}}, "status")
    scale = await change(client, "GpuWorkload", "scaled", {"spec": {"replicas": 3}}, "scale")
    assert (scale["kind"], scale["spec"], scale["status"]) == (
        "Scale",
        {"replicas": 3},
        {"replicas": 1, "selector": selector},
    )
    found = await client.get(KINDS["GpuWorkload"], GpuWorkloadObject, "scaled", NAMESPACE)
    assert (found.spec.replicas, found.metadata.generation, found.status.selector) == (3, 2, selector)
    with pytest.raises(ApiInvalidError):
        await change(client, "GpuWorkload", "scaled", {"spec": {"replicas": 100_001}}, "scale")


@pytest.mark.parametrize("kind", KINDS)
async def test_status_is_written_apart_and_takes_all_that_we_write(client: Client, kind: str) -> None:
    """A status that has every field, made of the type, goes in and comes out; spec and generation stay."""
    (resource,) = (resource for resource in crd.KINDS if resource.kind == kind)
    status = sample(crd.schema(resource)["properties"]["status"])
    made = await send(client, kind, SPECS.get(kind), "status", dry=False, status=status)
    assert "status" not in made
    changed = await change(client, kind, "status", {"status": status}, "status")
    assert (changed["status"], changed["metadata"]["generation"]) == (status, 1)
    whole = await client.get(KINDS[kind], resource.type, "status", NAMESPACE if resource.namespaced else None)
    assert objects.builtins(whole.status) == status  # type: ignore[attr-defined]


async def test_a_condition_of_one_type_is_there_once(client: Client) -> None:
    await send(client, "GpuWorkload", SPECS["GpuWorkload"], "twice", dry=False)
    ready = {"type": "Ready", "status": "True"}
    with pytest.raises(ApiInvalidError, match=r"status.conditions\[1\]: Duplicate value"):
        await change(client, "GpuWorkload", "twice", {"status": {"conditions": [ready, ready]}}, "status")


async def test_field_selectors(client: Client) -> None:
    for name, node, workload in (("a-0", "n1", "a"), ("a-1", "n2", "a"), ("b-0", "", "b")):
        spec = SPECS["GpuInstance"] | {"workload": workload} | ({"nodeName": node} if node else {})
        await send(client, "GpuInstance", spec, name, dry=False)

    async def found(selector: str) -> list[str]:
        listed = await client.list(KINDS["GpuInstance"], GpuInstance, NAMESPACE, field_selector=selector)
        return [instance.metadata.name for instance in listed.items]

    assert await found("spec.nodeName=n1") == ["a-0"]
    assert "b-0" in await found("spec.nodeName=")
    assert await found("spec.workload=a") == ["a-0", "a-1"]
    assert await found("spec.workload=a,spec.nodeName!=n1") == ["a-1"]
    for kind in ("GpuCheckpoint", "GpuRestoreJob"):
        await send(client, kind, SPECS[kind], "selected", dry=False)
        await change(client, kind, "selected", {"status": {"node": "n7"}}, "status")
        listed = await client.list(KINDS[kind], objects.Object, NAMESPACE, field_selector="status.node=n7")
        assert len(listed.items) == 1


COLUMNS = {
    "gpuworkloads": "Name Ready Desired Awake Suspended Parked Age",
    "gpuinstances": "Name Node State Tier Since Next Last-Wake Age",
    "gpucheckpoints": "Name Phase Instance Node Bytes Frozen Age",
    "gpurestorejobs": "Name Phase Checkpoint Pod Node Age",
    "gpunodes": "Name Ready Instances NVMe-Used NVMe-Capacity Age",
}


async def test_columns(served: ApiServerBed) -> None:
    for plural, wanted in COLUMNS.items():
        table = get(served, f"/apis/{names.API_VERSION}/{plural}", "application/json;as=Table;v=v1;g=meta.k8s.io")
        assert [column["name"] for column in table["columnDefinitions"] if not column["priority"]] == wanted.split()
        assert all(column["description"] for column in table["columnDefinitions"])


async def test_a_row_tells_the_story(client: Client, served: ApiServerBed) -> None:
    await send(client, "GpuWorkload", SPECS["GpuWorkload"], "row", dry=False)
    ready = [{"type": "Ready", "status": "True"}]
    status = {"awake": 0, "suspended": 0, "parked": 1, "replicas": 1, "conditions": ready}
    await change(client, "GpuWorkload", "row", {"status": status}, "status")
    path = KINDS["GpuWorkload"].path(NAMESPACE, "row")
    table = get(served, path, "application/json;as=Table;v=v1;g=meta.k8s.io")
    assert table["rows"][0]["cells"][:6] == ["row", "True", 1, 0, 0, 1]


async def test_names_and_categories(served: ApiServerBed) -> None:
    listed = get(served, f"/apis/{names.API_VERSION}")["resources"]
    short = {kind["name"]: kind["shortNames"] for kind in listed if "/" not in kind["name"]}
    assert short == {
        "gpuworkloads": ["gw"],
        "gpuinstances": ["gi"],
        "gpucheckpoints": ["gck"],
        "gpurestorejobs": ["grj"],
        "gpunodes": ["gn"],
    }
    assert {tuple(kind["categories"]) for kind in listed if "/" not in kind["name"]} == {("kybernate",)}
    assert {kind["name"] for kind in listed if kind["name"].endswith("/scale")} == {"gpuworkloads/scale"}


async def test_explain_has_every_field(served: ApiServerBed) -> None:
    """`kubectl explain` reads this document."""
    limit = time.monotonic() + LIMIT_SECONDS
    while True:
        path = get(served, "/openapi/v3")["paths"].get(f"apis/{names.API_VERSION}", {}).get("serverRelativeURL")
        schemas = get(served, path)["components"]["schemas"] if path else {}
        described = {name.rsplit(".", 1)[1]: part for name, part in schemas.items() if ".kybernate." in name}
        if described.keys() >= KINDS.keys():
            break
        assert time.monotonic() < limit
        time.sleep(0.1)
    for resource in crd.KINDS:
        for name, part in crd.schema(resource)["properties"].items():
            if name in ("spec", "status"):
                assert descriptions(described[resource.kind]["properties"][name]) == descriptions(part)
