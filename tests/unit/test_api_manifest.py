"""The loader of manifests: what it takes, and what it says to each wrong line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from kybernate.api import Duration, GpuWorkload, ManifestError, Quantity, dump, load
from kybernate.api.kind import Fields

MINIMAL = """\
apiVersion: kybernate.io/v1alpha1
kind: GpuWorkload
metadata: {name: chat}
spec:
  template:
    spec:
      containers:
        - name: server
          image: localhost/chat:1
"""

WHOLE = """\
# a comment
apiVersion: kybernate.io/v1alpha1
kind: GpuWorkload
metadata:
  name: chat
  namespace: models
  labels: {team: a}
spec:
  replicas: 1
  template:
    metadata:
      labels: {app: chat}
      annotations: {kybernate.io/allow-io-uring: "true", example.org/x: y}
    spec:
      restartPolicy: Always
      containers:
        - name: server
          image: localhost/chat:1
          command: [python3, -m, chat]
          args: ["--port", "8080"]
          env: [{name: MODEL, value: small}, {name: EMPTY}]
          ports: [{containerPort: 8080, name: http, protocol: TCP}, {containerPort: 9090}]
          resources: {requests: {cpu: 0.5, memory: 64Mi}, limits: {cpu: 2, memory: 1Gi}}
          workingDir: /app
          volumeMounts: [{name: scratch, mountPath: /scratch}, {name: weights, mountPath: /weights, readOnly: true}]
          securityContext: {runAsUser: 1000, runAsGroup: 1000}
      volumes:
        - {name: scratch, emptyDir: {}}
        - {name: weights, hostPath: {path: /srv/weights}}
  containers: [server]
  idle: {suspendAfter: 60s, parkAfter: 1h30m, drainTimeout: 5s, maxInFlight: 1m, ports: [8080]}
  wake: {timeout: 30s, onExec: false}
  onTerminate: Drop
"""


def refusals(text: str) -> list[str]:
    with pytest.raises(ManifestError) as caught:
        load(text, "chat.yaml")
    return str(caught.value).splitlines()


def with_spec(line: str) -> str:
    """MINIMAL with one more line (its 10th) under spec."""
    return f"{MINIMAL}  {line}\n"


def with_container(line: str) -> str:
    """MINIMAL with one more line (its 10th) in the container."""
    return f"{MINIMAL}          {line}\n"


def with_pod(line: str) -> str:
    """MINIMAL with one more line (its 10th) in the pod's spec."""
    return f"{MINIMAL}      {line}\n"


def test_defaults() -> None:
    (workload,) = load(MINIMAL, "chat.yaml")
    idle, wake = workload.spec.idle, workload.spec.wake
    assert (idle.suspend_after, idle.park_after, idle.drain_timeout, idle.max_in_flight) == (None, None, 30.0, 600.0)
    assert (wake.timeout, wake.on_exec, workload.spec.on_terminate, workload.spec.replicas) == (120.0, True, "Drop", 1)
    assert (workload.metadata.namespace, workload.ports) == ("default", ())


def test_every_field() -> None:
    (workload,) = load(WHOLE, "chat.yaml")
    container = workload.container
    assert workload.spec.idle.park_after == 5400.0
    assert (container.env[1].value, container.security_context.run_as_user) == ("", 1000)
    assert container.resources.requests.cpu == Quantity("500m")
    assert container.resources.limits.cpu == Quantity("2")
    assert workload.spec.template.spec.volumes[1].host_path is not None
    assert workload.ports == (8080,)


def test_ports_default_to_the_templates() -> None:
    (workload,) = load(WHOLE.replace(", ports: [8080]", ""), "chat.yaml")
    assert workload.ports == (8080, 9090)


@pytest.mark.parametrize("text", [MINIMAL, WHOLE])
def test_what_is_dumped_loads_as_the_same(text: str) -> None:
    (workload,) = load(text, "chat.yaml")
    assert load(dump(workload), "again") == [workload]


def test_null_is_absent() -> None:
    assert load(with_spec("idle: {suspendAfter: null, drainTimeout: ~}"), "chat.yaml") == load(MINIMAL, "chat.yaml")


def test_documents_in_order_and_empty_ones_passed_over() -> None:
    text = f"---\n---\n{MINIMAL}---\n# nothing\n---\n{MINIMAL.replace('chat', 'embed')}"
    assert [workload.name for workload in load(text, "all.yaml")] == ["chat", "embed"]


