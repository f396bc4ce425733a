"""Which socket a kubelet uses, read from its arguments and its configuration."""

from __future__ import annotations

from pathlib import Path

import pytest
from kybernate_agent.standalone.kubelet import config_of, endpoint_of, same_socket

CONFIG = "kind: KubeletConfiguration\ncontainerRuntimeEndpoint: unix:///run/x.sock\n"


@pytest.mark.parametrize(
    ("argv", "config", "endpoint"),
    [
        (["kubelet"], "", "/run/containerd/containerd.sock"),
        (["kubelet"], CONFIG, "/run/x.sock"),
        (["kubelet", "--container-runtime-endpoint", "unix:///run/y.sock"], CONFIG, "/run/y.sock"),
        (["kubelet", "--container-runtime-endpoint=/run/z.sock", "--v=2"], CONFIG, "/run/z.sock"),
        (["kubelet"], "not: [yaml", "/run/containerd/containerd.sock"),
        (["kubelet"], "- a list", "/run/containerd/containerd.sock"),
    ],
)
def test_a_kubelets_endpoint(argv: list[str], config: str, endpoint: str) -> None:
    assert endpoint_of(argv, config) == endpoint


def test_the_configuration_file_is_read_in_the_kubelets_own_root(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "kubelet.yaml").write_text(CONFIG)
    assert config_of(["kubelet", "--config=/etc/kubelet.yaml"], tmp_path) == CONFIG
    assert config_of(["kubelet", "--config", "/missing.yaml"], tmp_path) == ""
    assert config_of(["kubelet"], tmp_path) == ""


def test_a_socket_is_the_same_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "c.sock").touch()
    (tmp_path / "link").symlink_to("real")
    assert same_socket(str(tmp_path / "link" / "c.sock"), str(tmp_path / "real" / "c.sock"))
    assert not same_socket(str(tmp_path / "real" / "c.sock"), str(tmp_path / "d.sock"))
