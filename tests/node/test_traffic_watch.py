"""A pod that sleeps in memory: the kernel answers for it, and the first request wakes it.

The frozen app is an echo server stopped by SIGSTOP, see FrozenServer.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from kybernate_agent.traffic.pod import Mode, PodTraffic
from traffic_lab import PORT, FrozenServer, Link, Wakes, client, connect, link, receive, send, until


@pytest.fixture
def net() -> Iterator[Link]:
    with link() as made:
        yield made


@pytest.mark.parametrize("way", ["v4", "v6", "lo", "lo6"])
async def test_a_connect_wakes_and_is_not_delayed(net: Link, way: str) -> None:
    netns, address = net.address(way)
    wakes = Wakes()
    async with PodTraffic(net.pod, [PORT], wakes) as traffic:
        with FrozenServer(net.pod) as server, client(netns, address) as sock:
            await traffic.watch()
            server.freeze()
            assert not traffic.has_unread()
            await connect(sock, address)
            assert (await wakes.next()).startswith("SYN from ")
            await until(traffic.has_unread)
            server.thaw()
            await traffic.release()
            await send(sock, b"ping")
            assert await receive(sock) == b"ping"
            assert len(wakes.reasons) == 1


async def test_data_on_an_open_connection_wakes_once(net: Link) -> None:
    wakes = Wakes()
    async with PodTraffic(net.pod, [PORT], wakes) as traffic:
        with FrozenServer(net.pod) as server, client(net.peer, net.v4) as sock:
            await connect(sock, net.v4)
            await send(sock, b"one")
            assert await receive(sock) == b"one"
            await traffic.watch()
            server.freeze()
            assert not traffic.has_unread()
            await send(sock, b"two")
            assert "data from 10.231.7.2:" in await wakes.next()
            await send(sock, b"three")
            await until(lambda: traffic.statistics()["seen"] >= 2)
            assert traffic.has_unread()
            server.thaw()
            assert (await receive(sock)).startswith(b"two")
            assert len(wakes.reasons) == 1


async def test_watch_again_wakes_again(net: Link) -> None:
    wakes = Wakes()
    async with PodTraffic(net.pod, [PORT], wakes) as traffic:
        with FrozenServer(net.pod), client(net.peer, net.v4) as sock:
            await traffic.watch()
            await connect(sock, net.v4)
            await wakes.next()
            await traffic.watch()
            await send(sock, b"x")
            assert (await wakes.next()).startswith("data")


async def test_keepalives_and_a_close_do_not_wake(net: Link) -> None:
    wakes = Wakes()
    async with PodTraffic(net.pod, [PORT], wakes) as traffic:
        with FrozenServer(net.pod) as server:
            with client(net.peer, net.v4, keepalive=True) as sock:
                await connect(sock, net.v4)
                await send(sock, b"one")
                assert await receive(sock) == b"one"
                await traffic.watch()
                server.freeze()
                await until(lambda: traffic.statistics()["seen"] >= 2)
            await until(lambda: traffic.statistics()["seen"] >= 3)
            assert not traffic.has_unread()
            assert wakes.reasons == []


async def test_an_aborted_connection_does_not_wake(net: Link) -> None:
    wakes = Wakes()
    async with PodTraffic(net.pod, [PORT], wakes) as traffic:
        with FrozenServer(net.pod), client(net.peer, net.v4) as sock:
            await connect(sock, net.v4)
            await traffic.watch()
            sock.setsockopt(1, 13, b"\1\0\0\0\0\0\0\0")  # SO_LINGER of 0 seconds: close sends a RST
            sock.close()
            await until(lambda: traffic.statistics()["seen"] >= 1)
            assert wakes.reasons == []


async def test_other_ports_are_none_of_our_business(net: Link) -> None:
    wakes = Wakes()
    async with PodTraffic(net.pod, [PORT + 1], wakes) as traffic:
        with FrozenServer(net.pod), client(net.peer, net.v4) as sock:
            await traffic.watch()
            await connect(sock, net.v4)
            assert traffic.statistics()["seen"] == 0


async def test_more_ports_than_one_rule_can_name(net: Link) -> None:
    wakes = Wakes()
    async with PodTraffic(net.pod, [PORT], wakes) as traffic:
        with FrozenServer(net.pod), client(net.peer, net.v4) as sock:
            await traffic.watch(range(20000, 20100))
            assert net.rules().count("NFQUEUE") == 2 * 7
            await traffic.watch(range(20000, 20100))
            assert net.rules().count("NFQUEUE") == 2 * 7
            await connect(sock, net.v4)
            await wakes.next()
            await traffic.watch()
            assert net.rules().count("NFQUEUE") == 2


async def test_release_leaves_nothing(net: Link) -> None:
    before = net.rules()
    async with PodTraffic(net.pod, [PORT], Wakes()) as traffic:
        await traffic.watch()
        assert net.rules().count("-A PREROUTING -j KYBERNATE") == 2
        assert net.queues()
        await traffic.release()
        await traffic.release()
        assert traffic.mode is Mode.OPEN
        assert "KYBERNATE" not in net.rules()
        assert net.queues() == ""
    assert "-A" not in before


async def test_our_part_of_a_wake_takes_under_a_millisecond(net: Link) -> None:
    woken: list[float] = []
    async with PodTraffic(net.pod, [PORT], lambda _: woken.append(time.perf_counter())) as traffic:
        with FrozenServer(net.pod) as server:
            await traffic.watch()
            server.freeze()
            taken = []
            for _ in range(30):
                await traffic.watch()
                woken.clear()
                with client(net.peer, net.v4) as sock:
                    began = time.perf_counter()
                    sock.connect_ex((net.v4, PORT))
                    await until(lambda: woken)
                    taken.append(woken[0] - began)
    # From the client's system call on, so the kernel's part and the loop's poll are in it as well.
    assert sorted(taken)[len(taken) // 2] < 0.001
