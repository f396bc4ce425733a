"""A node: containerd, kubelet and kube-proxy in a machine, with everything at its standard place.

    /etc/containerd/config.toml             a file to edit; containerd begins without the runtime `kybernate`
    /run/containerd/containerd.sock         and /var/lib/containerd
    /etc/cni/net.d, /var/lib/kubelet        /var/log/pods, /opt/kybernate, /var/lib/kybernate: as on any node

With `runtime` the shim is installed (prefix /opt/kybernate, run folder /run/kybernate) and the handler registered
before containerd starts: for tests that run the agent as a process. The kubelet's cgroups are below the machine's own.
On version 2 without controllers (mounted beside version 1) no container has limits, and the kubelet keeps no cgroups.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen
from typing import Any

from kybernate.lab.cluster.control_plane import DOMAIN, Patience, proxy_config
from kybernate.lab.cluster.machine import Machine, Service, Setup
from kybernate.lab.cluster.pki import Authority
from kybernate.lab.cluster.wires import NODE_CABLE, Plan
from kybernate.lab.containerd import (
    CAP_SYS_RESOURCE,
    CRI_NAMESPACE,
    HANDLER,
    cni_plugins,
    has_capability,
    has_cpu_controller,
)
from kybernate.lab.images import PAUSE, Image

CONTAINERD_SOCKET = "/run/containerd/containerd.sock"
PREFIX, RUN = Path("/opt/kybernate"), Path("/run/kybernate")


@dataclass(frozen=True)
class Place:
    """Where a node is in its cluster: its number (from 1), how many there are, and who it belongs to."""

    number: int
    nodes: int
    plan: Plan
    authority: Authority
    programs: Path
    patience: Patience
    runtime: bool


class Node:
    """A node by its name. `machine` enters it and ends its services: containerd, kubelet, kube-proxy."""

    def __init__(self, machine: Machine, place: Place) -> None:
        self.machine, self.place = machine, place
        self.name = machine.name
        self.address = place.plan.node(place.number)

    def prepare(self) -> None:
        """Certificates and configuration, onto a fresh disk."""
        place, machine = self.place, self.machine
        place.authority.issue(
            self.name, f"/O=system:nodes/CN=system:node:{self.name}", [f"IP:{self.address}", f"DNS:{self.name}"]
        )
        place.authority.kubeconfig(self.name, place.plan.server)
        for folder in ("/etc/containerd", "/etc/cni/net.d", "/opt/kybernate", "/var/log/pods", "/var/log/containers"):
            machine.put_folder(folder)
        machine.put("/etc/containerd/config.toml", containerd_config(place.runtime))
        machine.put("/etc/cni/net.d/10-pods.conflist", cni_config(place.plan.pods(place.number)))
        machine.put("/etc/kubernetes/resolv.conf", f"nameserver {place.plan.host}\n")
        machine.put("/etc/kubernetes/kubelet.yaml", kubelet_config(self.name, place, self._own_lines()))
        machine.put("/etc/kubernetes/proxy.yaml", proxy_config(place.authority, place.plan, self.name))

    def _own_lines(self) -> str:
        """The kubelet's cgroups are below the machine's own."""
        without = "" if has_cpu_controller() else "cgroupsPerQOS: false\nenforceNodeAllocatable: []\n"
        return f"cgroupDriver: cgroupfs\ncgroupRoot: {self.machine.cgroup}\n{without}nodeStatusUpdateFrequency: 1s\n"

    def setup(self, keep: Sequence[Path]) -> Setup:
        """What the machine runs. After a power cut /run is empty, so the runtime is installed at each start."""
        place = self.place
        kubelet: list[str | Path] = [
            place.programs / "kubelet", f"--kubeconfig={place.authority.folder}/{self.name}.conf",
            "--config=/etc/kubernetes/kubelet.yaml", f"--hostname-override={self.name}", f"--node-ip={self.address}",
        ]  # fmt: skip
        install: list[str | Path] = [
            sys.executable,
            "-m",
            "kybernate_shim.install",
            "--prefix",
            PREFIX,
            "--run-dir",
            RUN,
        ]
        install += ["--next-runtime", shutil.which("runc") or "/usr/sbin/runc"]
        return Setup(
            services=[
                Service("containerd", ["containerd"]),
                Service("kubelet", kubelet, needs=CONTAINERD_SOCKET),
                Service("kube-proxy", [place.programs / "kube-proxy", "--config=/etc/kubernetes/proxy.yaml"]),
            ],
            ip=place.plan.node_lines(place.number, place.nodes),
            cable=NODE_CABLE,
            before=[install] if place.runtime else [],
            keep=keep,
        )

    def run(self, argv: Sequence[str | Path], *, deadline_seconds: float = 60, stdin: bytes | None = None) -> str:
        """Run a program on the node and return its output."""
        return self.machine.run(argv, deadline_seconds=deadline_seconds, stdin=stdin)

    def popen(self, argv: Sequence[str | Path], **more: Any) -> Popen[bytes]:
        """Start a program on the node."""
        return self.machine.popen(argv, **more)

    def ctr(self, *words: str | Path, deadline_seconds: float = 60) -> str:
        """Call `ctr` on the node's containerd, in the namespace that CRI uses."""
        return self.run(["ctr", "-n", CRI_NAMESPACE, *words], deadline_seconds=deadline_seconds)

    def load_image(self, image: Image) -> None:
        """Import an image, where it is missing."""
        if image.name not in self.ctr("images", "list", "--quiet", f"name=={image.name}").split():
            self.ctr("images", "import", image.archive, deadline_seconds=300)

    @contextmanager
    def without(self, service: str) -> Iterator[None]:
        """The service is down for the block."""
        self.machine.halt(service)
        try:
            yield
        finally:
            self.machine.resume(service)


