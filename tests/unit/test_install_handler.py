"""Registering the handler: files are real, and so is the containerd that reads them; it is only not started anew."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from kybernate_installer import configuration
from kybernate_installer.containerd import (
    DISTRIBUTIONS,
    BrokenError,
    Containerd,
    NotBackError,
    RefusedConfigurationError,
)
from kybernate_installer.handler import ForeignHandlerError, Handler, HiddenError, KnownRefusalError

LAUNCHER = "/opt/kybernate/bin/kybernate-runc"
CRI = 'plugins."io.containerd.grpc.v1.cri"'
PLAIN = f'# the node\'s own\nversion = 2\n[{CRI}]\n  sandbox_image = "pause:1" # ours'
SYSTEMD = f"""version = 2
[{CRI}.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[{CRI}.containerd.runtimes.runc.options]
  SystemdCgroup = true
"""


@dataclasses.dataclass(frozen=True)
class Still(Containerd):
    """The machine's containerd as far as it reads files. Starting it anew is counted, and fails where it is told to."""

    starts: list[str] = dataclasses.field(default_factory=list)
    fails: bool = False

    def restart(self, seconds: float) -> Containerd:
        text = self.config.read_text() if self.config.exists() else ""
        self.starts.append(text)
        if self.fails and "kybernate" in text:
            raise BrokenError(reason="its CRI plugin does not load")
        return self


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Still]:
    program = shutil.which("containerd")
    assert program
    config = tmp_path / "etc" / "config.toml"
    config.parent.mkdir()
    yield Still(DISTRIBUTIONS[0], 1, 1, program, config, "/usr/sbin:/usr/bin:/sbin:/bin", "")
    assert [path for path in config.parent.iterdir() if path.name.startswith(".")] == []


def seen(node: Still) -> configuration.Table:
    """The runtimes that containerd sees in its file."""
    return configuration.runtimes(node.dump(node.config))


@pytest.mark.parametrize("text", [PLAIN, SYSTEMD, "", None], ids=["plain", "systemd", "empty", "none"])
def test_registered_once_and_taken_out_to_the_byte(node: Still, tmp_path: Path, text: str | None) -> None:
    if text is not None:
        node.config.write_text(text)
        node.config.chmod(0o640)
    assert Handler(node, tmp_path).register(LAUNCHER) is True
    assert node.config.read_text().startswith(text or "# >>> kybernate")
    runtimes = seen(node)
    assert runtimes["kybernate"]["options"]["BinaryName"] == LAUNCHER
    assert runtimes["kybernate"]["options"].get("SystemdCgroup", False) is (text == SYSTEMD)
    assert runtimes["runc"]["runtime_type"] == "io.containerd.runc.v2"
    before = node.config.stat()
    assert Handler(node, tmp_path).register(LAUNCHER) is False
    assert node.config.stat().st_mtime_ns == before.st_mtime_ns
    assert len(node.starts) == 1
    assert text is None or before.st_mode & 0o777 == 0o640
    assert Handler(node, tmp_path).unregister() is True
    assert (node.config.read_text() if node.config.exists() else None) == text
    assert Handler(node, tmp_path).unregister() is False
    assert len(node.starts) == 2


def test_the_original_lies_beside_until_ours_is_taken_out(node: Still, tmp_path: Path) -> None:
    node.config.write_text(PLAIN)
    Handler(node, tmp_path).register(LAUNCHER)
    original = node.config.with_name("config.toml.before-kybernate")
    assert original.read_text() == PLAIN
    Handler(node, tmp_path).register("/elsewhere/launcher")
    assert original.read_text() == PLAIN
    Handler(node, tmp_path).unregister()
    assert not original.exists()


def test_a_changed_node_changes_the_block(node: Still, tmp_path: Path) -> None:
    node.config.write_text(SYSTEMD)
    Handler(node, tmp_path).register(LAUNCHER)
    node.config.write_text(node.config.read_text().replace("SystemdCgroup = true", "SystemdCgroup = false", 1))
    assert Handler(node, tmp_path).register(LAUNCHER) is True
    assert (
        "SystemdCgroup" not in seen(node)["kybernate"]["options"]
        or not seen(node)["kybernate"]["options"]["SystemdCgroup"]
    )


def test_somebody_elses_handler_of_that_name_is_left_alone(node: Still, tmp_path: Path) -> None:
    text = f'version = 2\n[{CRI}.containerd.runtimes.kybernate]\n  runtime_type = "io.containerd.runc.v2"\n'
    node.config.write_text(text)
    with pytest.raises(ForeignHandlerError, match="did not write"):
        Handler(node, tmp_path).register(LAUNCHER)
    assert node.config.read_text() == text
    assert node.starts == []


