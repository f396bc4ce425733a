"""The CLI against a real API server: what `kybernate` says and does there. The test plays the agent."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import pytest
import yaml
from agent_bed import eventually
from crd_bed import install

from kybernate.api.gpuinstance import GpuInstance
from kybernate.kube.resource import GPU_INSTANCES, GPU_WORKLOADS, Resource
from kybernate.lab.cluster.apiserver import ApiServerBed

SPACE = "cli"
INSTANCE = {
    "apiVersion": "kybernate.io/v1alpha1",
    "kind": "GpuInstance",
    "metadata": {"name": "chat-0", "namespace": SPACE},
    "spec": {"workload": "chat", "ordinal": 0, "nodeName": "n1", "pod": "chat-0", "policy": {"container": "server"}},
}
STATUS = {
    "state": "Parked",
    "tier": "NVME",
    "since": "2026-01-01T10:00:00Z",
    "nodeName": "n1",
    "storedBytes": 64 << 20,
    "lastWake": {"seconds": 0.25, "from": "RAM"},
    "history": [
        {"at": "2026-01-01T10:00:00Z", "verb": "park", "seconds": 0.5, "outcome": "done", "phases": {"dump": 0.4}}
    ],
}
WORKLOAD = """\
apiVersion: kybernate.io/v1alpha1
kind: GpuWorkload
metadata: {name: chat}
spec:
  template: {spec: {containers: [{name: server, image: "localhost/chat:1", ports: [{containerPort: 8080}]}]}}
