"""containerd's configuration with our runtime handler in it, and without. Pure: text and tables in, text out.

What people and programs wrote stays as it is, byte for byte. Ours is one block at the end, between two marks:

    # >>> kybernate: written by its installer, which also takes it out again
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.kybernate]
    ...
    # <<< kybernate

Where a file had no last line end, or was not there at all, the first mark says so, so that taking out gives back what
was there. The handler is a copy of the runtime that the node uses by default (so it has its cgroup driver, its state
folder, whatever else was set) with our launcher in place of its program; that program is what the launcher calls next.

**containerd 1.7 drops its built-in runc as soon as a file names any runtime** (2.1 does not; both tried). Where ours is
the first one named, the block has to spell out those that were there before.

The names of tables follow the file's own `version`; containerd 1.7 reads 1 and 2, containerd 2 reads all of them.
Sources: containerd, docs/cri/config.md, docs/PLUGINS.md; TOML 1.0.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from typing import Any

from kybernate.errors import InvalidError

HANDLER = "kybernate"
RUNTIME_TYPE = "io.containerd.runc.v2"
ANNOTATIONS = "kybernate.io/*"
_BEGIN = "# >>> kybernate: written by its installer, which also takes it out again"
_NO_END = " (the line before had no end)"
_NO_FILE = " (there was no file)"
_END = "# <<< kybernate\n"
_BLOCK = re.compile(
    f"(?P<cut>\\n?){re.escape(_BEGIN)}(?P<note>{re.escape(_NO_END)}|{re.escape(_NO_FILE)}|)\n.*?{re.escape(_END)}",
    re.DOTALL,
)
_PLUGINS = {1: "cri", 2: "io.containerd.grpc.v1.cri", 3: "io.containerd.cri.v1.runtime"}
_OF_THE_PROGRAM = ("runtime_path", "runtime_engine", "runtime_root")
_OPTIONS_OF_THE_PROGRAM = ("CriuPath", "CriuImagePath", "CriuWorkPath")

Table = dict[str, Any]


class ConfigurationError(InvalidError):
    """{file}: {reason}"""


def parse(text: str, file: object) -> Table:
    """Raises ConfigurationError."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(file=file, reason=f"is no TOML: {error}") from error


def without_block(text: str | None) -> str | None:
    """The text as it was before ours was put in; None: there was no file."""
    if text is None:
        return None
    block = _BLOCK.search(text)
    if block is None:
        return text
    keep = "" if block["note"] == _NO_END else block["cut"]
    rest = text[: block.start()] + keep + text[block.end() :]
    return None if block["note"] == _NO_FILE and not rest else rest


def with_block(text: str | None, tables: str, version: int) -> str:
    """The text with a block that holds these tables. `version` is for a file that is not there yet."""
    if text is None:
        return f"{_BEGIN}{_NO_FILE}\nversion = {version}\n{tables}{_END}"
    cut, note = ("\n", _NO_END) if text and not text.endswith("\n") else ("", "")
    return f"{text}{cut}{_BEGIN}{note}\n{tables}{_END}"


def version_of(config: Mapping[str, Any], dump: Mapping[str, Any]) -> int:
    """The version of a file that containerd dumps as `dump`. One that says none is of version 1 to containerd 1.7,
    whose dumps are of version 2, and of the newest to containerd 2."""
    newest = int(dump.get("version", 2))
    return int(config.get("version", 1 if newest == 2 else newest))


def runtimes(config: Mapping[str, Any]) -> dict[str, Table]:
    """The runtime handlers in a configuration or in a dump of one, whatever its version. Empty without the plugin."""
    return dict(_section(config).get("runtimes", {}))


def default_runtime(dump: Mapping[str, Any]) -> Table:
    """The runtime that pods without a RuntimeClass get, where it is of runc's kind; else the one called runc."""
    known = runtimes(dump)
    for name in (_section(dump).get("default_runtime_name") or "runc", "runc"):
        if known.get(name, {}).get("runtime_type") == RUNTIME_TYPE:
            found: Table = trimmed(known[name])
            return found
    return {"runtime_type": RUNTIME_TYPE}


def next_runtime(dump: Mapping[str, Any]) -> str:
    """The program of the default runtime: a path, or a name to be looked up."""
    return str(default_runtime(dump).get("options", {}).get("BinaryName") or "runc")


def ours(dump: Mapping[str, Any], launcher: str) -> Table:
    """The handler `kybernate` for a containerd whose configuration without it is dumped as `dump`."""
    runtime = {key: value for key, value in default_runtime(dump).items() if key not in _OF_THE_PROGRAM}
    for key in ("pod_annotations", "container_annotations"):
        runtime[key] = [*(it for it in runtime.get(key, []) if it != ANNOTATIONS), ANNOTATIONS]
    options = {key: value for key, value in runtime.get("options", {}).items() if key not in _OPTIONS_OF_THE_PROGRAM}
    return {**runtime, "options": {**options, "BinaryName": launcher}}


def tables(version: int, handlers: Mapping[str, Table]) -> str:
    """The handlers as TOML, for a file of this version."""
    if version not in _PLUGINS:
        known = ", ".join(map(str, _PLUGINS))
        raise ConfigurationError(file="containerd's configuration", reason=f"version {version} is none of {known}")
    plugin = _PLUGINS[version]
    head = ["plugins", plugin, "containerd", "runtimes"]
    return "".join(_table([*head, name], trimmed(handler)) for name, handler in handlers.items())


def trimmed(value: Any) -> Any:
    """Without what is empty, false or zero: containerd's dumps list every field there is."""
    if isinstance(value, dict):
        kept = {key: trimmed(item) for key, item in value.items()}
        return {key: item for key, item in kept.items() if item or (isinstance(item, dict) and key == "options")}
    return value


def _section(config: Mapping[str, Any]) -> Table:
    plugins = config.get("plugins", {})
    for plugin in reversed(_PLUGINS.values()):
        if section := plugins.get(plugin, {}).get("containerd"):
            return dict(section)
    return {}


def _table(path: list[str], content: Mapping[str, Any]) -> str:
    lines = [f"[{'.'.join(map(_key, path))}]"]
    lines += [f"  {_key(key)} = {_value(item)}" for key, item in content.items() if not isinstance(item, dict)]
    below = [_table([*path, key], item) for key, item in content.items() if isinstance(item, dict)]
    return "\n".join(lines) + "\n" + "".join(below)


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name)


def _value(value: Any) -> str:
    """Strings, truth values, numbers and lists of them are written alike in TOML and JSON (basic strings)."""
    return json.dumps(value, ensure_ascii=False)
