"""Checkpoints are a cluster's; without one that is said, with what to do."""

from __future__ import annotations

import pytest

from kybernate.cli.main import main
from kybernate.errors import InvalidError


@pytest.mark.parametrize(
    "words", [["checkpoint", "chat", "--as", "warm"], ["restore", "warm", "--pod", "again"]], ids=lambda words: words[0]
)
def test_a_machine_without_a_cluster_has_none(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--socket", "/nowhere/agent.sock", *words]) == InvalidError.exit_code
    said = capsys.readouterr().err
    assert f"`kybernate {words[0]}` needs a cluster" in said
    assert "--kubeconfig" in said