"""


class Ended(NamedTuple):
    status: int
    out: str
    err: str


class Cli:
    def __init__(self, bed: ApiServerBed) -> None:
        self.bed = bed

    def __call__(self, *words: str, stdin: str = "") -> Ended:
        command = [sys.executable, "-m", "kybernate.cli", "--kubeconfig", str(self.bed.admin_kubeconfig), "-n", SPACE]
        environment = {**os.environ, "NO_COLOR": "1"}
        done = subprocess.run(
            [*command, *words], input=stdin, capture_output=True, text=True, timeout=120, env=environment, check=False
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    def create(self, resource: Resource, body: dict[str, Any]) -> None:
        async def do() -> None:
            async with self.bed.client() as client:
                await client.create(resource, body, SPACE)

        asyncio.run(do())

    def delete(self, resource: Resource, name: str) -> None:
        async def do() -> None:
            async with self.bed.client() as client:
                await client.delete(resource, name, SPACE)

        asyncio.run(do())

    def status(self, instance: str = "chat-0", /, **status: Any) -> None:
        """What the agent of the node would say."""

        async def do() -> None:
            async with self.bed.client() as client:
                await client.merge_patch(
                    GPU_INSTANCES, GpuInstance, instance, {"status": status}, SPACE, subresource="status"
                )

        asyncio.run(do())

    def say_of_workload(self, namespace: str, status: dict[str, Any]) -> None:
        """What the controller would."""

        async def do() -> None:
            async with self.bed.client() as client:
                await client.merge_patch(
                    GPU_WORKLOADS, dict[str, Any], "chat", {"status": status}, namespace, subresource="status"
                )

        asyncio.run(do())

    def instance(self, name: str = "chat-0") -> GpuInstance:
        async def do() -> GpuInstance:
            async with self.bed.client() as client:
                return await client.get(GPU_INSTANCES, GpuInstance, name, SPACE)

        return asyncio.run(do())


@pytest.fixture(scope="module")
def cli(apiserver: ApiServerBed) -> Iterator[Cli]:
    asyncio.run(install(apiserver))
    apiserver.create_namespace(SPACE)
    cli = Cli(apiserver)
    cli.create(GPU_INSTANCES, INSTANCE)
    cli.status("chat-0", **STATUS)
    yield cli
    apiserver.reset()


def test_get_and_describe_tell_what_the_agent_observed(cli: Cli) -> None:
    line = cli("get").out.splitlines()[1].split()
    assert line[:3] == ["chat-0", "Parked", "NVME"]
    assert "0.25s from RAM" in cli("get").out
    everywhere = [line.split() for line in cli("get", "-A").out.splitlines()]
    assert SPACE in [words[-1] for words in everywhere if words[0] == "chat-0"]
    found = json.loads(cli("get", "chat", "-o", "json").out)
    assert (found["node"], found["storedBytes"], found["history"][0]["phaseSeconds"]) == ("n1", 64 << 20, {"dump": 0.4})
    described = cli("describe", "chat").out
    assert "Node:           n1" in described
    assert "dump 0.400" in described
    assert "Sandbox:" not in described


def test_a_name_that_does_not_exist_and_a_server_that_does_not_answer_have_their_exit_statuses(cli: Cli) -> None:
    missing = cli("describe", "nobody")
    assert (missing.status, "no workload or instance in namespace cli is called 'nobody'" in missing.err) == (4, True)
    assert cli("-n", "elsewhere", "get").out == "No instances. `kybernate apply -f FILE` makes some.\n"
    nowhere = cli("--kubeconfig", "/nonexistent", "get")
    assert (nowhere.status, "/nonexistent" in nowhere.err) == (2, True)


def test_apply_is_checked_by_the_server_and_says_what_became_of_it(cli: Cli) -> None:
    assert cli("apply", "-f", "-", stdin=WORKLOAD).out == "gpuworkload chat created\n"
    assert cli("apply", "-f", "-", stdin=WORKLOAD).out == "gpuworkload chat unchanged\n"
    more = WORKLOAD.replace("spec:\n", "spec:\n  replicas: 2\n", 1)
    assert cli("apply", "-f", "-", stdin=more).out == "gpuworkload chat configured\n"
    slip = cli("apply", "-f", "-", stdin=WORKLOAD.replace("spec:\n", "spec:\n  replica: 2\n", 1))
    assert (slip.status, "replica" in slip.err) == (2, True)
    other = cli("apply", "-f", "-", stdin="{apiVersion: v1, kind: Pod, metadata: {name: x}}")
    assert (other.status, "kubectl apply" in other.err) == (2, True)
    assert cli("delete", "chat").out == "gpuworkload chat is being deleted\n"
    assert cli("delete", "nobody").status == 4


def test_apply_waits_for_what_it_applied_where_that_is(cli: Cli) -> None:
    """Not for one of the same name where the kubeconfig points, nor for what was there before a change."""
    cli.bed.create_namespace("team")
    there = WORKLOAD.replace("{name: chat}", "{name: chat, namespace: team}")
    assert cli("apply", "-f", "-", stdin=WORKLOAD).status == 0
    assert cli("apply", "-f", "-", stdin=there).status == 0
    said = {"observedGeneration": 1, "conditions": [condition("Ready", True), condition("Progressing", False)]}
    cli.say_of_workload(SPACE, said)
    waits = cli("apply", "--wait", "--timeout", "300ms", "-f", "-", stdin=there)
    assert (waits.status, "chat: not as it should be after 0.3 s: the controller has not looked" in waits.err) == (
        22,
        True,
    )
    cli.say_of_workload("team", said)
    assert cli("apply", "--wait", "-f", "-", stdin=there).out == "gpuworkload chat unchanged\n"
    more = there.replace("spec:\n", "spec:\n  replicas: 2\n", 1)
    assert cli("apply", "--wait", "--timeout", "300ms", "-f", "-", stdin=more).status == 22
    invalid = condition("TemplateInvalid", True) | {"message": "such an image there is not"}
    cli.say_of_workload("team", {"observedGeneration": 2, "conditions": [invalid]})
    refused = cli("apply", "--wait", "-f", "-", stdin=more)
    assert (refused.status, "such an image there is not" in refused.err) == (2, True)
    for space in (SPACE, "team"):
        assert cli("-n", space, "delete", "chat").status == 0


def condition(kind: str, holds: bool) -> dict[str, Any]:
    return {"type": kind, "status": str(holds), "reason": "Test", "lastTransitionTime": "2026-01-01T00:00:00Z"}


@pytest.mark.parametrize(("outcome", "status"), [("done", 0), ("refused", 20)])
def test_an_order_is_an_annotation_that_the_agent_answers(cli: Cli, outcome: str, status: int) -> None:
    ended: list[Ended] = []
    before = cli.instance().metadata.annotations.get("kybernate.io/order")
    waiting = threading.Thread(target=lambda: ended.append(cli("resume", "chat-0", "--wait")))
    waiting.start()

    def ordered() -> str | None:
        now = cli.instance().metadata.annotations.get("kybernate.io/order")
        return now if now != before else None

    verb, id_ = eventually(ordered, 60, "the order stands on the instance").split()
    cli.status(order={"id": id_, "verb": verb, "outcome": outcome, "message": "it is StateLost"})
    waiting.join(60)
    assert (verb, ended[0].status) == ("resume", status)
    assert ("it is StateLost" in ended[0].err) == (outcome == "refused")


def test_watch_follows_changes(cli: Cli) -> None:
    command = [sys.executable, "-m", "kybernate.cli", "--kubeconfig", str(cli.bed.admin_kubeconfig), "-n", SPACE]
    with subprocess.Popen([*command, "get", "--watch"], stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        try:
            assert watching.stdout.readline().split()[:2] == ["NAME", "STATE"]
            assert watching.stdout.readline().split()[:2] == ["chat-0", "Parked"]
            cli.status(state="Running", tier="-")
            assert watching.stdout.readline().split()[:3] == ["chat-0", "Running", "-"]
        finally:
            watching.kill()


TWINS = ("twin-0", "twin-1")


@pytest.fixture
def twins(cli: Cli) -> Iterator[Cli]:
    """A workload with two instances."""
    for ordinal, name in enumerate(TWINS):
        spec = {"workload": "twin", "ordinal": ordinal, "nodeName": "n1", "pod": name, "policy": {"container": "app"}}
        cli.create(GPU_INSTANCES, {**INSTANCE, "metadata": {"name": name, "namespace": SPACE}, "spec": spec})
        cli.status(name, state="Suspended", tier="RAM", nodeName="n1")
    yield cli
    for name in TWINS:
        cli.delete(GPU_INSTANCES, name)


def test_a_workloads_name_shows_all_its_instances(twins: Cli) -> None:
    assert [line.split()[0] for line in twins("get", "twin").out.splitlines()] == ["NAME", *TWINS]
    assert [each["name"] for each in json.loads(twins("get", "twin", "-o", "json").out)] == [*TWINS]
    assert json.loads(twins("get", "twin-1", "-o", "json").out)["name"] == "twin-1"
    described = twins("describe", "twin").out
    assert [line.split()[1] for line in described.splitlines() if line.startswith("Name:")] == [*TWINS]


@pytest.mark.parametrize(
    "words", [("logs", "twin"), ("exec", "twin", "--", "true"), ("checkpoint", "twin", "--as", "x")]
)
def test_where_it_must_be_one_the_names_are_told(twins: Cli, words: tuple[str, ...]) -> None:
    ended = twins(*words)
    assert (ended.status, ended.out) == (2, "")
    assert "twin has several instances: twin-0, twin-1. Name one of them." in ended.err


def test_one_of_several_is_not_deleted_with_the_others(twins: Cli) -> None:
    twins.create(GPU_WORKLOADS, {**yaml.safe_load(WORKLOAD), "metadata": {"name": "twin"}})
    ended = twins("delete", "twin-1")
    assert (ended.status, "kubectl scale gw twin" in ended.err) == (2, True)
    assert twins("delete", "twin").status == 0


def order_of(cli: Cli, name: str) -> str:
    return cli.instance(name).metadata.annotations.get("kybernate.io/order", "")


def test_an_order_for_a_workload_is_one_for_each_instance(twins: Cli) -> None:
    assert twins("park", "twin-1").out == "twin-1: park ordered, now Suspended\n"
    assert (order_of(twins, "twin-0"), order_of(twins, "twin-1").split()[0]) == ("", "park")
    ordered = twins("park", "twin")
    assert ordered.out.splitlines() == [f"{name}: park ordered, now Suspended" for name in TWINS]
    assert [order_of(twins, name).split()[0] for name in TWINS] == ["park", "park"]


def test_what_one_refuses_the_others_do(twins: Cli) -> None:
    ended: list[Ended] = []
    waiting = threading.Thread(target=lambda: ended.append(twins("resume", "twin", "--wait")))
    waiting.start()
    for name, outcome in zip(TWINS, ("refused", "done"), strict=True):
        verb, id_ = eventually(partial(order_of, twins, name), 60, f"{name} is ordered").split()
        order = {"id": id_, "verb": verb, "outcome": outcome, "message": "it is StateLost"}
        twins.status(name, order=order, state="Running", tier="-")
    waiting.join(60)
    assert (ended[0].status, ended[0].out) == (20, "twin-1: Running\n")
    assert "twin-0: it is StateLost" in ended[0].err
