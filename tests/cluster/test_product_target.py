"""`wake.targetInFlight` on a cluster: a second instance is awake while the first has enough to do, and no longer."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from product_bed import LIMIT, One, Product, Workload, ask, eventually, service

NAME = "busy"
SUSPEND_SECONDS = 12.0
"""Longer than it takes to say that all are calm: else they sleep before anybody is taken out."""


@pytest.fixture
def busy(product: Product) -> Iterator[Workload]:
    """Two instances, more than two requests each are to be shared; one of them, busy-1, sleeps."""
    product.bed.apply(service(NAME))
    idle = {"suspendAfter": f"{SUSPEND_SECONDS:g}s", "parkAfter": "500ms"}
    with product.workload(NAME, replicas=2, idle=idle, spec={"wake": {"targetInFlight": 2}}) as made:
        assert (made[0].serving().count, made[1].serving().count) == (1, 1)
        made[1].order("park")
        out_of_service(product, made[1])
        yield made
    product.bed.delete(f"service/{NAME}")


def address(product: Product) -> str:
    return str(product.bed.get("service", NAME)["spec"]["clusterIP"])


def endpoints(product: Product) -> list[str]:
    """Names of the pods to which new calls go."""
    slices = product.bed.items("endpointslices", "-l", f"kubernetes.io/service-name={NAME}")
    return sorted(
        end["targetRef"]["name"] for one in slices for end in one["endpoints"] or [] if end["conditions"]["ready"]
    )


def out_of_service(product: Product, one: One) -> None:
    """Of the endpoints, and a moment later of kube-proxy's rules."""
    eventually(lambda: one.name not in endpoints(product), LIMIT, f"{one.name} is out of the Service")
    rules, ip = ["iptables-save", "-t", "nat"], one.ip
    eventually(lambda: f"{ip}:" not in product.bed.cluster.control_plane.run(rules), LIMIT, "kube-proxy has followed")


class Held:
    """A request that is in flight until it is let go."""

    def __init__(self, host: str) -> None:
        self._connection = socket.create_connection((host, 80), timeout=60)
        self._connection.sendall(b"GET /hold HTTP/1.1\r\nHost: busy\r\nConnection: close\r\n\r\n")

    def let_go(self) -> str:
        """When the instance that answers it was born."""
        with self._connection, self._connection.makefile("rb") as answer:
            self._connection.sendall(b"x")
            return answer.read().split()[-1].decode()


@contextlib.contextmanager
def calls(product: Product) -> Iterator[set[str]]:
    """Short calls through the Service all the time, and who answered them."""
    over, born, host = threading.Event(), set[str](), address(product)

    def call() -> None:
        while not over.wait(0.2):
            with contextlib.suppress(OSError, ValueError):
                born.add(ask(host, 80, seconds=20).born)

    thread = threading.Thread(target=call)
    thread.start()
    try:
        yield born
    finally:
        over.set()
        thread.join()


def stays(seconds: float, what: str, look: Any) -> None:
    """`look` is true all that time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        assert look(), what
        time.sleep(0.1)


def gate(one: One) -> tuple[str, str]:
    found = next(c for c in one.pod["status"]["conditions"] if c["type"] == "kybernate.io/serving")
    return found["status"], found["reason"]


def writes(product: Product) -> dict[str, int]:
    """What the agent has written so far, by verb and resource."""
    text = product.agent.said("/metrics")
    found = re.findall(r'kybernate_api_requests_total\{verb="(\w+)",resource="([^"]+)"\} (\d+)', text)
    return {f"{verb} {resource}": int(count) for verb, resource, count in found if verb not in ("watch", "list", "get")}


def versions(workload: Workload) -> list[str]:
    objects = [workload.object, *(workload[n].object for n in (0, 1)), *(workload[n].pod for n in (0, 1))]
    return [each["metadata"]["resourceVersion"] for each in objects]


def at_rest(workload: Workload, seconds: float = 4) -> None:
    """Once nothing of it has been written for so long, though calls come."""
    seen: list[str] = []
    since = time.monotonic()

    def look() -> bool:
        nonlocal seen, since
        if seen != (seen := versions(workload)):
            since = time.monotonic()
        return time.monotonic() - since >= seconds

    eventually(look, LIMIT, f"nothing of {workload.name} is written any more")


def test_a_second_one_is_awake_while_the_first_has_enough_to_do(product: Product, busy: Workload) -> None:
    host, first, other = address(product), busy[0], busy[1]
    held = [Held(host)]
    generation = other.object["metadata"]["generation"]

    # One request is not enough, however long: nobody wakes, and nothing is written.
    stays(12, "the other sleeps", lambda: other.status["state"] == "Parked" and endpoints(product) == [first.name])
    at_rest(busy)
    counted = writes(product)

    held.append(Held(host))
    woken = other.wait("Running")
    eventually(lambda: endpoints(product) == [first.name, other.name], LIMIT, "both take calls")
    assert woken["lastWake"]["from"] == "NVME"
    assert (first.status["load"], gate(other)) == ("Full", ("True", "Awake"))
    assert other.object["spec"]["policy"]["keepAwake"] is True
    eventually(lambda: busy.status["awake"] == 2, LIMIT, "it is said")
    with calls(product) as born:
        eventually(lambda: len(born) == 2, LIMIT, "calls come to both")
    spent = {what: count - counted.get(what, 0) for what, count in writes(product).items()}
    # That the first is Full, that the other is awake, and perhaps what its calls make of its load.
    assert 2 <= spent["apply gpuinstances.kybernate.io/status"] <= 4, spent
    assert spent["create events"] == 1, spent

    # It is kept awake as long as the first is busy, however idle it is, and whatever happens to their agent.
    stays(SUSPEND_SECONDS + 3, "nobody flaps", lambda: other.status["state"] == "Running")
    product.agent.kill()
    product.agent.start()
    stays(SUSPEND_SECONDS + 3, "nobody flaps", lambda: other.status["state"] == "Running")
    eventually(lambda: first.status["load"] == "Full", LIMIT, "it is known again")
    assert endpoints(product) == [first.name, other.name]
    assert other.object["metadata"]["generation"] == generation + 1

    with calls(product):
        assert len({each.let_go() for each in held}) == 1
        eventually(lambda: gate(other) == ("False", "Surplus"), LIMIT, "one is not needed any more")
        out_of_service(product, other)
        asleep = other.parked()
        assert first.status["state"] == "Running"
        eventually(lambda: (busy.status["awake"], busy.status["parked"]) == (1, 1), LIMIT, "it is said")
        assert other.object["metadata"]["generation"] == generation + 2
        assert "load" not in asleep
        at_rest(busy)
        assert (endpoints(product), other.status["state"]) == ([first.name], "Parked")
    assert [c["status"] for c in busy.status["conditions"] if c["type"] in ("Ready", "Degraded")] == ["True", "False"]
