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


class AgentConfig(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """docs/setup/03_STANDALONE.md explains each; sizes in bytes, times in seconds."""

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
    for folder in (config.run, config.run / "keepers", config.run / "pids", config.state, config.workloads):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        info = os.lstat(folder)
        if folder.is_symlink() or info.st_uid != os.geteuid():
            raise InvalidError(f"{folder}: must be a folder of the agent's own user, not a link. Move it away.")
        os.chmod(folder, 0o700)
