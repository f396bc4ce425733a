"""Everything about an instance, or each of a workload: where it stands, what it went through, and what a person should
know.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from kybernate.cli import output, view
from kybernate.cli.connection import connect
from kybernate.cli.output import RED, YELLOW, paint, size

if TYPE_CHECKING:
    from kybernate.agentapi._pb import agent_pb2 as pb

SUMMARY = "show everything about an instance"
_OF_ONE_MACHINE = ("Image", "Container", "Sandbox", "Process")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="an instance (chat-0), or a workload (chat): each of its instances")


def run(options: argparse.Namespace) -> int:
    with connect(options) as client:
        found = client.find(options.name)
    print("\n\n\n".join("\n".join(_lines(instance)) for instance in found))
    return 0


def _lines(instance: pb.Instance) -> Iterator[str]:
    state = paint(instance.state, view.colours(instance.state)[view.STATE_COLUMN])
    since = view.when(instance, "since")
    facts = {
        "Name": instance.name,
        "Workload": instance.workload,
        "Namespace": instance.namespace,
        "State": f"{state} since {since} ({view.ago(instance, 'since')})" if since else state,
        "Tier": instance.tier or "-",
        "Next": view.next_step(instance),
        "Memory": size(instance.ram_bytes),
        "Stored": size(instance.stored_bytes),
        "Last activity": view.ago(instance, "last_activity"),
        "Last wake": view.last_wake(instance),
        "Epoch": str(instance.epoch),
        "Image": instance.image,
        **({"Node": instance.node} if instance.node else {}),
        "Pod": f"{instance.uid or '-'}, {instance.ip or 'no address'}",
        "Container": instance.container_id or "-",
        "Sandbox": instance.sandbox_id or "-",
        "Process": str(instance.pid or "-"),
    }
    if instance.node:  # a cluster's API says nothing of these
        facts = {name: value for name, value in facts.items() if value not in ("", "-") or name not in _OF_ONE_MACHINE}
    yield from (f"{name + ':':<15} {value}" for name, value in facts.items())
    yield from _section("Conditions", ("TYPE", "STATUS", "SINCE", "REASON", "MESSAGE"), [
        [each.type, each.status, view.ago(each, "last_transition"), each.reason, each.message]
        for each in instance.conditions
    ])  # fmt: skip
    yield from _section("History", ("WHEN", "STEP", "FROM", "TO", "SECONDS", "OUTCOME", "DETAILS"), [
        [view.ago(each, "at"), each.verb, each.from_state, each.to_state, f"{each.seconds:.3f}", each.outcome,
         _details(each)]
        for each in instance.history
    ], [{5: RED} if each.outcome == "failed" else {} for each in instance.history])  # fmt: skip
    yield from _section("Events", ("WHEN", "TYPE", "REASON", "MESSAGE"), [
        [view.ago(each, "at"), each.type, each.reason, each.message] for each in instance.events
    ], [{1: YELLOW} if each.type == "Warning" else {} for each in instance.events])  # fmt: skip


def _details(transition: pb.Transition) -> str:
    longest_first = sorted(transition.phase_seconds.items(), key=lambda phase: -phase[1])
    phases = ", ".join(f"{name} {seconds:.3f}" for name, seconds in longest_first)
    return "; ".join(part for part in (transition.message, phases) if part)


def _section(
    title: str, header: tuple[str, ...], rows: list[list[str]], colours: list[dict[int, int]] | None = None
) -> Iterator[str]:
    if rows:
        yield ""
        yield f"{title}:"
        yield from (f"  {line}" for line in output.Table(header).lines(rows, colours or ()))
