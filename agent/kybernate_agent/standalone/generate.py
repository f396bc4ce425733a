"""Generate the stubs in `_pb/` from `cri.proto`: `python -m kybernate_agent.standalone.generate` (the dev extras).

protoc sees the .proto under the path where its stubs live, so that the generated imports are those of the package. A
test holds the committed stubs equal to this.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACKAGE_ROOT = HERE.parent.parent
VIRTUAL_FOLDER = "kybernate_agent/standalone/_pb"


def generate(root: Path) -> None:
    """Write the stubs below `root`. Raises RuntimeError when protoc refuses; its reasons are on stderr."""
    import grpc_tools  # type: ignore[import-untyped]  # a development dependency, which the stubs do not need
    from grpc_tools import protoc

    programs = Path(sys.executable).parent
    (root / VIRTUAL_FOLDER).mkdir(parents=True, exist_ok=True)
    arguments = [
        "protoc",
        f"--proto_path={VIRTUAL_FOLDER}={HERE}",
        f"--proto_path={Path(grpc_tools.__file__).parent / '_proto'}",
        *(f"--plugin={plugin}={programs / plugin}" for plugin in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")),
        f"--python_out={root}",
        f"--grpc_python_out={root}",
        f"--mypy_out=quiet:{root}",
        f"--mypy_grpc_out=quiet:{root}",
        f"{VIRTUAL_FOLDER}/cri.proto",
    ]
    if protoc.main(arguments) != 0:
        raise RuntimeError(f"protoc refused {HERE / 'cri.proto'}")


if __name__ == "__main__":
    generate(PACKAGE_ROOT)
    sys.exit(0)