# What is wrong, and what is said to it, "line:column: field: reason" in part or whole.
IN_SPEC = [
    ("idle: {parkAfter: 10m}", "10:21: spec.idle.parkAfter: needs suspendAfter"),
    ("idle: {suspendAfter: 1s}", "10:24: spec.idle.suspendAfter: needs a port"),
    ("idle: {suspendAfter: 0s, ports: [1]}", "10:24: spec.idle.suspendAfter: expected more"),
    ("wake: {timeout: 0s}", "10:19: spec.wake.timeout: expected more than 0"),
    ("idle: {suspendAfter: 60}", "10:24: spec.idle.suspendAfter: expected a duration"),
    ("idle: {suspendAfter: [1]}", "spec.idle.suspendAfter: expected a single value"),
    ("idle: {suspendAfter: yes}", "expected a duration, got yes"),
    ("idle: {ports: [8080, 70000]}", "10:24: spec.idle.ports[1]: expected a port, 1 to"),
    ("idle: {ports: ['8080']}", "spec.idle.ports[0]: expected a port, 1 to 65535, got"),
    ("idle: {ports: [80, 80]}", "10:22: spec.idle.ports[1]: 80 is given twice"),
    ("idle: {ports: 80}", "10:17: spec.idle.ports: expected a list, got the number 80"),
    ("wake: {onExec: 'true'}", "spec.wake.onExec: expected true or false, got 'true'"),
    ("idle: 60s", "10:9: spec.idle: expected a mapping, got '60s'"),
    ("idle: {suspendafter: 60s}", "unknown field. Did you mean suspendAfter?"),
    ("idle: {park_after: 60s}", "10:10: spec.idle.park_after: unknown field. Did you mean"),
    ("colour: red", "10:3: spec.colour: unknown field"),
    ("replicas: 2", "10:13: spec.replicas: other than 1: not without a cluster"),
    ("replicas: two", "10:13: spec.replicas: expected a whole number, got 'two'"),
    ("replicas: -1", "spec.replicas: expected at least 0, got the number -1"),
    ("onTerminate: Wake", "10:16: spec.onTerminate: Wake is not supported yet"),
    ("onTerminate: Kill", "spec.onTerminate: expected Drop, Wake, got 'Kill'"),
    ("containers: [other]", "10:15: spec.containers: expected [server], the template's"),
    ("template: {}", "10:3: spec.template: is given twice, first in line 5"),
    ("<<: {}", "10:3: spec: merge keys (<<) are not supported"),
    ("? [a]\n  : b", "10:5: spec: expected a name, got a list"),
]
IN_SPEC += [
    (f"{name}: {{}}", f"10:3: spec.{name}: not supported yet")
    for name in ("gpu", "hooks", "priority", "saveGames", "startFrom")
]
IN_SPEC += [
    (f"{name}: {{}}", f"10:3: spec.{name}: not without a cluster")
    for name in ("state", "traffic", "onStateLost", "rollout")
]
IN_SPEC += [(f"idle: {{{name}: 1}}", f"spec.idle.{name}: not without a") for name in ("minAwake", "releaseRequests")]
IN_SPEC += [("wake: {targetInFlight: 1}", "spec.wake.targetInFlight: not without a cluster")]
IN_SPEC += [
    (f"{group}: {{{name}: 1}}", f"spec.{group}.{name}: not supported yet")
    for group, names in {
        "idle": ("archiveAfter",),
        "wake": ("schedule",),
    }.items()
    for name in names
]

