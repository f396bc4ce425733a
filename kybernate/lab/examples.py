"""The images of `examples/`: this machine's Python, locked wheels, and the example's own program."""

from __future__ import annotations

from pathlib import Path

from kybernate.lab.images import Image, python_image

FOLDER = Path(__file__).resolve().parents[2] / "examples"
MODEL_SERVER = "localhost/kybernate-model-server:1"
NOTEBOOK = "localhost/kybernate-notebook:1"


def model_server() -> Image:
    """Raises debian.PackageMissingError, wheels.WheelsError."""
    folder = FOLDER / "model-server"
    return python_image(
        MODEL_SERVER, files={"app.py": folder / "server.py"}, requirements=folder / "requirements.lock"
    )  # fmt: skip


def notebook() -> Image:
    """A Jupyter server; its token comes from the environment. Raises as `model_server`."""
    words = ["/usr/bin/python3", "-u", "-m", "jupyter_server", "--ip=0.0.0.0", "--port=8888", "--allow-root"]
    cmd = [*words, "--ServerApp.root_dir=/root", "--ServerApp.terminals_enabled=False"]
    return python_image(NOTEBOOK, requirements=FOLDER / "notebook" / "requirements.lock", cmd=cmd)
