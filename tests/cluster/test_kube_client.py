"""Requests to a real API server: what it answers, what it refuses, and what lies between."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from faulty_proxy import Seen
from kube_bed import ConfigMap, KubeBed, open_kube_bed

from kybernate.api.objects import Metadata, Object
from kybernate.kube.client import Client
from kybernate.kube.connection import Request
from kybernate.kube.credentials import Access, Credentials, load_credentials, tls_context
from kybernate.kube.errors import (
    AlreadyExistsError,
    ApiDeadlineError,
    ApiInvalidError,
    ApiNotFoundError,
    ConflictError,
    ForbiddenError,
    KindMissingError,
    ResponseError,
    ServerError,
    TooManyRequestsError,
    UnauthorizedError,
    UnreachableError,
)
from kybernate.kube.resource import CONFIG_MAPS, DEPLOYMENTS, NAMESPACES, PODS, Resource
from kybernate.lab.cluster.apiserver import ApiServerBed

APPS = {"app": "a"}


class Deployment(Object):
    metadata: Metadata
    spec: dict[str, Any] = {}  # noqa: RUF012
    status: dict[str, Any] = {}  # noqa: RUF012


@pytest_asyncio.fixture
async def bed(apiserver: ApiServerBed) -> AsyncIterator[KubeBed]:
    async with open_kube_bed(apiserver) as bed:
        yield bed


def config_map(bed: KubeBed, name: str = "a", **data: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": bed.namespace}, "data": data}


def deployment(bed: KubeBed, replicas: int | None = None, **labels: str) -> dict[str, Any]:
    template = {"metadata": {"labels": APPS}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
    spec = {"selector": {"matchLabels": APPS}, "template": template}
    return {
        "metadata": {"name": "d", "namespace": bed.namespace, "labels": labels},
        "spec": spec | ({} if replicas is None else {"replicas": replicas}),
    }


def writes(seen: Seen) -> bool:
    return seen.method == "POST"


def anything(seen: Seen) -> bool:
    return True


async def test_an_object_is_made_read_changed_and_removed(bed: KubeBed) -> None:
    made = await bed.client.create(CONFIG_MAPS, config_map(bed, x="1"), into=ConfigMap)
    assert (made.metadata.namespace, made.data) == (bed.namespace, {"x": "1"})
    assert await bed.client.get(CONFIG_MAPS, ConfigMap, "a", bed.namespace) == made
    changed = await bed.client.merge_patch(CONFIG_MAPS, ConfigMap, "a", {"data": {"x": None, "y": "2"}}, bed.namespace)
    assert changed.data == {"y": "2"}
    changed.data["z"] = "3"
    assert (await bed.client.replace(CONFIG_MAPS, changed)).data == {"y": "2", "z": "3"}
    await bed.client.delete(CONFIG_MAPS, "a", bed.namespace)
    with pytest.raises(ApiNotFoundError):
        await bed.client.get(CONFIG_MAPS, ConfigMap, "a", bed.namespace)
    verbs = {verb: count for (verb, resource), count in bed.client.requests.items() if resource == "configmaps"}
    assert verbs == {"create": 1, "get": 2, "patch": 1, "update": 1, "delete": 1}


async def test_lists_select_by_labels_and_fields(bed: KubeBed) -> None:
    for name, color in (("a", "red"), ("b", "blue"), ("c", "red")):
        body = config_map(bed, name)
        body["metadata"]["labels"] = {"color": color}
        await bed.client.create(CONFIG_MAPS, body)

    async def names(**selectors: str) -> list[str]:
        listed = await bed.client.list(CONFIG_MAPS, ConfigMap, bed.namespace, **selectors)  # type: ignore[arg-type]
        return sorted(one.metadata.name for one in listed.items)

    assert await names() == ["a", "b", "c"]
    assert await names(label_selector="color in (red,green)") == ["a", "c"]
    assert await names(field_selector="metadata.name!=a", label_selector="color=red") == ["c"]


async def test_apply_owns_its_fields_and_no_others(bed: KubeBed) -> None:
    await bed.client.apply(DEPLOYMENTS, deployment(bed, replicas=3, a="1"), manager="first")
    await bed.client.apply(DEPLOYMENTS, deployment(bed, b="1"), manager="second")
    with pytest.raises(ConflictError, match=r"replicas"):
        await bed.client.apply(DEPLOYMENTS, deployment(bed, replicas=5), manager="second", force=False)
    forced = await bed.client.apply(DEPLOYMENTS, deployment(bed, replicas=5), manager="second", into=Deployment)
    assert forced.spec["replicas"] == 5
    assert forced.metadata.labels == {"a": "1"}, "what the second no longer says goes, what the first says stays"


async def test_status_is_applied_apart_from_spec(bed: KubeBed) -> None:
    await bed.client.apply(DEPLOYMENTS, deployment(bed, replicas=3), manager="spec")
    status = {"metadata": {"name": "d", "namespace": bed.namespace}, "status": {"replicas": 2}, "spec": {"replicas": 9}}
    after = await bed.client.apply(DEPLOYMENTS, status, manager="status", subresource="status", into=Deployment)
    assert (after.spec["replicas"], after.status["replicas"]) == (3, 2)
    assert bed.client.requests["apply", "deployments.apps/status"] == 1
    missing = {"metadata": {"name": "none", "namespace": bed.namespace}, "status": {"replicas": 2}}
    with pytest.raises(ApiNotFoundError):
        await bed.client.apply(DEPLOYMENTS, missing, manager="status", subresource="status")


async def test_who_was_faster_is_told_by_a_conflict(bed: KubeBed) -> None:
    old = await bed.client.create(CONFIG_MAPS, config_map(bed), into=ConfigMap)
    new = await bed.client.merge_patch(CONFIG_MAPS, ConfigMap, "a", {"data": {"x": "1"}}, bed.namespace)
    stale = {"metadata": {"resourceVersion": old.metadata.resource_version}, "data": {"x": "2"}}
    with pytest.raises(ConflictError):
        await bed.client.replace(CONFIG_MAPS, old)
    with pytest.raises(ConflictError):
        await bed.client.merge_patch(CONFIG_MAPS, ConfigMap, "a", stale, bed.namespace)
    with pytest.raises(ConflictError):
        await bed.client.delete(CONFIG_MAPS, "a", bed.namespace, resource_version=old.metadata.resource_version)
    with pytest.raises(ConflictError):
        await bed.client.delete(CONFIG_MAPS, "a", bed.namespace, uid="00000000-0000-0000-0000-000000000000")
    assert await bed.client.get(CONFIG_MAPS, ConfigMap, "a", bed.namespace) == new
    await bed.client.delete(CONFIG_MAPS, "a", bed.namespace, uid=new.metadata.uid)


async def test_refusals_have_names_and_reasons(bed: KubeBed) -> None:
    await bed.client.create(CONFIG_MAPS, config_map(bed))
    with pytest.raises(AlreadyExistsError):
        await bed.client.create(CONFIG_MAPS, config_map(bed))
    with pytest.raises(ApiInvalidError) as invalid:
        await bed.client.create(CONFIG_MAPS, config_map(bed, "B!"))
    assert [cause.field for cause in invalid.value.causes] == ["metadata.name"]
    assert "RFC 1123" in str(invalid.value)
    with pytest.raises(ApiInvalidError):
        await bed.client.create(DEPLOYMENTS, deployment(bed, replicas=-1))


async def test_a_kind_that_is_not_served_is_not_taken_for_an_absent_object(bed: KubeBed) -> None:
    unknown = Resource("example.io", "v1", "things", "Thing")
    with pytest.raises(KindMissingError):
        await bed.client.get(unknown, dict, "a", bed.namespace)
    with pytest.raises(KindMissingError):
        await bed.client.list(unknown, dict)
    with pytest.raises(KindMissingError):
        await bed.client.get(Resource("apps", "v1", "things", "Thing"), dict, "a", bed.namespace)


async def test_pods_are_deleted_with_grace_and_propagation(bed: KubeBed) -> None:
    body = {"metadata": {"name": "p"}, "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i"}]}}
    await bed.client.create(PODS, body, bed.namespace)
    await bed.client.delete(PODS, "p", bed.namespace, grace_seconds=7, propagation="Background")
    going = await bed.client.get(PODS, ConfigMap, "p", bed.namespace)
    assert going.metadata.deletion_grace_period_seconds == 7
    await bed.client.delete(PODS, "p", bed.namespace, grace_seconds=0)
    with pytest.raises(ApiNotFoundError):
        await bed.client.get(PODS, ConfigMap, "p", bed.namespace)


async def test_what_an_account_may_not_do_is_forbidden(bed: KubeBed) -> None:
    bed.server.allow("peeper", bed.namespace, ["configmaps"], ["get", "list"])
    async with bed.server.client(bed.server.account("peeper", ["people"])) as client:
        assert (await client.list(CONFIG_MAPS, ConfigMap, bed.namespace)).items == []
        with pytest.raises(ForbiddenError, match="peeper"):
            await client.create(CONFIG_MAPS, config_map(bed))
        with pytest.raises(ForbiddenError):
            await client.list(CONFIG_MAPS, ConfigMap)


async def test_429_is_waited_out_and_the_write_happens_once(bed: KubeBed) -> None:
    bed.proxy.answers(1, writes, 429, "", {"Retry-After": "1"})
    bed.proxy.answers(1, writes, 503, "", {"Retry-After": "1"})
    await bed.client.create(CONFIG_MAPS, config_map(bed))
    times = [seen.at for seen in bed.proxy.seen if writes(seen)]
    assert len(times) == 3
    assert min(later - earlier for earlier, later in itertools.pairwise(times)) >= 1.0
    assert bed.client.requests["create", "configmaps"] == 3


async def test_a_wait_that_would_pass_the_deadline_is_not_begun(bed: KubeBed) -> None:
    bed.proxy.answers(1, writes, 429, "", {"Retry-After": "3600"})
    with pytest.raises(TooManyRequestsError) as busy:
        await bed.client.create(CONFIG_MAPS, config_map(bed))
    assert busy.value.retry_after == 3600


@pytest.mark.parametrize("status", [500, 502, 504])
async def test_a_failing_server_is_told_and_the_write_not_repeated(bed: KubeBed, status: int) -> None:
    bed.proxy.answers(1, writes, status, "<html>out of order</html>", {"Retry-After": "1"})
    with pytest.raises(ServerError, match=f"HTTP {status} .*out of order"):
        await bed.client.create(CONFIG_MAPS, config_map(bed))
    assert bed.proxy.count(writes) == 1


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (200, '{"metadata": {', ResponseError),
        (200, '{"metadata": 3}', ResponseError),
        (200, "", ResponseError),
        (302, "", ResponseError),
        (404, "<html>", KindMissingError),
        (401, "", UnauthorizedError),
    ],
)
async def test_answers_that_are_none_are_told(bed: KubeBed, status: int, body: str, error: type[Exception]) -> None:
    bed.proxy.answers(9, anything, status, body, {"Location": "https://example.io/"} if status == 302 else None)
    with pytest.raises(error):
        await bed.client.get(CONFIG_MAPS, ConfigMap, "a", bed.namespace)


async def test_nothing_waits_longer_than_its_deadline(bed: KubeBed) -> None:
    bed.proxy.before(anything, lambda: time.sleep(2))
    with pytest.raises(ApiDeadlineError):
        await bed.client.get(CONFIG_MAPS, ConfigMap, "a", bed.namespace, deadline_seconds=0.2)
    with pytest.raises(ApiNotFoundError):
        await bed.client.get(CONFIG_MAPS, ConfigMap, "a", bed.namespace)


async def test_nobody_there_is_told_with_the_address(bed: KubeBed) -> None:
    await bed.proxy.refuse()
    with pytest.raises(UnreachableError, match=rf"127\.0\.0\.1:{bed.proxy.port} cannot be reached"):
        await bed.client.get(CONFIG_MAPS, ConfigMap, "a", bed.namespace)


async def test_a_server_that_another_authority_vouches_for_gets_no_token(bed: KubeBed) -> None:
    access = Access(server=bed.proxy.address, tls=tls_context("test"), authorization="Bearer secret")

    async def load() -> Access:
        return access

    async with Client(Credentials(load, access)) as client:
        with pytest.raises(UnreachableError, match="certificate") as failure:
            await client.get(CONFIG_MAPS, ConfigMap, "a", bed.namespace)
    assert bed.proxy.seen == []
    assert "secret" not in str(failure.value)


async def test_many_requests_at_once_all_come_back(bed: KubeBed) -> None:
    await asyncio.gather(*(bed.client.create(CONFIG_MAPS, config_map(bed, f"m{n}")) for n in range(100)))
    assert len((await bed.client.list(CONFIG_MAPS, ConfigMap, bed.namespace)).items) == 100


async def test_a_raw_request_is_answered_in_bytes(bed: KubeBed) -> None:
    assert await bed.client.request(Request("GET", "get", "/readyz", "readyz")) == b"ok"


def service_account_token(bed: KubeBed) -> str:
    path = f"/api/v1/namespaces/{bed.namespace}/serviceaccounts/default/token"
    request = {"spec": {"expirationSeconds": 600}}
    token: str = json.loads(bed.server.http(path, request))["status"]["token"]
    return token


async def test_in_a_pod_the_renewed_token_is_used_after_a_401(bed: KubeBed, tmp_path: Any) -> None:
    (tmp_path / "token").write_text("stale")
    (tmp_path / "namespace").write_text(bed.namespace)
    (tmp_path / "ca.crt").write_bytes(bed.server.pki.certificate.read_bytes())
    environment = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(bed.proxy.port)}
    user = f"system:serviceaccount:{bed.namespace}:default"
    bed.server.allow(user, bed.namespace, ["configmaps"], ["list"])
    credentials = await load_credentials(environment=environment, service_account=tmp_path)
    assert credentials.namespace == bed.namespace
    (tmp_path / "token").write_text(service_account_token(bed))
    async with Client(credentials) as client:
        assert (await client.list(CONFIG_MAPS, ConfigMap, bed.namespace)).items == []
    assert bed.proxy.count(anything) == 2, "the one that was refused, and its repetition"


async def test_an_exec_plugin_may_give_a_certificate(bed: KubeBed, tmp_path: Any) -> None:
    pki = bed.server.pki
    answer = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "kind": "ExecCredential",
        "status": {
            "clientCertificateData": pki.crt("admin").read_text(),
            "clientKeyData": pki.key("admin").read_text(),
        },
    }
    (tmp_path / "answer.json").write_text(json.dumps(answer))
    user = {"exec": {"apiVersion": answer["apiVersion"], "command": "cat", "args": [str(tmp_path / "answer.json")]}}
    authority = base64.b64encode(pki.certificate.read_bytes()).decode()
    config = {
        "clusters": [{"name": "c", "cluster": {"server": bed.server.server, "certificate-authority-data": authority}}],
        "users": [{"name": "u", "user": user}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u", "namespace": "ns"}}],
        "current-context": "x",
    }
    (tmp_path / "config").write_text(json.dumps(config))
    async with bed.server.client(tmp_path / "config") as client:
        assert client.credentials.namespace == "ns"
        await client.get(NAMESPACES, ConfigMap, bed.namespace)


async def test_the_proxy_of_a_kubeconfig_is_used_with_its_password(bed: KubeBed, tmp_path: Any) -> None:
    heads: list[bytes] = []

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        upstream = await asyncio.open_connection("127.0.0.1", bed.server.port)
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await asyncio.gather(_pour(reader, upstream[1]), _pour(upstream[0], writer))

    async with await asyncio.start_server(connect, "127.0.0.1", 0) as listener:
        port = listener.sockets[0].getsockname()[1]
        text = bed.server.admin_kubeconfig.read_text()
        path = tmp_path / "config"
        proxy = f'proxy-url: "http://me:pass@127.0.0.1:{port}"'
        path.write_text(text.replace("certificate-authority:", f"{proxy}, certificate-authority:"))
        async with bed.server.client(path) as client:
            await client.get(NAMESPACES, ConfigMap, bed.namespace)
    assert heads[0].startswith(b"CONNECT 127.0.0.1:")
    assert b"Proxy-Authorization: Basic " + base64.b64encode(b"me:pass") in heads[0]


async def _pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
    writer.close()
