"""`python -m kybernate.lab.kubernetes`: the programs of a Kubernetes cluster, built once from their Go modules.

Kubernetes publishes no module that can be installed by name: its go.mod replaces its own libraries by folders of its
repository. A module of ours says the same with versions in place of folders, and `go build` compiles any program of it.
The programs lie in the cache, by the version of Kubernetes, outside of the tree:

    $XDG_CACHE_HOME/kybernate/kubernetes/1.34.4/{kube-apiserver,kubelet,kubectl,coredns,...}

Each is written beside its place and renamed, so it is whole or not there; a lock lets one build run at a time. The
first build of all takes about 12 minutes on 2 cores. Modules and objects lie in the cache too, several GB, until all
programs are there: a build that was interrupted goes on with them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kybernate.errors import ExternalError, KybernateError
from kybernate.lab.builds import alone
from kybernate.lab.images import cache
from kybernate.lab.process import ProgramError, ProgramMissingError, run

VERSION = "1.34.4"
COREDNS_VERSION = "1.12.1"
"""The one that this Kubernetes is released with. Source: kubernetes, cmd/kubeadm/app/constants."""
PROGRAMS = (
    "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl", "coredns",
)  # fmt: skip
_GO_FOLDERS = ("/usr/local/go/bin", "/usr/lib/go/bin")
_DOWNLOAD_SECONDS, _BUILD_SECONDS = 600.0, 3600.0


class BuildError(ExternalError):
    """{program} {version} could not be built: {reason}. Go fetches its modules once; is the network there?"""


@dataclass(frozen=True)
class _Module:
    """What one program is built from."""

    package: str
    path: str
    version: str
    flags: tuple[str, ...] = ()


def folder(version: str = VERSION) -> Path:
    """Where the programs of this version are, or will be."""
    return cache() / "kubernetes" / version


def programs(version: str = VERSION, say: Callable[[str], None] = print) -> Path:
    """The folder with all PROGRAMS of this version; what is missing is built. Raises BuildError."""
    target = folder(version)
    if missing := _missing(target):
        target.mkdir(parents=True, exist_ok=True)
        with alone(target.parent, target, say):
            missing = _missing(target)  # another one may have built them while this one waited
            for number, program in enumerate(missing, 1):
                say(f"builds {program}, {number} of {len(missing)} (once; the first takes minutes)")
                began = time.monotonic()
                _build(program, version, target)
                say(f"built {program}: {time.monotonic() - began:.0f} s")
            shutil.rmtree(_go_caches(), ignore_errors=True)
    return target


def _missing(target: Path) -> list[str]:
    return [program for program in PROGRAMS if not (target / program).exists()]


def _build(program: str, version: str, target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target, prefix=".making-") as making:
        try:
            module = _coredns(COREDNS_VERSION) if program == "coredns" else _kubernetes(program, version)
            Path(making, "go.mod").write_text(_go_mod(module))
            Path(making, "tools.go").write_text(f'package tools\n\nimport _ "{module.package}"\n')
            # At a low priority: a build of minutes must not starve what else the machine does.
            argv = ["nice", "-n", "5", _go(), "-C", making, "build", "-mod=mod", "-trimpath", *module.flags]
            run(
                [*argv, "-o", f"{making}/{program}", module.package],
                deadline_seconds=_BUILD_SECONDS,
                env=_environment(),
            )
        except ProgramError as error:
            raise BuildError(program=program, version=version, reason=error.stderr[-1500:]) from error
        os.replace(Path(making, program), target / program)


def _kubernetes(program: str, version: str) -> _Module:
    """The version is what the program says of itself, and by which the components judge each other's."""
    major, minor, *_ = version.split(".")
    stamp = "k8s.io/component-base/version"
    facts = {"gitVersion": f"v{version}", "gitMajor": major, "gitMinor": minor}
    link = " ".join(["-s", "-w", *(f"-X {stamp}.{key}={value}" for key, value in facts.items())])
    return _Module(f"k8s.io/kubernetes/cmd/{program}", "k8s.io/kubernetes", f"v{version}", ("-ldflags", link))


def _coredns(version: str) -> _Module:
    path = "github.com/coredns/coredns"
    return _Module(path, path, f"v{version}", ("-ldflags", "-s -w"))


def _go_mod(module: _Module) -> str:
    """A go.mod that needs this module alone, and replaces what the module replaces by a folder of its own.

    Kubernetes 1.x.y goes with its libraries' 0.x.y. Source: kubernetes, staging/README.md.
    """
    download = [_go(), "mod", "download", "-json", f"{module.path}@{module.version}"]
    said = run(download, deadline_seconds=_DOWNLOAD_SECONDS, env=_environment())
    theirs = Path(json.loads(said)["GoMod"]).read_text()
    language = next(line for line in theirs.splitlines() if line.startswith("go "))
    staged = re.findall(r"^\s*(\S+) => \./staging/", theirs, re.MULTILINE)
    library = module.version.replace("v1.", "v0.", 1)
    lines = ["module lab", language, f"require {module.path} {module.version}"]
    return "\n".join([*lines, *(f"replace {name} => {name} {library}" for name in staged), ""])


def _go_caches() -> Path:
    return cache() / "go"


def _environment() -> dict[str, str]:
    """Go's caches inside of ours, writable, so that they can be removed; programs that need no libc."""
    caches = {"GOCACHE": str(_go_caches() / "objects"), "GOMODCACHE": str(_go_caches() / "modules")}
    return {**os.environ, **caches, "CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false -modcacherw"}


def _go() -> str:
    """The Go that compiles; one older than a module asks for fetches the right one. Raises ProgramMissingError."""
    path = os.pathsep.join([os.environ.get("PATH", ""), *_GO_FOLDERS])
    if found := shutil.which("go", path=path):
        return found
    raise ProgramMissingError(program="go (golang-go)")


def main() -> int:
    try:
        print(programs(say=lambda line: print(f"kubernetes: {line}", flush=True)))
    except KybernateError as error:
        print(f"kubernetes: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
