"""Subnets that nobody uses."""

from __future__ import annotations

import ipaddress

import pytest

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
