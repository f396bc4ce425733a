"""What the agent makes of that which the API server tells it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from agent_services import services_in
from kybernate_agent.actor import Actor
from kybernate_agent.cluster.lacking import lack_of
from kybernate_agent.cluster.objects import Fate, Pod
from kybernate_agent.cluster.source import ClusterSource
from kybernate_agent.config import ClusterConfig
from kybernate_agent.instance import Phase
from kybernate_agent.node import Node

from kybernate.api import names
from kybernate.api.gpuinstance import GpuInstance, InstancePolicy, InstanceSpec
from kybernate.api.objects import Metadata, decode
from kybernate.kube.cache import Change, key_of
from kybernate.kube.events import Regarding

NOBODY: Any = None


class Bed:
    """An agent's node that hears of GpuInstances; there is no API server to ask."""

    def __init__(self, folder: Path) -> None:
        services = services_in(folder)
        self.journal = services.journal
        self.node = Node(services)
        self.source = ClusterSource(self.node, NOBODY, NOBODY, ClusterConfig(node_name="n1"), NOBODY)
        self.node.source = self.source

    def hears(self, instance: GpuInstance) -> Actor | None:
        self.source._on_instance(Change(key_of(instance), None, instance))
        return self.node.actors.get("team.chat-0")


@pytest_asyncio.fixture
async def bed(tmp_path: Path) -> AsyncIterator[Bed]:
    bed = Bed(tmp_path)
    try:
        yield bed
    finally:
        await bed.node.close()


def instance(pod: str = "pod-1", start_anew: int = 0) -> GpuInstance:
    meta = Metadata(name="chat-0", namespace="team", uid="gi-1", generation=1 + start_anew)
    spec = InstanceSpec(
        node_name="n1", workload="chat", pod="chat-0", pod_uid=pod, epoch=1, start_anew=start_anew,
        policy=InstancePolicy(container="app"),
    )  # fmt: skip
    return GpuInstance(metadata=meta, spec=spec)


async def test_a_full_disk_does_not_end_the_one_who_hears_it(bed: Bed) -> None:
    bed.journal.close()  # whatever it is to write fails
    assert bed.hears(instance()) is None


async def test_a_change_that_cannot_be_written_down_counts(bed: Bed) -> None:
    actor = bed.hears(instance())
    assert actor is not None
    bed.journal.close()
    changed = instance("pod-2")
    changed.spec.state = "Parked"
    assert bed.hears(changed) is actor
    assert actor.policy.down
    assert actor._poked.is_set()


@pytest.mark.parametrize(
    ("then", "given_up"),
    [
        (instance("pod-2"), False),
        (instance("pod-1", start_anew=1), False),
        (instance("pod-2", start_anew=1), True),
    ],
    ids=["its next pod", "its pod came back with it", "it began anew while this node was away"],
)
async def test_a_state_that_was_taken_for_lost_does_not_come_back(bed: Bed, then: GpuInstance, given_up: bool) -> None:
    actor = bed.hears(instance())
    assert actor is not None
    actor.record.pod.uid = "pod-1"
    actor.record.enter(Phase.PARKED, 0.0)
    assert bed.hears(then) is actor
    assert bool(actor.record.given_up) == given_up


