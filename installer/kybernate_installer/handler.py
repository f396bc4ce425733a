"""Registering our runtime handler with a node's containerd, and taking it out. Every moment is good to be killed at.

    plan      the new text: what others wrote, and our block made from what containerd makes of it      changes nothing
    prove     containerd itself reads the new text from a file beside; its dump must be the old one with our
              handler added, and nothing else                                                         changes nothing
    switch    STATE/restart-pending is written, then the file is renamed into place
    restart   containerd starts anew and serves with its CRI plugin; then the mark goes

A mark that is found says that the file was switched by somebody who was killed: then containerd is started anew though
nothing is to be written. If containerd does not come back, the old text does, and the new one is remembered in
STATE/refused-handler, so that trying again and again does not start containerd again and again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from kybernate.errors import KybernateError, RefusedError
from kybernate_installer import configuration
from kybernate_installer.configuration import HANDLER, ConfigurationError, Table
from kybernate_installer.containerd import BACK_SECONDS, Containerd

_ORIGINAL = ".before-kybernate"


class ForeignHandlerError(RefusedError):
    """{file} has a runtime handler `kybernate` that this installer did not write. Take it out of the file first."""


class WouldChangeMoreError(RefusedError):
    """{file}: with our handler in it containerd would read {what} differently. Nothing was changed."""


class HiddenError(RefusedError):
    """{file}: containerd does not see our handler in it; a file that it imports has the CRI plugin's section, and wins.

    Nothing was changed. Move that section into {file}."""


class KnownRefusalError(RefusedError):
    """{file}: containerd did not come back with our handler in it, and the file is the same. Nothing was tried again.

    The reason was: {reason} Remove {mark} to have it tried again."""


class Handler:
    """Our handler in the configuration of one containerd, which is back within `patience` seconds after a restart.

    `state` is a folder for the two marks."""

    def __init__(self, containerd: Containerd, state: Path, patience: float = BACK_SECONDS) -> None:
        self.containerd = containerd
        self._patience = patience
        self.file = containerd.config
        self._pending = state / "restart-pending"
        self._refused = state / "refused-handler"

    def dump(self) -> Table:
        """What containerd makes of its file without ours. Raises ConfigurationError, RefusedConfigurationError."""
        return self._dump(configuration.without_block(self._read()))

    def register(self, launcher: str) -> bool:
        """Have containerd offer the handler with this launcher. Returns whether containerd was started anew.

        Raises the errors above, those of `configuration` and `containerd`, OSError. Then the file is as it was.
        """
        text = self._read()
        base = configuration.without_block(text)
        if base is not None and HANDLER in configuration.runtimes(configuration.parse(base, self.file)):
            raise ForeignHandlerError(file=self.file)
        wanted = self._plan(base, launcher)
        return self._change(text, wanted)

    def unregister(self) -> bool:
        """Take the handler out. Returns whether containerd was started anew."""
        text = self._read()
        done = self._change(text, configuration.without_block(text))
        self.file.with_name(self.file.name + _ORIGINAL).unlink(missing_ok=True)
        self._refused.unlink(missing_ok=True)
        return done

    def _plan(self, base: str | None, launcher: str) -> str:
        """The file with ours. Runtimes that containerd has by itself, and drops when one is named, are spelled out."""
        before = self._dump(base)
        version = configuration.version_of(before if base is None else configuration.parse(base, self.file), before)
        handlers = {HANDLER: configuration.ours(before, launcher)}
        text = configuration.with_block(base, configuration.tables(version, handlers), version)
        after = self._dump(text)
        lost = configuration.runtimes(before).keys() - configuration.runtimes(after).keys()
        if lost:
            handlers |= {name: configuration.runtimes(before)[name] for name in sorted(lost)}
            text = configuration.with_block(base, configuration.tables(version, handlers), version)
            after = self._dump(text)
        self._compare(before, after, launcher)
        return text

    def _compare(self, before: Table, after: Table, launcher: str) -> None:
        found = configuration.runtimes(after).get(HANDLER, {})
        if found.get("options", {}).get("BinaryName") != launcher:
            raise HiddenError(file=self.file)
        old, new = _facts(before), _facts(after)
        if changed := sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name)):
            raise WouldChangeMoreError(file=self.file, what=", ".join(changed))

    def _change(self, text: str | None, wanted: str | None) -> bool:
        if text == wanted:
            if not self._pending.exists():
                return False
            self.containerd.restart(self._patience)
            self._pending.unlink(missing_ok=True)
            return True
        mark = hashlib.sha256(f"{self.containerd.program}\0{wanted}".encode()).hexdigest()
        with contextlib.suppress(FileNotFoundError):
            known, _, reason = self._refused.read_text().partition(" ")
            if known == mark:
                raise KnownRefusalError(file=self.file, reason=reason, mark=self._refused)
        _write(self._pending, "the configuration was changed\n")
        if text is not None and text == configuration.without_block(text):
            _write(self.file.with_name(self.file.name + _ORIGINAL), text, like=self.file)
        self._put(wanted)
        try:
            self.containerd.restart(self._patience)
        except KybernateError as error:
            _write(self._refused, f"{mark} {error}")
            self._put(text)
            self.containerd.restart(self._patience)
            self._pending.unlink(missing_ok=True)
            raise
        self._pending.unlink(missing_ok=True)
        return True

    def _put(self, text: str | None) -> None:
        if text is None:
            self.file.unlink(missing_ok=True)
        else:
            _write(self.file, text, like=self.file)

    def _read(self) -> str | None:
        try:
            return self.file.read_bytes().decode()
        except FileNotFoundError:
            return None
        except UnicodeDecodeError as error:
            raise ConfigurationError(file=self.file, reason=f"is no UTF-8: {error}") from error

    def _dump(self, text: str | None) -> Table:
        """What containerd makes of this text, in a file beside its own: `imports` may be relative. None is as empty."""
        with _beside(self.file, text or "") as file:
            return self.containerd.dump(file)


def _facts(dump: Table) -> Table:
    """A dump as names and values, without ours and without the list of the files it came from."""
    facts: Table = {}
    for name, value in _leaves(configuration.trimmed(dump), ""):
        if not name.startswith(("imports", "version")) and f".runtimes.{HANDLER}." not in name:
            facts[name] = value
    return facts


def _leaves(value: object, name: str) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{name}.{key}" if name else key)
    else:
        yield name, value


@contextlib.contextmanager
def _beside(file: Path, text: str) -> Iterator[Path]:
    file.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    for left in file.parent.glob(f".{file.name}.kybernate-*"):
        left.unlink(missing_ok=True)
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.kybernate-")
    try:
        with open(handle, "w") as out:
            out.write(text)
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def _write(file: Path, text: str, like: Path | None = None) -> None:
    """Replace a file at once and for good, with the owner and mode of `like`."""
    with _beside(file, text) as fresh:
        fresh.chmod(0o644)
        if like and like.exists():
            info = like.stat()
            os.chown(fresh, info.st_uid, info.st_gid)
            fresh.chmod(info.st_mode & 0o7777)
        with fresh.open("rb") as handle:
            os.fsync(handle.fileno())
        os.replace(fresh, file)
    folder = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
