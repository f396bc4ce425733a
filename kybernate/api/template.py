"""What a cluster's schema knows of a GpuWorkload's pod template: the fields that its rules look into, no others.

Everything else of a PodTemplateSpec is kept as it is written, and judged by the API server when a pod is made of it.
Lists have a greatest length because the API server estimates what a rule may cost before it takes the rule.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec

from kybernate.api import names
from kybernate.api.kind import NOT_YET, Label, Rule, says
from kybernate.api.objects import Object

_HOST = "it would share with the host what an instance must have to itself"


class TemplatePort(Object, kw_only=True):
    """A port on which the container listens."""

    open: ClassVar = True

    container_port: Annotated[int, says("The port in the pod's network namespace.", ge=1, le=65535)]
    protocol: Annotated[str, says("TCP (default) is held and woken by; UDP and SCTP are not.", max_length=8)] | None = (
        None
    )


class TemplateLimits(Object, kw_only=True):
    """At most this much of each resource."""

    open: ClassVar = True
    rules: ClassVar = (
        Rule("!has(self.nvidia__dot__com__slash__gpu)", f"GPUs are asked for with spec.gpu, which is {NOT_YET}"),
    )

    gpu: Annotated[int | str | None, says("Refused: a GPU would stay taken while the instance sleeps.")] = (
        msgspec.field(default=None, name="nvidia.com/gpu")
    )


class TemplateResources(Object, kw_only=True):
    """CPU, memory and other resources of the container."""

    open: ClassVar = True

    limits: TemplateLimits | None = None


class TemplateSecurityContext(Object, kw_only=True):
    """Whom the container runs as, and what it may."""

    open: ClassVar = True

    privileged: Annotated[bool | None, says("Refused for the container that sleeps.")] = None


class TemplateContainer(Object, kw_only=True):
    """A container, as in any pod."""

    open: ClassVar = True

    name: Annotated[Label, says("What the container is called.")]
    ports: Annotated[list[TemplatePort], says("Where it listens; the default of `idle.ports`.", max_length=64)] = (
        msgspec.field(default_factory=list)
    )
    resources: TemplateResources | None = None
    security_context: TemplateSecurityContext | None = None


class TemplateSpec(Object, kw_only=True):
    """What runs in the pod: as a Deployment's, see `kubectl explain pod.spec`, but for what is said here."""

    open: ClassVar = True
    rules: ClassVar = (
        *(
            Rule(f"!has(self.{name}) || !self.{name}", f"is refused: {_HOST}", f".{name}")
            for name in ("hostNetwork", "hostPID", "hostIPC")
        ),
        Rule(
            "!has(self.shareProcessNamespace) || !self.shareProcessNamespace",
            "is refused: the container's processes could not go away while it sleeps",
            ".shareProcessNamespace",
        ),
        Rule(
            "!has(self.restartPolicy) || self.restartPolicy == 'Always'",
            "expected Always: an instance that ends is started again",
            ".restartPolicy",
        ),
        Rule(
            f"!has(self.runtimeClassName) || self.runtimeClassName == '{names.RUNTIME_HANDLER}'",
            f"is refused: instances run in the RuntimeClass {names.RUNTIME_HANDLER}",
            ".runtimeClassName",
        ),
    )

    containers: Annotated[
        list[TemplateContainer],
        says(
            "One of them sleeps; if there are several, `spec.containers` names it.",
            min_length=1,
            max_length=32,
            extra_json_schema={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        ),
    ]
    host_network: Annotated[bool | None, says("Refused.")] = None
    host_pid: Annotated[bool | None, says("Refused.")] = msgspec.field(default=None, name="hostPID")
    host_ipc: Annotated[bool | None, says("Refused.")] = msgspec.field(default=None, name="hostIPC")
    share_process_namespace: Annotated[bool | None, says("Refused.")] = None
    restart_policy: Annotated[str, says("Always.", max_length=16)] | None = None
    runtime_class_name: Annotated[str, says("Set by Kybernate.", max_length=253)] | None = None


_OUR_ANNOTATIONS = ", ".join(f"'{name}'" for name in sorted(names.TEMPLATE_ANNOTATIONS))


class TemplateMetadata(Object, kw_only=True):
    """Labels and annotations of the pods."""

    open: ClassVar = True
    rules: ClassVar = (
        Rule(
            f"!has(self.labels) || !self.labels.exists(name, name.startsWith('{names.GROUP}/'))",
            f"labels of {names.GROUP} are not for templates",
            ".labels",
        ),
        Rule(
            f"!has(self.annotations) || self.annotations.all(name, !name.startsWith('{names.GROUP}/') || "
            f"(name in [{_OUR_ANNOTATIONS}] && self.annotations[name] in ['true', 'false']))",
            f"of {names.GROUP} a template may have {_OUR_ANNOTATIONS}, each 'true' or 'false'",
            ".annotations",
        ),
    )

    labels: Annotated[dict[str, str], says("Labels of the pods.", max_length=128)] = msgspec.field(default_factory=dict)
    annotations: Annotated[dict[str, str], says("Annotations of the pods.", max_length=128)] = msgspec.field(
        default_factory=dict
    )


class PodTemplate(Object, kw_only=True):
    """The pod that an instance is, as a Deployment's template."""

    metadata: TemplateMetadata | None = None
    spec: TemplateSpec
