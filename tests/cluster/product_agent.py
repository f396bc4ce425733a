"""The agent as it is, but it can be told to stop at a step of its journal, so that a test does something right then.

    AT=<file> python product_agent.py --config ...

The file holds `<when> <verb> <step>`: `after` stops right after the step was written, before anything of it is done;
`before` right before it is written. The agent takes the file away and sends itself SIGSTOP; SIGCONT lets it go on. What
happened meanwhile (a deletion, a call) meets it in the midst of that step. Without the file this is
`python -m kybernate_agent`.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from kybernate_agent.__main__ import main
from kybernate_agent.journal import Journal

AT = Path(os.environ["AT"])


def stop_if(when: str, verb: str, step: str) -> None:
    if AT.exists() and AT.read_text().split() == [when, verb, step]:
        AT.unlink()
        os.kill(os.getpid(), signal.SIGSTOP)


class HesitantJournal(Journal):
    def step(self, instance: str, verb: str, step: str, epoch: int, **detail: Any) -> None:
        stop_if("before", verb, step)
        super().step(instance, verb, step, epoch, **detail)
        stop_if("after", verb, step)


if __name__ == "__main__":
    import kybernate_agent.__main__ as agent

    vars(agent)["Journal"] = HesitantJournal
    sys.exit(main())
