"""A parked pod: its sockets are gone, its packets wait.

The listener is really not there while packets are held. Open connections go and come back with TCP_REPAIR,
see traffic_lab.vanish.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator

import pytest
from kybernate_agent.traffic.nfqueue import QueueTakenError
from kybernate_agent.traffic.pod import Mode, PodTraffic
from traffic_lab import (
    PORT,
    Link,
    Wakes,
    accept,
    client,
    connect,
    link,
    listen,
    reappear,
    receive,
    receive_all,
    run,
    send,
    until,
    vanish,
)

UNACKED, SEND_WINDOW = 24, 228  # offsets in tcp_info
WAYS = ["v4", "v6", "lo", "lo6"]


@pytest.fixture
def net() -> Iterator[Link]:
    with link() as made:
        yield made


def info(sock: socket.socket, offset: int) -> int:
    """A field of tcp_info."""
    return int(struct.unpack_from("=I", sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256), offset)[0])


@contextlib.asynccontextmanager
async def opened(
    net: Link, way: str, *, keepalive: bool = False, buffer_bytes: int = 0
) -> AsyncIterator[tuple[socket.socket, socket.socket]]:
    """(client's socket, server's socket) of an open connection that has carried data."""
    netns, address = net.address(way)
    with listen(net.pod) as listener, client(netns, address, keepalive=keepalive, buffer_bytes=buffer_bytes) as near:
        await connect(near, address)
        with await accept(listener) as far:
            await send(near, b"hello")
            assert await receive(far) == b"hello"
            await send(far, b"welcome")
            assert await receive(near) == b"welcome"
            # The last ACK is on its way: both queues must be empty for what follows.
            await until(lambda: info(far, UNACKED) == 0)
            yield near, far


@pytest.mark.parametrize("way", WAYS)
async def test_a_connect_waits_for_the_server_and_sees_no_reset(net: Link, way: str) -> None:
    netns, address = net.address(way)
    wakes = Wakes()
    async with PodTraffic(net.pod, [PORT], wakes) as traffic:
        await traffic.hold()
        with client(netns, address) as sock:
            connecting = asyncio.create_task(connect(sock, address))
            assert (await wakes.next()).startswith("SYN from ")
            assert traffic.oldest_held_at() is not None
            assert not connecting.done()
            with listen(net.pod) as listener:
                await traffic.release()
                assert traffic.oldest_held_at() is None
                await connecting
                with await accept(listener) as server:
                    await send(server, b"server first")
                    assert await receive(sock) == b"server first"
        assert len(wakes.reasons) == 1
        assert "KYBERNATE" not in net.rules()


@pytest.mark.parametrize("way", WAYS)
async def test_a_parked_connection_survives_keepalives_and_goes_on(net: Link, way: str) -> None:
    wakes = Wakes()
    async with PodTraffic(net.pod, [PORT], wakes) as traffic, opened(net, way, keepalive=True) as (near, far):
        await traffic.watch()
        await traffic.hold()
        gone = vanish(far)
        # After three unanswered probes the client would give up.
        await until(lambda: traffic.statistics()["answered"] >= 5)
        assert wakes.reasons == []
        await send(near, b"are you there?")
        assert (await wakes.next()).startswith("data from ")
        with reappear(net.pod, gone) as back:
            await traffic.release()
            assert await receive(back) == b"are you there?"
            await send(back, b"yes")
            assert await receive(near) == b"yes"


async def test_segments_are_delivered_in_their_order(net: Link) -> None:
    wakes = Wakes()
    async with PodTraffic(net.pod, [PORT], wakes) as traffic, opened(net, "v4") as (near, far):
        near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await traffic.hold()
        gone = vanish(far)
        pieces = [bytes([65 + number]) * 700 for number in range(8)]
        for piece in pieces:
            await send(near, piece)
        await until(lambda: traffic.statistics()["waiting"] >= len(pieces))
        with reappear(net.pod, gone) as back:
            await traffic.release()
            assert await receive_all(back, 700 * len(pieces)) == b"".join(pieces)
        assert len(wakes.reasons) == 1


@pytest.mark.parametrize("abort", [False, True], ids=["FIN", "RST"])
async def test_a_peer_that_leaves_does_not_wake_and_is_noticed_after_the_wake(net: Link, abort: bool) -> None:
    wakes = Wakes()
    async with PodTraffic(net.pod, [PORT], wakes) as traffic, opened(net, "v4") as (near, far):
        await traffic.hold()
        gone = vanish(far)
        if abort:
            near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))
        near.close()
        await until(lambda: traffic.statistics()["waiting"] == 1)
        assert wakes.reasons == []
        assert traffic.oldest_held_at() is None
        with reappear(net.pod, gone) as back:
            await traffic.release()
            if abort:
                with pytest.raises(ConnectionResetError):
                    await receive(back)
            else:
                assert await receive(back) == b""


@pytest.mark.parametrize("way", WAYS)
async def test_reset_refuses_a_connect_and_goes_on_holding(net: Link, way: str) -> None:
    netns, address = net.address(way)
    wakes = Wakes()
    async with PodTraffic(net.pod, [PORT], wakes) as traffic:
        await traffic.hold()
        for _ in range(2):
            with client(netns, address) as sock:
                connecting = asyncio.create_task(connect(sock, address))
                await wakes.next()
                assert await traffic.reset() == 1
                with pytest.raises(ConnectionRefusedError):
                    await connecting
        assert traffic.mode is Mode.HOLDING
        assert await traffic.reset() == 0


@pytest.mark.parametrize("way", WAYS)
async def test_reset_ends_a_connection_whose_data_waits(net: Link, way: str) -> None:
    wakes = Wakes()
    async with PodTraffic(net.pod, [PORT], wakes) as traffic, opened(net, way) as (near, far):
        await traffic.hold()
        vanish(far)
        await send(near, b"are you there?")
        await wakes.next()
        assert await traffic.reset() == 1
        with pytest.raises(ConnectionResetError):
            await receive(near)


async def test_no_connect_fails_while_watch_becomes_hold_and_back(net: Link) -> None:
    wakes = Wakes()
    async with PodTraffic(net.pod, [PORT], wakes) as traffic:
        await traffic.watch()
        with listen(net.pod) as listener:
            done = asyncio.Event()
            made = []

            async def hammer() -> None:
                while not done.is_set():
                    with client(net.peer, net.v4) as sock:
                        await connect(sock, net.v4)
                        made.append(sock)

            async def serve() -> None:
                while True:
                    (await accept(listener)).close()

            serving = asyncio.create_task(serve())
            hammering = [asyncio.create_task(hammer()) for _ in range(4)]
            for number in range(20):
                await traffic.hold(range(30000, 30000 + number))
                await asyncio.sleep(0.005)
                await traffic.watch(range(30000, 30000 + number))
                await asyncio.sleep(0.005)
            done.set()
            await asyncio.gather(*hammering)
            serving.cancel()
            assert len(made) > 50


async def test_a_handshake_begun_before_the_hold_completes(net: Link) -> None:
    """CRIU refuses a half-open connection, so its last ACK must reach the kernel and not wait for the wake."""
    filter_ack = ["-p", "tcp", "--tcp-flags", "ALL", "ACK", "-j", "DROP"]
    wakes = Wakes()
    async with PodTraffic(net.pod, [PORT], wakes) as traffic:
        with listen(net.pod) as listener, client(net.peer, net.v4) as sock:
            run("nsenter", f"--net={net.peer}", "iptables", "-A", "OUTPUT", *filter_ack)
            await connect(sock, net.v4)
            assert traffic.has_unread()
            await traffic.hold()
            run("nsenter", f"--net={net.peer}", "iptables", "-D", "OUTPUT", *filter_ack)
            with await accept(listener):
                assert not traffic.has_unread()
                assert wakes.reasons == []


_HOLD = """
import asyncio, sys
from kybernate_agent.traffic.pod import PodTraffic
async def main():
    traffic = PodTraffic(sys.argv[1], [int(sys.argv[2])], lambda reason: print("woken", flush=True))
    await traffic.open()
    await traffic.hold()
    print("holding", flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


async def test_a_killed_agent_lets_nothing_through_and_its_successor_adopts(net: Link) -> None:
    argv = [sys.executable, "-c", _HOLD, net.pod, str(PORT)]
    agent = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    wakes = Wakes()
    with client(net.peer, net.v4) as early, client(net.peer, net.v4) as late:
        try:
            assert agent.stdout is not None
            assert agent.stdout.readline() == "holding\n"
            with pytest.raises(QueueTakenError):
                async with PodTraffic(net.pod, [PORT], wakes) as second:
                    await second.hold()
            connecting = [asyncio.create_task(connect(early, net.v4))]
            await asyncio.to_thread(agent.stdout.readline)
        finally:
            os.kill(agent.pid, signal.SIGKILL)
            agent.communicate()
        connecting.append(asyncio.create_task(connect(late, net.v4)))
        await until(lambda: "KYBERNATE" in net.rules() and net.queues() == "")
        async with PodTraffic(net.pod, [PORT], wakes) as traffic:
            await traffic.hold()
            assert net.rules().count("-A PREROUTING -j KYBERNATE") == 2
            await wakes.next()
            assert not any(task.done() for task in connecting)
            with listen(net.pod):
                await traffic.release()
                await asyncio.gather(*connecting)
        assert "KYBERNATE" not in net.rules()


async def test_close_leaves_the_rules_and_release_takes_out_what_a_predecessor_left(net: Link) -> None:
    async with PodTraffic(net.pod, [PORT], Wakes()) as traffic:
        await traffic.hold()
    assert "KYBERNATE" in net.rules()
    assert net.queues() == ""
    async with PodTraffic(net.pod, [PORT], Wakes()) as traffic:
        await traffic.release()
    assert "KYBERNATE" not in net.rules()


async def test_close_gives_every_descriptor_back(net: Link) -> None:
    async def once() -> None:
        async with PodTraffic(net.pod, [PORT], Wakes()) as traffic:
            await traffic.hold()
            traffic.sample()

    await once()
    before = os.listdir("/proc/self/fd")
    await once()
    assert len(os.listdir("/proc/self/fd")) == len(before)


async def test_an_answer_to_an_ack_that_was_no_probe_harms_nothing(net: Link) -> None:
    """A window update looks like a keepalive probe; the peer ignores our answer to it."""
    wakes = Wakes()
    async with PodTraffic(net.pod, [PORT], wakes) as traffic, opened(net, "v4", buffer_bytes=16384) as (near, far):
        data, began = b"", info(far, SEND_WINDOW)
        while info(far, SEND_WINDOW) > began / 3:
            data += os.urandom(1000)
            await send(far, data[-1000:])
            await until(lambda: info(far, UNACKED) == 0)
        await traffic.hold()
        gone = vanish(far)
        assert await receive_all(near, len(data)) == data
        await until(lambda: traffic.statistics()["answered"] == 1)
        await send(near, b"thanks")
        await wakes.next()
        with reappear(net.pod, gone) as back:
            await traffic.release()
            assert await receive(back) == b"thanks"
            await send(back, b"more")
            assert await receive(near) == b"more"


async def test_a_client_that_repeats_itself_is_held_once(net: Link) -> None:
    async with PodTraffic(net.pod, [PORT], Wakes()) as traffic:
        await traffic.hold()
        with client(net.peer, net.v4) as sock:
            connecting = asyncio.create_task(connect(sock, net.v4))
            await until(lambda: traffic.statistics()["seen"] >= 2)
            assert traffic.statistics()["waiting"] == 1
            with listen(net.pod):
                await traffic.release()
                await connecting
