"""What the agent answers the hook in a cluster, and what it reads of and writes to Kubernetes' objects: all pure."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest
from kybernate_agent.cluster.admission import Action, Case, admit
from kybernate_agent.cluster.departure import Departure, depart
from kybernate_agent.cluster.objects import (
    LONGEST_ID,
    Fate,
    Pod,
    PodAnnotationError,
    annotated_instance,
    fate_of,
    id_of,
    is_annotated,
    wanted_of,
)
from kybernate_agent.cluster.starter import network_of
from kybernate_agent.cluster.status import essence, when
from kybernate_agent.config import load_config
from kybernate_agent.instance import Member, Phase, Policy, Record, Wanted

from kybernate.api.gpuinstance import GpuInstance, InstancePolicy, InstanceSpec, InstanceStatus
from kybernate.api.objects import Metadata, decode
from kybernate.api.quantity import Duration
from kybernate.errors import InvalidError
from kybernate.store.types import validate_name

PENDING, R, S, P, LOST = Phase.PENDING, Phase.RUNNING, Phase.SUSPENDED, Phase.PARKED, Phase.LOST
KNOWN = Case(named=True)
ASLEEP = replace(KNOWN, phase=P, images=True, files=True)

ADMISSION = [
    ("nobody named the pod", Case(named=False), Action.WAIT),
    ("nobody named the pod, whatever is known", replace(ASLEEP, named=False), Action.WAIT),
    ("never started", KNOWN, Action.START),
    ("its application ended by itself", replace(KNOWN, phase=Phase.BACKOFF), Action.START),
    ("its GpuInstance goes", replace(KNOWN, deleting=True), Action.WAIT),
    ("the one before lives", replace(ASLEEP, living=True), Action.WAIT),
    ("the one before is not settled", replace(KNOWN, phase=R), Action.WAIT),
    ("the one before slept in RAM and is not settled", replace(KNOWN, phase=S), Action.WAIT),
    ("asleep, the same pod", ASLEEP, Action.RESTORE),
    ("asleep, the same pod, the layer with the images", replace(ASLEEP, files=False, portable=True), Action.RESTORE),
    ("asleep, the same pod, no layer", replace(ASLEEP, files=False), Action.LOSE),
    ("evicted, another pod", replace(ASLEEP, same_pod=False, portable=True), Action.RESTORE),
    ("parked in place, another pod", replace(ASLEEP, same_pod=False), Action.LOSE),
    ("its pod was deleted: first that is settled", replace(ASLEEP, same_pod=False, given_up=True), Action.WAIT),
    ("no images", replace(ASLEEP, images=False), Action.LOSE),
    ("lost", replace(KNOWN, phase=LOST), Action.REFUSE),
    ("lost, and that is accepted", replace(KNOWN, phase=LOST, may_begin_anew=True), Action.WAIT),
]


@pytest.mark.parametrize(("name", "case", "action"), ADMISSION, ids=[name for name, _, _ in ADMISSION])
def test_admission(name: str, case: Case, action: Action) -> None:
    answer = admit(case)
    assert answer.action == action
    assert bool(answer.why) == (action not in (Action.START, Action.RESTORE))


def test_a_state_never_ends_in_a_cold_start() -> None:
    """Whatever else is known: where images of its epoch exist, and nobody gave them up, nothing begins anew."""
    for living in (False, True):
        for same in (False, True):
            for portable in (False, True):
                case = replace(ASLEEP, living=living, same_pod=same, portable=portable)
                assert admit(case).action != Action.START


DELETED, EVICTED, RESTARTED = Fate(True, False, 60), Fate(True, True, 60), Fate(False, False, 60)
END = Departure()
PARK = Departure(park=True, drain_seconds=0, seconds=40)
DEPARTURE: list[tuple[str, Phase, Fate | None, dict[str, Any], Any]] = [
    ("deleted awake", R, DELETED, {}, "given up"),
    ("deleted asleep", P, DELETED, {}, "given up"),
    ("deleted asleep, to end gracefully", P, DELETED, {"wake_to_end": True}, "woken"),
    ("deleted awake, to end gracefully", R, DELETED, {"wake_to_end": True}, "given up"),
    ("evicted awake", R, EVICTED, {}, replace(PARK, drain_seconds=20)),
    ("evicted awake, a short drain", R, EVICTED, {"drain_timeout": 5.0}, replace(PARK, drain_seconds=5)),
    ("evicted in RAM", S, EVICTED, {}, PARK),
    ("evicted parked", P, EVICTED, {}, PARK),
    ("evicted, state dies with the pod", P, EVICTED, {"annotated": True}, "given up"),
    ("evicted, not deleted yet", R, Fate(False, True, 60), {}, replace(PARK, drain_seconds=20)),
    ("evicted, and gone already", R, Fate(True, True, 0), {}, replace(PARK, seconds=5)),
    ("the kubelet starts it again", R, RESTARTED, {}, END),
    ("the kubelet starts a sleeper again", P, RESTARTED, {}, PARK),
    ("nobody knows", S, None, {}, replace(PARK, seconds=20)),
    ("nobody knows, annotated", S, None, {"annotated": True}, replace(PARK, seconds=20)),
    ("it has nothing", PENDING, DELETED, {}, END),
    ("its state is lost", LOST, DELETED, {}, END),
]


@pytest.mark.parametrize(("name", "phase", "fate", "more", "want"), DEPARTURE, ids=[case[0] for case in DEPARTURE])
def test_departure(name: str, phase: Phase, fate: Fate | None, more: dict[str, Any], want: Any) -> None:
    known: dict[str, Any] = {"annotated": False, "wake_to_end": False, "drain_timeout": 30.0, **more}
    found = depart(phase, fate, **known)
    if isinstance(want, str):
        assert found.given_up
        assert (found.park, found.wake) == (False, want == "woken")
    else:
        assert found == want


def pod(**more: Any) -> Pod:
    meta = {"name": "web", "namespace": "shop", "uid": "u1", "annotations": {"kybernate.io/containers": "app"}}
    meta["annotations"] = {**meta["annotations"], **more.pop("annotations", {})}  # type: ignore[dict-item]
    container = {"name": "app", "ports": [{"containerPort": 80}, {"containerPort": 53, "protocol": "UDP"}]}
    spec = {"runtimeClassName": "kybernate", "containers": [container], **more.pop("spec", {})}
    return decode(msgspec.json.encode({"metadata": {**meta, **more.pop("metadata", {})}, "spec": spec, **more}), Pod)


def test_an_annotated_pod_becomes_an_instance() -> None:
    made = annotated_instance(
        pod(annotations={"kybernate.io/suspend-after": "90s", "kybernate.io/park-after": "5m"}), "n1"
    )
    assert (made.metadata.name, made.metadata.namespace, made.spec.node_name, made.spec.pod_uid) == (
        "web",
        "shop",
        "n1",
        "u1",
    )
    assert [(o.kind, o.uid) for o in made.metadata.owner_references] == [("Pod", "u1")]
    assert made.metadata.finalizers == ["kybernate.io/state"]
    wanted = wanted_of(made)
    assert (wanted.container, wanted.ports, wanted.namespace) == ("app", (80,), "shop")
    assert (wanted.policy.suspend_after, wanted.policy.park_after, wanted.policy.anew_when_lost) == (90, 300, True)


def test_its_ports_may_be_named() -> None:
    assert wanted_of(annotated_instance(pod(annotations={"kybernate.io/ports": "8080, 9090"}), "n1")).ports == (
        8080,
        9090,
    )


@pytest.mark.parametrize(
    ("annotation", "text", "problem"),
    [
        ("suspend-after", "soon", "expected a duration"),
        ("suspend-after", "30", "a unit is missing"),
        ("park-after", "5m", "needs kybernate.io/suspend-after"),
        ("ports", "http", "got 'http'"),
        ("ports", "0", "got '0'"),
        ("containers", "app,more", "names 2 containers"),
        ("containers", "other", "no container 'other'"),
    ],
)
def test_a_wrong_annotation_is_named(annotation: str, text: str, problem: str) -> None:
    with pytest.raises(PodAnnotationError, match=problem) as caught:
        annotated_instance(pod(annotations={f"kybernate.io/{annotation}": text}), "n1")
    assert "shop/web" in str(caught.value)
    assert f"kybernate.io/{annotation}" in str(caught.value)


def test_who_is_annotated() -> None:
    owner = {"apiVersion": "kybernate.io/v1alpha1", "kind": "GpuWorkload", "name": "chat", "uid": "w"}
    assert is_annotated(pod())
    assert not is_annotated(pod(metadata={"ownerReferences": [owner]}))
    assert not is_annotated(pod(metadata={"labels": {"kybernate.io/instance": "chat-0"}}))
    assert not is_annotated(pod(spec={"runtimeClassName": "runc"}))


def test_the_fate_of_a_pod() -> None:
    disrupted = {"conditions": [{"type": "DisruptionTarget", "status": "True"}]}
    deletion = {"deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": 5}
    assert fate_of(pod()) == Fate(deleted=False, evicted=False, grace_seconds=30)
    assert fate_of(pod(metadata=deletion)) == Fate(deleted=True, evicted=False, grace_seconds=5)
    assert fate_of(pod(metadata=deletion, status=disrupted)) == Fate(deleted=True, evicted=True, grace_seconds=5)
    assert not fate_of(pod(status={"conditions": [{"type": "DisruptionTarget", "status": "False"}]})).evicted


def test_ids_are_names_of_the_store_and_nobody_shares_one() -> None:
    pairs = [("a", "b.c"), ("a", "b-c"), ("a-b", "c"), ("n", "x" * 253), ("n", "x" * 252 + "y"), ("x" * 63, "y" * 253)]
    ids = [id_of(namespace, name) for namespace, name in pairs]
    assert len(set(ids)) == len(pairs)
    for name in ids:
        assert len(name) <= LONGEST_ID
        validate_name(name, 1)


def test_a_policy_outlives_the_agent() -> None:
    """What the journal keeps is all that a node needs to go on without the API server."""
    spec = InstanceSpec(
        workload="chat", node_name="n1", pod="chat-0", pod_uid="u", state="Parked",
        policy=InstancePolicy(
            container="app", ports=[80], suspend_after=Duration(60), drain_timeout=Duration(5), on_terminate="Wake",
            on_state_lost="Start", keep_awake=True, target_in_flight=8,
        ),
    )  # fmt: skip
    wanted = wanted_of(GpuInstance(metadata=Metadata(name="chat-0", namespace="shop"), spec=spec), "image:1")
    record = Record(
        id="shop.chat-0", workload="chat", wanted=wanted, member=Member(name="chat-0", uid="g", pod_uid="u")
    )
    again = msgspec.json.decode(msgspec.json.encode(record), type=Record)
    assert again == record
    assert again.wanted == Wanted(
        container="app", namespace="shop", image="image:1", ports=(80,),
        policy=Policy(
            suspend_after=60, drain_timeout=5, max_in_flight=600, wake_timeout=120, state="Parked", keep_awake=True,
            wake_to_end=True, anew_when_lost=True, target_in_flight=8,
        ),
    )  # fmt: skip


def test_what_is_worth_a_write() -> None:
    base = InstanceStatus(state="Running", tier="-", since=when(1000.0), epoch=2)
    assert essence(replaced(base, last_activity=when(2000.0), ram_bytes=7, stored_bytes=9)) == essence(base)
    for change in (
        {"state": "Parked"},
        {"tier": "NVME"},
        {"since": when(1001.0)},
        {"epoch": 3},
        {"observed_generation": 4},
        {"load": "Full"},
    ):
        assert essence(replaced(base, **change)) != essence(base)


def replaced(status: InstanceStatus, **change: Any) -> InstanceStatus:
    return msgspec.structs.replace(status, **change)


def test_times_are_as_kubernetes_writes_them() -> None:
    assert when(1795981035.91) == "2026-11-29T19:37:15Z"
    assert when(0.0) == ""


def test_the_network_is_the_sandboxs_own(tmp_path: Any) -> None:
    """The container's own bundle names the pause process, whose pid may be another's one day."""
    for folder, path in (("sandbox", "/run/netns/cni-1"), ("container", "/proc/77/ns/net")):
        (tmp_path / folder).mkdir()
        spaces = [{"type": "pid"}, {"type": "network", "path": path}]
        (tmp_path / folder / "config.json").write_bytes(msgspec.json.encode({"linux": {"namespaces": spaces}}))
    assert network_of(tmp_path / "container", "sandbox") == "/run/netns/cni-1"
    assert network_of(tmp_path / "container", "gone") == "/proc/77/ns/net"
    assert network_of(tmp_path / "gone", "gone") == ""


def test_the_configuration_of_a_clusters_node(tmp_path: Any) -> None:
    file = tmp_path / "agent.yaml"
    file.write_text("version: 1\ncluster: {node_name: n7, create_wait_seconds: 20}\n")
    config = load_config(file)
    assert config.cluster is not None
    assert (config.cluster.node, config.cluster.create_wait_seconds) == ("n7", 20)
    file.write_text("version: 1\ncluster: {node: n7}\n")
    with pytest.raises(InvalidError, match="node"):
        load_config(file)
    assert load_config(None).cluster is None
