"""What an agent's token is good for, asked of an API server alone: the policies as they are deployed.

The token is impersonated, with the node that the API server puts into one that a kubelet has fetched.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
import yaml
from crd_bed import KINDS, LIMIT_SECONDS, install

from kybernate.kube.client import MERGE_PATCH
from kybernate.kube.credentials import tls_context
from kybernate.kube.resource import EVENTS, Resource
from kybernate.lab.cluster.apiserver import ApiServerBed
from kybernate.lab.product_image import ROOT

pytestmark = pytest.mark.asyncio(loop_scope="module")

NAMESPACE = "admitted"
NODE = "n1"
AGENT = {
    "Impersonate-User": "system:serviceaccount:kybernate-system:kybernate-agent",
    "Impersonate-Extra-authentication.kubernetes.io%2fnode-name": NODE,
}
OWN = {"component": "kybernate-agent", "host": NODE}
INSTANCES, EVENT_PATH = KINDS["GpuInstance"].path(NAMESPACE), EVENTS.path(NAMESPACE)
FOREIGN = [{"component": "kubelet", "host": NODE}, {"component": "kybernate-agent", "host": "n2"}, {}]


class Caller:
    """Sends as the agent, or as the admin."""

    def __init__(self, bed: ApiServerBed, session: aiohttp.ClientSession) -> None:
        self._bed, self._session = bed, session
        self._tls = tls_context("bed", authority=bed.pki.certificate.read_text())

    async def send(self, method: str, path: str, body: Any, **as_whom: str) -> tuple[int, str]:
        """HTTP status, and the API server's words."""
        kind = MERGE_PATCH if method == "PATCH" else "application/json"
        headers = {"Authorization": f"Bearer {self._bed.token}", "Content-Type": kind, **as_whom}
        async with self._session.request(
            method, self._bed.server + path, json=body, headers=headers, ssl=self._tls
        ) as answer:
            return answer.status, str((await answer.json()).get("message", ""))

    async def agent(self, method: str, path: str, body: Any) -> tuple[int, str]:
        return await self.send(method, path, body, **AGENT)


def resource_of(item: dict[str, Any]) -> Resource:
    group, _, version = item["apiVersion"].partition("/")
    name = item["kind"].lower()
    return Resource(group, version, f"{name[:-1]}ies" if name.endswith("y") else f"{name}s", item["kind"], False)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def caller(apiserver: ApiServerBed) -> AsyncIterator[Caller]:
    """With the policies in force."""
    await install(apiserver)
    apiserver.create_namespace(NAMESPACE)
    async with apiserver.client() as client, aiohttp.ClientSession(trust_env=False) as session:
        for file in ("rbac.yaml", "admission.yaml"):
            for item in yaml.safe_load_all((ROOT / "agent/manifests" / file).read_text()):
                if item["kind"] != "ServiceAccount":
                    await client.apply(resource_of(item), item, manager="test", into=dict[str, Any])
        made = Caller(apiserver, session)
        async with asyncio.timeout(LIMIT_SECONDS):  # a policy that was just written takes a second or two
            for path, body in ((INSTANCES, instance("early", "n9")), (EVENT_PATH, event("early", {}))):
                while (await made.agent("POST", f"{path}?dryRun=All", body))[0] != 403:
                    await asyncio.sleep(0.1)
        yield made
    apiserver.reset()


def instance(name: str, node: str = NODE, **spec: Any) -> dict[str, Any]:
    owner = {"apiVersion": "v1", "kind": "Pod", "name": name, "uid": "u"}
    whole = {"nodeName": node, "pod": name, "podUID": "u", "policy": {"container": "app"}, **spec}
    meta = {"name": name, "ownerReferences": [owner]}
    return {"apiVersion": "kybernate.io/v1alpha1", "kind": "GpuInstance", "metadata": meta, "spec": whole}


def event(name: str, source: dict[str, str]) -> dict[str, Any]:
    about = {"kind": "Pod", "namespace": NAMESPACE, "name": "any"}
    meta = {"name": name, "namespace": NAMESPACE}
    return {"metadata": meta, "involvedObject": about, "reason": "Tried", "type": "Normal", "source": source}


async def test_it_makes_the_instances_of_annotated_pods_and_no_others(caller: Caller) -> None:
    """The controller would count one that names a workload, and end another for it, on another node perhaps."""
    for made in (instance("plain"), instance("empty", workload="")):
        assert (await caller.agent("POST", INSTANCES, made))[0] == 201
    status, says = await caller.agent("POST", INSTANCES, instance("chat-7", workload="chat", ordinal=7))
    assert status == 403
    assert "a GpuWorkload's are the controller's" in says


async def test_it_does_not_make_a_workloads_instance_a_pods(caller: Caller) -> None:
    """It could write its spec then."""
    made = instance("chat-0", workload="chat", ordinal=0)
    made["metadata"]["ownerReferences"] = [
        {"apiVersion": "kybernate.io/v1alpha1", "kind": "GpuWorkload", "name": "chat", "uid": "w"}
    ]
    made["metadata"]["finalizers"] = ["kybernate.io/state"]
    assert (await caller.send("POST", INSTANCES, made))[0] == 201
    pod = instance("chat-0")["metadata"]["ownerReferences"]
    for owners in (pod, [*made["metadata"]["ownerReferences"], *pod], []):
        patch = {"metadata": {"ownerReferences": owners}}
        status, says = await caller.agent("PATCH", f"{INSTANCES}/chat-0", patch)
        assert status == 403
        assert "does not change whose" in says
    assert (await caller.agent("PATCH", f"{INSTANCES}/chat-0", {"metadata": {"finalizers": []}}))[0] == 200


async def test_it_counts_its_own_events_up(caller: Caller) -> None:
    assert (await caller.agent("POST", EVENT_PATH, event("own", OWN)))[0] == 201
    assert (await caller.agent("PATCH", f"{EVENT_PATH}/own", {"count": 2}))[0] == 200


@pytest.mark.parametrize("source", FOREIGN, ids=["another program's", "another node's", "nobody's"])
async def test_it_does_not_make_anothers_event_its_own(caller: Caller, source: dict[str, str]) -> None:
    name = f"foreign-{FOREIGN.index(source)}"
    assert (await caller.send("POST", EVENT_PATH, event(name, source)))[0] == 201
    status, says = await caller.agent("PATCH", f"{EVENT_PATH}/{name}", {"source": OWN, "message": "no"})
    assert status == 403
    assert "its node's agent's" in says
