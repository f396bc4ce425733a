"""How far a restore is, as a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from kybernate_controller.progress import TRY_SECONDS, Pod, Seen, progress

from kybernate.api.gpuinstance import GpuInstance
from kybernate.api.gpurestorejob import RestoreJobStatus
from kybernate.api.objects import decode, encode

NOW = 1_800_000_000.0
THEN = "2027-01-15T08:00:00Z"  # NOW
UID = "uid-1"


def pod(**status: Any) -> dict[str, Any]:
    return {"metadata": {"name": "again", "uid": UID}, "status": {"phase": "Pending", **status}}


def instance(**status: Any) -> dict[str, Any]:
    spec = {"pod": "again", "podUID": UID, "policy": {"container": "app"}}
    return {"metadata": {"name": "again"}, "spec": spec, "status": {"podUID": UID, **status}}


def condition(kind: str, message: str, at: str = THEN) -> dict[str, Any]:
    return {"conditions": [{"type": kind, "status": "True", "message": message, "lastTransitionTime": at}]}


@dataclass
class Case:
    name: str
    pod: dict[str, Any] | None
    instance: dict[str, Any] | None
    phase: str
    message: str = ""
    now: float = NOW


WOKEN = {"lastWake": {"seconds": 0.25, "from": "NVME"}}
UNSCHEDULED = {"conditions": [{"type": "PodScheduled", "status": "False", "message": "no room"}]}
PULLING = {"containerStatuses": [{"name": "app", "state": {"waiting": {"message": "no such image"}}}]}
CASES = [
    Case("its pod is gone", None, instance(), "Failed", "its pod was deleted"),
    Case(
        "its pod goes",
        {"metadata": {"name": "again", "uid": UID, "deletionTimestamp": THEN}},
        instance(**WOKEN),
        "Failed",
        "its pod is being deleted",
    ),
    Case("its pod failed", pod(phase="Failed", reason="Evicted"), instance(), "Failed", "its pod is Failed: Evicted"),
    Case("its instance is gone", pod(), None, "Failed", "its GpuInstance was deleted"),
    Case("no room", pod(**UNSCHEDULED), instance(podUID=""), "Placing", "no room"),
    Case("no image", pod(**PULLING), instance(podUID=""), "Placing", "no such image"),
    Case("nothing yet", pod(), instance(podUID=""), "Placing"),
    Case("its container is let in", pod(), instance(state="Parked"), "Restoring"),
    Case("it runs", pod(), instance(state="Running", **WOKEN), "Succeeded"),
    Case("it ran, and sleeps again", pod(), instance(state="Parked", **WOKEN), "Succeeded"),
    Case("another pod's wake is not its own", pod(), instance(podUID="uid-0", **WOKEN), "Placing"),
    Case("it began anew, which is no restore", pod(), instance(state="Running"), "Restoring"),
    Case("refused", pod(), instance(podUID="", **condition("StateLost", "other mounts")), "Failed", "other mounts"),
    Case("CRIU fails", pod(), instance(**condition("RestoreFailed", "busy")), "Restoring", "busy"),
    Case(
        "CRIU fails on and on", pod(), instance(**condition("RestoreFailed", "busy")), "Failed", "busy",
        NOW + TRY_SECONDS,
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_progress(case: Case) -> None:
    found = progress(
        Seen(
            RestoreJobStatus(phase="Placing"),
            None if case.pod is None else decode(encode(case.pod), Pod),
            None if case.instance is None else decode(encode(case.instance), GpuInstance),
            case.now,
        )
    )
    assert (found.phase, found.message) == (case.phase, case.message)
    assert (found.restoring_seconds == 0.25) == (case.phase == "Succeeded")


def test_what_may_pass_is_looked_at_again_in_time() -> None:
    made = decode(encode(instance(**condition("RestoreFailed", "busy"))), GpuInstance)
    found = progress(Seen(RestoreJobStatus(phase="Restoring"), decode(encode(pod()), Pod), made, NOW + 20))
    assert found.again_seconds is not None
    assert TRY_SECONDS - 20 < found.again_seconds < TRY_SECONDS


def test_a_pods_conditions_may_lack_their_time() -> None:
    """As those of other controllers' readiness gates do; a pod that cannot be read would stop every job."""
    gate = {"type": "example.org/gate", "status": "True", "lastProbeTime": None, "lastTransitionTime": None}
    assert decode(encode(pod(conditions=[gate])), Pod).status.conditions[0].status == "True"
