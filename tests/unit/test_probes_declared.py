"""Where the kubelet knocks, read from containers as the API server gives them."""

from __future__ import annotations

from typing import Any

import pytest
from kybernate_agent.probes import NOTHING, Declared, declared

PORTS = [{"name": "web", "containerPort": 8080}, {"name": "admin", "containerPort": 9090}, {"containerPort": 7070}]


def test_a_container_without_probes_declares_nothing() -> None:
    assert declared([{"name": "app", "ports": PORTS}]) == NOTHING
    assert declared([]) == NOTHING


@pytest.mark.parametrize(
    ("handler", "ports"),
    [
        ({"httpGet": {"path": "/", "port": 8081, "scheme": "HTTP"}}, {8081}),
        ({"httpGet": {"path": "/", "port": "web", "scheme": "HTTP"}}, {8080}),
        ({"tcpSocket": {"port": "admin"}}, {9090}),
        ({"tcpSocket": {"port": "6000"}}, {6000}),
        ({"grpc": {"port": 5000, "service": "x"}}, {5000}),
        ({"httpGet": {"path": "/", "port": 8081, "host": "elsewhere"}}, set()),
        ({"tcpSocket": {"port": 8081, "host": "127.0.0.1"}}, set()),
        ({"httpGet": {"path": "/", "port": "no-such-name"}}, set()),
        ({"exec": {"command": ["true"]}}, set()),
        ({"sleep": {"seconds": 3}}, set()),
    ],
    ids=["number", "name", "name-tcp", "digits", "grpc", "host", "host-tcp", "unknown-name", "exec", "sleep"],
)
@pytest.mark.parametrize("kind", ["livenessProbe", "readinessProbe", "startupProbe", "preStop", "postStart"])
def test_ports(kind: str, handler: dict[str, Any], ports: set[int]) -> None:
    probe = {"lifecycle": {kind: handler}} if kind in ("preStop", "postStart") else {kind: handler}
    assert declared([{"name": "app", "ports": PORTS, **probe}]).ports == ports


def test_everything_together() -> None:
    app = {
        "name": "app",
        "ports": PORTS,
        "startupProbe": {"httpGet": {"port": "web"}, "periodSeconds": 2, "failureThreshold": 30},
        "livenessProbe": {"httpGet": {"port": "web", "scheme": "HTTPS"}, "periodSeconds": 5, "timeoutSeconds": 4},
        "readinessProbe": {"exec": {"command": ["cat", "/ready"]}, "periodSeconds": 1},
        "lifecycle": {"preStop": {"exec": {"command": ["sh", "-c", "sleep 1"]}}},
    }
    second = {"name": "second", "readinessProbe": {"tcpSocket": {"port": 7071}}}
    assert declared([app, second]) == Declared(
        ports=frozenset({8080, 7071}),
        commands=frozenset({("cat", "/ready"), ("sh", "-c", "sleep 1")}),
        periods=(5.0, 10.0),
        timeout_seconds=4.0,
        tls=True,
    )


def test_names_are_those_of_the_same_container() -> None:
    first = {
        "name": "a",
        "ports": [{"name": "web", "containerPort": 1}],
        "livenessProbe": {"tcpSocket": {"port": "web"}},
    }
    second = {**first, "name": "b", "ports": [{"name": "web", "containerPort": 2}]}
    assert declared([first, second]).ports == {1, 2}
