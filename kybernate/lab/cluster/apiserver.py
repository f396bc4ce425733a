"""A real API server alone, for tests and benchmarks: on loopback, with free ports, an etcd and an authority of its own.

No controllers, no scheduler, no kubelet: what is created stays as it is. RBAC and the default admission plugins are on;
`admin_kubeconfig` may do everything (system:masters), `account` makes others. A session shares one (fixture
`apiserver`): a test works in a namespace of its own, or calls `reset` first, which removes in one stroke whatever was
made since the start, finalizers or not (behind the API server's back, in etcd; watches see it).

Both processes end with the process that started them, even if that one is killed.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from kybernate.kube.client import Client
from kybernate.kube.credentials import Access, Credentials, load_credentials, tls_context
from kybernate.lab import kubernetes
from kybernate.lab.clean import API_SERVERS, remove_dead_api_servers
from kybernate.lab.cluster.pki import Authority

READY_SECONDS = 120.0
"""It takes 3 to 5 s on an idle machine."""
ADMIN = "admin"
KEPT = ("/registry/masterleases/", "/registry/leases/kube-system/apiserver-", "/registry/ranges/")
"""What the API server writes for itself, at any time."""
CRD_KEYS = ("/registry/apiextensions.k8s.io/", "/registry/apiregistration.k8s.io/")

_PARENT = ThreadPoolExecutor(1, "apiserver-bed")
"""The parent of all processes: who is to be killed with his parent is killed when the thread that started him ends."""


def programs() -> Path:
    """Where kube-apiserver lies."""
    named = os.environ.get("KYBERNATE_KUBE_BIN")
    return Path(named) if named else kubernetes.programs(say=lambda line: None)


class ApiServerBed:
    """Started by `start`, ended by `stop`. Everything lies below `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pki = Authority(folder / "pki")
        self.etcd_port, self._peer_port, self.port = free_ports(3)
        self.server = f"https://127.0.0.1:{self.port}"
        self.token = base64.b32encode(os.urandom(20)).decode().lower()
        """Of a user of system:masters, for who cannot send a certificate through a proxy."""
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._baseline: set[str] = set()

    def start(self) -> None:
        """Return when the API server is ready. A failure leaves nothing running."""
        self.pki.create()
        self.pki.issue("server", "/CN=kube-apiserver", ["IP:127.0.0.1", "DNS:localhost", "DNS:kubernetes.default.svc"])
        self.pki.issue(ADMIN, "/O=system:masters/CN=admin")
        self.admin_kubeconfig = self.pki.kubeconfig(ADMIN, self.server)
        tokens = self.folder / "tokens.csv"
        tokens.write_text(f"{self.token},token-admin,token-admin,system:masters\n")
        tokens.chmod(0o600)
        try:
            self.start_etcd()
            self.start_api_server()
            self.create_namespace("default", exists=True)
            self._baseline = set(self._keys())
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        self.stop_api_server()
        self.stop_etcd()

    def start_etcd(self) -> None:
        client, peer = f"http://127.0.0.1:{self.etcd_port}", f"http://127.0.0.1:{self._peer_port}"
        self._spawn(
            "etcd", "--data-dir", self.folder / "etcd", "--unsafe-no-fsync", "--log-level=warn",
            f"--listen-client-urls={client}", f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=default={peer}",
        )  # fmt: skip
        self._await("etcd", lambda: self.etcd("maintenance/status", {}))

    def stop_etcd(self) -> None:
        self._end("etcd")

    def start_api_server(self) -> None:
        pki = self.pki
        self._spawn(
            programs() / "kube-apiserver", f"--etcd-servers=http://127.0.0.1:{self.etcd_port}",
            "--bind-address=127.0.0.1", f"--secure-port={self.port}",
            f"--client-ca-file={pki.certificate}", f"--token-auth-file={self.folder / 'tokens.csv'}",
            f"--tls-cert-file={pki.crt('server')}", f"--tls-private-key-file={pki.key('server')}",
            f"--service-account-key-file={pki.accounts_key}",
            f"--service-account-signing-key-file={pki.accounts_key}",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--allow-privileged",
            "--service-cluster-ip-range=10.152.183.0/24", "--endpoint-reconciler-type=none",
            "--etcd-compaction-interval=0", "--shutdown-delay-duration=0s",
            "--shutdown-watch-termination-grace-period=1s",
        )  # fmt: skip
        self._await("kube-apiserver", lambda: self.http("/readyz"))

    def stop_api_server(self, *, kill: bool = True) -> None:
        """By SIGKILL, or by SIGTERM, which closes watches in good order."""
        self._end("kube-apiserver", kill=kill)

    def restart_api_server(self) -> None:
        self.stop_api_server()
        self.start_api_server()

    @contextlib.asynccontextmanager
    async def client(self, kubeconfig: Path | None = None) -> AsyncIterator[Client]:
        """A client with the admin's rights (by token, which needs no kubeconfig), or those of another kubeconfig."""
        credentials = await load_credentials(kubeconfig) if kubeconfig else self.credentials(self.server)
        async with Client(credentials) as client:
            yield client

    def credentials(self, server: str) -> Credentials:
        """The admin's, for this API server by whatever address."""
        tls = tls_context("bed", authority=self.pki.certificate.read_text())
        access = Access(server=server, tls=tls, authorization=f"Bearer {self.token}")

        async def load() -> Access:
            return access

        return Credentials(load, access)

    def account(self, user: str, groups: Sequence[str] = ()) -> Path:
        """A kubeconfig for `user`, who may do what RBAC gives to user and groups.

        A service account is the user system:serviceaccount:NAMESPACE:NAME with the groups system:serviceaccounts and
        system:serviceaccounts:NAMESPACE; a node the user system:node:NAME with the group system:nodes.
        """
        name = f"account-{user.replace(':', '.')}"
        if not self.pki.crt(name).exists():
            self.pki.issue(name, "".join(f"/O={group}" for group in groups) + f"/CN={user}")
        return self.pki.kubeconfig(name, self.server)

    def create_namespace(self, name: str, *, exists: bool = False) -> str:
        """A namespace with the service account `default`, without which no pod is admitted."""
        if not exists:
            self.http("/api/v1/namespaces", {"metadata": {"name": name}})
        self.http(f"/api/v1/namespaces/{name}/serviceaccounts", {"metadata": {"name": "default"}})
        return name

    def allow(self, user: str, namespace: str, resources: Sequence[str], verbs: Sequence[str], group: str = "") -> None:
        """Let `user` do `verbs` with `resources` of API group `group` in one namespace (role and binding)."""
        name = f"{user.replace(':', '.')}-{'-'.join(resources)}"
        rbac = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}"
        rules = [{"apiGroups": [group], "resources": [*resources], "verbs": [*verbs]}]
        self.http(f"{rbac}/roles", {"metadata": {"name": name}, "rules": rules})
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name}
        subject = {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}
        self.http(f"{rbac}/rolebindings", {"metadata": {"name": name}, "roleRef": role, "subjects": [subject]})

    def reset(self, *, crds: bool = False) -> None:
        """Remove what was made since the start; custom resource definitions (not their objects) stay unless `crds`."""
        kept = KEPT if crds else KEPT + CRD_KEYS
        doomed = [key for key in self._keys() if key not in self._baseline and not key.startswith(kept)]
        for start in range(0, len(doomed), 100):
            deletions = [{"requestDeleteRange": {"key": _coded(key)}} for key in doomed[start : start + 100]]
            self.etcd("kv/txn", {"success": deletions})

    def compact(self) -> None:
        """Forget all versions before this one: reading or watching from an older one is answered with 410."""
        revision = self.etcd("kv/range", {"key": _coded("/"), "limit": 1})["header"]["revision"]
        self.etcd("kv/compaction", {"revision": revision, "physical": True})

    def save_etcd(self) -> Path:
        """A copy of etcd's data as it is now: what a kill at this moment would leave. etcd goes on."""
        copy = self.folder / "etcd.saved"
        shutil.rmtree(copy, ignore_errors=True)
        self._processes["etcd"].send_signal(signal.SIGSTOP)
        try:
            shutil.copytree(self.folder / "etcd", copy)
        finally:
            self._processes["etcd"].send_signal(signal.SIGCONT)
        return copy

    def set_etcd_back(self, copy: Path) -> None:
        """Put the data of `copy` in place of what is there. etcd must be stopped."""
        shutil.rmtree(self.folder / "etcd")
        shutil.copytree(copy, self.folder / "etcd")

    def http(self, path: str, body: Any = None, *, deadline_seconds: float = 10) -> bytes:
        """One plain request as admin; POST where there is a body."""
        request = urllib.request.Request(  # noqa: S310  # our own https
            self.server + path,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"},
        )
        context = ssl.create_default_context(cafile=str(self.pki.certificate))
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        with opener.open(request, timeout=deadline_seconds) as response:
            read: bytes = response.read()
            return read

    def etcd(self, call: str, body: Any) -> Any:
        """One call of etcd's JSON gateway. Source: etcd, Documentation/dev-guide/api_grpc_gateway."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.etcd_port}/v3/{call}", data=json.dumps(body).encode(), method="POST"
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=10) as response:
            return json.load(response)

    def log_tail(self, name: str, characters: int = 3000) -> str:
        path = self.folder / f"{name}.log"
        return path.read_text(errors="replace")[-characters:] if path.exists() else ""

    def _keys(self) -> list[str]:
        answer = self.etcd(
            "kv/range", {"key": _coded("/registry/"), "range_end": _coded("/registry0"), "keys_only": True}
        )
        return [base64.b64decode(entry["key"]).decode() for entry in answer.get("kvs", ())]

    def _spawn(self, program: str | Path, *words: str | Path) -> None:
        name = Path(program).name
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = _PARENT.submit(
                subprocess.Popen, ["setpriv", "--pdeathsig", "KILL", str(program), *map(str, words)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder, start_new_session=True,
            ).result()  # fmt: skip

    def _await(self, name: str, answers: Any) -> None:
        limit = time.monotonic() + READY_SECONDS
        while True:
            with contextlib.suppress(OSError, urllib.error.URLError):
                answers()
                return
            if self._processes[name].poll() is not None or time.monotonic() > limit:
                raise AssertionError(f"{name} is not ready. Its log ends:\n{self.log_tail(name)}")
            time.sleep(0.05)

    def _end(self, name: str, *, kill: bool = True) -> None:
        process = self._processes.pop(name, None)
        if process is not None:
            process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
            process.wait(60)


@contextlib.contextmanager
def open_apiserver_bed() -> Iterator[ApiServerBed]:
    """A bed in a temporary folder; nothing of it is left afterwards, and what killed sessions left is removed first."""
    remove_dead_api_servers()
    with tempfile.TemporaryDirectory(prefix=f"{API_SERVERS}{os.getpid()}-") as folder:
        bed = ApiServerBed(Path(folder))
        bed.start()
        try:
            yield bed
        finally:
            bed.stop()


def free_ports(count: int) -> list[int]:
    """Ports of loopback on which nobody listens now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _coded(key: str) -> str:
    return base64.b64encode(key.encode()).decode()
