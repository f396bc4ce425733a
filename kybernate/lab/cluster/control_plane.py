"""The control plane: etcd, API server, controllers, scheduler, DNS, and the kube-proxy that the host's calls pass.

TLS throughout, RBAC and Node authorization, the default admission plugins and NodeRestriction, default feature gates:
what a component may do here it may do elsewhere. DNS runs beside the API server, not as pods; a Service leads to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kybernate.lab.cluster.machine import Service
from kybernate.lab.cluster.pki import Authority
from kybernate.lab.cluster.wires import Plan

NAME = "cp"
DOMAIN = "cluster.local"


@dataclass(frozen=True)
class Patience:
    """How long the control plane waits for a silent node, in seconds: until it is NotReady, and until its pods go.

    The defaults are those of Kubernetes. The shorter ones are for tests that take nodes away; on a busy machine a node
    may then be silent for as long without any fault.
    """

    not_ready: int = 50
    evicted: int = 300

    @property
    def lease(self) -> int:
        """The node renews its lease four times in this time."""
        return max(4, min(40, self.not_ready // 2))


SHORT = Patience(not_ready=8, evicted=2)


@dataclass(frozen=True)
class ControlPlane:
    """Writes the files of the control plane into `folder`, and says what runs."""

    folder: Path
    programs: Path
    authority: Authority
    plan: Plan
    patience: Patience

    def prepare(self, first_node: str) -> None:
        """`first_node` is who this kube-proxy says it is: it wants to be some node."""
        plan, issue = self.plan, self.authority.issue
        self.authority.create()
        service = [f"DNS:kubernetes{end}" for end in ("", ".default", ".default.svc", f".default.svc.{DOMAIN}")]
        issue("server", "/CN=kube-apiserver", [*(f"IP:{ip}" for ip in _ips(plan)), *service])
        issue("to-kubelet", "/O=system:masters/CN=apiserver")  # exec, logs and port-forward go to the kubelets
        for name, subject in _CLIENTS.items():
            issue(name, subject)
            self.authority.kubeconfig(name, plan.server)
        self.folder.mkdir()
        (self.folder / "proxy.yaml").write_text(proxy_config(self.authority, plan, first_node))
        (self.folder / "Corefile").write_text(self._corefile())

    def services(self) -> list[Service]:
        return [
            Service("etcd", self._etcd()),
            Service("kube-apiserver", self._api_server()),
            Service("kube-controller-manager", self._controllers()),
            Service("kube-scheduler", self._scheduler()),
            Service("coredns", [self.programs / "coredns", "-conf", self.folder / "Corefile"]),
            Service("kube-proxy", [self.programs / "kube-proxy", "--config", self.folder / "proxy.yaml"]),
        ]

    def _etcd(self) -> list[str | Path]:
        """Without fsync: what a crash of the host would lose is gone with the cluster anyway."""
        client, peer = "http://127.0.0.1:2379", "http://127.0.0.1:2380"
        return [
            "etcd", "--data-dir", self.folder / "etcd", "--unsafe-no-fsync", "--log-level", "warn",
            "--listen-client-urls", client, "--advertise-client-urls", client, "--listen-peer-urls", peer,
        ]  # fmt: skip

    def _api_server(self) -> list[str | Path]:
        pki, plan = self.authority, self.plan
        evicted = self.patience.evicted
        return [
            self.programs / "kube-apiserver", "--etcd-servers=http://127.0.0.1:2379",
            "--bind-address=0.0.0.0", f"--advertise-address={plan.control_plane}",
            f"--client-ca-file={pki.certificate}",
            f"--tls-cert-file={pki.crt('server')}", f"--tls-private-key-file={pki.key('server')}",
            "--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--allow-privileged",
            f"--service-account-key-file={pki.accounts_key}", f"--service-account-signing-key-file={pki.accounts_key}",
            f"--service-account-issuer=https://kubernetes.default.svc.{DOMAIN}",
            f"--service-cluster-ip-range={plan.services}",
            "--kubelet-preferred-address-types=InternalIP", f"--kubelet-certificate-authority={pki.certificate}",
            f"--kubelet-client-certificate={pki.crt('to-kubelet')}", f"--kubelet-client-key={pki.key('to-kubelet')}",
            f"--default-not-ready-toleration-seconds={evicted}",
            f"--default-unreachable-toleration-seconds={evicted}",
            "--enable-aggregator-routing",
        ]  # fmt: skip

    def _controllers(self) -> list[str | Path]:
        pki = self.authority
        return [
            self.programs / "kube-controller-manager", f"--kubeconfig={pki.folder}/controllers.conf",
            f"--service-account-private-key-file={pki.accounts_key}", f"--root-ca-file={pki.certificate}",
            "--use-service-account-credentials", "--leader-elect=false", "--kube-api-qps=300", "--kube-api-burst=600",
            "--node-monitor-period=1s", f"--node-monitor-grace-period={self.patience.not_ready}s",
            "--node-eviction-rate=10",
        ]  # fmt: skip

    def _scheduler(self) -> list[str | Path]:
        limits = ["--kube-api-qps=300", "--kube-api-burst=600"]
        config = f"--kubeconfig={self.authority.folder}/scheduler.conf"
        return [self.programs / "kube-scheduler", config, "--leader-elect=false", *limits]

    def _corefile(self) -> str:
        """Names of the cluster; every other name does not exist."""
        return f"""{DOMAIN} in-addr.arpa {{
  bind {self.plan.control_plane}
  errors
  kubernetes {{
    kubeconfig {self.authority.folder}/dns.conf lab
  }}
  cache 2
}}
. {{
  bind {self.plan.control_plane}
  template ANY ANY {{
    rcode NXDOMAIN
  }}
}}
"""

    def dns_objects(self) -> str:
        """The Service of DNS and what it leads to, as manifests."""
        ports = '[{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53, "protocol": "TCP"}]'
        return f"""apiVersion: v1
kind: Service
metadata: {{name: kube-dns, namespace: kube-system}}
spec: {{clusterIP: {self.plan.dns}, ports: {ports}}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: kube-dns-lab, namespace: kube-system, labels: {{kubernetes.io/service-name: kube-dns}}}}
addressType: IPv4
endpoints: [{{addresses: [{self.plan.control_plane}], conditions: {{ready: true}}}}]
ports: {ports}
"""


_CLIENTS = {
    "admin": "/O=system:masters/CN=admin",
    "controllers": "/CN=system:kube-controller-manager",
    "scheduler": "/CN=system:kube-scheduler",
    "proxy": "/CN=system:kube-proxy",
    "dns": "/O=system:masters/CN=coredns",
}


def _ips(plan: Plan) -> tuple[str, ...]:
    return plan.control_plane, plan.api_service, "127.0.0.1"


def proxy_config(authority: Authority, plan: Plan, node: str) -> str:
    """kube-proxy by iptables. The limits of conntrack are left alone: they are the host's."""
    return f"""apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: iptables
hostnameOverride: {node}
clusterCIDR: {plan.all_pods}
clientConnection: {{kubeconfig: "{authority.folder}/proxy.conf"}}
conntrack: {{maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}}
"""
