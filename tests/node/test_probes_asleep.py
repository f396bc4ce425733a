"""A pod that sleeps: the kubelet gets its answer and wakes nobody; anybody else from the same address wakes.

The namespace `peer` stands for the node: what stands in for the kubelet runs there, and a stranger beside it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from kubelet_double import KubeletDouble
from kybernate_agent.probes import Declared
from kybernate_agent.traffic import Kubelet, Mode, PodTraffic
from traffic_lab import PORT, FrozenServer, Link, Wakes, client, connect, link, listen, receive, run, send, until

HEALTH = 8081  # probed, and nobody's
SIDECAR = 8082  # probed, and not the sleeper's
DECLARED = Declared(ports=frozenset({PORT, HEALTH, SIDECAR}), periods=(1.0,), timeout_seconds=1.0, tls=True)
ANSWERS = {"http": "200", "https": "200", "tcp": "open", "grpc": "SERVING"}


@pytest.fixture
def net() -> Iterator[Link]:
    with link() as made:
        yield made


@pytest.fixture
def kubelet(net: Link) -> Iterator[KubeletDouble]:
    with KubeletDouble(net.peer) as made:
        yield made


@pytest.fixture
def stranger(net: Link) -> Iterator[KubeletDouble]:
    with KubeletDouble(net.peer, "stranger") as made:
        yield made


@pytest.fixture
def wakes() -> Wakes:
    return Wakes()


@pytest.fixture
async def traffic(net: Link, wakes: Wakes) -> AsyncIterator[PodTraffic]:
    owner = Kubelet(net.peer)
    owner.open()
    async with PodTraffic(net.pod, [PORT], wakes, DECLARED, owner) as made:
        yield made
    owner.close()


async def asleep(traffic: PodTraffic, mode: Mode) -> None:
    await (traffic.watch([]) if mode is Mode.WATCHING else traffic.hold([]))


async def ask(who: KubeletDouble, way: str, address: str, port: int = PORT, seconds: float = 20.0) -> str:
    return await asyncio.to_thread(who.ask, way, address, port, seconds)


@pytest.mark.parametrize("mode", [Mode.WATCHING, Mode.HOLDING])
@pytest.mark.parametrize("way", list(ANSWERS))
@pytest.mark.parametrize("family", ["v4", "v6"])
async def test_the_kubelet_is_answered_and_wakes_nobody(
    net: Link, kubelet: KubeletDouble, traffic: PodTraffic, wakes: Wakes, mode: Mode, way: str, family: str
) -> None:
    address = net.address(family)[1]
    await asleep(traffic, mode)
    for port in (PORT, HEALTH):
        for _ in range(3):
            assert await ask(kubelet, way, address, port) == ANSWERS[way]
    assert not wakes.reasons
    assert traffic.oldest_held_at() is None
    assert not traffic.has_unread()
    await until(lambda: traffic.statistics()["probes"] >= 6)
    assert traffic.statistics()["waiting"] == 0


@pytest.mark.parametrize("mode", [Mode.WATCHING, Mode.HOLDING])
@pytest.mark.parametrize("family", ["v4", "v6"])
async def test_a_stranger_from_the_same_address_wakes(
    net: Link,
    kubelet: KubeletDouble,
    stranger: KubeletDouble,
    traffic: PodTraffic,
    wakes: Wakes,
    mode: Mode,
    family: str,
) -> None:
    address = net.address(family)[1]
    with FrozenServer(net.pod) as server:
        await asleep(traffic, mode)
        server.freeze()
        assert await ask(kubelet, "http", address) == "200"
        assert not wakes.reasons
        called = asyncio.create_task(ask(stranger, "tcp", address))
        assert (await wakes.next()).startswith("SYN from ")
        assert await ask(kubelet, "http", address) == "200", "also while it is being woken"
        server.thaw()
        await traffic.release()
        assert await called == "open"
    assert len(wakes.reasons) == 1


async def test_data_of_a_stranger_on_an_open_connection_wakes(
    net: Link, kubelet: KubeletDouble, traffic: PodTraffic, wakes: Wakes
) -> None:
    with FrozenServer(net.pod) as server, client(net.peer, net.v4) as sock:
        await connect(sock, net.v4)
        await send(sock, b"one")
        assert await receive(sock) == b"one"
        await traffic.watch()
        server.freeze()
        assert await ask(kubelet, "http", net.v4) == "200"
        assert not wakes.reasons
        await send(sock, b"two")
        assert (await wakes.next()).startswith("data from ")
        server.thaw()
        assert await receive(sock) == b"two"


async def test_after_the_wake_probes_reach_the_application(
    net: Link, kubelet: KubeletDouble, traffic: PodTraffic
) -> None:
    await traffic.hold()
    assert await ask(kubelet, "tcp", net.v4) == "open"
    await traffic.release()
    assert await ask(kubelet, "tcp", net.v4) == "ConnectionRefusedError", "nobody listens, and nobody answers for it"
    with FrozenServer(net.pod):
        assert await ask(kubelet, "tcp", net.v4) == "open"
    assert net.rules().count("TPROXY") == 0


async def test_a_port_that_is_only_probed_belongs_to_others(
    net: Link, kubelet: KubeletDouble, stranger: KubeletDouble, traffic: PodTraffic, wakes: Wakes
) -> None:
    """A sidecar that listens there does not sleep: callers reach it, and wake nobody."""
    with listen(net.pod, port=SIDECAR):
        await traffic.hold()
        assert await ask(stranger, "tcp", net.v4, SIDECAR) == "open"
        assert await ask(kubelet, "http", net.v4, SIDECAR) == "200"
    assert await ask(stranger, "tcp", net.v4, SIDECAR) == "ConnectionRefusedError"
    assert not wakes.reasons


async def test_what_the_kubelet_wants_of_a_port_without_a_probe_is_a_call(
    net: Link, kubelet: KubeletDouble, traffic: PodTraffic, wakes: Wakes
) -> None:
    await traffic.watch([9000])
    assert await ask(kubelet, "tcp", net.v4, 9000) == "ConnectionRefusedError"
    assert (await wakes.next()).endswith("to port 9000")


async def test_nothing_is_left_on_the_port(net: Link, kubelet: KubeletDouble, traffic: PodTraffic) -> None:
    """An application that starts anew must be able to bind it, without SO_REUSEADDR."""
    await traffic.hold()
    for way, answer in ANSWERS.items():
        assert await ask(kubelet, way, net.v4) == answer
    await traffic.release()

    def sockets() -> str:
        return run("nsenter", f"--net={net.pod}", "cat", "/proc/net/tcp", "/proc/net/tcp6")

    await until(lambda: f":{PORT:04X} " not in sockets())


@pytest.mark.parametrize("mode", [Mode.WATCHING, Mode.HOLDING])
async def test_an_application_binds_beside_an_answer_that_is_under_way(
    net: Link, kubelet: KubeletDouble, traffic: PodTraffic, mode: Mode
) -> None:
    """As a restore does it, with SO_REUSEADDR; and the answer goes on after the wake."""
    await asleep(traffic, mode)
    assert await ask(kubelet, "open", net.v4) == "open"
    with listen(net.pod):
        await traffic.release()
        assert await ask(kubelet, "say", net.v4) == "200"
        assert await ask(kubelet, "shut", net.v4) == "closed"


async def test_an_answer_under_way_is_not_silenced_by_a_hold(
    net: Link, kubelet: KubeletDouble, traffic: PodTraffic, wakes: Wakes
) -> None:
    await traffic.watch()
    assert await ask(kubelet, "open", net.v4) == "open"
    await traffic.hold()
    assert await ask(kubelet, "say", net.v4) == "200"
    assert not wakes.reasons


async def test_a_freeze_waits_for_the_probe_in_flight(
    net: Link, kubelet: KubeletDouble, traffic: PodTraffic, wakes: Wakes
) -> None:
    with FrozenServer(net.pod):
        assert await ask(kubelet, "open", net.v4) == "open"
        await traffic.watch()
        waiting = asyncio.create_task(traffic.let_probes_end())
        assert await ask(kubelet, "tcp", net.v4) == "open", "a new one is answered meanwhile"
        assert not waiting.done()
        assert await ask(kubelet, "shut", net.v4) == "closed"
        await asyncio.wait_for(waiting, 10)
        assert not traffic.has_unread()
    assert not wakes.reasons


async def test_a_probe_that_does_not_end_is_not_waited_for_for_ever(
    net: Link, kubelet: KubeletDouble, traffic: PodTraffic, wakes: Wakes
) -> None:
    with FrozenServer(net.pod) as server:
        assert await ask(kubelet, "open", net.v4) == "open"
        await traffic.watch()
        await asyncio.wait_for(traffic.let_probes_end(), 10 * DECLARED.timeout_seconds)
        server.freeze()
        said = asyncio.create_task(ask(kubelet, "say", net.v4))
        await until(traffic.has_unread)
        assert not wakes.reasons, "its data is the kubelet's, whenever it comes"
        server.thaw()
        await traffic.release()
        assert await said in ("ConnectionError", "/healthz"), "it reached the application, which echoes"


async def test_what_is_declared_later_is_answered(net: Link, kubelet: KubeletDouble, wakes: Wakes) -> None:
    """An agent that starts anew takes sleepers up before it knows their pods."""
    owner = Kubelet(net.peer)
    owner.open()
    async with PodTraffic(net.pod, [PORT], wakes, kubelet=owner) as traffic:
        await traffic.hold()
        assert await ask(kubelet, "tcp", net.v4, HEALTH) == "ConnectionRefusedError"
        await traffic.declare(DECLARED)
        await traffic.declare(DECLARED)
        for port in (PORT, HEALTH):
            assert await ask(kubelet, "http", net.v4, port) == "200"
        await traffic.release()
        await traffic.declare(Declared())
        await traffic.hold()
        assert net.rules().count("TPROXY") == 0
    assert not wakes.reasons
    owner.close()


async def test_what_will_not_come_back_is_not_answered_for(
    net: Link, kubelet: KubeletDouble, traffic: PodTraffic, wakes: Wakes
) -> None:
    await traffic.hold()
    traffic.stop_answering()
    asking = asyncio.create_task(ask(kubelet, "http", net.v4))
    await wakes.next()
    assert await traffic.reset() == 1
    assert await asking == "ConnectionRefusedError"


async def test_a_kubelet_that_starts_anew_is_known(
    net: Link, kubelet: KubeletDouble, traffic: PodTraffic, wakes: Wakes
) -> None:
    await traffic.hold()
    assert await ask(kubelet, "http", net.v4) == "200"
    kubelet.process.kill()
    kubelet.process.wait()
    with KubeletDouble(net.peer) as another:
        assert await ask(another, "http", net.v4) == "200"
    assert not wakes.reasons


async def test_a_kubelets_name_elsewhere_is_no_kubelet(net: Link, traffic: PodTraffic, wakes: Wakes) -> None:
    """A pod may call its process what it likes: its network namespace is its own."""
    with KubeletDouble(net.pod) as impostor:
        await traffic.watch()
        assert await ask(impostor, "tcp", net.v4) == "ConnectionRefusedError"
        assert (await wakes.next()).startswith("SYN from ")


async def test_without_a_kubelet_every_connection_counts(
    net: Link, stranger: KubeletDouble, traffic: PodTraffic, wakes: Wakes
) -> None:
    await traffic.hold()
    asking = asyncio.create_task(ask(stranger, "tcp", net.v4))
    await wakes.next()
    assert await traffic.reset() == 1
    assert await asking == "ConnectionRefusedError"


async def test_a_successor_goes_on_answering(net: Link, kubelet: KubeletDouble, wakes: Wakes) -> None:
    owner = Kubelet(net.peer)
    owner.open()
    async with PodTraffic(net.pod, [PORT], wakes, DECLARED, owner) as first:
        await first.hold()
        assert await ask(kubelet, "http", net.v4) == "200"
    asking = asyncio.create_task(ask(kubelet, "http", net.v4))
    async with PodTraffic(net.pod, [PORT], wakes, DECLARED, owner) as second:
        await second.hold()
        assert await asking == "200", "its SYN was lost while nobody listened, and came again"
        assert await ask(kubelet, "http", net.v4) == "200"
        await second.release()
    assert not wakes.reasons
    owner.close()


async def test_an_agent_that_ends_leaves_no_answer_behind(
    net: Link, kubelet: KubeletDouble, traffic: PodTraffic
) -> None:
    await traffic.hold()
    assert await ask(kubelet, "open", net.v4) == "open"
    assert await ask(kubelet, "say", net.v4) == "200"
    await traffic.close()
    assert await ask(kubelet, "say", net.v4) in ("ConnectionResetError", "ConnectionError", "BrokenPipeError")
