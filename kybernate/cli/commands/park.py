"""Move an instance's state to disk and give its memory back; the next call wakes it."""

from __future__ import annotations

import argparse

from kybernate.cli import ordering

SUMMARY = "move an instance's state to disk, give its memory back"

arguments = ordering.arguments


def run(options: argparse.Namespace) -> int:
    return ordering.order("park", options)
