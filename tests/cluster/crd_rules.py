"""What the CRDs accept and refuse, as tables: changes of a spec (`crd_bed.SPECS`), and what is said of the refused one.

Each row: a change that is accepted, one that is refused, "field below spec: why".
"""

from __future__ import annotations

# Changes of such a spec: one that is accepted, one that is refused, and what is said of it: "field below spec: why".
HOST = "is refused: it would share with the host what an instance must have to itself"
PORT = "idle.suspendAfter: needs a port that can wake it: idle.ports, or a containerPort (TCP) in the template"
PRIVILEGED = (
    "template.spec.containers: the container that sleeps is privileged: it reaches the host, so its state is not"
)
ANNOTATION = "template.metadata.annotations: of kybernate.io a template may have 'kybernate.io/allow-io-uring', "
WORKLOAD = [
    ("idle: {suspendAfter: 1s, parkAfter: 0s}", "idle: {parkAfter: 1m}", "idle.parkAfter: needs suspendAfter"),
    ("idle: {suspendAfter: 1ms}", "idle: {suspendAfter: 0s}", "idle.suspendAfter: expected more than 0"),
    ("wake: {timeout: 1h30m}", "wake: {timeout: '0'}", "wake.timeout: expected more than 0"),
    (
        "{wake: {targetInFlight: 1}, idle: {suspendAfter: 1m}}",
        "wake: {targetInFlight: 1}",
        "wake.targetInFlight: needs idle.suspendAfter",
    ),
    (
        "{wake: {targetInFlight: 8}, idle: {suspendAfter: 1m}, traffic: Pack}",
        "{wake: {targetInFlight: 8}, idle: {suspendAfter: 1m}, traffic: Spread}",
        "wake.targetInFlight: needs traffic: Pack",
    ),
    ("containers: [server]", "containers: [other]", "containers: no container of the template is called so"),
    (
        "{template: {spec: {containers: [{name: a}, {name: b}]}}, containers: [b]}",
        "{template: {spec: {containers: [{name: a}, {name: b}]}}}",
        "containers: name the container that sleeps: the template has several",
    ),
    ("idle: {suspendAfter: 1m}", "idle: {suspendAfter: 1m, ports: []}", PORT),
    (
        "{idle: {suspendAfter: 1m, ports: [80]}, template: {spec: {containers: [{name: a}]}}}",
        "{idle: {suspendAfter: 1m}, template: {spec: {containers: [{name: a}]}}}",
        PORT,
    ),
    (
        "{idle: {suspendAfter: 1m}, template: {spec: {containers: [{name: a, ports: [{containerPort: 53}]}]}}}",
        "{idle: {suspendAfter: 1m},"
        " template: {spec: {containers: [{name: a, ports: [{containerPort: 53, protocol: UDP}]}]}}}",
        PORT,
    ),
    (
        "{idle: {suspendAfter: 1m}, containers: [a],"
        " template: {spec: {containers: [{name: a, ports: [{containerPort: 80}]}, {name: b}]}}}",
        "{idle: {suspendAfter: 1m}, containers: [b],"
        " template: {spec: {containers: [{name: a, ports: [{containerPort: 80}]}, {name: b}]}}}",
        PORT,
    ),
    (
        "template: {spec: {containers: [{name: a, securityContext: {privileged: false}}]}}",
        "template: {spec: {containers: [{name: a, securityContext: {privileged: true}}]}}",
        PRIVILEGED,
    ),
    (
        "{template: {spec: {containers: [{name: a}, {name: b, securityContext: {privileged: true}}]}},"
        " containers: [a]}",
        "{template: {spec: {containers: [{name: a}, {name: b, securityContext: {privileged: true}}]}},"
        " containers: [b]}",
        PRIVILEGED,
    ),
    (
        "template: {spec: {containers: [{name: a, resources: {limits: {cpu: 0.5, memory: 1Gi}}}]}}",
        "template: {spec: {containers: [{name: a, resources: {limits: {nvidia.com/gpu: 1}}}]}}",
        "template.spec.containers[0].resources.limits: GPUs are asked for with spec.gpu, which is not supported yet",
    ),
    (
        "template: {spec: {shareProcessNamespace: false}}",
        "template: {spec: {shareProcessNamespace: true}}",
        "template.spec.shareProcessNamespace: is refused: the container's processes could not go away while it sleeps",
    ),
    (
        "template: {spec: {restartPolicy: Always}}",
        "template: {spec: {restartPolicy: OnFailure}}",
        "template.spec.restartPolicy: expected Always: an instance that ends is started again",
    ),
    (
        "template: {spec: {runtimeClassName: kybernate}}",
        "template: {spec: {runtimeClassName: kata}}",
        "template.spec.runtimeClassName: is refused: instances run in the RuntimeClass kybernate",
    ),
    (
        "template: {metadata: {labels: {app.kubernetes.io/name: chat}}}",
        "template: {metadata: {labels: {kybernate.io/instance: chat-0}}}",
        "template.metadata.labels: labels of kybernate.io are not for templates",
    ),
    (
        "template: {metadata: {annotations: {kybernate.io/allow-mptcp: 'true', example.org/x: y}}}",
        "template: {metadata: {annotations: {kybernate.io/allow-mptcp: 'yes'}}}",
        ANNOTATION,
    ),
    (
        "template: {metadata: {annotations: {kybernate.io/allow-io-uring: 'false'}}}",
        "template: {metadata: {annotations: {kybernate.io/containers: 'true'}}}",
        ANNOTATION,
    ),
]
WORKLOAD += [
    (f"template: {{spec: {{{name}: false}}}}", f"template: {{spec: {{{name}: true}}}}", f"template.spec.{name}: {HOST}")
    for name in ("hostNetwork", "hostPID", "hostIPC")
]
CHECKPOINT = [
    ("source: {instance: null, pod: a}", "source: {instance: null}", "source: expected one of instance and pod"),
    ("source: {instance: a}", "source: {pod: a}", "source: expected one of instance and pod"),
]
# The same for changes of an object that exists.
CHANGES = [
    ("GpuInstance", "epoch: 4", "epoch: 2", "epoch: only grows: it fences what an earlier pod writes"),
    ("GpuInstance", "startAnew: 2", "startAnew: 0", "startAnew: only grows"),
    ("GpuInstance", "{workload: chat, pod: a}", "workload: other", "workload: stays as it is"),
    ("GpuInstance", "nodeName: n1", "workload: null", "workload: stays as it is"),
    ("GpuInstance", "ordinal: 1", "ordinal: 2", "ordinal: stays as it is"),
    ("GpuCheckpoint", "leaveRunning: true", "leaveRunning: false", ": is immutable: make another GpuCheckpoint"),
    ("GpuCheckpoint", "{}", "expiresAfter: 1h", ": is immutable: make another GpuCheckpoint"),
    ("GpuRestoreJob", "podName: chat-restored", "podName: b", ": is immutable: make another GpuRestoreJob"),
]
# What the schema itself refuses.
BOUNDS = [
    ("GpuWorkload", "replicas: 0", "replicas: -1", "replicas: should be a non-negative integer"),
    ("GpuWorkload", "replicas: 100000", "replicas: 100001", "replicas: should be less than or equal to 100000"),
    (
        "GpuWorkload",
        "state: Parked",
        "state: Archived",
        'state: supported values: "Auto", "Running", "Suspended", "Parked"',
    ),
    ("GpuWorkload", "traffic: Spread", "traffic: All", 'traffic: supported values: "Pack", "Spread"'),
    ("GpuWorkload", "onStateLost: Start", "onStateLost: Wait", 'onStateLost: supported values: "Hold", "Start"'),
    ("GpuWorkload", "onTerminate: Drop", "onTerminate: Wake", 'onTerminate: supported values: "Drop"'),
    (
        "GpuWorkload",
        "rollout: {sleeping: Now}",
        "rollout: {sleeping: Later}",
        'rollout.sleeping: supported values: "OnWake", "Now"',
    ),
    (
        "GpuWorkload",
        "rollout: {maxUnavailable: 1}",
        "rollout: {maxUnavailable: 0}",
        "rollout.maxUnavailable: should be greater than or equal to 1",
    ),
    (
        "GpuWorkload",
        "idle: {minAwake: 9}",
        "idle: {minAwake: -1}",
        "idle.minAwake: should be greater than or equal to 0",
    ),
    (
        "GpuWorkload",
        "{wake: {targetInFlight: 1}, idle: {suspendAfter: 1m}}",
        "{wake: {targetInFlight: 0}, idle: {suspendAfter: 1m}}",
        "wake.targetInFlight: should be greater than or equal to 1",
    ),
    (
        "GpuWorkload",
        "idle: {ports: [65535]}",
        "idle: {ports: [65536]}",
        "idle.ports[0]: should be less than or equal to 65535",
    ),
    ("GpuWorkload", "idle: {ports: [80, 81]}", "idle: {ports: [80, 80]}", "idle.ports[1]: Duplicate value: 80"),
    (
        "GpuWorkload",
        "containers: [server]",
        "containers: [server, server]",
        "containers: Too many: 2: must have at most 1 item",
    ),
    (
        "GpuWorkload",
        "{}",
        "template: {spec: {containers: []}}",
        "template.spec.containers: should have at least 1 items",
    ),
    ("GpuWorkload", "{}", "template: {spec: null}", "template.spec: Required value"),
    ("GpuWorkload", "{}", "template: null", "template: Required value"),
    (
        "GpuWorkload",
        "{}",
        "template: {spec: {containers: [{name: a}, {name: a}]}}",
        "template.spec.containers[1]: Duplicate value",
    ),
    (
        "GpuInstance",
        "state: Running",
        "state: Archived",
        'state: supported values: "Auto", "Running", "Suspended", "Parked"',
    ),
    ("GpuInstance", "{}", "policy: null", "policy: Required value"),
    ("GpuCheckpoint", "deletionPolicy: Retain", "deletionPolicy: Keep", 'deletionPolicy: supported values: "Delete"'),
    ("GpuCheckpoint", "source: {instance: a.b}", "source: {instance: A}", "source.instance: should match"),
    ("GpuRestoreJob", "podName: b", "podName: a.b", "podName: should match"),
    ("GpuRestoreJob", "checkpoint: b", "checkpoint: null", "checkpoint: Required value"),
]
LATER = (
    "gpu",
    "hooks",
    "priority",
    "saveGames",
    "startFrom",
    "idle.archiveAfter",
    "wake.schedule",
)

RULES = [("GpuWorkload", *rule) for rule in WORKLOAD] + [("GpuCheckpoint", *rule) for rule in CHECKPOINT]
