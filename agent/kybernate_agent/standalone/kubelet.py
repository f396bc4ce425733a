"""Whether a kubelet owns a containerd: two masters of one CRI socket remove each other's pods.

Two signs, either is enough: a kubelet runs whose endpoint is this socket; or containerd has sandboxes that are not
ours.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml

from kybernate.api.names import WORKLOAD
from kybernate.errors import RefusedError
from kybernate_agent.standalone.cri import Cri

DEFAULT_ENDPOINT = "/run/containerd/containerd.sock"
_OPTION = "--container-runtime-endpoint"


class KubeletSocketError(RefusedError):
    """{socket} is a kubelet's: {sign}. Without a cluster the agent needs a containerd that no kubelet uses; name
    another in containerd_socket of its configuration."""


async def refuse_kubelets(cri: Cri) -> None:
    """Raises KubeletSocketError where a kubelet uses this containerd."""
    for pid, endpoint in kubelets():
        if same_socket(endpoint, cri.socket):
            raise KubeletSocketError(socket=cri.socket, sign=f"process {pid} is a kubelet with this endpoint")
    for sandbox in await cri.sandboxes():
        if WORKLOAD not in sandbox.labels:
            name = sandbox.labels.get("io.kubernetes.pod.name", sandbox.id[:13])
            raise KubeletSocketError(socket=cri.socket, sign=f"it runs pod {name}, which is none of ours")


def kubelets() -> list[tuple[int, str]]:
    """The kubelets on this machine: pid, and path of the runtime endpoint."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if (entry / "comm").read_text().strip() == "kubelet":
                    argv = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                    found.append((int(entry.name), endpoint_of(argv, config_of(argv, entry / "root"))))
            except OSError:
                continue  # it ended while we looked
    return found


def endpoint_of(argv: Sequence[str], config: str) -> str:
    """The path of the socket that a kubelet with these arguments and this configuration file uses. Pure."""
    try:
        settings = yaml.safe_load(config)
    except yaml.YAMLError:
        settings = None
    written = settings.get("containerRuntimeEndpoint") if isinstance(settings, dict) else None
    endpoint = _option(argv, _OPTION) or written or DEFAULT_ENDPOINT
    return str(endpoint).removeprefix("unix://")


def config_of(argv: Sequence[str], root: Path) -> str:
    """The text of a kubelet's configuration file; empty where there is none."""
    path = _option(argv, "--config")
    try:
        return (root / path.lstrip("/")).read_text() if path else ""
    except OSError:
        return ""


def same_socket(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return os.path.realpath(one) == os.path.realpath(other)


def _option(argv: Iterable[str], name: str) -> str:
    """`--name value` or `--name=value`; the last one counts."""
    words = list(argv)
    value = ""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == name:
            value = following
        elif word.startswith(f"{name}="):
            value = word.partition("=")[2]
    return value
