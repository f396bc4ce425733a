"""List the instances: state, the tier that their state lives in, what comes next, and how the last wake went."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from kybernate.cli import output, view
from kybernate.cli.connection import connect

if TYPE_CHECKING:
    from kybernate.agentapi._pb import agent_pb2 as pb

SUMMARY = "list instances"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name", nargs="?", default="", help="only this instance (chat-0), or those of this workload (chat)"
    )
    parser.add_argument("-w", "--watch", action="store_true", help="go on with every change, a line each")
    output.add_format(parser)


def run(options: argparse.Namespace) -> int:
    with connect(options) as client:
        if options.watch:
            if options.name:
                client.find(options.name)  # what does not exist is an error, not an endless silence
            _follow(client.watch(options.name), options.output, _table(options), options.all_namespaces)
            return 0
        found = client.find(options.name) if options.name else client.instances()
    if options.output != "table":
        view.print_all(found, options.output, one=bool(options.name) and len(found) == 1)
    elif not found:
        print("No instances. `kybernate apply -f FILE` makes some.")
    else:
        print("\n".join(_lines(_table(options), found, options.all_namespaces)))
    return 0


def _table(options: argparse.Namespace) -> output.Table:
    return output.Table((*view.HEADER, "NAMESPACE") if options.all_namespaces else view.HEADER)


def _row(instance: pb.Instance, namespaces: bool, state: str = "") -> list[str]:
    return [*view.row(instance, state), *([instance.namespace] if namespaces else [])]


def _lines(table: output.Table, instances: list[pb.Instance], namespaces: bool) -> list[str]:
    rows = [_row(instance, namespaces) for instance in instances]
    return table.lines(rows, [view.colours(instance.state) for instance in instances])


def _follow(events: Iterator[pb.WatchEvent], form: str, table: output.Table, namespaces: bool) -> None:
    """What exists at once, as the widths of the table need it; then each change."""
    from kybernate.agentapi._pb.agent_pb2 import WatchEvent

    existing: list[pb.Instance] | None = []
    for event in events:
        if form != "table":
            _print_event(event, form)
        elif event.type == WatchEvent.SYNCED:
            print("\n".join(_lines(table, existing or [], namespaces)), flush=True)
            existing = None
        elif existing is not None:
            existing.append(event.instance)
        else:
            state = "Deleted" if event.type == WatchEvent.DELETED else event.instance.state
            print(table.line(_row(event.instance, namespaces, state), view.colours(state)), flush=True)


def _print_event(event: pb.WatchEvent, form: str) -> None:
    """JSON: one line an event; YAML: one document an event."""
    if not event.HasField("instance"):
        return
    data = {"type": event.Type.Name(event.type), "instance": view.plain(event.instance)}
    if form == "json":
        print(json.dumps(data, ensure_ascii=False), flush=True)
    else:
        print("---")
        output.print_data(data, form)
