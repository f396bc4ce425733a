"""containerd's configuration as text, with our block and without."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from kybernate_installer import configuration
from kybernate_installer.configuration import ConfigurationError

LAUNCHER = "/opt/kybernate/bin/kybernate-runc"
V2, V3 = "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime"


def dump(plugin: str, default: str = "runc", **runtimes: dict[str, Any]) -> dict[str, Any]:
    section = {"default_runtime_name": default, "runtimes": runtimes}
    return {"version": 2 if plugin == V2 else 3, "plugins": {plugin: {"containerd": section}}}


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "version = 2\n",
        "version = 2",
        "\n\n# a comment without a line end",
        '[plugins."x"]\r\n  a = 1 # theirs\r\n',
    ],
)
def test_taking_the_block_out_gives_back_what_was_there(text: str | None) -> None:
    put = configuration.with_block(text, "[a]\n", 2)
    assert put.startswith(text or "")
    assert "[a]" in put
    assert configuration.without_block(put) == text


def test_what_was_written_below_the_block_later_stays() -> None:
    put = configuration.with_block("version = 2\n", "[a]\n", 2) + "[b]\nc = 1\n"
    assert configuration.without_block(put) == "version = 2\n[b]\nc = 1\n"


def test_a_text_without_a_block_is_left_alone() -> None:
    assert configuration.without_block("version = 3\n") == "version = 3\n"


@pytest.mark.parametrize(("version", "plugin"), [(1, "cri"), (2, V2), (3, V3)])
def test_the_handler_is_named_as_the_files_version_names_it(version: int, plugin: str) -> None:
    handler = configuration.ours({}, LAUNCHER)
    config = tomllib.loads(
        configuration.with_block(None, configuration.tables(version, {"kybernate": handler}), version)
    )
    assert config["version"] == version
    assert config["plugins"][plugin]["containerd"]["runtimes"]["kybernate"] == {
        "runtime_type": "io.containerd.runc.v2",
        "pod_annotations": ["kybernate.io/*"],
        "container_annotations": ["kybernate.io/*"],
        "options": {"BinaryName": LAUNCHER},
    }
    assert configuration.runtimes(config)["kybernate"]["options"]["BinaryName"] == LAUNCHER


def test_a_version_that_nobody_knows_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="version 4 is none of 1, 2, 3"):
        configuration.tables(4, {})


def test_the_handler_takes_over_what_the_default_runtime_has_but_its_program() -> None:
    nvidia = {
        "runtime_type": "io.containerd.runc.v2",
        "runtime_path": "/usr/bin/shim",
        "base_runtime_spec": "/etc/spec.json",
        "snapshotter": "",
        "container_annotations": ["nvidia.com/*"],
        "options": {
            "BinaryName": "/usr/bin/nvidia-container-runtime",
            "SystemdCgroup": True,
            "CriuPath": "/x",
            "IoUid": 0,
        },
    }
    found = dump(V3, "nvidia", nvidia=nvidia, runc={"runtime_type": "io.containerd.runc.v2"})
    assert configuration.next_runtime(found) == "/usr/bin/nvidia-container-runtime"
    assert configuration.ours(found, LAUNCHER) == {
        "runtime_type": "io.containerd.runc.v2",
        "base_runtime_spec": "/etc/spec.json",
        "container_annotations": ["nvidia.com/*", "kybernate.io/*"],
        "pod_annotations": ["kybernate.io/*"],
        "options": {"BinaryName": LAUNCHER, "SystemdCgroup": True},
    }


def test_where_the_default_is_no_runc_the_one_called_runc_counts() -> None:
    runc = {"runtime_type": "io.containerd.runc.v2", "options": {"BinaryName": "/opt/runc"}}
    kata = {"runtime_type": "io.containerd.kata.v2"}
    assert configuration.next_runtime(dump(V2, "kata", kata=kata, runc=runc)) == "/opt/runc"
    assert configuration.next_runtime(dump(V2, "kata", kata=kata)) == "runc"


@pytest.mark.parametrize(
    ("config", "newest", "version"), [({}, 2, 1), ({}, 3, 3), ({"version": 2}, 3, 2), ({"version": 3}, 3, 3)]
)
def test_which_version_a_file_is_of(config: dict[str, Any], newest: int, version: int) -> None:
    assert configuration.version_of(config, {"version": newest}) == version


def test_odd_names_and_values_survive_being_written() -> None:
    odd = {"runtime_type": 'a "quote" and \\ and ü', "list": ["a/b", "c"], "number": 3, "options": {"a b": True}}
    text = configuration.tables(2, {"x.y": odd})
    assert configuration.runtimes(tomllib.loads(text))["x.y"] == odd
