"""What `apply --wait` waits for on a cluster."""

from __future__ import annotations

import pytest

from kybernate.api.objects import Condition, Metadata
from kybernate.cli.settling import TemplateInvalidError, Workload, _Status, unsettled
from kybernate.errors import StateLostError


def workload(observed: int = 3, **conditions: str) -> Workload:
    """Of the third generation; a condition is `True`, or `False and why`."""
    said = []
    for kind, text in conditions.items():
        status, _, message = text.partition(" and ")
        said.append(Condition(type=kind, status="True" if status == "True" else "False", message=message))
    metadata = Metadata(name="chat", generation=3)
    return Workload(metadata=metadata, status=_Status(observed_generation=observed, conditions=said))


@pytest.mark.parametrize(
    ("seen", "waits"),
    [
        (workload(Ready="True", Progressing="False and chat-1 takes it when awake"), ""),
        (workload(2, Ready="True", Progressing="False"), "the controller has not looked at it yet"),
        (workload(), "nothing is said of it yet"),
        (workload(Ready="False and 0 of 1", Progressing="True and makes chat-0"), "makes chat-0"),
        (workload(Ready="True and 3 of 3", Progressing="True and one is old"), "one is old"),
        (workload(Ready="False", Progressing="True and makes it", Degraded="True and no such image"), "no such image"),
        (workload(Ready="False and 0 of 1", Progressing="False", Degraded="False"), "0 of 1"),
    ],
)  # fmt: skip
def test_what_is_waited_for(seen: Workload, waits: str) -> None:
    assert unsettled(seen) == waits


def test_what_will_not_come_by_waiting_is_an_error() -> None:
    with pytest.raises(TemplateInvalidError, match="chat: no pod can be made of its template: port 0"):
        unsettled(workload(TemplateInvalid="True and port 0", Ready="True", Progressing="False"))
    with pytest.raises(StateLostError, match="chat: its node is gone"):
        unsettled(workload(StateLost="True and its node is gone", Ready="False"))
