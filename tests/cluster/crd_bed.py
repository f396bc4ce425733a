"""The CRDs as they are committed, in a real API server, and objects sent to it as kubectl sends them.

Field validation is strict; dry runs are for what need not be kept.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import urllib.request
from typing import Any

import msgspec
import yaml

from kybernate.api import crd, names
from kybernate.kube.client import MERGE_PATCH, Client
from kybernate.kube.connection import Request
from kybernate.kube.errors import KindMissingError
from kybernate.kube.resource import CRDS, Resource
from kybernate.lab.cluster.apiserver import ApiServerBed

Spec = dict[str, Any]

NAMESPACE = "crds"
KINDS = {kind.kind: Resource(names.GROUP, names.VERSION, kind.plural, kind.kind, kind.namespaced) for kind in crd.KINDS}
LIMIT_SECONDS = 60.0
"""What is waited for takes at most a second or two."""

SPECS: dict[str, Spec] = {
    "GpuWorkload": {"template": {"spec": {"containers": [{"name": "server", "ports": [{"containerPort": 8080}]}]}}},
    "GpuInstance": {"workload": "chat", "ordinal": 1, "epoch": 3, "startAnew": 1, "policy": {"container": "server"}},
    "GpuCheckpoint": {"source": {"instance": "chat-0"}},
    "GpuRestoreJob": {"checkpoint": "chat-warm", "podName": "chat-restored"},
}
"""A spec of each kind that is accepted."""


async def install(bed: ApiServerBed) -> None:
    """The CRDs, served; again is fine."""
    async with bed.client() as client, asyncio.timeout(LIMIT_SECONDS):
        for path in crd.FOLDER.glob("*.yaml"):
            await client.apply(CRDS, yaml.safe_load(path.read_text()), manager="test")
        for kind in KINDS.values():
            while not await is_served(client, kind):
                await asyncio.sleep(0.05)


async def is_served(client: Client, kind: Resource) -> bool:
    try:
        await client.version_of(kind)
    except KindMissingError:
        return False
    return True


def merged(value: Any, change: Any) -> Any:
    """As a JSON merge patch: null removes, lists are replaced."""
    if not isinstance(value, dict) or not isinstance(change, dict):
        return change
    found = value | {name: merged(value.get(name, {}), inner) for name, inner in change.items() if inner is not None}
    return {name: inner for name, inner in found.items() if change.get(name, inner) is not None}


async def send(client: Client, kind: str, spec: Spec | None, name: str = "chat", dry: bool = True, **more: Any) -> Any:
    """Create an object as kubectl does; what the API server made of it. Raises ApiInvalidError."""
    resource = KINDS[kind]
    value = {"apiVersion": resource.api_version, "kind": kind, "metadata": {"name": name}, **more}
    value |= {"spec": spec} if spec is not None else {}
    query = {"fieldValidation": "Strict"} | ({"dryRun": "All"} if dry else {})
    path = resource.path(NAMESPACE if resource.namespaced else None)
    return msgspec.json.decode(
        await client.request(Request("POST", "create", path, kind, query, msgspec.json.encode(value)))
    )


async def change(client: Client, kind: str, name: str, patch: Any, subresource: str = "", dry: bool = False) -> Any:
    """A merge patch; what the object is then. Raises ApiInvalidError."""
    path = KINDS[kind].path(NAMESPACE if KINDS[kind].namespaced else None, name, subresource)
    query = {"fieldValidation": "Strict"} | ({"dryRun": "All"} if dry else {})
    body = msgspec.json.encode(patch)
    return msgspec.json.decode(await client.request(Request("PATCH", "patch", path, kind, query, body, MERGE_PATCH)))


def descriptions(schema: Any) -> Any:
    inner = {name: descriptions(part) for name, part in schema.get("properties", {}).items()}
    return schema.get("description"), inner, descriptions(schema["items"]) if "items" in schema else None


def sample(schema: Any) -> Any:
    """A value that has every field."""
    if "enum" in schema:
        return schema["enum"][0]
    if schema.get("format") == "date-time":
        return "2026-01-02T03:04:05Z"
    match schema["type"]:
        case "object" if "properties" in schema:
            return {name: sample(part) for name, part in schema["properties"].items()}
        case "object":
            return {"a": sample(schema["additionalProperties"])}
        case "array":
            return [sample(schema["items"])]
    return {"string": "text", "integer": 7, "number": 0.5, "boolean": True}[schema["type"]]


def get(served: ApiServerBed, path: str, accept: str = "application/json") -> Any:
    context = ssl.create_default_context(cafile=str(served.pki.certificate))
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    headers = {"Authorization": f"Bearer {served.token}", "Accept": accept}
    with opener.open(urllib.request.Request(served.server + path, headers=headers), timeout=10) as response:
        return json.load(response)
