"""What must hold between the fields of a GpuWorkload, beyond the type of each.

Each rule is a pure function that yields (path of the field, what is wrong with it).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

from kybernate.api import names
from kybernate.api.decode import nearest
from kybernate.api.gpuworkload import GpuWorkload
from kybernate.api.kind import NOT_YET, WITHOUT_CLUSTER
from kybernate.api.pod import Resources

Finding = tuple[str, str]
POD = "spec.template.spec"
CONTAINER = f"{POD}.containers[0]"


def one_instance_of_one_container(workload: GpuWorkload) -> Iterator[Finding]:
    if workload.spec.replicas != 1:
        yield "spec.replicas", f"other than 1: {WITHOUT_CLUSTER}"
    if workload.spec.on_terminate != "Drop":
        yield "spec.onTerminate", f"{workload.spec.on_terminate} is {NOT_YET}"
    if len(workload.spec.template.spec.containers) > 1:
        yield f"{POD}.containers[1]", f"more than one container is {NOT_YET}"
    if workload.spec.containers is not None and workload.spec.containers != (workload.container.name,):
        yield "spec.containers", f"expected [{workload.container.name}], the template's container"
    if workload.spec.template.spec.restart_policy != "Always":
        yield f"{POD}.restartPolicy", "expected Always: an instance that ends is started again"


def idle_and_wake(workload: GpuWorkload) -> Iterator[Finding]:
    idle = workload.spec.idle
    if idle.park_after is not None and idle.suspend_after is None:
        yield "spec.idle.parkAfter", "needs suspendAfter"
    if idle.suspend_after is not None and not workload.ports:
        yield "spec.idle.suspendAfter", "needs a port that can wake it: idle.ports, or a containerPort in the template"
    if idle.suspend_after is not None and idle.suspend_after <= 0:
        yield "spec.idle.suspendAfter", "expected more than 0"
    if workload.spec.wake.timeout <= 0:
        yield "spec.wake.timeout", "expected more than 0"
    yield from _twice("spec.idle.ports[{}]", idle.ports or ())


def names_are_unique(workload: GpuWorkload) -> Iterator[Finding]:
    container = workload.container
    yield from _twice(f"{CONTAINER}.env[{{}}].name", [variable.name for variable in container.env])
    yield from _twice(f"{CONTAINER}.ports[{{}}].containerPort", [port.container_port for port in container.ports])
    yield from _twice(f"{CONTAINER}.volumeMounts[{{}}].mountPath", [m.mount_path for m in container.volume_mounts])
    yield from _twice(f"{POD}.volumes[{{}}].name", [volume.name for volume in workload.spec.template.spec.volumes])


def volumes(workload: GpuWorkload) -> Iterator[Finding]:
    known = [volume.name for volume in workload.spec.template.spec.volumes]
    for index, volume in enumerate(workload.spec.template.spec.volumes):
        if (volume.empty_dir is None) == (volume.host_path is None):
            yield f"{POD}.volumes[{index}]", "expected one of emptyDir and hostPath"
    for index, mount in enumerate(workload.container.volume_mounts):
        if mount.name not in known:
            message = f"no volume is called {mount.name}{nearest(mount.name, known)}"
            yield f"{CONTAINER}.volumeMounts[{index}].name", message


def resources(workload: GpuWorkload) -> Iterator[Finding]:
    limits, requests = workload.container.resources.limits, workload.container.resources.requests
    for resource in Resources.__struct_fields__:
        limit, request = getattr(limits, resource), getattr(requests, resource)
        if limit is not None and limit.value == 0:
            yield f"{CONTAINER}.resources.limits.{resource}", "expected more than 0"
        if limit is not None and request is not None and request.value > limit.value:
            yield f"{CONTAINER}.resources.requests.{resource}", f"expected at most the limit, {limit}"


def nothing_to_expand(workload: GpuWorkload) -> Iterator[Finding]:
    """Kubernetes expands `$(NAME)` of a known variable, and `$$(`: passed on as they are they mean another thing."""
    container = workload.container
    variables = "|".join(re.escape(variable.name) for variable in container.env) or "(?!)"
    expandable = re.compile(rf"\$\$\(|\$\((?:{variables})\)")
    texts = {f"command[{index}]": text for index, text in enumerate(container.command)}
    texts |= {f"args[{index}]": text for index, text in enumerate(container.args)}
    texts |= {f"env[{index}].value": variable.value for index, variable in enumerate(container.env)}
    for path, text in texts.items():
        if match := expandable.search(text):
            yield f"{CONTAINER}.{path}", f"{match.group()} would be expanded by Kubernetes: {WITHOUT_CLUSTER}"


def our_annotations(workload: GpuWorkload) -> Iterator[Finding]:
    metadata = workload.spec.template.metadata
    for kind in ("labels", "annotations"):
        for name in getattr(metadata, kind):
            if not name.startswith(f"{names.GROUP}/"):
                continue
            if kind == "annotations" and name in names.TEMPLATE_ANNOTATIONS:
                if metadata.annotations[name] not in ("true", "false"):
                    yield f"spec.template.metadata.annotations[{name}]", 'expected "true" or "false"'
                continue
            message = f"is not for templates{nearest(name, names.TEMPLATE_ANNOTATIONS)}"
            yield f"spec.template.metadata.{kind}[{name}]", message


def _twice(path: str, values: Iterable[object]) -> Iterator[Finding]:
    seen: set[object] = set()
    for index, value in enumerate(values):
        if value in seen:
            yield path.format(index), f"{value} is given twice"
        seen.add(value)


RULES: tuple[Callable[[GpuWorkload], Iterator[Finding]], ...] = (
    one_instance_of_one_container,
    idle_and_wake,
    names_are_unique,
    volumes,
    resources,
    nothing_to_expand,
    our_annotations,
)
