"""A pod that is awake: probes are real, and nobody's use.

The namespace `peer` stands for the node. The application is an echo server, so an http probe gets its own words back.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Iterator

import pytest
from kubelet_double import KubeletDouble
from kybernate_agent.probes import Declared
from kybernate_agent.traffic import Activity, Kubelet, Owner, PodTraffic, fold
from kybernate_agent.traffic.sockdiag import State
from traffic_lab import PORT, FrozenServer, Link, Wakes, accept, client, connect, link, listen, receive, send, until

OTHER_PORT = 9000  # not probed
PERIOD_SECONDS = 5.0


@pytest.fixture
def net() -> Iterator[Link]:
    with link() as made:
        yield made


@pytest.fixture
def kubelet(net: Link) -> Iterator[KubeletDouble]:
    with KubeletDouble(net.peer) as made:
        yield made


@pytest.fixture
def owner(net: Link) -> Iterator[Kubelet]:
    made = Kubelet(net.peer)
    made.open()
    yield made
    made.close()


@pytest.fixture
async def traffic(net: Link, owner: Kubelet) -> AsyncIterator[PodTraffic]:
    declared = Declared(ports=frozenset({PORT}), periods=(PERIOD_SECONDS,), timeout_seconds=1.0)
    async with PodTraffic(net.pod, [PORT, OTHER_PORT], Wakes(), declared, owner) as made:
        yield made


class Clock:
    """Folds samples of a pod; each fold is some seconds after the last."""

    def __init__(self, traffic: PodTraffic) -> None:
        self.now = 0.0
        self.activity: Activity | None = None
        self._traffic = traffic

    def tick(self, seconds: float = 0.001) -> Activity:
        self.now += seconds
        self.activity = fold(self.activity, self._traffic.sample(), self.now, [PORT, OTHER_PORT])
        return self.activity

    def used(self, seconds: float = 0.001) -> bool:
        return self.tick(seconds).last_activity == self.now


async def ask(who: KubeletDouble, way: str, address: str, port: int = PORT) -> str:
    return await asyncio.to_thread(who.ask, way, address, port)


@pytest.mark.parametrize("family", ["v4", "v6"])
async def test_a_probe_that_is_seen_is_no_use(
    net: Link, kubelet: KubeletDouble, traffic: PodTraffic, family: str
) -> None:
    clock, address = Clock(traffic), net.address(family)[1]
    with listen(net.pod) as listener:
        assert clock.used(), "the first sample is a beginning"
        assert await ask(kubelet, "open", address) == "open"
        assert not clock.used(), "not accepted"
        assert clock.tick().in_flight_since is None
        with await accept(listener) as far:
            assert not clock.used()
            saying = asyncio.create_task(ask(kubelet, "say", address))
            await until(traffic.has_unread)
            assert clock.tick().in_flight_since is None
            assert not clock.used()
            assert b"kube-probe" in await receive(far)
            await send(far, b"HTTP/1.1 503 Unavailable\r\n\r\n")
            assert await saying == "503", "what the application says is what the kubelet hears"
            assert not clock.used()
        assert await ask(kubelet, "shut", address) == "closed"
        assert not clock.used()
        assert clock.tick(10 * PERIOD_SECONDS).last_activity < clock.now


async def test_a_call_beside_a_probe_is_use(net: Link, kubelet: KubeletDouble, traffic: PodTraffic) -> None:
    clock = Clock(traffic)
    with listen(net.pod) as listener, client(net.peer, net.v4) as near:
        clock.tick()
        assert await ask(kubelet, "open", net.v4) == "open"
        with await accept(listener):
            assert not clock.used()
            await connect(near, net.v4)
            assert clock.used(), "from the same address, to the same port"
            assert clock.tick().in_flight_since is not None, "and it waits to be accepted"


async def test_probes_that_no_sample_saw_are_no_use(net: Link, kubelet: KubeletDouble, traffic: PodTraffic) -> None:
    clock = Clock(traffic)
    with FrozenServer(net.pod):
        clock.tick()
        for _ in range(5):
            assert await ask(kubelet, "tcp", net.v4) == "open"
            await until(lambda: {s.state for s in traffic.sample().sockets} == {State.LISTEN})
            assert not clock.used(PERIOD_SECONDS)


async def test_more_than_the_declared_probes_is_use(net: Link, kubelet: KubeletDouble, traffic: PodTraffic) -> None:
    clock = Clock(traffic)
    with FrozenServer(net.pod):
        clock.tick()
        for _ in range(5):
            assert await ask(kubelet, "tcp", net.v4) == "open"
        await until(lambda: {s.state for s in traffic.sample().sockets} == {State.LISTEN})
        assert clock.used()


async def test_the_kubelets_connection_to_another_port_is_use(
    net: Link, kubelet: KubeletDouble, traffic: PodTraffic
) -> None:
    clock = Clock(traffic)
    with listen(net.pod, port=OTHER_PORT):
        clock.tick()
        assert await ask(kubelet, "open", net.v4, OTHER_PORT) == "open"
        assert clock.used()


async def test_owners(net: Link, kubelet: KubeletDouble, owner: Kubelet) -> None:
    """Whose a connection is: the kubelet's, another process's, nobody's any more, not of this node."""
    pod = socket.inet_aton(net.v4)

    def flow_of(sock: socket.socket) -> tuple[bytes, int, bytes, int]:
        address, port = sock.getpeername()[:2]
        return socket.inet_aton(address.removeprefix("::ffff:")), port, pod, PORT

    with listen(net.pod) as listener, client(net.peer, net.v4) as near:
        assert await ask(kubelet, "open", net.v4) == "open"
        with await accept(listener) as far:
            flow = flow_of(far)
            assert owner.owner(flow) is Owner.KUBELET
            assert owner.owner((flow[0], 1, *flow[2:])) is Owner.OTHER, "no such socket"
            await ask(kubelet, "shut", net.v4)
            await until(lambda: owner.owner(flow) is Owner.NOBODY)
        await connect(near, net.v4)
        with await accept(listener) as far:
            assert owner.owner(flow_of(far)) is Owner.OTHER


def test_an_owner_gives_back_what_it_took(net: Link, kubelet: KubeletDouble) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        made = Kubelet(net.peer)
        made.open()
        made.owner((socket.inet_aton("10.231.7.2"), 1, socket.inet_aton(net.v4), PORT))
        made.close()
        made.close()
    assert len(os.listdir("/proc/self/fd")) == before
