"""Print the version of this program."""

from __future__ import annotations

import argparse
import platform

from kybernate import __version__

SUMMARY = "print the version"
TALKS_TO_AGENT = False


def arguments(parser: argparse.ArgumentParser) -> None:
    """None."""


def run(options: argparse.Namespace) -> int:
    print(f"kybernate {__version__} (Python {platform.python_version()}, {platform.machine()})")
    return 0
