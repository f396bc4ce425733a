"""A private containerd: the real one of the machine, with folders, sockets, bridge and runtimes of its own.

    root    (on disk)  config.toml, images and snapshots, the CNI configuration and its addresses, containerd.log
    state   (short)    containerd.sock, bundles, runc's state, network namespaces

`start` first removes what an earlier run in the same folders left; so a lab that was killed needs no other repair than
being used again. The host's containerd may run beside it: nothing is shared but the programs.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from kybernate.errors import DeadlineError, ExternalError
from kybernate.lab import remains
from kybernate.lab.images import PAUSE, Image, pause_image
from kybernate.lab.network import Bridge
from kybernate.lab.process import CGROUP_ROOT, ProgramMissingError, hierarchies, run

CRI_NAMESPACE = "k8s.io"
HANDLER = "kybernate"
CAP_SYS_RESOURCE = 24


class ContainerdFailedError(ExternalError):
    """The private containerd in {root} ended while it started. Its log ends: {log}"""


class ContainerdDeadlineError(DeadlineError):
    """The private containerd in {root} was not ready within {seconds} s. Its log ends: {log}"""


class Containerd:
    """One private containerd. `with Containerd(...)` starts it and leaves nothing behind.

    `launcher` is the OCI runtime of the handler `kybernate`; without it the handler is runc, so that what belongs to
    CRI can be tried without ours. `state` is a short path: a unix socket's has 107 bytes.
    """

    def __init__(self, root: Path, name: str, *, state: Path | None = None, launcher: Path | None = None) -> None:
        self.root = root
        self.name = name
        self.state = state or Path("/run", name)
        self.launcher = launcher
        self.socket = self.state / "containerd.sock"
        self.log = root / "containerd.log"
        self.bridge = Bridge.named(name)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *, images: Sequence[Image] = (), deadline_seconds: float = 60) -> None:
        """Start containerd with the pause image and `images` in it; returns when it is ready.

        Raises ContainerdFailedError, ContainerdDeadlineError, the errors of the programs it calls.
        """
        self.stop()
        try:
            self.root.mkdir(mode=0o711, parents=True)
            self.state.mkdir(mode=0o711, parents=True)
            self._configure()
            self._spawn(deadline_seconds)
            for image in (pause_image(), *images):
                self.load(image)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Leave nothing: processes, mounts, network namespaces, cgroups, bridge, folders. Safe to call twice."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None
        remains.remove(self.root, self.state)
        self.bridge.down()

    def restart(self, deadline_seconds: float = 60) -> None:
        """Kill containerd alone and start it again over the same folders; pods live on, as after a real crash."""
        if self._process:
            self._process.kill()
            self._process.wait()
        self._spawn(deadline_seconds)

    def load(self, image: Image) -> None:
        """Import an image, where it is missing."""
        if image.name not in self.ctr("images", "list", "--quiet", f"name=={image.name}").split():
            self.ctr("images", "import", str(image.archive), deadline_seconds=120)

    def ctr(self, *words: str, deadline_seconds: float = 30) -> str:
        """Call `ctr` on this containerd, in the namespace that CRI uses."""
        return run(["ctr", "-a", self.socket, "-n", CRI_NAMESPACE, *words], deadline_seconds=deadline_seconds)

    def __enter__(self) -> Containerd:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _configure(self) -> None:
        cni = self.root / "cni"
        cni.mkdir()
        subnets = self.bridge.up()
        (cni / "10-lab.conflist").write_text(self.bridge.conflist(subnets, self.root / "addresses"))
        (self.root / "config.toml").write_text(self._config())

    def _config(self) -> str:
        """Configuration version 2: containerd 1.7 and 2.x read it. Source: containerd, docs/cri/config.md."""
        binary = f'\n            BinaryName = "{self.launcher}"' if self.launcher else ""
        return f"""version = 2
root = "{self.root}/data"
state = "{self.state}"
disabled_plugins = ["io.containerd.internal.v1.tracing", "io.containerd.nri.v1.nri"]
[grpc]
  address = "{self.socket}"
[debug]
  level = "info"
[plugins."io.containerd.internal.v1.opt"]
  path = "{self.root}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  restrict_oom_score_adj = {"false" if has_capability(CAP_SYS_RESOURCE) else "true"}
  disable_cgroup = {"false" if has_cpu_controller() else "true"}
  netns_mounts_under_state_dir = true
  enable_unprivileged_ports = false
  enable_unprivileged_icmp = false
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{cni_plugins()}"
    conf_dir = "{self.root}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        Root = "{self.state}/runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{HANDLER}]
      runtime_type = "io.containerd.runc.v2"
      pod_annotations = ["kybernate.io/*"]
      container_annotations = ["kybernate.io/*"]
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{HANDLER}.options]
        Root = "{self.state}/runc"{binary}
"""

    def _spawn(self, deadline_seconds: float) -> None:
        """Start the daemon and wait for the READY that it sends as a systemd service would."""
        limit = time.monotonic() + deadline_seconds
        address = self.state / "notify.sock"
        address.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
            notify.bind(str(address))
            env = {**os.environ, "NOTIFY_SOCKET": str(address)}
            config = str(self.root / "config.toml")
            try:
                with self.log.open("ab") as log:
                    self._process = subprocess.Popen(
                        ["containerd", "--config", config],
                        stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, start_new_session=True,
                    )  # fmt: skip
            except FileNotFoundError as error:
                raise ProgramMissingError(program="containerd") from error
            self._await_ready(notify, limit, deadline_seconds)

    def _await_ready(self, notify: socket.socket, limit: float, deadline_seconds: float) -> None:
        assert self._process
        pidfd = os.pidfd_open(self._process.pid)
        try:
            while (left := limit - time.monotonic()) > 0:
                readable, _, _ = select.select([notify.fileno(), pidfd], [], [], left)
                if notify.fileno() in readable and b"READY=1" in notify.recv(4096).split(b"\n"):
                    return
                if pidfd in readable:
                    raise ContainerdFailedError(root=self.root, log=self._tail())
        finally:
            os.close(pidfd)
        raise ContainerdDeadlineError(root=self.root, seconds=deadline_seconds, log=self._tail())

    def _tail(self) -> str:
        with contextlib.suppress(OSError):
            return self.log.read_text(errors="replace")[-1500:]
        return "(no log)"


def has_capability(number: int) -> bool:
    """Whether this process has the capability in effect. Source: capabilities(7), /proc/pid/status CapEff."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> number & 1)
    return False


def has_cpu_controller() -> bool:
    """Whether CPU weights can be set, as containerd does for each sandbox.

    Not so on version 2 beside version 1, where the controllers belong to the other. Containers then have cgroups
    without limits, beside containerd's own.
    """
    return hierarchies() != [CGROUP_ROOT] or "cpu" in (CGROUP_ROOT / "cgroup.controllers").read_text().split()


def cni_plugins() -> Path:
    """The folder with the CNI plugins: the distribution's, or the upstream default. Raises ProgramMissingError."""
    for folder in (Path("/usr/lib/cni"), Path("/opt/cni/bin")):
        if (folder / "bridge").exists() and (folder / "host-local").exists() and (folder / "loopback").exists():
            return folder
    raise ProgramMissingError(program="The CNI plugins bridge, host-local and loopback (containernetworking-plugins)")
