"""What a node needs, taken from the machine or image that this runs in: nothing of the node's own is relied on.

A program of ours runs on any distribution because it brings its loader along: `ld.so --library-path OWN PROGRAM` takes
no library of the node, so the node's libc may be older, newer or musl. Kernel and /bin/sh are all that is asked for.

    bin/kybernate-runc            the launcher (the shim's `install` writes it)
    bin/{criu,tar,gzip}           wrappers, found by runc through the launcher's PATH; CRIU calls tar, and tar gzip
    bin/kybernate-installer       this package, to be called on the node
    lib/                          hook, keeper, this package
    own/bin, own/so               the programs themselves, their libraries
    own/loader/NAME               the loader, once for each program: a process is known by this file's name
    own/python/{bin,lib}          the interpreter (a wrapper again: a keeper starts it by this name) and its library

A plan is a list of files; its hash names the version. Sources: ld.so(8); Python, Modules/getpath.py (how it finds
its library beside itself); criu/plugin.c (CRIU_LIBS_DIR).
"""

from __future__ import annotations

import compileall
import hashlib
import os
import py_compile
import re
import shutil
import struct
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kybernate.errors import ExternalError, NotFoundError

PROGRAMS = ("criu", "tar", "gzip")
_ENTRY = "import sys\nsys.path.insert(0, {lib!r})\nfrom kybernate_installer.__main__ import main\nsys.exit(main())\n"
_UNUSED = frozenset(
    {"ensurepip", "idlelib", "lib2to3", "pydoc_data", "test", "tkinter", "turtledemo", "venv", "sitecustomize.py"}
)
_LIST_SECONDS = 20.0
_PT_INTERP = 3
_LATE = ("libgcc_s.so.1",)  # what libc opens by itself when a thread is cancelled


class ProgramMissingError(NotFoundError):
    """{program} is not here, and nodes need it. Install from the image, which has it."""


class LibraryError(ExternalError):
    """{program}: the libraries it needs cannot be told: {reason}"""


@dataclass(frozen=True)
class Payload:
    """Files by their path in the version's folder. `python` is that of the interpreter's library: "3.11"."""

    files: dict[str, Path]
    python: str
    digest: str


def collect() -> Payload:
    """What this machine has to give. Raises ProgramMissingError, LibraryError, OSError."""
    interpreter = Path(os.path.realpath(getattr(sys, "_base_executable", "") or sys.executable))
    loader = _loader(interpreter)
    programs = {name: _find(name) for name in PROGRAMS}
    library = Path(sysconfig.get_path("stdlib"))
    files = {f"own/python/lib/{library.name}/{path.relative_to(library)}": path for path in _library(library)}
    extensions = [path for name, path in files.items() if name.endswith(".so")]
    libraries = _shared(loader, [interpreter, *programs.values(), *extensions])
    files |= {f"own/so/{name}": path for name, path in libraries.items()}
    files |= {f"own/loader/{name}": loader for name in ("python3", *programs)}
    files |= {f"own/bin/{name}": path for name, path in {"python3": interpreter, **programs}.items()}
    files |= _modules()
    return Payload(files, library.name, _digest(files))


def lay(payload: Payload, folder: Path, at: Path) -> None:
    """Write the files into `folder`, which will be called `at` when it is whole. Raises OSError."""
    for name, source in payload.files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        target.chmod(0o755 if name.startswith(("own/bin/", "own/loader/")) else 0o644)
        info = source.stat()
        os.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns))  # byte code is bound to its source's time
    (folder / "own/plugins").mkdir()
    scripts = {f"bin/{name}": _script(at, name, f"{at}/own/bin/{name}") for name in PROGRAMS}
    scripts["own/python/bin/python3"] = _script(at, "python3", python(at))
    scripts["bin/kybernate-installer"] = f'#!/bin/sh\nexec {" ".join(start(at))} -ISB {at}/lib/installer.py "$@"\n'
    for name, text in scripts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    (folder / "lib/installer.py").write_text(_ENTRY.format(lib=f"{at}/lib"))
    # Here, by this interpreter, which is the one that will run them: nothing is written into a version later.
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    compileall.compile_dir(folder / "lib", quiet=2, stripdir=folder, prependdir=at, invalidation_mode=mode)


