"""Every name that Kybernate gives to or reads from manifests, pods and containers, in one place."""

from __future__ import annotations

GROUP = "kybernate.io"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

# Annotations that a person may set on a template, or on a pod that no GpuWorkload owns.
ALLOW_IO_URING = f"{GROUP}/allow-io-uring"
"""`"true"`: the hook does not refuse io_uring; the container then cannot sleep while it uses it."""
ALLOW_MPTCP = f"{GROUP}/allow-mptcp"
"""`"true"`: the hook leaves multipath TCP on in the pod's namespace; such connections cannot be dumped."""

# Annotations that a person may set on a pod that no GpuWorkload owns.
CONTAINERS = f"{GROUP}/containers"
"""The name of the container that sleeps; the shim manages no other. On a GpuWorkload's pods Kybernate sets it."""
SUSPEND_AFTER = f"{GROUP}/suspend-after"
"""As `idle.suspendAfter` of a GpuWorkload; absent: it never sleeps by itself."""
PARK_AFTER = f"{GROUP}/park-after"
"""As `idle.parkAfter` of a GpuWorkload."""
PORTS = f"{GROUP}/ports"
"""Comma separated TCP ports; absent: the container's own containerPorts."""

# An annotation that a person (through the CLI) sets on a GpuInstance.
ORDER = f"{GROUP}/order"
"""`<verb> <id>`: suspend, park or resume once; answered in status.order with the same id."""

# Annotations, labels, conditions and finalizers that only Kybernate sets.
WORKLOAD = f"{GROUP}/workload"
"""Label: the GpuWorkload that an instance's pod belongs to."""
INSTANCE = f"{GROUP}/instance"
"""Label: the instance that a pod is."""

TEMPLATE_HASH = f"{GROUP}/template-hash"
"""Label: which template a pod was made of."""
SERVING = f"{GROUP}/serving"
"""Pod condition and readiness gate: calls may be led here (traffic: Pack)."""
STATE_NODE = f"{GROUP}/state-node"
"""Annotation of a pod: the node to which it is bound because its instance's state lies there."""
AVOIDS = f"{GROUP}/avoids"
"""Annotation of a pod: the nodes, with commas between, that could take no new instance when it was made."""
REQUESTS = f"{GROUP}/requests"
"""Annotation of a pod: what its managed container asked for (JSON), to be restored after a park."""
STARTED_ANEW = f"{GROUP}/started-anew"
"""Annotation of a GpuInstance: the `spec.startAnew` that the controller has acted upon."""
STATE_FINALIZER = f"{GROUP}/state"
"""On a GpuInstance or a GpuCheckpoint while something of it may lie on a node."""
SOURCE_POD = f"{GROUP}/source-pod"
"""Annotation of a GpuCheckpoint: the uid of the pod that is copied."""
POLICY = f"{GROUP}/policy"
"""Annotation of a GpuCheckpoint's PodTemplate: the policy of the instance that was copied (JSON)."""
RESTORE_JOB = f"{GROUP}/restore-job"
"""Label of a pod and a GpuInstance: the GpuRestoreJob that made them (its first 63 characters)."""
RESTORE_JOB_NAME = f"{GROUP}/restore-job-name"
"""Annotation of these: its whole name."""
RESTORE_JOB_UID = f"{GROUP}/restore-job-uid"
"""Annotation of these: its uid."""
CONTROLLER_MANAGER = "kybernate-controller"
AGENT_MANAGER = "kybernate-agent"
"""Field managers of server-side apply."""

# Annotations that containerd's CRI plugin writes into every container's config.json.
CRI_CONTAINER_TYPE = "io.kubernetes.cri.container-type"
CRI_CONTAINER_NAME = "io.kubernetes.cri.container-name"
CRI_SANDBOX_ID = "io.kubernetes.cri.sandbox-id"
CRI_SANDBOX_UID = "io.kubernetes.cri.sandbox-uid"

RUNTIME_HANDLER = "kybernate"
"""The runtime's name in containerd's configuration, and the RuntimeClass."""

TEMPLATE_ANNOTATIONS = frozenset({ALLOW_IO_URING, ALLOW_MPTCP})
"""Annotations of the group that a template may carry."""
