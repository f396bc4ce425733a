"""What an agent's actors work with, in a folder of a test. Nothing is started: that is left to a kubelet."""

from __future__ import annotations

from pathlib import Path

from kybernate_agent.cluster.starter import KubeletStarter
from kybernate_agent.config import AgentConfig, ClusterConfig
from kybernate_agent.journal import Journal
from kybernate_agent.services import Services

from kybernate.store import FolderStore


def services_in(folder: Path, cluster: ClusterConfig | None = None) -> Services:
    """Journal and store are new, and lie in `folder`, as does its `run`."""
    config = AgentConfig(run_dir=str(folder / "run"), state_dir=str(folder), cluster=cluster)
    return Services(
        config=config, journal=Journal(folder / "journal.db"), store=FolderStore(folder / "store", b"k" * 32, 0),
        starter=KubeletStarter(config), changed=lambda name: None, criu_version="4.2", runc_version="1.1",
        sys_resource=True,
    )  # fmt: skip
