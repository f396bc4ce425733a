"""Holding when something is wrong: rules that are refused or too slow, a flood, a wake that fails, an old iptables."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from kybernate_agent.traffic import held, packets, rules
from kybernate_agent.traffic.netlink import NetnsGoneError, in_netns
from kybernate_agent.traffic.pod import Mode, PodTraffic
from traffic_lab import PORT, Link, Wakes, client, connect, link, listen, until


@pytest.fixture
def net() -> Iterator[Link]:
    with link() as made:
        yield made


async def test_refused_rules_leave_an_open_pod_open(net: Link) -> None:
    async with PodTraffic(net.pod, [PORT], Wakes()) as traffic:
        with pytest.raises(rules.RulesError, match="iptables-restore"):
            await traffic.hold([70000])
        assert traffic.mode is Mode.OPEN
        assert "KYBERNATE" not in net.rules()
        assert net.queues() == ""


async def test_refused_rules_leave_a_watched_pod_watched(net: Link) -> None:
    async with PodTraffic(net.pod, [PORT], Wakes()) as traffic:
        await traffic.watch()
        with pytest.raises(rules.RulesError):
            await traffic.hold([70000])
        assert traffic.mode is Mode.WATCHING
        with listen(net.pod), client(net.peer, net.v4) as sock:
            await connect(sock, net.v4)


async def test_rules_that_take_too_long_are_given_up(
    net: Link, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A program that never ends stands in for an iptables that waits for its lock."""
    async with PodTraffic(net.pod, [PORT], Wakes()) as traffic:
        slow = tmp_path / "nsenter"
        slow.write_text("#!/bin/sh\nexec sleep 60\n")
        slow.chmod(0o700)
        with monkeypatch.context() as patch:
            patch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
            patch.setattr(rules, "DEADLINE_SECONDS", 0.2)
            with pytest.raises(rules.RulesDeadlineError):
                await traffic.hold()
        assert traffic.mode is Mode.OPEN
        await traffic.hold()


async def test_a_namespace_that_is_gone_is_said(net: Link) -> None:
    with pytest.raises(NetnsGoneError, match="no network namespace"):
        await PodTraffic("/run/netns/kyb-traffic-none", [PORT], Wakes()).open()


async def test_a_flood_is_bounded_and_leaves_the_pod_usable(net: Link) -> None:
    """More strangers than there is room: the newest are dropped, those that hold a place keep it."""
    raw = in_netns(net.peer, lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW))
    wakes = Wakes()
    async with PodTraffic(net.pod, [PORT], wakes) as traffic:
        await traffic.hold()
        with raw:
            for number in range(held.MAX_SEGMENTS + 500):
                raw.sendto(syn(net, 10_000 + number), (net.v4, 0))
                if number % 100 == 0:
                    await asyncio.sleep(0)
        await until(lambda: traffic.statistics()["refused"] == 500)
        assert traffic.statistics()["waiting"] == held.MAX_SEGMENTS
        assert len(wakes.reasons) == 1
        assert await traffic.reset() == held.MAX_SEGMENTS
        with client(net.peer, net.v4) as sock, listen(net.pod):
            connecting = asyncio.create_task(connect(sock, net.v4))
            await until(lambda: len(wakes.reasons) == 2)
            await traffic.release()
            await connecting


def syn(net: Link, port: int) -> bytes:
    """A SYN from a port of the peer: made as an answer to a segment that the pod would have sent."""
    cause = packets.Segment(socket.inet_aton(net.v4), socket.inet_aton("10.231.7.2"), PORT, port, 0, 0, 0, 0, b"")
    return packets.segment_back(cause, 1, 0, packets.SYN, window=1000)


async def test_a_wake_that_fails_does_not_stop_the_holding(net: Link) -> None:
    told = []

    def fail(reason: str) -> None:
        told.append(reason)
        raise ValueError(reason)

    errors: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context.get("exception")))
    async with PodTraffic(net.pod, [PORT], fail) as traffic:
        await traffic.hold()
        with client(net.peer, net.v4) as sock:
            connecting = asyncio.create_task(connect(sock, net.v4))
            await until(lambda: told)
            with listen(net.pod):
                await traffic.release()
                await connecting
    assert [type(error) for error in errors] == [ValueError]


async def test_the_legacy_back_end_of_iptables_works_too(
    net: Link, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("iptables", "ip6tables"):
        for verb in ("save", "restore"):
            (tmp_path / f"{name}-{verb}").symlink_to("/usr/sbin/xtables-legacy-multi")
    wakes = Wakes()
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        async with PodTraffic(net.pod, [PORT], wakes) as traffic:
            await traffic.watch(range(30000, 30040))
            await traffic.hold()
            with client(net.peer, net.v6) as sock:
                connecting = asyncio.create_task(connect(sock, net.v6))
                await wakes.next()
                assert await traffic.reset() == 1
                with pytest.raises(ConnectionRefusedError):
                    await connecting
        async with PodTraffic(net.pod, [PORT], wakes) as successor:
            await successor.hold()
            assert net.rules().count("-A PREROUTING -j KYBERNATE") == 2
            await successor.release()
            assert "KYBERNATE" not in net.rules()


async def test_the_probe_finds_that_packets_can_be_held() -> None:
    assert await rules.probe() == rules.Probe(True)
