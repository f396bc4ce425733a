"""What sock_diag tells of real connections, and what activity makes of it."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
from collections.abc import Iterator

import pytest
from kybernate_agent.traffic.activity import Activity, fold
from kybernate_agent.traffic.pod import PodTraffic
from kybernate_agent.traffic.sockdiag import Socket, State, own_ports, socket_inodes
from traffic_lab import PORT, FrozenServer, Link, Wakes, accept, client, connect, link, listen, receive, send, until


@pytest.fixture
def net() -> Iterator[Link]:
    with link() as made:
        yield made


class Clock:
    """Folds samples of a pod; each fold is a second after the last."""

    def __init__(self, traffic: PodTraffic) -> None:
        self.now = 0.0
        self.activity: Activity | None = None
        self._traffic = traffic

    def tick(self) -> Activity:
        self.now += 1
        self.activity = fold(self.activity, self._traffic.sample(), self.now, [PORT])
        return self.activity

    def used(self) -> bool:
        return self.tick().last_activity == self.now


async def settle() -> None:
    """Until the ages of two events differ: more than one jiffy at any HZ."""
    await asyncio.sleep(0.03)


@pytest.mark.parametrize("way", ["v4", "v6", "lo", "lo6"])
async def test_a_request_is_in_flight_from_its_first_byte_to_its_answer(net: Link, way: str) -> None:
    netns, address = net.address(way)
    async with PodTraffic(net.pod, [PORT], Wakes()) as traffic:
        clock = Clock(traffic)
        with listen(net.pod) as listener:
            assert clock.used()
            assert not clock.used()
            with client(netns, address) as near:
                await connect(near, address)
                assert clock.tick().in_flight_since is not None, "nobody has accepted it"
                with await accept(listener) as far:
                    assert clock.tick().in_flight_since is None
                    await settle()
                    await send(near, b"question")
                    await until(traffic.has_unread)
                    assert clock.tick().in_flight_since is not None
                    assert await receive(far) == b"question"
                    began = clock.tick().in_flight_since
                    assert began is not None
                    await settle()
                    assert clock.tick().in_flight_since == began
                    assert not clock.used()
                    await send(far, b"answer")
                    assert await receive(near) == b"answer"
                    assert clock.used()
                    assert clock.tick().in_flight_since is None
                    assert not clock.used()


async def test_a_fin_is_nobodys_data(net: Link) -> None:
    async with PodTraffic(net.pod, [PORT], Wakes()) as traffic:
        clock = Clock(traffic)
        with listen(net.pod) as listener, client(net.peer, net.v4) as near:
            await connect(near, net.v4)
            with await accept(listener):
                clock.tick()
                near.close()
                await until(lambda: any(s.state == State.CLOSE_WAIT for s in traffic.sample().sockets))
                assert not traffic.has_unread()
                assert not clock.used()
                assert clock.tick().in_flight_since is None


async def test_a_connection_that_came_and_went_between_samples_counts(net: Link) -> None:
    async with PodTraffic(net.pod, [PORT], Wakes()) as traffic:
        clock = Clock(traffic)
        with listen(net.pod) as listener:
            clock.tick()
            assert not clock.used()
            with client(net.peer, net.v4) as near:
                await connect(near, net.v4)
                (await accept(listener)).close()
            await until(lambda: {s.state for s in traffic.sample().sockets} == {State.LISTEN})
            assert clock.used()


async def test_outgoing_data_counts_but_owes_no_answer(net: Link) -> None:
    async with PodTraffic(net.pod, [PORT], Wakes()) as traffic:
        clock = Clock(traffic)
        with listen(net.peer, port=9000) as outside, client(net.pod, "10.231.7.2") as sock:
            await connect(sock, "10.231.7.2", 9000)
            with await accept(outside) as far:
                clock.tick()
                assert not clock.used()
                await settle()
                await send(far, b"pushed")
                assert await receive(sock) == b"pushed"
                assert clock.used()
                assert clock.tick().in_flight_since is None


async def test_a_dual_stack_socket_shows_the_ipv4_address_that_it_serves(net: Link) -> None:
    async with PodTraffic(net.pod, [PORT], Wakes()) as traffic:
        with listen(net.pod, "::") as listener, client(net.peer, net.v4) as near:
            await connect(near, net.v4)
            with await accept(listener) as far:
                found = [s for s in traffic.sample().sockets if s.state == State.ESTABLISHED]
                assert [s.local for s in found] == [socket.inet_aton(net.v4)]
                assert [s.inode for s in found] == [os.fstat(far.fileno()).st_ino]


async def test_the_processes_own_ports_are_found(net: Link) -> None:
    """Listening, served and outgoing, whatever was declared."""
    ours = listen(net.pod, port=7000), listen(net.peer, port=9000)
    with FrozenServer(net.pod) as server, client(net.pod, "10.231.7.2") as outgoing, ours[0], ours[1]:
        await connect(outgoing, "10.231.7.2", 9000)
        assert own_ports([server.process.pid], net.pod) == {PORT}
        assert own_ports([os.getpid()], net.pod) == {7000, outgoing.getsockname()[1]}
        assert own_ports([], net.pod) == frozenset()


async def test_processes_that_ended_own_nothing() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    assert socket_inodes([process.pid]) == set()


async def test_a_sample_of_many_connections_is_quick_and_whole(net: Link) -> None:
    async with PodTraffic(net.pod, [PORT], Wakes()) as traffic:
        with listen(net.pod) as listener:
            pairs: list[socket.socket] = []
            try:
                for _ in range(300):
                    near = client(net.peer, net.v4)
                    pairs.append(near)
                    await connect(near, net.v4)
                    pairs.append(await accept(listener))
                found: tuple[Socket, ...] = traffic.sample().sockets
                assert sum(s.state == State.ESTABLISHED for s in found) == 300
                assert len({s.cookie for s in found}) == 301
            finally:
                for sock in pairs:
                    sock.close()
