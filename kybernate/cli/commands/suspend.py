"""Freeze an instance in memory; the next call wakes it within milliseconds."""

from __future__ import annotations

import argparse

from kybernate.cli import ordering

SUMMARY = "freeze an instance in memory"

arguments = ordering.arguments


def run(options: argparse.Namespace) -> int:
    return ordering.order("suspend", options)
