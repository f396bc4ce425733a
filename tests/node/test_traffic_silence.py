"""What a parked pod's sockets may still say: nothing while a dump copies them, all as soon as they are restored."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

import pytest
from kybernate_agent.traffic.pod import PodTraffic
from test_traffic_hold import WAYS, opened
from traffic_lab import PORT, Link, Wakes, link, reappear, receive, receive_all, send, until, vanish


@pytest.fixture
def net() -> Iterator[Link]:
    with link() as made:
        yield made


def received(sock: socket.socket) -> int:
    """tcpi_bytes_received: how much has arrived, read or not."""
    return int(struct.unpack_from("=Q", sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256), 128)[0])


def full(far: socket.socket) -> bytes:
    """Send until the peer's window and our own buffer are full; what was sent."""
    sent = b""
    far.setblocking(False)
    while True:
        try:
            sent += b"x" * far.send(b"x" * 65536)
        except BlockingIOError:
            return sent


@pytest.mark.parametrize("way", WAYS)
async def test_timers_of_a_held_socket_send_nothing_to_its_peer(net: Link, way: str) -> None:
    """A small window's probe carries data: CRIU's copy of the socket would not know that it was sent."""
    wakes = Wakes()
    async with PodTraffic(net.pod, [PORT], wakes) as traffic, opened(net, way, buffer_bytes=16384) as (near, far):
        await traffic.watch()
        sent = full(far)
        await traffic.hold()
        before = received(near)
        await until(lambda: traffic.statistics()["silenced"] >= 2)
        assert received(near) == before
        assert wakes.reasons == []
        await traffic.release()
        assert await receive_all(near, len(sent)) == sent


@pytest.mark.parametrize("way", WAYS)
async def test_a_restored_socket_speaks_before_the_release(net: Link, way: str) -> None:
    """The app runs on a little before the rules are out: what it says must not wait for TCP to say it again."""
    async with PodTraffic(net.pod, [PORT], Wakes()) as traffic, opened(net, way) as (near, far):
        await traffic.hold()
        with reappear(net.pod, vanish(far)) as back:
            await send(back, b"I was away")
            assert await receive(near) == b"I was away"
            await traffic.release()


async def test_silence_ends_with_a_watch(net: Link) -> None:
    """A dump that came to nothing: the sockets live on."""
    async with PodTraffic(net.pod, [PORT], Wakes()) as traffic, opened(net, "v4") as (near, far):
        await traffic.hold()
        await traffic.watch()
        await send(far, b"still here")
        assert await receive(near) == b"still here"
        assert traffic.statistics()["silenced"] == 0
