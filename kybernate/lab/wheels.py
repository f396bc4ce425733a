"""Locked Python wheels, installed into a folder for the Python of the images.

The lock is a requirements file with a hash for every wheel; pip refuses whatever has another. What was installed once
stays in the cache, under the hash of the lock and the Python version, and needs no network again.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from pathlib import Path

from kybernate.errors import ExternalError
from kybernate.lab.builds import plain_modes
from kybernate.lab.process import ProgramError, run


class WheelsError(ExternalError):
    """The wheels of {requirements} could not be installed: {reason}. They are downloaded once; is the network there?"""


def installed(requirements: Path, cache: Path) -> Path:
    """The folder with the wheels of this lock, for the /usr/bin/python3 of this machine. Raises WheelsError."""
    version = run(["/usr/bin/python3", "-IS", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]).strip()
    key = hashlib.sha256(requirements.read_bytes() + version.encode()).hexdigest()[:32]
    target = cache / "wheels" / key
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with plain_modes(), tempfile.TemporaryDirectory(dir=target.parent, prefix=".making-") as making:
            argv = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
            only = ["--only-binary", ":all:", "--no-deps", "--python-version", version, "--require-hashes"]
            try:
                run([*argv, *only, "--target", f"{making}/wheels", "-r", requirements], deadline_seconds=600)
            except ProgramError as error:
                raise WheelsError(requirements=requirements, reason=error.stderr) from error
            os.replace(f"{making}/wheels", target)
    return target
