"""Put the shim on a node: PREFIX/bin/kybernate-runc, the launcher, and PREFIX/lib, the modules, compiled.

A new version is written beside the old one and renamed into place, so a containerd that calls the launcher meanwhile
finds either; what is there already is left alone. Keepers that run go on with the code they were started with. In a
cluster each version has a prefix of its own, and a Python and a CRIU too (`kybernate_installer`).
"""

from __future__ import annotations

import argparse
import compileall
import filecmp
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from kybernate_shim.record import replace

ENTRIES = {
    "hook.py": "from kybernate_shim.hook import main\nmain({run!r}, {next!r}, {lib!r}, sys.argv[1:])\n",
    "keeper.py": "from kybernate_shim.keeper import main\nmain(sys.argv[1], int(sys.argv[2]))\n",
    "unrepair.py": "from kybernate_shim.unrepair import main\nsys.exit(main(sys.argv[1:]))\n",
    "postdump.py": "from kybernate_shim.postdump import main\nsys.exit(main({run!r}, *sys.argv[1:]))\n",
}
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def install(
    prefix: Path, run_dir: Path, next_runtime: Path, path: str = DEFAULT_PATH, python: str | Sequence[str] = ""
) -> Path:
    """Install into `prefix`; returns the launcher. `path` is what runc finds criu by; `python` an interpreter, or the
    words that start one.

    Raises ValueError for paths that are relative or hold spaces (CRIU's configuration knows no quoting that holds).
    """
    python = python or getattr(sys, "_base_executable", "") or sys.executable
    words = [python] if isinstance(python, str) else python
    for name, value in (("prefix", prefix), ("run-dir", run_dir), ("next-runtime", next_runtime)):
        if not value.is_absolute() or len(str(value).split()) != 1 or '"' in str(value):
            raise ValueError(f"--{name} {value}: an absolute path without spaces is needed")
    lib = prefix / "lib"
    _modules(lib, {"run": str(run_dir), "next": str(next_runtime), "lib": str(lib)})
    for folder in (run_dir, run_dir / "keepers", run_dir / "pids"):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    launcher = prefix / "bin" / "kybernate-runc"
    launcher.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    facts = {"PATH": [path], "RUN": [str(run_dir)], "NEXT": [str(next_runtime)], "PYTHON": words, "LIB": [str(lib)]}
    _script("post-dump.sh", lib / "post-dump", facts)
    _script("launcher.sh", launcher, facts)
    return launcher


def _script(template: str, target: Path, facts: dict[str, Sequence[str]]) -> None:
    text = Path(__file__).with_name(template).read_text()
    for name, words in facts.items():
        text = text.replace(f"@{name}@", shlex.join(words))
    replace(str(target), text, 0o755)
    target.chmod(0o755)


def _modules(lib: Path, facts: dict[str, str]) -> None:
    lib.mkdir(mode=0o755, parents=True, exist_ok=True)
    source = Path(__file__).parent
    if _same(source, lib / source.name):
        _entries(lib, facts)
        return
    with tempfile.TemporaryDirectory(dir=lib.parent, prefix=".lib-") as fresh:
        package = Path(fresh) / source.name
        package.mkdir(mode=0o755)
        for module in source.glob("*.py"):
            shutil.copyfile(module, package / module.name)
        compileall.compile_dir(package, quiet=2, stripdir=fresh, prependdir=lib)
        old = lib / source.name
        if old.exists():
            old.rename(Path(fresh) / "old")
        package.rename(old)
    _entries(lib, facts)


def _same(source: Path, installed: Path) -> bool:
    """Whether these very modules are there. Between the two renames of a replacement a hook call would find none."""
    names = sorted(module.name for module in source.glob("*.py"))
    if names != sorted(module.name for module in installed.glob("*.py")):
        return False
    return all(filecmp.cmp(source / name, installed / name, shallow=False) for name in names)


def _entries(lib: Path, facts: dict[str, str]) -> None:
    for name, text in ENTRIES.items():
        head = f"import sys\nsys.path.insert(0, {facts['lib']!r})\n"
        replace(str(lib / name), head + text.format(**facts), 0o644)


def uninstall(prefix: Path, run_dir: Path) -> None:
    """Remove what `install` made. Raises RuntimeError while a managed container still needs it."""
    keepers = run_dir / "keepers"
    if keepers.is_dir() and any(keepers.iterdir()):
        names = ", ".join(sorted(entry.name for entry in keepers.iterdir()))
        raise RuntimeError(f"managed containers exist: {names}. Delete them first")
    (prefix / "bin" / "kybernate-runc").unlink(missing_ok=True)
    for name in (*ENTRIES, "post-dump"):
        (prefix / "lib" / name).unlink(missing_ok=True)
    shutil.rmtree(prefix / "lib" / Path(__file__).parent.name, ignore_errors=True)
    for folder in (prefix / "bin", prefix / "lib", run_dir / "keepers", run_dir / "pids"):
        if folder.is_dir() and not os.listdir(folder):
            folder.rmdir()


def main() -> int:
    parser = argparse.ArgumentParser(prog="kybernate_shim.install", description="Install Kybernate's runtime shim.")
    parser.add_argument("--prefix", type=Path, default=Path("/opt/kybernate"))
    parser.add_argument("--run-dir", type=Path, default=Path("/run/kybernate"))
    parser.add_argument("--next-runtime", type=Path, default=Path(shutil.which("runc") or "/usr/sbin/runc"))
    parser.add_argument("--path", default=DEFAULT_PATH, help="PATH of runc and CRIU")
    parser.add_argument("--uninstall", action="store_true")
    chosen = parser.parse_args()
    try:
        if chosen.uninstall:
            uninstall(chosen.prefix, chosen.run_dir)
        else:
            print(install(chosen.prefix, chosen.run_dir, chosen.next_runtime, chosen.path))
    except (OSError, ValueError, RuntimeError) as error:
        print(f"kybernate_shim.install: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
