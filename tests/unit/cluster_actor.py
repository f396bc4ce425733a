"""An actor of a cluster's node as the journal knows it: with a store and a journal, without a container."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from agent_services import services_in
from kybernate_agent.actor import Actor
from kybernate_agent.instance import Member, Phase, Pod, Record, Wanted

UID = "pod-uid-1"


def actor_in(folder: Path, phase: Phase, **known: Any) -> Actor:
    """team.chat-0 of pod UID; `known` is what else its record says."""
    services = services_in(folder)
    wanted = Wanted(container="app", namespace="team")
    member = Member(name="chat-0", uid="gi-uid", pod="chat-0", pod_uid=UID)
    more: dict[str, Any] = {"pod": Pod(uid=UID, container="c1"), **known}
    record = Record(id="team.chat-0", workload="chat", phase=phase, member=member, wanted=wanted, **more)
    services.journal.settle(record)
    return Actor(services, record, wanted)
