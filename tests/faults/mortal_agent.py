"""The agent as it is, but it can be told to die at a step of its journal.

    AT=<file> python mortal_agent.py --config ...

The file holds `<when> <verb> <step>`: `after` kills right after the step was written, before anything of it is done;
`before` kills right before it is written, when everything of the step before it is done. Three moments are no steps:
`before <verb> settle` (all is done, nothing is settled), `before end forget` (the instance is gone, its record not) and
`before create answer` (the hook has asked whether to start or to restore). The agent takes the file away and sends
itself SIGKILL: it is told once and has no chance to put anything in order. Without the file this is
`python -m kybernate_agent`.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from kybernate_agent import life
from kybernate_agent.__main__ import main
from kybernate_agent.actor import Actor
from kybernate_agent.instance import Record
from kybernate_agent.journal import Journal
from kybernate_agent.life import prepare_create as answer_create

AT = Path(os.environ["AT"])


def die_if(when: str, verb: str, step: str) -> None:
    if AT.exists() and AT.read_text().split() == [when, verb, step]:
        AT.unlink()
        os.kill(os.getpid(), signal.SIGKILL)


class MortalJournal(Journal):
    def step(self, instance: str, verb: str, step: str, epoch: int, **detail: Any) -> None:
        die_if("before", verb, step)
        super().step(instance, verb, step, epoch, **detail)
        die_if("after", verb, step)

    def settle(self, record: Record) -> None:
        if steps := self.steps(record.id):
            die_if("before", steps[-1].verb, "settle")
        super().settle(record)

    def forget(self, instance: str) -> None:
        die_if("before", "end", "forget")
        super().forget(instance)


async def prepare_create(actor: Actor, bundle: Path) -> dict[str, str]:
    die_if("before", "create", "answer")
    return await answer_create(actor, bundle)


if __name__ == "__main__":
    import kybernate_agent.__main__ as agent

    vars(agent)["Journal"] = MortalJournal
    vars(life)["prepare_create"] = prepare_create
    sys.exit(main())
