"""What a user does all day: apply, call, scale, change, look into, delete; controller and agent together."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from cluster_bed import ClusterBed, pod
from product_bed import (
    LIMIT,
    PYTHON_IMAGE,
    SOON,
    One,
    Product,
    Workload,
    ask,
    eventually,
    manifest,
    processes_of,
    service,
)
from product_remains import await_nothing_left, remains


@pytest.fixture(scope="module")
def caller(cluster_bed: ClusterBed) -> Iterator[str]:
    """A pod of nobody's, from which one calls."""
    cluster_bed.apply(pod("caller", command=["/bin/sleep", "100000"]))
    cluster_bed.wait("pod/caller")
    yield "caller"
    cluster_bed.delete("pod/caller")


@pytest.fixture(scope="module")
def chat(product: Product) -> Iterator[Workload]:
    """One that sleeps soon, and its Service."""
    product.bed.apply(service("chat"))
    with product.workload("chat", idle=SOON) as made:
        yield made
    product.bed.delete("service/chat")


def cluster_ip(bed: ClusterBed, name: str) -> str:
    return str(bed.get("service", name)["spec"]["clusterIP"])


def in_service(bed: ClusterBed, name: str) -> list[str]:
    """Names of the pods to which the Service's calls go."""
    slices = bed.items("endpointslices", "-l", f"kubernetes.io/service-name={name}")
    return sorted(
        end["targetRef"]["name"] for one in slices for end in one["endpoints"] or [] if end["conditions"]["ready"]
    )


def test_the_only_one_sleeps_and_its_pod_stays_ready(product: Product, chat: Workload) -> None:
    one = chat[0]
    before = one.serving()
    states = [one.parked()["tier"], one.ready(), one.restarts()]
    assert states == ["NVME", True, 0]
    assert processes_of("chat") == []
    eventually(lambda: chat.status.get("parked") == 1, LIMIT, "the workload says so")
    after = one.ask()
    assert (after.count, after.born) == (before.count + 1, before.born)


def test_calls_from_everywhere_wake_it_with_its_state(product: Product, chat: Workload, caller: str) -> None:
    bed, one = product.bed, chat[0]
    before = one.ask()

    def from_pod(host: str) -> list[str]:
        code = f"import urllib.request as u; print(u.urlopen('http://{host}', timeout=60).read().decode())"
        return bed.kubectl("exec", caller, "--", "/usr/bin/python3", "-c", code).split()

    address = cluster_ip(bed, "chat")
    calls: list[Callable[[], list[str]]] = [
        lambda: [str((said := ask(address, 80)).count), said.born],
        lambda: from_pod("chat"),
        lambda: from_pod(f"{one.ip}:8080"),
    ]
    for number, call in enumerate(calls, 1):
        one.parked()
        one.mark()
        assert call() == [str(before.count + number), before.born]


def test_kubectl_tells_the_story(product: Product, chat: Workload) -> None:
    bed, one = product.bed, chat[0]
    one.ask()
    one.parked()
    bed.wait("gw/chat")

    def row() -> list[str]:
        head, first = (line.split() for line in bed.kubectl("get", "gw", "chat").splitlines())
        assert head == ["NAME", "READY", "DESIRED", "AWAKE", "SUSPENDED", "PARKED", "AGE"]
        return first[:6]

    eventually(lambda: row() == ["chat", "True", "1", "0", "0", "1"], LIMIT, "the workload is shown as parked")
    rows = [line.split() for line in bed.kubectl("get", "gi", "chat-0").splitlines()]
    assert rows[0] == ["NAME", "NODE", "STATE", "TIER", "SINCE", "NEXT", "LAST-WAKE", "AGE"]
    assert rows[1][:4] == ["chat-0", bed.node.name, "Parked", "NVME"]
    assert "suspendAfter" in bed.kubectl("explain", "gw.spec.idle")
    assert "Parked" in bed.kubectl("describe", "gi", "chat-0")
    assert "chat-0" in bed.kubectl("get", "kybernate")


