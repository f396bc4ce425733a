"""A cluster: its control plane, its nodes, and their cables. Everything it has is in one folder, or named after it.

    FOLDER/cluster.json     what it was started with: name, addresses, nodes
    FOLDER/pki/admin.conf   the kubeconfig of an administrator
    FOLDER/cp, n1, n2 ...   the machines

`up` first removes what an earlier run in the same folder left. A cluster outlives the process that started it: `open`
finds it again by its folder, `down` leaves nothing of it: no process, mount, namespace, cgroup, interface or folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType

from kybernate.errors import DeadlineError, InvalidError, NotFoundError
from kybernate.lab import kubernetes
from kybernate.lab.cluster import control_plane, wires
from kybernate.lab.cluster.api import Api, ApiError
from kybernate.lab.cluster.control_plane import ControlPlane, Patience
from kybernate.lab.cluster.init import OVERLAID
from kybernate.lab.cluster.machine import ENVIRONMENT, PATH, Machine, Setup, remove_cgroups
from kybernate.lab.cluster.node import CONTAINERD_SOCKET, Node, Place
from kybernate.lab.cluster.pki import Authority
from kybernate.lab.cluster.wires import Plan
from kybernate.lab.images import Image, pause_image
from kybernate.lab.process import run
from kybernate.lab.vm.machine import end_all

CHECKOUT = Path(__file__).resolve().parents[3]
READY_SECONDS = 180.0
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")


def past_proxies(plan: Plan, environment: Mapping[str, str] = os.environ) -> str:
    """A line for a shell, to call the cluster past its proxy; nothing where it has none. curl reads the small name."""
    if not any(environment.get(name) or environment.get(name.upper()) for name in _PROXIES):
        return ""
    return f"\n    export NO_PROXY=${{NO_PROXY:-$no_proxy}},{plan.prefix}.0.0/16; export no_proxy=$NO_PROXY"


class NoClusterError(NotFoundError):
    """There is no cluster in {folder}. `./dev cluster up` starts one."""


class FolderError(InvalidError):
    """A cluster cannot lie in {folder}: its machines have folders of their own there. Take one below /var/tmp."""


class ClusterLateError(DeadlineError):
    """{what} within {seconds:g} s. Logs are in {logs}; the last of them ends: {tail}"""


class Cluster:
    """A cluster named `name` in `folder`. The name is unique on the machine: cgroups and the host's cable bear it.

    `guests` are nodes that others start and plug in, virtual machines; they lie in FOLDER/vm and end with the cluster.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        *,
        nodes: int = 1,
        guests: int = 0,
        runtime: bool = False,
        patience: Patience | None = None,
    ) -> None:
        if any(folder.is_relative_to(taken) for taken in ("/run", "/dev", *OVERLAID)):
            raise FolderError(folder=folder)
        self.folder, self.name, self.runtime = folder, name, runtime
        self.patience = patience or Patience()
        self.authority = Authority(folder / "pki")
        self.kubeconfig = self.authority.folder / "admin.conf"
        self.control_plane = Machine(folder / control_plane.NAME, control_plane.NAME, f"/{name}/{control_plane.NAME}")
        self.programs = kubernetes.folder()
        self._names = [f"n{number}" for number in range(1, nodes + 1)]
        self._places = nodes + guests
        self.plan = Plan("")
        self.nodes: list[Node] = []

    @classmethod
    def open(cls, folder: Path) -> Cluster:
        """The cluster that was started in this folder. Raises NoClusterError."""
        try:
            if folder.lstat().st_uid != os.geteuid():  # /var/tmp is everybody's
                raise NoClusterError(folder=folder)
            said = json.loads((folder / "cluster.json").read_text())
        except (OSError, ValueError) as error:
            raise NoClusterError(folder=folder) from error
        patience = Patience(**said["patience"])
        cluster = cls(
            folder,
            said["name"],
            nodes=said["nodes"],
            guests=said.get("guests", 0),
            runtime=said["runtime"],
            patience=patience,
        )
        cluster._plan(Plan(said["prefix"]))
        return cluster

    def up(self, images: Sequence[Image] = (), say: Callable[[str], None] = lambda line: None) -> None:
        """Start everything anew; returns when every node is Ready and pods can be made. A failure leaves nothing."""
        kubernetes.programs(say=say)
        pause = pause_image()
        self.down()
        try:
            self.folder.mkdir(mode=0o711, parents=True)
            self._plan(wires.claim(self.name, self._places))
            self._write()
            head = ControlPlane(self.control_plane.folder, self.programs, self.authority, self.plan, self.patience)
            head.prepare(self._names[0])
            lines = self.plan.control_plane_lines(self._places)
            self.control_plane.start(Setup(head.services(), lines, keep=self._keep()))
            wires.plug_host(self.name, self.plan, self.control_plane.pid)
            say("control plane started")
            for node in self.nodes:
                node.prepare()
            with ThreadPoolExecutor(len(self.nodes)) as pool:
                list(pool.map(lambda node: self._boot(node, [pause, *images]), self.nodes))
            say("nodes started")
            self._await_api(head)
            for node in self.nodes:
                self.await_ready(node)
        except BaseException:
            self.down()
            raise

    def down(self) -> None:
        """Leave nothing. Safe to repeat, also for what another process started. The nodes go first, without a word."""
        end_all(self.folder / "vm")
        machines = [Machine(path, path.name, f"/{self.name}/{path.name}") for path in self.folder.glob("n[0-9]*")]
        machines = [node.machine for node in self.nodes] or machines
        with contextlib.suppress(NotFoundError):
            for machine in machines:
                wires.unplug(self.control_plane.pid, machine.name)
        for machine in (*machines, self.control_plane):
            machine.stop()
        wires.release(self.name)
        remove_cgroups(f"/{self.name}", time.monotonic() + 10)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.nodes = []

    def __enter__(self) -> Cluster:
        self.up()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    @property
    def api(self) -> Api:
        """The API server, asked as an administrator: cheaper than kubectl where one only looks."""
        pki = self.authority
        return Api(self.plan.control_plane, 6443, pki.certificate, pki.crt("admin"), pki.key("admin"))

    def node(self, name: str) -> Node:
        return next(node for node in self.nodes if node.name == name)

    def kubectl(self, *words: str | Path, stdin: str | None = None, deadline_seconds: float = 60) -> str:
        """Call kubectl as an administrator. Raises ProgramError with what it said."""
        argv = [self.programs / "kubectl", *words]
        env = {**ENVIRONMENT, "PATH": f"{self.programs}:{PATH}", "KUBECONFIG": str(self.kubeconfig)}
        return run(argv, stdin=None if stdin is None else stdin.encode(), deadline_seconds=deadline_seconds, env=env)

    def load_image(self, image: Image) -> None:
        """Import an image on every node."""
        for node in self.nodes:
            node.load_image(image)

    def take_away(self, node: Node) -> None:
        """As if the node's power were cut, its cable first."""
        wires.unplug(self.control_plane.pid, node.name)
        node.machine.stop()

    def bring_back(self, node: Node) -> None:
        """As if it were switched on again: its disk is there, memory and /run are not. Returns when it is Ready."""
        before = self._heartbeat(node)
        self._boot(node, [])
        self.await_ready(node, before)

    def cut(self, node: Node) -> None:
        """The node goes on, but nobody reaches it."""
        wires.switch(self.control_plane.pid, node.name, "down")

    def mend(self, node: Node) -> None:
        wires.switch(self.control_plane.pid, node.name, "up")

    def await_ready(self, node: Node, before: str = "") -> None:
        """Wait until the node says that it is Ready, at another time than `before`. Raises ClusterLateError."""
        self._await(lambda: self._heartbeat(node) not in ("", before), f"Node {node.name} was not Ready", node.machine)

    def _plan(self, plan: Plan) -> None:
        self.plan = plan
        for number, name in enumerate(self._names, 1):
            place = Place(number, self._places, plan, self.authority, self.programs, self.patience, self.runtime)
            self.nodes.append(Node(Machine(self.folder / name, name, f"/{self.name}/{name}"), place))

    def _write(self) -> None:
        patience = {"not_ready": self.patience.not_ready, "evicted": self.patience.evicted}
        nodes = {"nodes": len(self._names), "guests": self._places - len(self._names)}
        said = {"name": self.name, **nodes, "runtime": self.runtime, "prefix": self.plan.prefix}
        (self.folder / "cluster.json").write_text(json.dumps({**said, "patience": patience}))

    def _boot(self, node: Node, images: Sequence[Image]) -> None:
        control = self.control_plane.pid
        node.machine.start(node.setup(self._keep()), lambda pid: wires.plug(control, pid, node.name))
        if images:
            socket = node.machine.path(CONTAINERD_SOCKET)
            self._await(socket.exists, "No containerd", node.machine)
        for image in images:
            node.load_image(image)

    def _keep(self) -> list[Path]:
        """What the machines need of the host, wherever it lies: this cluster, our code, programs and images."""
        return [self.folder, CHECKOUT, kubernetes.folder().parents[1]]

    def _await_api(self, head: ControlPlane) -> None:
        machine = self.control_plane
        self._await(lambda: self.api.get("/readyz") == "ok", "The API server was not ready", machine)
        self.kubectl("apply", "-f", "-", stdin=head.dns_objects())
        for path in ("serviceaccounts/default", "configmaps/kube-root-ca.crt"):  # without these no pod starts
            self._await(partial(self.api.get, f"/api/v1/namespaces/default/{path}"), f"No {path}", machine)

    def _heartbeat(self, node: Node) -> str:
        """When the node last said that it is Ready; empty while it does not."""
        try:
            found = self.api.get(f"/api/v1/nodes/{node.name}")
        except ApiError:
            return ""
        conditions = found["status"].get("conditions", [])
        ready = (c["lastHeartbeatTime"] for c in conditions if c["type"] == "Ready" and c["status"] == "True")
        return str(next(ready, ""))

    def _await(self, done: Callable[[], object], what: str, machine: Machine) -> None:
        limit = time.monotonic() + READY_SECONDS
        while True:
            with contextlib.suppress(ApiError):
                if done():
                    return
            if time.monotonic() > limit:
                last = max(machine.logs.iterdir(), key=lambda path: path.stat().st_mtime)
                tail = machine.log_tail(last.name)
                raise ClusterLateError(what=what, seconds=READY_SECONDS, logs=machine.logs, tail=tail)
            time.sleep(0.1)
