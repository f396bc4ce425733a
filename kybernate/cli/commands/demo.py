"""Show the whole path on this machine: a model server goes to sleep and comes back, with the times beside it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from kybernate.cli.programs import become_module

SUMMARY = "show a model server going to sleep and coming back"
TALKS_TO_AGENT = False


def arguments(parser: argparse.ArgumentParser) -> None:
    """None of our own: `pass_on` gives the demo what is its."""


def run(options: argparse.Namespace) -> int:
    return pass_on([])


def pass_on(arguments: Sequence[str]) -> int:
    """Become the demo."""
    return become_module("kybernate.lab.demo", arguments)
