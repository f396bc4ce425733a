"""Whether a cluster has done what a GpuWorkload says: a pure function of what the controller says of it."""

from __future__ import annotations

import msgspec

from kybernate.api.objects import Condition, Metadata, Object
from kybernate.errors import DeadlineError, InvalidError, StateLostError


class TemplateInvalidError(InvalidError):
    """{workload}: no pod can be made of its template: {why}"""


class NotSettledError(DeadlineError):
    """{workload}: not as it should be after {seconds:g} s: {why}. `kybernate describe {workload}` tells more."""


class _Status(Object, kw_only=True):
    observed_generation: int = 0
    conditions: list[Condition] = msgspec.field(default_factory=list)


class Workload(Object, kw_only=True):
    """A GpuWorkload, as far as the controller's word about it."""

    metadata: Metadata
    status: _Status = msgspec.field(default_factory=_Status)


def unsettled(workload: Workload) -> str:
    """What is still waited for; empty when all instances answer and none is to be made, replaced or ended. One that
    sleeps and takes its template when it is woken is not waited for. Raises TemplateInvalidError, StateLostError."""
    name, status = workload.metadata.name, workload.status
    if status.observed_generation < workload.metadata.generation:
        return "the controller has not looked at it yet"
    found = {condition.type: condition for condition in status.conditions}
    if (invalid := found.get("TemplateInvalid")) and invalid.status == "True":
        raise TemplateInvalidError(workload=name, why=invalid.message)
    if (lost := found.get("StateLost")) and lost.status == "True":
        raise StateLostError(f"{name}: {lost.message}")
    ready, progressing, degraded = (found.get(kind) for kind in ("Ready", "Progressing", "Degraded"))
    if ready and ready.status == "True" and progressing and progressing.status == "False":
        return ""
    if degraded and degraded.status == "True":
        return degraded.message
    return next((each.message for each in (progressing, ready) if each and each.message), "nothing is said of it yet")
