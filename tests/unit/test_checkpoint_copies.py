"""What a manifest's id names, and what a GpuCheckpoint's status says."""

from __future__ import annotations

from typing import Any

import pytest
from kybernate_agent.cluster import copies
from kybernate_agent.decide import decide
from kybernate_agent.instance import Phase, Policy, Verb, View

from kybernate.api.gpucheckpoint import CheckpointSource, CheckpointSpec, CheckpointStatus, GpuCheckpoint
from kybernate.api.objects import Condition, Metadata
from kybernate.api.quantity import Duration
from kybernate.errors import RefusedError
from kybernate.store import ImageFile, Manifest, NoRoomError

MADE: dict[str, Any] = {
    "namespace": "team", "checkpoint": "warm", "container": "app", "image": "chat:1", "image_digest": "sha256:1",
    "criu": "4.2.1", "architecture": "x86_64", "created_at": 1_800_000_000.0, "frozen_seconds": 0.1234,
    "kernel": "6.18", "ports": [8080],
}  # fmt: skip
MANIFEST = Manifest("checkpoint-u1", 1, (ImageFile("pages-1.img", 4096, "x", "b"),), MADE, "c0ffee")


def checkpoint(**spec: Any) -> GpuCheckpoint:
    meta = Metadata(name="warm", namespace="team", uid="u1", generation=3)
    return GpuCheckpoint(
        metadata=meta,
        spec=CheckpointSpec(source=CheckpointSource(instance="chat-0"), **spec),
        status=CheckpointStatus(phase="Running", node="n1"),
    )


def test_an_id_names_exactly_these_images() -> None:
    assert copies.id_of_manifest(MANIFEST) == "checkpoint-u1@c0ffee"
    assert copies.parts_of("checkpoint-u1@c0ffee") == ("checkpoint-u1", "c0ffee")
    assert copies.name_of(checkpoint()) == "checkpoint-u1"


@pytest.mark.parametrize(
    "text",
    ["", "checkpoint-u1", "checkpoint-u1@", "team.chat-0@c0ffee", "checkpoint-u1.x@c0ffee", "checkpoint-/../x@c0ffee"],
)
def test_no_other_images_can_be_named(text: str) -> None:
    """An instance's own, above all: they are for its own pod."""
    with pytest.raises(copies.ManifestIdError):
        copies.parts_of(text)


def test_images_of_an_instance_are_no_checkpoint() -> None:
    with pytest.raises(copies.ManifestIdError):
        copies.made_of(Manifest("checkpoint-u1", 1, (), {"workload": "chat", "container": "app"}, "c0ffee"))


def test_ready() -> None:
    status = copies.ready(checkpoint(), MANIFEST)
    assert (status.phase, status.node, status.observed_generation) == ("Ready", "n1", 3)
    assert (status.manifest, status.size_bytes, status.frozen_seconds) == ("checkpoint-u1@c0ffee", 4096, 0.123)
    assert (status.image, status.image_digest) == ("chat:1", "sha256:1")
    assert (status.criu, status.architecture) == ("4.2.1", "amd64")
    [condition] = status.conditions
    assert (condition.type, condition.status, condition.observed_generation) == ("Ready", "True", 3)
    assert condition.last_transition_time == "2027-01-15T08:00:00Z"


def test_expired_says_what_it_was_and_what_became_of_the_bytes() -> None:
    one = checkpoint()
    one.status = copies.ready(one, MANIFEST)
    for gone, says in ((True, "its bytes are gone"), (False, "its bytes stay")):
        status = copies.expired(one, gone)
        assert (status.phase, status.image_digest, status.size_bytes) == ("Expired", "sha256:1", 0)
        assert says in status.conditions[0].message


def test_expiry_is_counted_from_the_copy() -> None:
    assert copies.expires_at(checkpoint(), MANIFEST) is None
    assert copies.expires_at(checkpoint(expires_after=Duration(60)), MANIFEST) == 1_800_000_060.0


def test_a_condition_keeps_its_time_while_it_says_the_same() -> None:
    old = CheckpointStatus(conditions=[Condition(type="Ready", status="False", last_transition_time="T1")])
    kept = copies.changed_at(copies.running(checkpoint()), old, 0)
    assert kept.conditions[0].last_transition_time == "T1"
    fresh = copies.changed_at(copies.running(checkpoint()), CheckpointStatus(), 1_800_000_000.0)
    assert fresh.conditions[0].last_transition_time == "2027-01-15T08:00:00Z"


def test_a_reason_is_one_word() -> None:
    room = NoRoomError(instance="x", path="/", needed_bytes=2, room_bytes=1, reserve_bytes=0)
    assert copies.reason_of(room) == "NoRoom"
    assert copies.reason_of(RefusedError("no", code="file-changed")) == "FileChanged"
    assert copies.reason_of(OSError("x")) == "OSError".removesuffix("Error")


@pytest.mark.parametrize(
    ("known", "verb"),
    [
        ({"phase": Phase.RUNNING}, Verb.CHECKPOINT),
        ({"phase": Phase.SUSPENDED}, Verb.CHECKPOINT),
        ({"phase": Phase.PARKED}, Verb.CHECKPOINT),
        ({"phase": Phase.PARKED, "wake_wanted": True}, Verb.RESUME),  # who calls goes first
        ({"phase": Phase.PENDING, "kubelet": True}, None),
        ({"phase": Phase.LOST}, None),
        ({"phase": Phase.RUNNING, "deleting": True}, Verb.END),
        ({"phase": Phase.RUNNING, "keeper_alive": False, "processes_alive": True, "kubelet": True}, Verb.RESCUE),
    ],
)
def test_when_a_copy_is_made(known: dict[str, Any], verb: Verb | None) -> None:
    view = View(since=0.0, policy=Policy(), copy_wanted=True, **known)
    assert decide(view, 1000.0).verb == verb