def python(at: Path) -> str:
    """What an interpreter of this version takes for its own name, and finds its library by."""
    return f"{at}/own/python/bin/python3"


def start(at: Path, program: str = "python3", argv0: str = "") -> list[str]:
    """The words that start a program of the version at `at`."""
    loader = [f"{at}/own/loader/{program}", "--inhibit-cache", "--library-path", f"{at}/own/so"]
    return [*loader, "--argv0", argv0 or python(at), f"{at}/own/bin/{program}"]


def _script(at: Path, program: str, argv0: str) -> str:
    plugins = f"export CRIU_LIBS_DIR={at}/own/plugins\n" if program == "criu" else ""  # the node's are of another CRIU
    return f'#!/bin/sh\n{plugins}exec {" ".join(start(at, program, argv0))} "$@"\n'


def _find(program: str) -> Path:
    if found := shutil.which(program, path=os.defpath + ":/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin"):
        return Path(os.path.realpath(found))
    raise ProgramMissingError(program=program)


def _library(folder: Path) -> Iterable[Path]:
    """Python's own library without what only developers use; links that lead nowhere are left out."""
    for path in sorted(folder.rglob("*")):
        top = path.relative_to(folder).parts[0]
        if top not in _UNUSED and not top.startswith("config-") and path.is_file():
            yield path


def _modules() -> dict[str, Path]:
    """Ours, from beside this module's folder in the image, from their own folders in a checkout."""
    import kybernate_shim

    import kybernate.errors

    files: dict[str, Path] = {}
    for package in (Path(__file__).parent, Path(kybernate_shim.__file__).parent):
        sources = sorted([*package.glob("*.py"), *package.glob("*.sh")])
        files |= {f"lib/{package.name}/{path.name}": path for path in sources}
    errors = Path(kybernate.errors.__file__)
    return files | {f"lib/kybernate/{path.name}": path for path in (errors.with_name("__init__.py"), errors)}


def _loader(program: Path) -> Path:
    """The loader that the program asks for. Source: elf(5), Elf64_Phdr, PT_INTERP."""
    with program.open("rb") as file:
        head = file.read(64)
        if head[:5] != b"\x7fELF\x02":
            raise LibraryError(program=program, reason="it is no 64-bit ELF file")
        offset, size, count = struct.unpack_from("<Q", head, 32)[0], *struct.unpack_from("<HH", head, 54)
        for number in range(count):
            file.seek(offset + number * size)
            kind, _, at, _, _, length = struct.unpack("<IIQQQQ", file.read(40))
            if kind == _PT_INTERP:
                file.seek(at)
                return Path(os.path.realpath(file.read(length).rstrip(b"\0").decode()))
    raise LibraryError(program=program, reason="it has no loader")


def _shared(loader: Path, programs: Iterable[Path]) -> dict[str, Path]:
    """Every library that the loader would take for these, by name, and those that libc opens by itself."""
    found: dict[str, Path] = {}
    for program in programs:
        try:
            listed = subprocess.run(
                [loader, "--list", program], capture_output=True, text=True, timeout=_LIST_SECONDS, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise LibraryError(program=program, reason=error) from error
        if listed.returncode or "=> not found" in listed.stdout:
            raise LibraryError(program=program, reason=listed.stderr.strip() or listed.stdout.strip())
        for name, path in re.findall(r"^\s+([^\s/]+) => (/\S+) \(", listed.stdout, re.MULTILINE):
            found.setdefault(name, Path(path))
    beside = found["libc.so.6"].parent
    return found | {name: beside / name for name in _LATE if (beside / name).exists()}


def _digest(files: dict[str, Path]) -> str:
    """Of names and contents, and of how this module lays them out."""
    whole = hashlib.sha256(Path(__file__).read_bytes())
    for name in sorted(files):
        whole.update(f"{name}\0".encode())
        with files[name].open("rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()[:12]