IN_CONTAINER = [
    ("securityContext: {privileged: true}", "a privileged container reaches the host"),
    ("securityContext: {capabilities: {}}", ".capabilities: not without a cluster yet"),
    ("securityContext: {runAsUser: -1}", "expected an id of 0 or more, got the number -1"),
    ("resources: {limits: {nvidia.com/gpu: 1}}", "GPUs are asked for with spec.gpu, which is"),
    ("resources: {limits: {memory: 2GiB}}", "expected a quantity such as 500m, 2 or 20Gi"),
    ("resources: {limits: {memory: 0}}", "resources.limits.memory: expected more than 0"),
    ("env: [{name: A, value: 8080}]", "expected text, got the number 8080; put it in"),
    ("env: [{name: A}, {name: A}]", "env[1].name: A is given twice"),
    ("env: [{name: A=B}]", "env[0].name: expected a name without '='"),
    ("env: [{name: A, valueFrom: {}}]", "env[0].valueFrom: not without a cluster yet"),
    ("env: [{name: A}]\n          args: [$(A)]", "11:18: spec.template.spec.containers[0].a"),
    ("ports: [{containerPort: 53, protocol: UDP}]", "protocol: expected TCP, got 'UDP'"),
    ("ports: [{containerPort: 53, hostPort: 53}]", "hostPort: not without a cluster yet"),
    ("workingDir: app", "workingDir: expected a path that begins with /, got 'app'"),
    ("volumeMounts: [{name: a, mountPath: /a}]", "no volume is called a"),
    (
        "resources: {requests: {cpu: 2}, limits: {cpu: 1500m}}",
        "10:39: spec.template.spec.containers[0].resources.requests.cpu: expected at most the limit, 1500m",
    ),
]
IN_CONTAINER += [
    (f"{name}: {{}}", f"containers[0].{name}: {what} are not without a cluster yet")
    for name, what in {
        "livenessProbe": "probes",
        "readinessProbe": "probes",
        "startupProbe": "probes",
        "lifecycle": "lifecycle hooks",
    }.items()
]

IN_POD = [
    ("  - {name: b, image: c}", "containers[1]: more than one container is not supported"),
    ("volumes: [{name: a, emptyDir: {}, hostPath: {path: /}}]", "expected one of emptyDir and"),
    ("volumes: [{name: a, persistentVolumeClaim: {}}]", "Claim: not without a cluster yet"),
    ("restartPolicy: Never", "10:22: spec.template.spec.restartPolicy: expected Always"),
    ("hostNetwork: true", "10:7: spec.template.spec.hostNetwork: hostNetwork is refused"),
    ("hostPID: true", "hostPID is refused: it would share with the host"),
    ("shareProcessNamespace: true", "shareProcessNamespace: is refused"),
    ("initContainers: []", "init containers and sidecars are not without a cluster yet"),
    ("tolerations: []", "10:7: spec.template.spec.tolerations: not without a cluster yet"),
    ("toleration: []", "spec.template.spec.toleration: unknown field. Did you mean tolerations?"),
]

DOCUMENTS = {
    "status": (f"{MINIMAL}status: {{}}\n", "10:1: status: is written by Kybernate, not by a person"),
    "name": (MINIMAL.replace("chat}", "Chat_1}"), "3:18: metadata.name: expected a name of"),
    "name number": (MINIMAL.replace("chat}", "12}"), "metadata.name: expected a name of lower case letters"),
    "long name": (MINIMAL.replace("chat}", "c" * 58 + "}"), "'-', at most 57 long"),
    "no name": (MINIMAL.replace("name: chat", ""), "3:11: metadata.name: is required"),
    "no image": (MINIMAL.replace("image: localhost/chat:1", ""), "8:11: spec.template.spec.containers[0].image: is"),
    "no template": (MINIMAL[: MINIMAL.index("  template")] + "  replicas: 1\n", "5:3: spec.template: is required"),
    "no container": (MINIMAL[: MINIMAL.index("containers:")] + "containers: []\n", "containers: expected at least one"),
    "no kind": (MINIMAL.replace("kind: GpuWorkload\n", ""), "1:1: kind: is required: GpuWorkload"),
    "kind": (MINIMAL.replace("kind: GpuWorkload", "kind: Pod"), "2:7: kind: expected GpuWorkload, got 'Pod'"),
    "version": (MINIMAL.replace("v1alpha1", "v1"), "1:13: apiVersion: expected kybernate.io/v1alpha1, got"),
    "not a mapping": ("- a\n- b\n", "1:1: expected a mapping, got a list"),
    "nothing": ("# nothing\n", "1:1: no GpuWorkload in it"),
    "empty": ("", "1:1: no GpuWorkload in it"),
    "not YAML": ("a: [1\nb: 2\n", "2:2: not YAML: expected ',' or ']'"),
    "tab": ("a:\n\t- b\n", "2:1: not YAML: found character '\\t'"),
    "control character": ("a: b\nc: \x07\n", "2:1: not YAML: the character"),
    "tag": (MINIMAL.replace("{name: chat}", "{name: !!python/none chat}"), "3:18: metadata.name: the YAML tag"),
    "wrong tag": (MINIMAL.replace("{name: chat}", "{name: !!int ''}"), "3:18: metadata.name: '' is not a whole number"),
    "deep": ("a: " + "[" * 5000, "nested too deeply"),
    "our label": (
        MINIMAL.replace("    spec:", "    metadata: {labels: {kybernate.io/instance: x}}\n    spec:"),
        "spec.template.metadata.labels[kybernate.io/instance]: is not for templates",
    ),
    "our annotation": (
        MINIMAL.replace("    spec:", "    metadata: {annotations: {kybernate.io/allow-iouring: x}}\n    spec:"),
        "is not for templates. Did you mean kybernate.io/allow-io-uring?",
    ),
    "annotation's value": (
        MINIMAL.replace("    spec:", "    metadata: {annotations: {kybernate.io/allow-mptcp: 'yes'}}\n    spec:"),
        'expected "true" or "false"',
    ),
    "the same twice": (f"{MINIMAL}---\n{MINIMAL}", "11:1: metadata.name: chat is given twice, first in the document"),
}

