"""The test cluster itself: what tests on it rely on."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator

import pytest
from cluster_bed import ClusterBed, eventually, pod, service


@pytest.fixture
def web(cluster_bed: ClusterBed) -> Iterator[str]:
    """A pod that serves HTTP, behind a Service of the same name."""
    name = "lab-web"
    cluster_bed.apply(pod(name), service(name))
    try:
        cluster_bed.wait(f"pod/{name}")
        yield name
    finally:
        cluster_bed.delete(f"pod/{name}", f"service/{name}")


def answers(host: str, port: int) -> bool:
    with urllib.request.urlopen(f"http://{host}:{port}/", timeout=5) as answer:
        return bool(answer.status == 200)


def test_a_pod_answers_by_its_ip_and_by_its_service(cluster_bed: ClusterBed, web: str) -> None:
    assert eventually(lambda: answers(cluster_bed.pod_ip(web), 8080), 30, "the pod answers the host")
    address = cluster_bed.get("service", web)["spec"]["clusterIP"]
    assert eventually(lambda: answers(address, 80), 30, "the Service answers the host")


def test_a_pod_reaches_a_service_by_its_name(cluster_bed: ClusterBed, web: str) -> None:
    ask = f"import urllib.request as u; print(u.urlopen('http://{web}.default.svc.cluster.local/', timeout=5).status)"
    caller = "lab-caller"
    cluster_bed.apply(pod(caller, command=["/bin/sleep", "1000"]))
    try:
        cluster_bed.wait(f"pod/{caller}")
        argv = ["exec", caller, "--", "/usr/bin/python3", "-c", ask]
        assert eventually(lambda: cluster_bed.kubectl(*argv), 30, "the Service answers a pod").strip() == "200"
    finally:
        cluster_bed.delete(f"pod/{caller}")
