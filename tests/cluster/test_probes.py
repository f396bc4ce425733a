"""A real kubelet probes every second: what sleeps stays asleep and Ready, what is awake is really probed.

The kubelet's own counts of its probes (/metrics/probes) tell what it did and heard.
"""

from __future__ import annotations

import contextlib
import re
import urllib.request
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from agent_in_cluster import (
    Instance,
    NodeAgent,
    app_pod,
    eventually,
    make_instance,
    processes_of,
    remove,
)
from cluster_bed import ClusterBed

WAYS: dict[str, dict[str, Any]] = {
    "http": {"httpGet": {"path": "/healthz", "port": "web"}},
    "tcp": {"tcpSocket": {"port": 8081}},
    "grpc": {"grpc": {"port": 8082, "service": "any"}},
    "exec": {"exec": {"command": ["/bin/cat", "/alive"]}},
}
KINDS = ("Liveness", "Readiness")
KEYS = ("pod", "probe_type", "result")
OFTEN = {"periodSeconds": 1, "timeoutSeconds": 5}
PRE_STOP = {"preStop": {"exec": {"command": ["/bin/sh", "-c", "echo >> /stopping"]}}}


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
    """Made, and gone at the end."""
    made = make_instance(bed, name, pod_spec=probed_pod(way, **(container or {})), **policy)
    try:
        yield made
    finally:
        remove(bed, name)


class Count:
    """How often the kubelet has heard `result` of the probes of that kind of a pod's container, as it says itself."""

    def __init__(self, one: Instance, kind: str, result: str) -> None:
        self._bed, self._labels = one.bed, (one.name, kind, result)
        self.before = self.now()

    def now(self) -> int:
        text = self._bed.kubectl("get", "--raw", f"/api/v1/nodes/{self._bed.node.name}/proxy/metrics/probes")
        total = 0
        for line in text.splitlines():
            labels = dict(re.findall(r'(\w+)="([^"]*)"', line))
            if line.startswith("prober_probe_total{") and self._labels == tuple(map(labels.get, KEYS)):
                total += int(float(line.rsplit(" ", 1)[1]))
        return total

    def has_grown(self, by: int) -> bool:
        return self.now() >= self.before + by

    def __str__(self) -> str:
        return " ".join(self._labels)


def grow(counts: list[Count], by: int = 3) -> None:
    """Wait until the kubelet has heard each result that many times more."""
    for count in counts:
        eventually(partial(count.has_grown, by), 60, f"{by} more {count}")


def wakes(one: Instance) -> list[str]:
    return [step["verb"] for step in one.status["history"] if step["verb"] == "resume"]


def reasons(one: Instance, pod: dict[str, Any]) -> list[str]:
    """Of the Events about its pod."""
    about = f"--field-selector=involvedObject.uid={pod['metadata']['uid']}"
    return [str(event["reason"]) for event in one.bed.items("events", about)]


def say(one: Instance, path: str) -> None:
    with urllib.request.urlopen(f"http://{one.ip}:8080{path}", timeout=30) as answer:
        answer.read()


def test_probed_sleepers_stay_ready_and_asleep(cluster_bed: ClusterBed, agent: NodeAgent) -> None:
    """One for each way of probing, all at once."""
    with contextlib.ExitStack() as stack:
        ones = [stack.enter_context(probed(cluster_bed, f"{way}-probed-0", way, suspendAfter="2s")) for way in WAYS]
        before = {one: one.serving() for one in ones}
        for state in ("Suspended", "Parked"):
            for one in ones if state == "Parked" else []:
                assert one.order("park")["outcome"] == "done"
            asleep = {one: (one.wait(state)["since"], wakes(one)) for one in ones}
            grow([Count(one, kind, "successful") for one in ones for kind in KINDS])
            for one in ones:
                assert one.status["state"] == state
                assert (one.status["since"], wakes(one)) == asleep[one], f"{one.name} was woken"
                assert one.ready()
        for one in ones:
            assert processes_of(one.name) == []
            after = one.ask()
            assert (after.count, after.born) == (before[one].count + 1, before[one].born)
        for one in ones:
            known = [*asleep[one][1], "resume"]
            eventually(partial(lambda one, known: wakes(one) == known, one, known), 20, "one wake is told")
        for one in ones:
            one.wait("Suspended")
            assert one.restarts() == 0
            assert [Count(one, kind, "failed").now() for kind in KINDS] == [0, 0]