CASES = [pytest.param(with_spec(line), says, id=line) for line, says in IN_SPEC]
CASES += [pytest.param(with_container(line), says, id=line) for line, says in IN_CONTAINER]
CASES += [pytest.param(with_pod(line), says, id=line) for line, says in IN_POD]
CASES += [pytest.param(text, says, id=name) for name, (text, says) in DOCUMENTS.items()]


@pytest.mark.parametrize(("text", "says"), CASES)
def test_a_wrong_manifest_is_refused_at_its_line_and_field(text: str, says: str) -> None:
    (said,) = refusals(text)
    assert re.match(r"chat\.yaml:\d+:\d+: ", said)
    assert says in said


def test_all_problems_are_told_at_once_in_order() -> None:
    text = with_spec("idle: {suspendAfter: x, parkAfer: 1m}\n  gpu: {}") + f"---\n{MINIMAL.replace('chat}', '-}')}"
    assert [line.split(": ")[1] for line in refusals(text)] == [
        "spec.idle.suspendAfter",
        "spec.idle.parkAfer",
        "spec.gpu",
        "metadata.name",
    ]


def test_what_is_before_broken_yaml_is_told_too() -> None:
    said = refusals(with_spec("gpu: {}") + "---\na: [\n")
    assert ["spec.gpu" in said[0], "not YAML" in said[1]] == [True, True]


def test_the_error_carries_its_places() -> None:
    with pytest.raises(ManifestError) as caught:
        load(with_spec("gpu: {}"), "chat.yaml")
    (problem,) = caught.value.problems
    assert (problem.place.line, problem.place.column, problem.field) == (10, 3, "spec.gpu")
    assert caught.value.exit_code == 2


def test_an_alias_is_read_where_it_is_used() -> None:
    (workload,) = load(with_spec("idle: {suspendAfter: &t 60s, parkAfter: *t, ports: [80]}"), "chat.yaml")
    assert workload.spec.idle.park_after == 60.0


def test_a_list_that_contains_itself_is_refused() -> None:
    (said,) = refusals(with_spec("idle: {ports: &p [*p]}"))
    assert "spec.idle.ports[0]: expected a single value, got a list" in said


def kinds(kind: type[Fields] = GpuWorkload) -> Iterator[type[Fields]]:
    yield kind
    for info in msgspec.structs.fields(kind):
        for part in re.findall(r"kybernate\.api\.\w+\.(\w+)", str(info.type)):
            found = next((sub for sub in Fields.__subclasses__() if sub.__name__ == part), None)
            if found is not None:
                yield from kinds(found)


def test_the_types_describe_themselves() -> None:
    """What CRDs and docs are made of: a schema, with a description for every type and field."""

    def hook(kind: type) -> dict[str, Any]:
        return {Duration: {"type": "string"}, Quantity: {"type": "string"}}[kind]

    _, parts = msgspec.json.schema_components([GpuWorkload], schema_hook=hook)
    assert {kind.__name__ for kind in kinds()} == parts.keys()
    for part in parts.values():
        assert part["description"]
        assert all(field.get("description") for field in part["properties"].values())
