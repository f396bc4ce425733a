"""`python -m kybernate.lab.demo [--keep] [--cluster]`: a model server goes to sleep and comes back, live.

All of it is real and none of it stays: a containerd of its own, the installed shim, the agent, and a server with a
loaded model. Every figure is measured while it is shown; what should hold and does not ends the demo with an error.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from kybernate.agentapi.client import AgentClient
from kybernate.errors import DeadlineError, ExternalError, KybernateError, RefusedError
from kybernate.lab import examples
from kybernate.lab.clean import CLUSTER_DEMO, DEMO
from kybernate.lab.node import LabNode, alone, checked
from kybernate.lab.process import end_by_signals

EXAMPLE = examples.FOLDER / "model-server"
INSTANCE = "chat-0"
PORT = 8080
QUERY = "Who naps at home?"
STATE_SECONDS = 60.0
ANSWER_SECONDS = 60.0
MIB = 1 << 20


class DemoError(ExternalError):
    """The demo saw something else than it should have: {message}"""


class NotRootError(RefusedError):
    """The demo starts containers and needs root: sudo ./dev demo"""


class NoAnswerError(DeadlineError):
    """The model server did not answer at {ip}:{port} within {seconds:g} s: {reason}"""


@dataclass(frozen=True)
class Answer:
    """What the server said, and how long it took from the connect to the last byte."""

    requests: int
    best: str
    ranking: Any
    seconds: float


class Show:
    """Lines on the terminal: what happened, how long it took, and what it means."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._colours = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

    def line(self, what: str, seconds: float | None = None, text: str = "") -> None:
        clock = f"{time.monotonic() - self._began:6.1f} s"
        print(f"{self._paint(clock, 2)}  {self._paint(f'{what:<18}', 1)} {duration(seconds):>8}  {text}", flush=True)

    def _paint(self, text: str, code: int) -> str:
        return f"\033[{code}m{text}\033[0m" if self._colours else text


def duration(seconds: float | None) -> str:
    """`2.31 s`, `180 ms`, `4.1 ms`."""
    if seconds is None:
        return ""
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1000:.0f} ms" if seconds >= 0.01 else f"{seconds * 1000:.1f} ms"


def ask(ip: str, port: int = PORT) -> Answer:
    """One request over a connection of its own. Raises OSError, http.client.HTTPException."""
    began = time.monotonic()
    connection = http.client.HTTPConnection(ip, port, timeout=ANSWER_SECONDS)
    try:
        connection.request("GET", f"/rank?query={quote(QUERY)}")
        body = json.loads(connection.getresponse().read())
    finally:
        connection.close()
    seconds = time.monotonic() - began
    return Answer(body["requests"], body["answer"][0]["sentence"], body["answer"], seconds)


def answer_of(ip: str, port: int = PORT) -> Answer:
    """One request to a server that is there. Raises NoAnswerError."""
    try:
        return ask(ip, port)
    except (OSError, http.client.HTTPException) as error:
        raise NoAnswerError(ip=ip, port=port, seconds=ANSWER_SECONDS, reason=error) from error


def first_answer(ip: str, port: int = PORT, seconds: float = ANSWER_SECONDS) -> Answer:
    """Ask until the server listens. Raises NoAnswerError."""
    limit = time.monotonic() + seconds
    while True:
        try:
            return ask(ip, port)
        except (OSError, http.client.HTTPException) as error:
            if time.monotonic() > limit:
                raise NoAnswerError(ip=ip, port=port, seconds=seconds, reason=error) from error
        time.sleep(0.01)


