"""Subnets that nobody uses."""

from __future__ import annotations

import ipaddress
import stat
from pathlib import Path

import pytest

from kybernate.lab import network
from kybernate.lab.locks import LockHeldError
from kybernate.lab.network import Bridge, NoSubnetError, free_ipv4, free_ipv6


def net(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    return ipaddress.ip_network(text)


def test_a_lab_gets_the_same_subnet_each_time() -> None:
    assert free_ipv4("one", []) == free_ipv4("one", [])
    assert free_ipv4("one", []) != free_ipv4("two", [])


def test_a_routed_subnet_is_passed_over() -> None:
    first = free_ipv4("one", [])
    second = free_ipv4("one", [first, net("fd00::/64")])
    assert not first.overlaps(second)
    six = free_ipv6("one", [])
    assert six.is_private
    assert not six.overlaps(free_ipv6("one", [six]))


def test_a_route_that_covers_half_of_the_range_leaves_the_other_half() -> None:
    taken = net("10.192.0.0/11")
    assert not any(free_ipv4(seed, [taken]).overlaps(taken) for seed in "abcdefgh")


def test_no_free_subnet_is_said() -> None:
    with pytest.raises(NoSubnetError, match=r"10\.192\.0\.0/24"):
        free_ipv4("one", [net("10.0.0.0/8")])


def test_a_bridge_name_fits_the_kernel() -> None:
    assert len(Bridge.named("a lab with a very long name").name) <= 15


def test_the_lock_is_its_owners_alone_and_not_waited_for_for_ever(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(network, "LOCK", tmp_path / "lock")
    monkeypatch.setattr(network, "LOCK_SECONDS", 0.3)
    with network.one_at_a_time():
        assert stat.S_IMODE((tmp_path / "lock").stat().st_mode) == 0o600
        with pytest.raises(LockHeldError), network.one_at_a_time():
            raise AssertionError("two at once")
    with network.one_at_a_time():
        pass
