"""Wake an instance now, without a call."""

from __future__ import annotations

import argparse

from kybernate.cli import ordering

SUMMARY = "wake an instance"

arguments = ordering.arguments


def run(options: argparse.Namespace) -> int:
    return ordering.order("resume", options)