def pod(*, going: bool = False, evicted: bool = False) -> Pod:
    meta: dict[str, Any] = {"name": "chat-0", "namespace": "team", "uid": "pod-1"}
    meta["annotations"] = {names.CONTAINERS: "app"}
    if going:
        meta["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    conditions = [{"type": "DisruptionTarget", "status": "True"}] if evicted else []
    found = {"metadata": meta, "spec": {"runtimeClassName": "kybernate"}, "status": {"conditions": conditions}}
    return decode(msgspec.json.encode(found), Pod)


GONE = [
    ("forced away", pod(), False, Fate(True, False, 0.0)),
    ("deleted", pod(going=True), False, Fate(True, False, 0.0)),
    ("evicted", pod(going=True, evicted=True), False, Fate(True, True, 0.0)),
    ("nobody saw the end, but that it was deleted", pod(going=True), True, Fate(True, False, 0.0)),
    ("nobody saw the end, but that it was evicted", pod(evicted=True), True, Fate(True, True, 0.0)),
    ("nobody saw how it went: perhaps it was evicted", pod(), True, None),
]


@pytest.mark.parametrize(("name", "last", "unseen", "fate"), GONE, ids=[case[0] for case in GONE])
async def test_how_a_pod_went(bed: Bed, name: str, last: Pod, unseen: bool, fate: Fate | None) -> None:
    bed.source._on_pod(Change(key_of(last), last, None, unseen))
    assert bed.source.gone_pods == {"pod-1": fate}


@pytest.mark.parametrize(
    ("last", "phase", "given_up"),
    [
        (pod(going=True), Phase.RUNNING, True),
        (pod(going=True), Phase.SUSPENDED, True),
        (pod(going=True), Phase.PARKED, False),
        (pod(going=True, evicted=True), Phase.RUNNING, False),
        (pod(), Phase.RUNNING, False),
    ],
)
async def test_who_lives_without_a_keeper_ends_with_its_pod(bed: Bed, last: Pod, phase: Phase, given_up: bool) -> None:
    actor = bed.hears(instance())
    assert actor is not None
    actor.record.pod.uid = "pod-1"
    actor.record.enter(phase, 0.0)
    await bed.source._tell_probes(last)
    assert bool(actor.record.given_up) == given_up
    assert actor.pod_goes.is_set() == (last.metadata.deletion_timestamp is not None)


def asking(annotations: dict[str, str], spec: dict[str, Any], **more: Any) -> Pod:
    meta = {"name": "web", "namespace": "team", "uid": "pod-9", "annotations": annotations}
    return decode(msgspec.json.encode({"metadata": meta, "spec": spec, **more}), Pod)


OURS, THEIRS = {"runtimeClassName": "kybernate"}, {"runtimeClassName": "gvisor"}
SLEEPS, NAMED = {names.SUSPEND_AFTER: "10m"}, {names.CONTAINERS: "app"}
CLASS, CONTAINER = "needs runtimeClassName: kybernate", "the annotation kybernate.io/containers"
LACKS: list[tuple[str, Pod, list[str]]] = [
    ("a pod as any other", asking({"team.io/x": "1"}, {}), []),
    ("the handler alone is no wish", asking({}, OURS), []),
    ("all is there", asking(SLEEPS | NAMED, OURS), []),
    ("no class", asking(NAMED, {}), [CLASS, names.CONTAINERS]),
    ("another class", asking(SLEEPS | NAMED, THEIRS), [CLASS]),
    ("no container", asking(SLEEPS, OURS), [CONTAINER, names.SUSPEND_AFTER]),
    ("neither", asking(SLEEPS, {}), [CLASS, CONTAINER]),
    ("it has ended", asking(NAMED, {}, status={"phase": "Succeeded"}), []),
]


@pytest.mark.parametrize(("name", "pod", "told"), LACKS, ids=[case[0] for case in LACKS])
def test_what_an_annotated_pod_lacks(name: str, pod: Pod, told: list[str]) -> None:
    said = lack_of(pod)
    assert bool(said) == bool(told)
    assert all(part in said for part in told)
    assert not said or said.endswith("it runs but never sleeps")


async def test_what_a_pod_lacks_is_told_once_on_the_pod(bed: Bed) -> None:
    told: list[tuple[str, str, str]] = []

    class Recorder:
        def record(self, about: Regarding, kind: str, reason: str, message: str) -> None:
            told.append((f"{about.resource.kind} {about.namespace}/{about.name}", kind, reason))

    bed.source._recorder = Recorder()  # type: ignore[assignment]
    lacking = asking(NAMED, {})
    for before in (None, lacking, lacking):
        bed.source._on_pod(Change(key_of(lacking), before, lacking))
    assert told == [("Pod team/web", "Warning", "NotManaged")]
    bed.source._on_pod(Change(key_of(lacking), lacking, None))
    assert not bed.source._lacking, "nothing is kept of a pod that is gone"
