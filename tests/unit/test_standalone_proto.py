"""The committed stubs are those of the proto file."""

from __future__ import annotations

from pathlib import Path

from kybernate_agent.standalone import generate
from kybernate_agent.standalone._pb import cri_pb2 as pb


def test_committed_stubs_are_what_the_proto_generates(tmp_path: Path) -> None:
    generate.generate(tmp_path)
    committed = generate.PACKAGE_ROOT / generate.VIRTUAL_FOLDER
    made = {path.name: path.read_text() for path in (tmp_path / generate.VIRTUAL_FOLDER).iterdir()}
    assert made == {path.name: path.read_text() for path in committed.glob("cri_*")}


def test_the_package_is_the_one_on_the_wire() -> None:
    assert pb.RunPodSandboxRequest.DESCRIPTOR.full_name == "runtime.v1.RunPodSandboxRequest"
