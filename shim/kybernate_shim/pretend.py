"""An exec that is not carried out: containerd gets the process that it asked for, which ends at once.

`runc exec --detach` leaves a process whose pid stands in the pid file; containerd's shim, which adopts orphans, becomes
its parent and hears of its end. A process of our own serves as well, if it ends only after we have: a parent that lives
would take its exit status.
"""

from __future__ import annotations

import json
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kybernate_shim.command import Command
    from kybernate_shim.wire import Message

_MOST_BYTES = 256 << 10  # of words; the agent takes lines up to a megabyte


def question(command: Command) -> Message:
    """What the agent is told of an exec: its words, whether it has a terminal, and our pid, which becomes runc's.

    A process file that cannot be read has no words: runc will say what is wrong with it.
    """
    asked: Message = {"container": command.container, "pid": os.getpid()}
    path = command.option("--process", "-p")
    if path is None:
        words, terminal = command.arguments[1:], command.has("--tty", "-t")
    else:
        try:
            with open(path) as file:
                process = json.load(file)
            words, terminal = process.get("args"), bool(process.get("terminal"))
        except (OSError, ValueError, AttributeError):
            return asked
    if not isinstance(words, list) or sum(len(str(word)) for word in words) > _MOST_BYTES:
        return asked
    return {**asked, "argv": words, "terminal": terminal}


def pretend(command: Command, code: int) -> int:
    """Stand a process in that ends with `code` as soon as this one has. Returns this one's exit status."""
    path = command.option("--pid-file")
    if path is None:
        return code
    gone, alive = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(alive)
        os.read(gone, 1)
        os._exit(code)
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, "." + name)
    with open(temporary, "w") as file:
        file.write(str(pid))
    os.rename(temporary, path)
    return 0