@pytest.mark.parametrize("way", ["http", "exec"])
def test_a_failing_probe_restarts_what_is_awake(cluster_bed: ClusterBed, agent: NodeAgent, way: str) -> None:
    strict = {"livenessProbe": {**WAYS[way], **OFTEN, "failureThreshold": 1}}
    with probed(cluster_bed, f"{way}-failing-0", way, container=strict, suspendAfter="10m") as one:
        born = one.serving().born
        grow([Count(one, "Liveness", "successful")])
        assert one.restarts() == 0
        say(one, "/sick")
        eventually(lambda: one.restarts() >= 1, 60, "the kubelet restarts it")
        assert one.serving().born != born


def test_what_is_not_ready_does_not_sleep(cluster_bed: ClusterBed, agent: NodeAgent) -> None:
    """Asleep it would be answered for, and become ready by that.

    Probed by a command: a kubelet connects to what is not ready more often than is declared, and that counts as use.
    """
    quick = {"livenessProbe": None, "readinessProbe": {**WAYS["exec"], **OFTEN, "failureThreshold": 1}}
    with probed(cluster_bed, "unready-0", "exec", container=quick, suspendAfter="3s") as one:
        born = one.serving().born
        say(one, "/sick")
        eventually(lambda: not one.ready(), 60, "the kubelet finds it not ready")
        grow([Count(one, "Readiness", "failed")], 5)
        assert one.status["state"] == "Running"
        assert not one.ready()
        say(one, "/well")
        one.wait("Suspended")
        assert one.ready()
        assert one.ask().born == born


def test_a_probed_port_that_nobody_asked_to_wake_by_is_answered_too(cluster_bed: ClusterBed, agent: NodeAgent) -> None:
    """The policy names one port, the probe another."""
    with probed(cluster_bed, "other-port-0", "tcp", ports=[8080]) as one:
        one.serving()
        assert one.order("park")["outcome"] == "done"
        grow([Count(one, "Readiness", "successful")])
        assert one.status["state"] == "Parked"
        assert wakes(one) == []


def test_an_annotated_pods_probes_are_answered_alike(cluster_bed: ClusterBed, agent: NodeAgent) -> None:
    made = app_pod("annotated-probed", **probed_pod("http"))
    made["metadata"]["annotations"] |= {"kybernate.io/suspend-after": "2s", "kybernate.io/park-after": "1s"}
    cluster_bed.apply(made)
    one = Instance(cluster_bed, "annotated-probed")
    try:
        born = one.serving().born
        one.wait("Parked")
        grow([Count(one, kind, "successful") for kind in KINDS])
        assert one.status["state"] == "Parked"
        assert one.ready()
        assert one.ask().born == born
    finally:
        remove(cluster_bed, one.name)


def test_a_hook_before_the_end_wakes_nobody(cluster_bed: ClusterBed, agent: NodeAgent) -> None:
    with probed(cluster_bed, "hook-0", "exec", container={"lifecycle": PRE_STOP}) as one:
        one.serving()
        assert one.order("park")["outcome"] == "done"
        pod = one.pod
        cluster_bed.delete(f"pod/{one.name}")
        assert wakes(one) == []
        assert "FailedPreStopHook" not in reasons(one, pod)
        assert "Resumed" not in one.events()


def test_the_agent_may_be_replaced_while_it_sleeps(cluster_bed: ClusterBed, agent: NodeAgent) -> None:
    patient = {kind: {**WAYS["http"], **OFTEN, "failureThreshold": 60} for kind in ("livenessProbe", "readinessProbe")}
    with probed(cluster_bed, "replaced-0", "http", container=patient) as one:
        one.serving()
        assert one.order("park")["outcome"] == "done"
        with agent.away():
            pass
        grow([Count(one, "Liveness", "successful")])
        assert one.status["state"] == "Parked"
        assert wakes(one) == []
        assert one.ready()
        assert one.restarts() == 0


def test_a_parked_one_that_fails_for_want_of_an_agent_keeps_its_state(
    cluster_bed: ClusterBed, agent: NodeAgent
) -> None:
    """The kubelet ends its container and makes another, which waits for an agent and is restored."""
    strict = {"livenessProbe": {**WAYS["http"], "periodSeconds": 1, "timeoutSeconds": 1, "failureThreshold": 1}}
    with probed(cluster_bed, "unanswered-0", "http", container=strict) as one:
        born = one.serving().born
        assert one.order("park")["outcome"] == "done"
        with agent.away():
            eventually(lambda: "Killing" in reasons(one, one.pod), 60, "the kubelet ends it")
        grow([Count(one, "Readiness", "successful")])
        assert one.ask().born == born
