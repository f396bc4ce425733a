"""Generate the stubs in `_pb/` from `agent.proto`: `python -m kybernate.agentapi.generate` (needs the dev extras).

protoc sees the .proto under the path where its stubs live, `kybernate/agentapi/_pb/agent.proto`, so the generated
imports are those of the package and nothing has to be rewritten. A test holds the committed stubs equal to this.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACKAGE_ROOT = HERE.parent.parent
VIRTUAL_FOLDER = "kybernate/agentapi/_pb"


def generate(root: Path) -> None:
    """Write the stubs below `root`, as `<root>/kybernate/agentapi/_pb/agent_pb2*`.

    Raises RuntimeError when protoc refuses; its reasons are on stderr.
    """
    import grpc_tools  # type: ignore[import-untyped]  # a development dependency, which the stubs do not need
    from grpc_tools import protoc

    programs = Path(sys.executable).parent
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    (root / VIRTUAL_FOLDER).mkdir(parents=True, exist_ok=True)
    arguments = [
        "protoc",
        f"--proto_path={VIRTUAL_FOLDER}={HERE}",
        f"--proto_path={well_known}",
        *(f"--plugin={plugin}={programs / plugin}" for plugin in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")),
        f"--python_out={root}",
        f"--grpc_python_out={root}",
        f"--mypy_out=quiet:{root}",
        f"--mypy_grpc_out=quiet:{root}",
        f"{VIRTUAL_FOLDER}/agent.proto",
    ]
    if protoc.main(arguments) != 0:
        raise RuntimeError(f"protoc refused {HERE / 'agent.proto'}")


if __name__ == "__main__":
    generate(PACKAGE_ROOT)
    sys.exit(0)