def containerd_config(runtime: bool, systemd: bool = False) -> str:
    """Configuration version 2: containerd 1.7 and 2.x read it. Source: containerd, docs/cri/config.md.

    `systemd` is for a virtual machine: the driver, and no limit that comes from the host.
    """
    cri = 'plugins."io.containerd.grpc.v1.cri"'
    handler = f"""    [{cri}.containerd.runtimes.{HANDLER}]
      runtime_type = "io.containerd.runc.v2"
      pod_annotations = ["kybernate.io/*"]
      container_annotations = ["kybernate.io/*"]
      [{cri}.containerd.runtimes.{HANDLER}.options]
        BinaryName = "{PREFIX}/bin/kybernate-runc"
"""
    driver = f"""      [{cri}.containerd.runtimes.runc.options]
        SystemdCgroup = true
"""
    return f"""version = 2
[debug]
  level = "info"
[{cri}]
  sandbox_image = "{PAUSE}"
  restrict_oom_score_adj = {"false" if systemd or has_capability(CAP_SYS_RESOURCE) else "true"}
  disable_cgroup = {"false" if systemd or has_cpu_controller() else "true"}
  enable_unprivileged_ports = false
  enable_unprivileged_icmp = false
  [{cri}.cni]
    bin_dir = "{"/usr/lib/cni" if systemd else cni_plugins()}"
    conf_dir = "/etc/cni/net.d"
  [{cri}.containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [{cri}.containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
{driver if systemd else ""}{handler if runtime else ""}"""


def cni_config(subnet: str) -> str:
    """A point-to-point link per pod: every packet is routed, so Services work between pods of one node, too.

    On a bridge answers between two pods would pass kube-proxy's rules by, unless br_netfilter is there. Addresses are
    kept in memory: after a power cut no pod is there to give its own back.
    """
    ipam = {
        "type": "host-local", "dataDir": "/run/cni/addresses", "ranges": [[{"subnet": subnet}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }  # fmt: skip
    plugins = [
        {"type": "ptp", "ipMasq": False, "ipam": ipam},
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ]
    return json.dumps({"cniVersion": "1.0.0", "name": "pods", "plugins": plugins}, indent=2)


def kubelet_config(name: str, place: Place, own: str) -> str:
    """`own` are the lines in which nodes differ.

    Source: kubernetes, staging/src/k8s.io/kubelet/config/v1beta1/types.go.
    """
    pki, plan = place.authority, place.plan
    return f"""apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication:
  anonymous: {{enabled: false}}
  webhook: {{enabled: true}}
  x509: {{clientCAFile: "{pki.certificate}"}}
authorization: {{mode: Webhook}}
tlsCertFile: "{pki.crt(name)}"
tlsPrivateKeyFile: "{pki.key(name)}"
containerRuntimeEndpoint: unix://{CONTAINERD_SOCKET}
{own}failCgroupV1: false
failSwapOn: false
evictionHard: {{imagefs.available: "0%", nodefs.available: "0%", memory.available: "50Mi"}}
imageGCHighThresholdPercent: 100
clusterDNS: [{plan.dns}]
clusterDomain: {DOMAIN}
resolvConf: /etc/kubernetes/resolv.conf
nodeLeaseDurationSeconds: {place.patience.lease}
shutdownGracePeriod: 0s
volumePluginDir: /var/lib/kubelet/volume-plugins
"""
