"""The agent's one configuration file: YAML, versioned, every key optional but `version`.

What is not in the file has the default below; what is unknown is refused by name, so that a typing error never passes
for a setting.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from kybernate.errors import InvalidError

VERSION = 1


class CriuConfig(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Limits of the calls that run CRIU, and what the node's CRIU is trusted with."""

    dump_deadline_seconds: float = 300.0
    restore_deadline_seconds: float = 300.0
    # A node without CAP_SYS_RESOURCE cannot dump processes that are not root's. True only where something stands in
    # for the capability, as the tests' prlimit preload does.
    assume_sys_resource: bool = False


class ClusterConfig(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The agent of a cluster's node; docs/design/03_agent.md explains each."""

    node_name: str = ""  # empty: $NODE_NAME, else the machine's name
    kubeconfig: str = ""  # empty: $KUBECONFIG, else the pod's service account
    # How long a container's creation waits for the word that its pod is an instance; the hook waits for 115 s.
    create_wait_seconds: float = 100.0
    # Of the keeper's one second: for the question whether a pod is evicted or deleted.
    terminate_seconds: float = 0.8
    # /healthz, /readyz and /metrics; empty: not served.
    health_address: str = "127.0.0.1:9815"
    # A process whose mount namespace is the node's: 1 in a pod with hostPID. 0: the agent's own is.
    enter_pid: int = 0

    @property
    def node(self) -> str:
        return self.node_name or os.environ.get("NODE_NAME", "") or os.uname().nodename


class AgentConfig(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """docs/setup/03_STANDALONE.md explains each; `cluster` is for a node of one. Sizes in bytes, times in seconds."""

    version: int = VERSION
    run_dir: str = "/run/kybernate"
    state_dir: str = "/var/lib/kybernate"
    workloads_dir: str = ""
    containerd_socket: str = "/run/containerd/containerd.sock"
    runtime_handler: str = "kybernate"
    prefix: str = "/opt/kybernate"
    store_reserve_bytes: int = 256 << 20
    # A restored application counts as alive after this long; until then the images it came from are kept.
    prove_seconds: float = 2.0
    criu: CriuConfig = CriuConfig()
    cluster: ClusterConfig | None = None  # absent: standalone, workloads come from a folder

    @property
    def run(self) -> Path:
        return Path(self.run_dir)

    @property
    def state(self) -> Path:
        return Path(self.state_dir)

    @property
    def workloads(self) -> Path:
        return Path(self.workloads_dir) if self.workloads_dir else self.state / "workloads"


def load_config(path: Path | None) -> AgentConfig:
    """Read `path`, or give the defaults where it is None. Raises InvalidError naming the file and the key."""
    if path is None:
        return AgentConfig()
    try:
        config = msgspec.yaml.decode(path.read_bytes(), type=AgentConfig)
    except OSError as error:
        raise InvalidError(f"{path}: cannot be read: {error.strerror}") from error
    except msgspec.MsgspecError as error:
        raise InvalidError(f"{path}: {error}. docs/setup/03_STANDALONE.md lists the keys.") from error
    if config.version != VERSION:
        raise InvalidError(
            f"{path}: version {config.version} is not known to this agent, which reads version {VERSION}"
        )
    return config


def prepare_folders(config: AgentConfig) -> None:
    """Make the agent's folders, 0700. Raises InvalidError where one is a link or belongs to somebody else."""
    folders = [config.run, config.run / "keepers", config.run / "pids", config.state]
    for folder in folders if config.cluster else [*folders, config.workloads]:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        info = os.lstat(folder)
        if folder.is_symlink() or info.st_uid != os.geteuid():
            raise InvalidError(f"{folder}: must be a folder of the agent's own user, not a link. Move it away.")
        os.chmod(folder, 0o700)
