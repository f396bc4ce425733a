"""Addresses and names of a test cluster."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path

import pytest

from kybernate.errors import InvalidError
from kybernate.lab.cluster import Cluster
from kybernate.lab.cluster.cluster import NoClusterError, past_proxies
from kybernate.lab.cluster.wires import NoNetworkError, Plan, free_plan, host_cable
from kybernate.lab.network import Network4Or6
from kybernate.lab.process import run


def network(text: str) -> Network4Or6:
    return ipaddress.ip_network(text)


def test_a_routed_network_is_passed_over() -> None:
    first = free_plan("a", [])
    again = free_plan("a", [network(f"{first.prefix}.65.0/24"), network("fd00::/64")])
    assert again.prefix != first.prefix
    with pytest.raises(NoNetworkError):
        free_plan("a", [network("10.128.0.0/9")])


def test_addresses_do_not_overlap() -> None:
    plan = Plan("10.140")
    pods = [network(plan.pods(number)) for number in range(1, 10)]
    machines, services = network("10.140.0.0/24"), network(plan.services)
    everything = [machines, services, *pods]
    assert all(one is other or not one.overlaps(other) for one in everything for other in everything)
    assert all(one.subnet_of(network(plan.all_pods)) for one in pods)  # type: ignore[arg-type]
    assert {ipaddress.ip_address(plan.dns), ipaddress.ip_address(plan.api_service)} <= set(services)


def test_the_name_of_the_hosts_cable_fits_the_kernel_and_is_its_own() -> None:
    names = {host_cable(f"kybcluster-{number}-1") for number in range(100)}
    assert len(names) == 100
    assert all(len(name + "x") <= 15 for name in names)


@pytest.mark.parametrize("folder", ["/run/c", "/var/lib/c", "/opt/c/d", "/etc"])
def test_a_folder_that_machines_hide_is_refused(folder: str) -> None:
    with pytest.raises(InvalidError, match="below /var/tmp"):
        Cluster(Path(folder), "c")


def test_a_folder_without_a_cluster(tmp_path: Path) -> None:
    with pytest.raises(NoClusterError):
        Cluster.open(tmp_path)
    (tmp_path / "cluster.json").write_text("{")
    with pytest.raises(NoClusterError):
        Cluster.open(tmp_path)


@pytest.mark.parametrize("name", ["http_proxy", "HTTPS_PROXY"])
@pytest.mark.parametrize(
    ("known", "whole"),
    [({}, ",10.140.0.0/16"), ({"no_proxy": "a"}, "a,10.140.0.0/16"), ({"NO_PROXY": "b"}, "b,10.140.0.0/16")],
)
def test_a_proxy_is_passed_by_in_both_spellings(name: str, known: dict[str, str], whole: str) -> None:
    line = past_proxies(Plan("10.140"), {name: "http://proxy"})
    said = run(["sh", "-c", f'{line}\necho "$no_proxy $NO_PROXY"'], env={"PATH": os.environ["PATH"], **known})
    assert said.split() == [whole, whole]


def test_without_a_proxy_there_is_no_line() -> None:
    assert past_proxies(Plan("10.140"), {"https_proxy": "", "no_proxy": "a"}) == ""
