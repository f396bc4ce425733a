"""The controller with a real API server; the test plays scheduler, kubelets and agents."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio
from apiserver_bed import ApiServerBed
from controller_bed import Stage, open_controller, open_stage


@pytest_asyncio.fixture
async def stage(apiserver: ApiServerBed) -> AsyncIterator[Stage]:
    async with open_stage(apiserver) as stage:
        yield stage


async def test_a_workload_becomes_a_pod_an_instance_and_a_status(apiserver: ApiServerBed, stage: Stage) -> None:
    node = await stage.node("n1")
    async with open_controller(apiserver):
        await stage.workload("chat", replicas=1, idle={"suspendAfter": "60s", "parkAfter": "10m"})
        status = await stage.until_ready("chat", 1, awake=1, updatedReplicas=1)
        pod, instance = (await stage.pods())["chat-0"], (await stage.instances())["chat-0"]
        assert pod["spec"]["runtimeClassName"] == "kybernate"
        assert pod["metadata"]["annotations"]["kybernate.io/containers"] == "server"
        assert pod["metadata"]["labels"]["app"] == "chat"
        assert instance["spec"]["podUID"] == pod["metadata"]["uid"]
        assert instance["spec"]["nodeName"] == node
        assert instance["spec"]["epoch"] == 1
        assert instance["spec"]["policy"]["ports"] == [8080]
        assert instance["metadata"]["finalizers"] == ["kybernate.io/state"]
        assert status["selector"] == "kybernate.io/workload=chat"
        assert status["parked"] == 0
        stage.tiers["chat-0"] = "NVME"
        await stage.until_ready("chat", 1, awake=0, parked=1)
        assert (await stage.pods())["chat-0"]["metadata"]["uid"] == pod["metadata"]["uid"]
