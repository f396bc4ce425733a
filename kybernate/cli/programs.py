"""Commands that are programs of their own: this process becomes them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence


def become_module(module: str, arguments: Sequence[str]) -> int:
    """Run `python -m module` in place of this process, in the same Python."""
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])  # noqa: S606  # an argv, no shell
