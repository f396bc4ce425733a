"""The manifests of examples/, as they are but for shorter times: each runs, sleeps, and answers after a wake."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

import aiohttp
import pytest
import yaml
from product_bed import LIMIT, One, Product, Workload, eventually

from kybernate.lab import examples

TOKEN = "a-token-of-the-test"


@pytest.fixture(scope="module")
def product(product: Product) -> Product:
    for image in (examples.model_server(), examples.notebook()):
        product.bed.node.load_image(image)
    return product


def manifests(*files: str) -> list[dict[str, Any]]:
    return [one for file in files for one in yaml.safe_load_all((examples.FOLDER / file).read_text())]


def soon(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same with times that a test can wait for."""
    for one in objects:
        if one["kind"] == "GpuWorkload":
            one["spec"]["idle"] |= {"suspendAfter": "2s", "parkAfter": "500ms"}
        if one["kind"] == "Deployment":
            notes = one["spec"]["template"]["metadata"]["annotations"]
            notes |= {"kybernate.io/suspend-after": "2s", "kybernate.io/park-after": "500ms"}
    return objects


def names(objects: list[dict[str, Any]]) -> list[str]:
    return [f"{one['kind'].lower()}/{one['metadata']['name']}" for one in objects]


def rank(address: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://{address}/rank?query=where+do+cats+sleep", timeout=90) as answer:
        return dict(json.load(answer))


def test_the_model_server(product: Product) -> None:
    bed = product.bed
    them = soon(manifests("model-server/workload.yaml", "model-server/service.yaml"))
    bed.apply(*them)
    workload = Workload(product, "chat")
    try:
        one = workload.ready()[0]
        address = bed.get("service", "chat")["spec"]["clusterIP"]
        before = eventually(lambda: rank(address), LIMIT, "the Service answers")
        one.mark()
        one.parked()
        assert one.ready()
        assert rank(address) == {**before, "requests": before["requests"] + 1}
    finally:
        bed.delete(*names(them))
    workload.await_gone()


def test_the_annotated_deployment(product: Product) -> None:
    bed = product.bed
    them = soon(manifests("annotated-deployment/deployment.yaml"))
    bed.apply(*them)
    try:
        bed.wait("deployment/ranker", "Available")
        (pod,) = bed.items("pods", "-l", "app=ranker")
        one = One(bed, pod["metadata"]["name"])
        address = bed.get("service", "ranker")["spec"]["clusterIP"]
        before = eventually(lambda: rank(address), LIMIT, "the Service answers")
        one.mark()
        one.parked()
        assert bed.get("deployment", "ranker")["status"]["readyReplicas"] == 1
        assert rank(address) == {**before, "requests": before["requests"] + 1}
    finally:
        bed.delete(*names(them))
    eventually(lambda: bed.items("gi") == [], LIMIT, "its instance went with it")


async def test_the_notebook_keeps_its_variables(product: Product) -> None:
    bed = product.bed
    bed.kubectl("create", "secret", "generic", "notebook", f"--from-literal=token={TOKEN}")
    them = soon(manifests("notebook/workload.yaml"))
    bed.apply(*them)
    workload = Workload(product, "notebook")
    try:
        one = workload.ready()[0]
        address = bed.get("service", "notebook")["spec"]["clusterIP"]
        headers = {"Authorization": f"token {TOKEN}"}
        async with aiohttp.ClientSession(f"http://{address}:8888", headers=headers) as session:
            async with session.post("/api/kernels", json={"name": "python3"}) as answer:
                answer.raise_for_status()
                kernel = (await answer.json())["id"]
            assert await run(session, kernel, "import random; kept = random.random(); print(kept)") != ""
            kept = await run(session, kernel, "print(kept)")
            one.mark()
            one.parked()
            assert await run(session, kernel, "print(kept)") == kept
    finally:
        bed.delete(*names(them), "secret/notebook")
    workload.await_gone()


async def run(session: aiohttp.ClientSession, kernel: str, code: str) -> str:
    """What the code prints in that kernel. Source: Jupyter, "Messaging in Jupyter", execute_request."""
    header = {
        "msg_id": f"{kernel}-{code}",
        "msg_type": "execute_request",
        "session": "test",
        "username": "",
        "version": "5.3",
    }
    asked = {"code": code, "silent": False, "store_history": False, "user_expressions": {}, "allow_stdin": False}
    said = ""
    async with session.ws_connect(
        f"/api/kernels/{kernel}/channels", timeout=aiohttp.ClientWSTimeout(ws_receive=90)
    ) as socket:
        await socket.send_json(
            {"header": header, "parent_header": {}, "metadata": {}, "content": asked, "channel": "shell"}
        )
        while True:
            message = await socket.receive_json()
            if message["parent_header"].get("msg_id") != header["msg_id"]:
                continue
            if message["msg_type"] == "stream":
                said += message["content"]["text"]
            if message["msg_type"] == "execute_reply":
                assert message["content"]["status"] == "ok", message["content"]
            if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                return said
