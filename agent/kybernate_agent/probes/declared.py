"""What a pod's containers tell the kubelet to do to them: probes, and hooks of their lifecycle. Pure.

The kubelet reaches a container in two ways: by a connection of its own to a port of the pod (httpGet, tcpSocket, grpc),
or by a command that it has executed inside (exec). While the application sleeps both are answered for it, so what
counts here is only where they go, not what they ask.

A probe whose `host` is set goes to that host and not to the pod: it is none of ours. Startup probes end once the
application has started, so they are no part of the steady rate.

Source: Kubernetes API core/v1, Probe, LifecycleHandler, with its defaults (periodSeconds 10, timeoutSeconds 1).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_PROBES = ("startupProbe", "livenessProbe", "readinessProbe")
_HOOKS = ("postStart", "preStop")
_PERIOD_SECONDS = 10.0
_TIMEOUT_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Declared:
    """Where the kubelet knocks. `periods` are the seconds between connections, one for each probe that makes them for
    as long as the container runs; `timeout_seconds` is the longest that the kubelet waits for any answer.
    """

    ports: frozenset[int] = frozenset()
    commands: frozenset[tuple[str, ...]] = frozenset()
    periods: tuple[float, ...] = ()
    timeout_seconds: float = 0.0
    tls: bool = False  # some probe speaks HTTPS


NOTHING = Declared()


def declared(containers: Iterable[Mapping[str, Any]]) -> Declared:
    """What these containers (as in a pod's JSON, `spec.containers[]`) declare, together.

    Never fails: a port's name that no container port has, which the API server lets through and the kubelet then fails
    on, is left out.
    """
    ports: set[int] = set()
    commands: set[tuple[str, ...]] = set()
    periods: list[float] = []
    timeouts = [0.0]
    tls = False
    for container in containers:
        for kind, handler in _handlers(container):
            timeouts.append(float(handler.get("timeoutSeconds") or _TIMEOUT_SECONDS))
            if command := (handler.get("exec") or {}).get("command"):
                commands.add(tuple(map(str, command)))
            port = _port(handler, container)
            if port is None:
                continue
            ports.add(port)
            tls = tls or str((handler.get("httpGet") or {}).get("scheme", "")).upper() == "HTTPS"
            if kind in ("livenessProbe", "readinessProbe"):
                periods.append(float(handler.get("periodSeconds") or _PERIOD_SECONDS))
    return Declared(frozenset(ports), frozenset(commands), tuple(periods), max(timeouts), tls)


def _handlers(container: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    lifecycle = container.get("lifecycle") or {}
    for source, kinds in ((container, _PROBES), (lifecycle, _HOOKS)):
        for kind in kinds:
            if handler := source.get(kind):
                yield kind, handler


def _port(handler: Mapping[str, Any], container: Mapping[str, Any]) -> int | None:
    """The pod's port that a handler connects to; None: it makes no connection to the pod."""
    for way in ("httpGet", "tcpSocket", "grpc"):
        target = handler.get(way)
        if target is not None:
            return None if target.get("host") else _number(target.get("port"), container)
    return None


def _number(port: object, container: Mapping[str, Any]) -> int | None:
    if isinstance(port, str) and not port.isdigit():
        named = (one for one in container.get("ports") or () if one.get("name") == port)
        port = next((one.get("containerPort") for one in named), None)
    number = int(port) if isinstance(port, (int, str)) else 0
    return number if 0 < number < 65536 else None