class Demo:
    """The story, on a node that is up."""

    def __init__(self, node: LabNode, client: AgentClient, show: Show) -> None:
        self._node, self._client, self._show = node, client, show
        self._ip = ""

    def tell(self) -> None:
        cold, first = self._cold_start()
        awake = self._node.memory_bytes()
        self._show.line("a request", first.seconds, f"“{QUERY}” → {first.best}  (request {first.requests})")
        self._show.line("idle", None, "nobody calls; suspendAfter is 3 s, parkAfter 4 s")
        frozen = self._until("Suspended")
        text = f"frozen in memory: {self._node.memory_bytes() / MIB:.0f} MiB stay, no CPU"
        self._show.line("suspended", seconds_of(frozen, "suspend"), text)
        ram = self._wake("RAM", first)
        self._until("Suspended")
        self._show.line("suspended", None, "idle again; this time nobody calls before parkAfter")
        parked = self._until("Parked")
        self._show_parked(parked, awake)
        nvme = self._wake("NVME", ram)
        self._summary(cold, ram, nvme)

    def _cold_start(self) -> tuple[float, Answer]:
        began = time.monotonic()
        self._client.apply((EXAMPLE / "workload.yaml").read_text(), "workload.yaml")
        self._ip = self._until("Running").ip
        cold_answer = first_answer(self._ip)
        cold = time.monotonic() - began
        self._show.line("cold start", cold, "from `apply` to the first answer: sandbox, Python, the model's weights")
        answer = self._ask()
        self._check(answer.ranking == cold_answer.ranking, "two answers to one question differ")
        return cold, answer

    def _ask(self) -> Answer:
        return answer_of(self._ip)

    def _wake(self, tier: str, before: Answer) -> Answer:
        answer = self._ask()
        same = answer.ranking == before.ranking and answer.requests == before.requests + 1
        self._check(same, f"after {tier} the server answered {answer}, before it {before}")
        # The answer may be here before the agent has heard that the container runs.
        woken_from = self._until("Running").last_wake_from
        self._check(woken_from == tier, f"it was woken from {woken_from or 'nothing'}, not from {tier}")
        text = f"same answer; the counter in its memory went on: request {answer.requests}"
        self._show.line(f"woken from {tier}", answer.seconds, text)
        return answer

    def _show_parked(self, parked: Any, awake_bytes: int) -> None:
        left = self._node.memory_bytes()
        stored = f"{parked.stored_bytes / MIB:.0f} MiB on disk, hashed and sealed"
        text = f"its memory is gone: {awake_bytes / MIB:.0f} MiB → {left / MIB:.0f} MiB; {stored}"
        self._show.line("parked", seconds_of(parked, "park"), text)
        tasks = self._node.containerd.ctr("task", "list").splitlines()
        status = next((line.split()[2] for line in tasks if line.startswith(parked.container_id)), "gone")
        self._check(status == "RUNNING", f"containerd says that the container is {status}")
        self._show.line("containerd", None, f"sees a container that is {status}")

    def _summary(self, cold: float, ram: Answer, nvme: Answer) -> None:
        print(
            f"\n    cold start   {duration(cold):>8}\n    from NVME    {duration(nvme.seconds):>8}   "
            f"{cold / nvme.seconds:.0f} times as fast\n    from RAM     {duration(ram.seconds):>8}   "
            f"{cold / ram.seconds:.0f} times as fast\n",
            flush=True,
        )

    def _until(self, state: str) -> Any:
        """The instance as soon as it is in this state."""
        for event in self._client.watch(INSTANCE, deadline_seconds=STATE_SECONDS):
            if event.instance.state == state:
                return event.instance
            self._check(event.instance.state not in ("Failed", "StateLost"), f"it is {event.instance.state}")
        raise DemoError(f"the agent ended before {INSTANCE} was {state}")

    def _check(self, holds: bool, otherwise: str) -> None:
        if not holds:
            raise DemoError(otherwise)


def seconds_of(instance: Any, verb: str) -> float | None:
    """How long the last step of this kind took."""
    return next((step.seconds for step in reversed(instance.history) if step.verb == verb), None)


def go_on(node: LabNode, ip: str) -> str:
    return f"""It goes on. By hand, as root:
    export KYBERNATE_SOCKET={node.socket}
    {Path(sys.executable).with_name("kybernate")} get --watch
    curl 'http://{ip}:{PORT}/rank?query=Who+naps'
    ctr -a {node.containerd.socket} -n k8s.io task list
The agent's log is {node.log}. `./dev clean` ends it and removes everything."""


def run_demo(keep: bool, name: str) -> None:
    """Raises KybernateErrors; leaves nothing behind, unless it succeeds and `keep` is wanted."""
    checked(name)
    if os.geteuid() != 0:
        raise NotRootError
    with alone(name):
        on_node(LabNode(name), Show(), keep)


def on_node(node: LabNode, show: Show, keep: bool) -> None:
    """The demo on a node that is not up yet."""
    if node.exists:
        node.down()
        show.line("cleaned up", None, "what an earlier demo left")
    show.line(
        "image", None, "Python of this machine, a model out of a wheel; no registry (the first time: half a minute)"
    )
    image = timed(show, "image ready", examples.model_server)
    kept = False
    try:
        timed(show, "node ready", lambda: node.up([image]), "a private containerd, the shim, the agent")
        with node.client() as client:
            Demo(node, client, show).tell()
            if keep:
                print(go_on(node, client.get(INSTANCE).ip))
                kept = True
                return
            timed(show, "deleted", lambda: client.delete("chat", wait=True))
    except KybernateError:
        print(f"\nThe agent's log ended:\n{node.log_tail()}", file=sys.stderr)
        raise
    finally:
        if not kept:
            timed(show, "cleaned up", node.down, "nothing is left")


def timed(show: Show, what: str, do: Callable[[], Any], text: str = "") -> Any:
    began = time.monotonic()
    result = do()
    show.line(what, time.monotonic() - began, text)
    return result


def main() -> int:
    parser = argparse.ArgumentParser(prog="kybernate demo", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--keep", action="store_true", help="leave it running, and say how to go on by hand")
    parser.add_argument("--name", help=f"what its folders are called ({DEMO}, {CLUSTER_DEMO.name})")
    parser.add_argument("--cluster", action="store_true", help="the README's quick start, on a Kubernetes cluster")
    options = parser.parse_args()
    end_by_signals()
    try:
        if options.cluster:
            from kybernate.lab.cluster_demo import run_cluster_demo  # which imports this module

            run_cluster_demo(options.keep, options.name or CLUSTER_DEMO.name)
        else:
            run_demo(options.keep, options.name or DEMO)
    except KybernateError as error:
        print(f"\ndemo: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
