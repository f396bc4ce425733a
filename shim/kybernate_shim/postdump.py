"""CRIU's question after a dump, before it ends the processes: are the images safe?

Called by the post-dump script with: RUN, the container, the images' folder, a moment (monotonic seconds). Exit 0 only
when the agent has said "committed" by then; anything else, no agent too, is a veto: CRIU then undoes the dump and the
application runs on.
"""

from __future__ import annotations

import os
import sys
import time

from kybernate_shim import wire


def main(run: str, container: str, images: str, until: str) -> int:
    request = {"verb": "post-dump", "container": container, "images": images}
    try:
        reply = wire.ask(f"{run}/hook.sock", request, max(float(until) - time.monotonic(), 0.001))
    except (wire.Unreachable, wire.NoAnswer) as error:
        print(f"veto: {error}", file=sys.stderr)
        return 1
    if reply.get("ok") is not True:
        print(f"veto: {reply.get('message', reply)}", file=sys.stderr)
        return 1
    os.close(os.open(f"{run}/keepers/{container}/committed", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    return 0