@pytest.mark.parametrize(
    "text", ["version = 2\nplugins = {}\n", "version = 9\n", "a = [\n"], ids=["inline table", "version", "no TOML"]
)
def test_what_containerd_would_not_take_is_never_put_into_place(node: Still, tmp_path: Path, text: str) -> None:
    node.config.write_text(text)
    with pytest.raises((RefusedConfigurationError, configuration.ConfigurationError)):
        Handler(node, tmp_path).register(LAUNCHER)
    assert node.config.read_text() == text
    assert node.starts == []


def test_an_imported_file_that_hides_the_handler_is_named(node: Still, tmp_path: Path) -> None:
    (node.config.parent / "more.toml").write_text(f'version = 2\n[{CRI}]\n  sandbox_image = "x"\n')
    text = f'version = 2\nimports = ["more.toml"]\n[{CRI}]\n  sandbox_image = "y"\n'
    node.config.write_text(text)
    with pytest.raises(HiddenError, match="imports"):
        Handler(node, tmp_path).register(LAUNCHER)
    assert node.config.read_text() == text
    assert node.starts == []


def test_a_containerd_that_does_not_come_back_gets_its_old_file_and_is_not_tried_again(
    node: Still, tmp_path: Path
) -> None:
    node.config.write_text(PLAIN)
    failing = dataclasses.replace(node, fails=True)
    with pytest.raises(BrokenError):
        Handler(failing, tmp_path).register(LAUNCHER)
    assert node.config.read_text() == PLAIN
    assert [text == PLAIN for text in failing.starts] == [False, True]
    with pytest.raises(KnownRefusalError, match="does not load"):
        Handler(failing, tmp_path).register(LAUNCHER)
    assert len(failing.starts) == 2
    node.config.write_text(PLAIN + "\n")
    assert Handler(dataclasses.replace(node, fails=False), tmp_path).register(LAUNCHER) is True


class Killed(BaseException):
    """Stands in for SIGKILL: nothing of ours runs after it."""


def test_killed_before_any_replacement_the_next_one_ends_in_the_same_place(
    node: Still, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each moment containerd's file is one that containerd takes, and a file that was switched is made to count."""
    node.config.write_text(PLAIN)
    Handler(node, tmp_path).register(LAUNCHER)
    whole, replace = node.config.read_text(), os.replace

    def killed_at(moment: int) -> bool:
        node.config.write_text(PLAIN)
        node.starts.clear()
        moments = iter(range(moment + 1))

        def die(source: str, target: str) -> None:
            if next(moments) == moment:
                raise Killed
            replace(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", die)
            try:
                Handler(node, tmp_path).register(LAUNCHER)
            except Killed:
                return True
        return False

    for moment in range(3):
        assert killed_at(moment)
        assert node.config.read_text() in (PLAIN, whole)
        assert "runc" in seen(node)
        assert Handler(node, tmp_path).register(LAUNCHER) is True
        assert node.config.read_text() == whole
        assert node.starts == [whole]
    assert not killed_at(3)


def test_killed_between_switch_and_restart_containerd_is_started_anew_by_the_next(
    node: Still, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.config.write_text(PLAIN)

    def die(self: Still, seconds: float) -> Containerd:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Still, "restart", die)
        with pytest.raises(Killed):
            Handler(node, tmp_path).register(LAUNCHER)
    assert "kybernate" in seen(node)
    assert Handler(node, tmp_path).register(LAUNCHER) is True
    assert len(node.starts) == 1
    assert Handler(node, tmp_path).register(LAUNCHER) is False


def test_containerd_that_never_comes_back_leaves_the_mark_for_the_next(node: Still, tmp_path: Path) -> None:
    """Also with the old file it does not come back: the next installer starts it anew once more."""

    @dataclasses.dataclass(frozen=True)
    class Gone(Still):
        def restart(self, seconds: float) -> Containerd:
            raise NotBackError(seconds=1, how="ended by SIGTERM")

    node.config.write_text(PLAIN)
    gone = Gone(**{field.name: getattr(node, field.name) for field in dataclasses.fields(node)})
    with pytest.raises(NotBackError):
        Handler(gone, tmp_path).register(LAUNCHER)
    assert node.config.read_text() == PLAIN
    assert Handler(node, tmp_path).unregister() is True
    assert len(node.starts) == 1
