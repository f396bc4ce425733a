"""The front of the program: from argv to a command, and from an error to an exit status."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from kybernate.cli import connection
from kybernate.cli.commands import (
    agent,
    apply,
    checkpoint,
    delete,
    demo,
    describe,
    doctor,
    exec,
    get,
    help,
    logs,
    park,
    restore,
    resume,
    suspend,
    version,
)
from kybernate.cli.exit_codes import INTERRUPTED
from kybernate.errors import KybernateError

COMMANDS: dict[str, ModuleType] = {
    module.__name__.rpartition(".")[2]: module
    for module in (
        apply,
        get,
        describe,
        logs,
        exec,
        suspend,
        park,
        resume,
        checkpoint,
        restore,
        delete,
        doctor,
        agent,
        demo,
        version,
        help,
    )
}
PASSED_ON = {"agent": agent, "demo": demo}
"""Programs of their own: whatever stands behind the name is theirs, `--help` too."""


def parser() -> argparse.ArgumentParser:
    """The whole command line but what is passed on."""
    top = argparse.ArgumentParser(
        prog="kybernate",
        description="Suspend and resume for workloads: what nobody uses gives back what it holds, and keeps its state.",
        epilog="`kybernate help COMMAND` says more; `kybernate help exit-codes` lists the exit statuses.",
    )
    connection.add_options(top, suppressed=False)
    # Behind the command as well; there without a default, which would overwrite what stands before the command.
    common = argparse.ArgumentParser(add_help=False)
    connection.add_options(common, suppressed=True)
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, module in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=module.SUMMARY,
            description=module.__doc__,
            parents=[common] if getattr(module, "TALKS_TO_AGENT", True) else [],
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.arguments(command)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status. Never returns where the command becomes another program."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments and arguments[0] in PASSED_ON:
            status: int = PASSED_ON[arguments[0]].pass_on(arguments[1:])
            return status
        dashes = arguments.index("--") if "exec" in arguments and "--" in arguments else len(arguments)
        options = parser().parse_args(arguments[:dashes])
        options.program = Path(sys.argv[0]).name
        options.behind_dashes = arguments[dashes:]  # argparse of each Python has its own idea of what becomes of --
        status = COMMANDS[options.command].run(options)
        sys.stdout.flush()
    except KybernateError as error:
        print(f"kybernate: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("kybernate: interrupted; what was ordered from the agent goes on", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read us has enough. Python would flush stdout once more at its end, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return status
