"""What a pod's JSON says of probes and readiness, and what an instance makes of a declared command."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from kybernate_agent import probed
from kybernate_agent.cluster.objects import Pod, is_ready, probes_of
from kybernate_agent.instance import Phase, Record, Verb
from kybernate_agent.probes import NOTHING, Declared, Entering

from kybernate.api.objects import decode

APP: dict[str, Any] = {
    "name": "app",
    "image": "x",
    "ports": [{"name": "web", "containerPort": 8080, "protocol": "TCP"}],
    "livenessProbe": {"httpGet": {"path": "/", "port": "web", "scheme": "HTTPS"}, "periodSeconds": 7},
    "lifecycle": {"preStop": {"exec": {"command": ["stop", "now"]}}},
}
SIDECAR = {"name": "sidecar", "readinessProbe": {"tcpSocket": {"port": 15020}}}


def read(**status: Any) -> Pod:
    whole = {"metadata": {"name": "p"}, "spec": {"containers": [APP, SIDECAR]}, "status": status}
    return decode(json.dumps(whole).encode(), Pod)


def test_the_probes_of_one_container() -> None:
    found = probes_of(read(), "app")
    assert found == Declared(frozenset({8080}), frozenset({("stop", "now")}), (7.0,), 1.0, True)
    assert probes_of(read(), "sidecar").ports == {15020}
    assert probes_of(read(), "no-such") == NOTHING


def test_readiness_is_that_of_the_container() -> None:
    statuses = [{"name": "app", "ready": True}, {"name": "sidecar", "ready": False}]
    assert is_ready(read(containerStatuses=statuses), "app")
    assert not is_ready(read(containerStatuses=statuses), "sidecar")
    assert not is_ready(read(), "app"), "nothing is known yet: it has not started"


def test_what_a_pod_declares_outlives_the_agent() -> None:
    record = Record(id="a", workload="a", probes=probes_of(read(), "app"))
    assert msgspec.json.decode(msgspec.json.encode(record), type=Record) == record


@pytest.mark.parametrize(
    ("phase", "busy", "real"),
    [
        (Phase.RUNNING, None, True),
        (Phase.RUNNING, Verb.PROVE, True),
        (Phase.RUNNING, Verb.SUSPEND, False),
        (Phase.SUSPENDED, None, False),
        (Phase.SUSPENDED, Verb.PARK, False),
        (Phase.SUSPENDED, Verb.RESUME, False),
        (Phase.PARKED, None, False),
        (Phase.PARKED, Verb.RESUME, False),
        (Phase.PARKED, Verb.ADOPT, False),
        (Phase.RUNNING, Verb.RESCUE, False),
        (Phase.PENDING, None, True),
        (Phase.PENDING, Verb.ADOPT, True),
        (Phase.LOST, None, True),
    ],
)
async def test_a_declared_command_is_real_unless_it_sleeps(phase: Phase, busy: Verb | None, real: bool) -> None:
    entering = Entering()
    actor: Any = SimpleNamespace(record=Record(id="a", workload="a", phase=phase), busy=busy, entering=entering)
    assert probed.is_carried_out(actor, os.getpid()) is real
    assert await entering.none(0) is not real, "what goes in holds a freeze back"
    entering.close()
