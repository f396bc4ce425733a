"""A real kubelet probes every second: what sleeps stays asleep and Ready, what is awake is really probed.

The kubelet's own counts of its probes (/metrics/probes) tell what it did and heard.
"""

from __future__ import annotations

import contextlib
import re
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from agent_in_cluster import Instance, NodeAgent, agent_on, eventually, instance, processes_of
from cluster_bed import ClusterBed

WAYS: dict[str, dict[str, Any]] = {
    "http": {"httpGet": {"path": "/healthz", "port": "web"}},
    "tcp": {"tcpSocket": {"port": 8081}},
    "grpc": {"grpc": {"port": 8082, "service": "any"}},
    "exec": {"exec": {"command": ["/bin/cat", "/alive"]}},
}
KEYS = ("pod", "probe_type", "result")
OFTEN = {"periodSeconds": 1, "timeoutSeconds": 5}
PRE_STOP = {"preStop": {"exec": {"command": ["/bin/sh", "-c", "echo >> /stopping"]}}}


@pytest.fixture(scope="module")
def agent(cluster_bed: ClusterBed) -> Iterator[NodeAgent]:
    with agent_on(cluster_bed) as made:
        yield made


@pytest.fixture(autouse=True)
def shown(agent: NodeAgent) -> Iterator[None]:
    yield
    print(agent.tail(20000))


def probed_pod(way: str, **more: Any) -> dict[str, Any]:
    """The spec of the probed application, with all three kinds of probes."""
    probe = {**WAYS[way], **OFTEN}
    container = {
        "command": ["/usr/bin/python3", "-u", "/apps/probed.py"],
        "ports": [{"name": "web", "containerPort": 8080}],
        "startupProbe": {**probe, "failureThreshold": 60},
        "livenessProbe": probe,
        "readinessProbe": probe,
        **more,
    }
    return {"container": container}


@contextlib.contextmanager
def probed(
    bed: ClusterBed, name: str, way: str, *, container: dict[str, Any] | None = None, **policy: Any
) -> Iterator[Instance]:
    spec = probed_pod(way, **(container or {}))
    with instance(bed, name, pod_spec=spec, **policy) as one:
        yield one


class Count:
    """How often the kubelet has probed the container of a pod, as it says itself."""

    def __init__(self, one: Instance) -> None:
        self._one = one

    def of(self, kind: str, result: str) -> int:
        node = self._one.bed.node.name
        text = self._one.bed.kubectl("get", "--raw", f"/api/v1/nodes/{node}/proxy/metrics/probes")
        total = 0
        for line in text.splitlines():
            labels = dict(re.findall(r'(\w+)="([^"]*)"', line))
            asked = (self._one.name, kind, result)
            if line.startswith("prober_probe_total{") and asked == tuple(map(labels.get, KEYS)):
                total += int(float(line.rsplit(" ", 1)[1]))
        return total

    def grows(self, kind: str, result: str, by: int = 3) -> None:
        """Wait until the kubelet has heard `result` that many times more."""
        before = self.of(kind, result)
        eventually(lambda: self.of(kind, result) >= before + by, 60, f"{by} more {kind} probes are {result}")


def wakes(one: Instance) -> list[str]:
    return [step["verb"] for step in one.status["history"] if step["verb"] == "resume"]


def say(one: Instance, path: str) -> None:
    with urllib.request.urlopen(f"http://{one.ip}:8080{path}", timeout=30) as answer:
        answer.read()


@pytest.mark.parametrize("way", list(WAYS))
def test_a_probed_sleeper_stays_ready_and_asleep(cluster_bed: ClusterBed, agent: NodeAgent, way: str) -> None:
    with probed(cluster_bed, f"{way}-probed-0", way, suspendAfter="2s") as one:
        count = Count(one)
        before = one.ask()
        for state in ("Suspended", "Parked"):
            if state == "Parked":
                assert one.order("park")["outcome"] == "done"
            since = one.wait(state)["since"]
            for kind in ("Liveness", "Readiness"):
                count.grows(kind, "successful")
            asleep = one.status
            assert (asleep["state"], asleep["since"]) == (state, since), "no probe has woken it"
            assert wakes(one) == []
            assert one.ready()
        assert processes_of(one.name) == []
        after = one.ask()
        assert (after.count, after.born) == (before.count + 1, before.born)
        eventually(lambda: wakes(one) == ["resume"], 20, "one wake is told")
        one.wait("Suspended")
        assert one.restarts() == 0
        assert [count.of(kind, "failed") for kind in ("Liveness", "Readiness")] == [0, 0]


@pytest.mark.parametrize("way", ["http", "exec"])
def test_a_failing_probe_restarts_what_is_awake(cluster_bed: ClusterBed, agent: NodeAgent, way: str) -> None:
    with probed(cluster_bed, f"{way}-failing-0", way, suspendAfter="10m") as one:
        born = one.ask().born
        Count(one).grows("Liveness", "successful")
        assert one.restarts() == 0
        say(one, "/sick")
        eventually(lambda: one.restarts() >= 1, 60, "the kubelet restarts it")
        assert one.serving().born != born


def test_what_is_not_ready_does_not_sleep(cluster_bed: ClusterBed, agent: NodeAgent) -> None:
    """Asleep it would be answered for, and become ready by that."""
    with probed(cluster_bed, "unready-0", "http", container={"livenessProbe": None}, suspendAfter="3s") as one:
        born = one.ask().born
        say(one, "/sick")
        eventually(lambda: not one.ready(), 60, "the kubelet finds it not ready")
        Count(one).grows("Readiness", "failed", 6)
        assert one.status["state"] == "Running"
        assert not one.ready()
        say(one, "/well")
        one.wait("Suspended")
        assert one.ready()
        assert one.ask().born == born


def test_a_probed_port_that_nobody_asked_to_wake_by_is_answered_too(cluster_bed: ClusterBed, agent: NodeAgent) -> None:
    """The policy names one port, the probe another."""
    with probed(cluster_bed, "other-port-0", "tcp", ports=[8080]) as one:
        assert one.order("park")["outcome"] == "done"
        Count(one).grows("Readiness", "successful")
        assert one.status["state"] == "Parked"
        assert wakes(one) == []


def test_a_hook_before_the_end_wakes_nobody(cluster_bed: ClusterBed, agent: NodeAgent) -> None:
    with probed(cluster_bed, "hook-0", "exec", container={"lifecycle": PRE_STOP}) as one:
        assert one.order("park")["outcome"] == "done"
        uid = one.pod["metadata"]["uid"]
        cluster_bed.delete(f"pod/{one.name}")
        assert wakes(one) == []
        about = f"--field-selector=involvedObject.uid={uid}"
        told = [event["reason"] for event in cluster_bed.items("events", about)]
        assert "FailedPreStopHook" not in told
        assert "Resumed" not in one.events()


def test_the_agent_may_be_replaced_while_it_sleeps(cluster_bed: ClusterBed, agent: NodeAgent) -> None:
    patient = {kind: {**WAYS["http"], **OFTEN, "failureThreshold": 60} for kind in ("livenessProbe", "readinessProbe")}
    with probed(cluster_bed, "replaced-0", "http", container=patient) as one:
        assert one.order("park")["outcome"] == "done"
        with agent.away():
            pass
        Count(one).grows("Liveness", "successful")
        assert one.status["state"] == "Parked"
        assert wakes(one) == []
        assert one.ready()
        assert one.restarts() == 0
