"""A node in a virtual machine, beside the nodes of a cluster that are namespaces.

systemd runs containerd, kubelet and kube-proxy as units, the cgroup driver is systemd's, and cgroups are version 2 with
every controller. Files are at the same places as on any node of the lab. All that Kubernetes brings comes on the seed:
programs, images, certificates and configuration; they are put onto the disk at the first boot, and stay.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from kybernate.lab.cluster import Cluster
from kybernate.lab.cluster.control_plane import proxy_config
from kybernate.lab.cluster.node import Place, cni_config, containerd_config, kubelet_config
from kybernate.lab.cluster.wires import cable, plug_tap
from kybernate.lab.images import Image, pause_image
from kybernate.lab.vm.image import SEED, base_image
from kybernate.lab.vm.machine import Plug, VirtualMachine

_MODULES = ("overlay", "veth", "nf_conntrack", "nfnetlink_queue", "xt_NFQUEUE")
_UNIT = """[Unit]
Wants=containerd.service
After=containerd.service
[Service]
ExecStart={command}
Restart=always
RestartSec=1
"""


class VmNode:
    """The last node of a cluster that was started with `guests=1`. `images` are imported, `trees` copied, once."""

    def __init__(self, cluster: Cluster, *, images: Sequence[Image] = (), trees: Sequence[Path] = ()) -> None:
        self._cluster, self._images, self._trees = cluster, [pause_image(), *images], trees
        self.number = len(cluster.nodes) + 1
        self.name = f"n{self.number}"
        plan = cluster.plan
        self.place = Place(
            self.number, self.number, plan, cluster.authority, cluster.programs, cluster.patience, runtime=False
        )
        control = cluster.control_plane.pid
        plug = Plug(control, cable(self.name), plan.node(self.number), plan.host)
        self.machine = VirtualMachine(cluster.folder / "vm" / self.name, self.name, base_image(), plug)

    def up(self) -> None:
        """Start it and import the images; it joins the cluster meanwhile. It ends with the cluster."""
        self.machine.create(self._lay, self._images)
        plug_tap(self._cluster.control_plane.pid, self.name)
        self.machine.start()

    def run(self, argv: Sequence[str | Path], *, deadline_seconds: float = 60, stdin: bytes | None = None) -> str:
        """Run a program on the node and return its output."""
        return self.machine.run(argv, deadline_seconds=deadline_seconds, stdin=stdin)

    def _lay(self, seed: Path) -> None:
        """The contents of the second disk: a root folder to be copied, and what is used from where it lies."""
        for name in ("bin", "root"):
            (seed / name).mkdir()
        for program in ("kubelet", "kube-proxy"):
            shutil.copy(self.place.programs / program, seed / "bin")
        root = seed / "root"
        for path, text in self._files().items():
            file = root / path.lstrip("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        for tree in self._trees:
            shutil.copytree(tree, root / str(tree).lstrip("/"), ignore=shutil.ignore_patterns("__pycache__"))
        self._certificates(root)
        (seed / "start").write_text(self._start())
        (seed / "start").chmod(0o755)

    def _files(self) -> dict[str, str]:
        place = self.place
        kubelet = [
            f"{SEED}/bin/kubelet", f"--kubeconfig={place.authority.folder}/{self.name}.conf",
            "--config=/etc/kubernetes/kubelet.yaml", "--housekeeping-interval=60s", f"--hostname-override={self.name}",
            f"--node-ip={place.plan.node(self.number)}",
        ]  # fmt: skip
        proxy = f"{SEED}/bin/kube-proxy --config=/etc/kubernetes/proxy.yaml"
        return {
            "/etc/containerd/config.toml": containerd_config(runtime=False, systemd=True),
            "/etc/cni/net.d/10-pods.conflist": cni_config(place.plan.pods(self.number)),
            "/etc/kubernetes/resolv.conf": f"nameserver {place.plan.host}\n",
            "/etc/kubernetes/kubelet.yaml": kubelet_config(
                self.name, place, "cgroupDriver: systemd\nnodeStatusUpdateFrequency: 5s\n"
            ),
            "/etc/kubernetes/proxy.yaml": proxy_config(place.authority, place.plan, self.name),
            "/etc/systemd/system/kubelet.service": _UNIT.format(command=" ".join(kubelet)),
            "/etc/systemd/system/kube-proxy.service": _UNIT.format(command=proxy),
        }

    def _certificates(self, root: Path) -> None:
        """Those of this node alone. Kubeconfigs name them by their path, which is the same in the virtual machine."""
        pki, name = self.place.authority, self.name
        address = self.place.plan.node(self.number)
        pki.issue(name, f"/O=system:nodes/CN=system:node:{name}", [f"IP:{address}", f"DNS:{name}"])
        files = [pki.certificate, pki.kubeconfig(name, self.place.plan.server), pki.folder / "proxy.conf"]
        files += [path for who in (name, "proxy") for path in (pki.crt(who), pki.key(who))]
        folder = root / str(pki.folder).lstrip("/")
        folder.mkdir(parents=True)
        folder.chmod(0o700)
        for file in files:
            shutil.copy(file, folder)

    def _start(self) -> str:
        """What runs at each boot. The power may be cut at any moment, also while it runs for the first time."""
        others = (number for number in range(1, self.number))
        routes = "".join(f"ip {line.replace('add', 'replace')}\n" for line in self.place.plan.to_pods(others))
        return f"""#!/bin/sh
set -e
modprobe -a {" ".join(_MODULES)}
mkdir -p /var/lib/containerd
mount --bind {SEED}/containerd /var/lib/containerd
{routes}if [ ! -e /var/lib/seeded ]; then
    cp -a {SEED}/root/. /
    sync
    touch /var/lib/seeded
    sync
fi
systemctl daemon-reload
systemctl start --no-block containerd kubelet kube-proxy
"""