def test_exec_wakes_it_and_logs_do_not(product: Product, chat: Workload) -> None:
    bed, one = product.bed, chat[0]
    before = one.ask()
    one.parked()
    assert "ready" in bed.kubectl("logs", "chat-0")
    assert one.status["state"] == "Parked"
    assert bed.kubectl("exec", "chat-0", "--", "/bin/echo", "hello").strip() == "hello"
    after = one.ask()
    assert (after.count, after.born) == (before.count + 1, before.born)


@pytest.mark.parametrize("asleep", [False, True], ids=["awake", "asleep"])
def test_a_debug_container_sees_the_application_and_nothing_of_the_host(product: Product, asleep: bool) -> None:
    bed, name = product.bed, f"looked-{'at' if asleep else 'into'}"
    look = "for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline; echo; done; echo seen"
    with product.workload(name) as workload:
        one = workload[0]
        before = one.serving()
        if asleep:
            one.order("park")
        said = ["--image", PYTHON_IMAGE, "--target=app", "--container=looks", "--attach=false"]
        bed.kubectl("debug", one.name, *said, "--", "/bin/sh", "-c", look)
        lines = eventually(lambda: looked(bed, one.name), LIMIT, "it has looked").splitlines()
        programs = [line for line in lines if line and "/proc/[0-9]" not in line]
        assert [line for line in programs if "counting.py" in line], lines
        assert not [line for line in programs if "counting.py" not in line and not line.startswith(("seen", "tr "))]
        after = one.ask()
        assert (after.count, after.born) == (before.count + 1, before.born)
        one.order("park")
        assert one.wait("Parked")["tier"] == "NVME"
        assert one.ask().born == before.born


def looked(bed: ClusterBed, name: str) -> str:
    said = bed.kubectl("logs", name, "-c", "looks")
    return said if "seen" in said else ""


def test_scaled_up_and_down_and_away(product: Product) -> None:
    before = remains(product.bed)
    with product.workload("scaled", replicas=0, idle=SOON) as workload:
        assert workload.names() == []
        workload.scale(3)
        workload.ready()
        # Not `serving`: one that sleeps already is out of the Service, so its pod is not Ready.
        born = {
            name: eventually(One(product.bed, name).ask, LIMIT, f"{name} answers").born for name in workload.names()
        }
        assert sorted(born) == ["scaled-0", "scaled-1", "scaled-2"]
        eventually(lambda: workload.status.get("parked") == 3, LIMIT, "all sleep")
        workload.scale(1)
        (name,) = eventually(lambda: n if len(n := workload.names()) == 1 else None, LIMIT, "one stays")
        eventually(lambda: workload.status.get("replicas") == 1, LIMIT, "it is said")
        assert One(product.bed, name).ask().born == born[name]
        assert json.loads(product.bed.kubectl("get", "gw", "scaled", "-o", "json"))["spec"]["replicas"] == 1
        workload.scale(0)
        eventually(lambda: workload.objects() == ["gpuworkloads/scaled "], LIMIT, "none is left")
        workload.ready()
    await_nothing_left(product.bed, before)
    assert processes_of("scaled") == []


def test_a_changed_template_is_rolled_out_to_who_is_awake(product: Product) -> None:
    with product.workload("rolled", replicas=2) as workload:
        before = {ordinal: workload[ordinal].serving().born for ordinal in (0, 1)}
        product.bed.apply(manifest("rolled", replicas=2, mark="second"))
        eventually(lambda: workload.status.get("updatedReplicas") == 2, LIMIT, "both are of the new template")
        workload.ready()
        for ordinal, born in before.items():
            after = workload[ordinal].serving()
            assert (after.count, after.born != born) == (1, True)
        assert len(processes_of("second")) == 2
        assert processes_of("rolled") == []


def test_a_changed_template_waits_for_the_next_call_of_a_sleeper(product: Product) -> None:
    with product.workload("later") as workload:
        one = workload[0]
        before, uid = one.serving(), one.uid
        one.order("park")
        product.bed.apply(manifest("later", mark="new"))
        eventually(
            lambda: workload.status.get("observedGeneration") == workload.object["metadata"]["generation"],
            LIMIT,
            "the change was seen",
        )
        assert (one.uid, one.status["state"]) == (uid, "Parked")
        with contextlib.suppress(OSError, ValueError):
            one.ask()
        eventually(lambda: workload.status.get("updatedReplicas") == 1 and one.uid != uid, LIMIT, "it is replaced")
        assert one.serving().born != before.born
        assert len(processes_of("new")) == 1
        workload.ready()


def test_a_changed_template_now_gives_a_sleepers_state_up_and_says_so(product: Product) -> None:
    rollout: dict[str, Any] = {"rollout": {"sleeping": "Now"}}
    with product.workload("now", spec=rollout) as workload:
        one = workload[0]
        before = one.serving()
        one.order("park")
        product.bed.apply(manifest("now", spec=rollout, mark="newest"))
        eventually(lambda: workload.status.get("updatedReplicas") == 1, LIMIT, "it is replaced")
        workload.ready()
        assert one.serving().born != before.born
        events = product.bed.items("events", "--field-selector=involvedObject.name=now")
        assert "StateGivenUp" in {event["reason"] for event in events} | set(one.events())


@pytest.fixture
def pair(product: Product) -> Iterator[Workload]:
    """Two instances that sleep when they are told to, and their Service."""
    product.bed.apply(service("pair"))
    with product.workload("pair", replicas=2) as made:
        eventually(lambda: in_service(product.bed, "pair") == ["pair-0", "pair-1"], LIMIT, "both serve")
        yield made
    product.bed.delete("service/pair")


def test_a_sleeper_is_left_alone_while_another_is_awake(product: Product, pair: Workload) -> None:
    bed, address = product.bed, cluster_ip(product.bed, "pair")
    sleeper, other = pair[0], pair[1]
    born = sleeper.serving().born
    awake = other.serving().born
    sleeper.order("park")
    await_out_of_service(bed, "pair", sleeper)
    assert {settled(address).born for _ in range(20)} == {awake}
    assert sleeper.status["state"] == "Parked"
    other.order("park")
    eventually(lambda: len(in_service(bed, "pair")) == 1, LIMIT, "one of the sleepers takes the calls")
    said = settled(address)
    assert said.born in (born, awake)
    eventually(lambda: pair.status.get("awake") == 1 and pair.status.get("parked") == 1, LIMIT, "one was woken")


def test_a_sleeper_takes_over_when_the_awake_one_is_gone(product: Product, pair: Workload) -> None:
    bed, address = product.bed, cluster_ip(product.bed, "pair")
    born = pair[0].serving().born
    pair[0].order("park")
    await_out_of_service(bed, "pair", pair[0])
    bed.kubectl("cordon", bed.node.name)
    try:
        bed.delete("pod/pair-1")
        assert eventually(lambda: settled(address), LIMIT, "somebody answers").born == born
        assert pair[0].wait("Running")["lastWake"]["from"] == "NVME"
    finally:
        bed.kubectl("uncordon", bed.node.name)
    pair.ready()


def await_out_of_service(bed: ClusterBed, name: str, one: One) -> None:
    """Of the endpoints, and a moment later of kube-proxy's rules; calls go to it until then."""
    eventually(lambda: one.name not in in_service(bed, name), LIMIT, "the sleeper is out of the Service")
    ip = one.ip
    rules = ["iptables-save", "-t", "nat"]
    eventually(lambda: f"{ip}:" not in bed.cluster.control_plane.run(rules), LIMIT, "kube-proxy has followed")


def settled(address: str) -> Any:
    """An answer of the Service: kube-proxy follows the endpoints a moment later; till then calls go to who is gone."""
    return eventually(lambda: ask(address, 80, seconds=5), LIMIT, "the Service answers")


def test_ordered_for_good(product: Product) -> None:
    with product.workload("ordered") as workload:
        one = workload[0]
        born = one.serving().born
        workload.patch({"state": "Parked"})
        one.wait("Parked")
        with pytest.raises(OSError):
            ask(one.ip, seconds=10)
        assert one.status["state"] == "Parked"
        workload.patch({"state": "Running"})
        one.wait("Running")
        assert one.ask().born == born
