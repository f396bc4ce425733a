"""What the tests of faults stand on beside the bed of tests/node: an agent that can be told to die, and its callers."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

from agent_bed import Agent, Answer, ask, eventually, processes_with
from node_bed import NodeBed

from kybernate.agentapi._pb import agent_pb2 as pb
from kybernate.errors import KybernateError, NotFoundError

MORTAL = str(Path(__file__).with_name("mortal_agent.py"))
AWAKE_OR_ASLEEP = ("Running", "Suspended", "Parked")


def mark(name: str) -> str:
    """A word for the environment of a workload, by which its processes are found; no other session uses it."""
    return f"MARK={name}-{os.getpid()}"


def marked(word: str) -> dict[str, str]:
    return {"MARK": word.removeprefix("MARK=")}


class MortalAgent(Agent):
    """An agent that dies where `dies_at` says, once."""

    def __init__(self, bed: NodeBed, state: Path, settings: str = "") -> None:
        super().__init__(bed, state, settings)
        self.order_to_die = state / "dies-at"

    def begin(self, wait: bool = True) -> None:
        self.start([MORTAL], wait, AT=str(self.order_to_die))

    def dies_at(self, when: str, verb: str, step: str) -> None:
        self.order_to_die.write_text(f"{when} {verb} {step}")

    def steps_in_journal(self) -> list[tuple[str, str]]:
        """(verb, step) of what is in flight, as the file says; also while no agent runs."""
        with contextlib.closing(sqlite3.connect(f"file:{self.state}/lib/journal.db?mode=ro", uri=True)) as db:
            return [(verb, step) for verb, step in db.execute("select verb, step from step order by number")]

    def instances_in_journal(self) -> list[str]:
        with contextlib.closing(sqlite3.connect(f"file:{self.state}/lib/journal.db?mode=ro", uri=True)) as db:
            return [name for (name,) in db.execute("select id from instance")]

    def settled(self, name: str) -> pb.Instance:
        """The instance, once no verb is in flight."""
        eventually(lambda: not self.steps_in_journal(), 60, "no verb is in flight any more")
        found = eventually(lambda: self._in(name, *AWAKE_OR_ASLEEP), 60, f"{name} is in a true state")
        assert found is not None
        return found

    def _in(self, name: str, *states: str) -> pb.Instance | None:
        found = self.get(name)
        return found if found.state in states else None

    def tail(self) -> str:
        return self.log.read_text()[-3000:]

    @contextlib.contextmanager
    def log_shown(self) -> Iterator[None]:
        """Print what the agent says meanwhile; pytest shows it when the test fails."""
        before = self.log.stat().st_size
        try:
            yield
        finally:
            print(self.log.read_bytes()[before:].decode(errors="replace"))

    def images(self, name: str) -> list[Path]:
        """The folders of committed images, the newest first."""
        found = (self.state / f"lib/store/instances/{name}-0").glob("*/images")
        return sorted(found, key=lambda path: -int(path.parent.name))

    def staged(self) -> list[str]:
        return os.listdir(self.state / "lib/store/staging")

    def rules(self, name: str) -> bool:
        """Whether rules stand in the pod's network."""
        netns = self.pod(name)["netns"]
        said = subprocess.run(
            ["nsenter", f"--net={netns}", "iptables-save", "-t", "mangle"],
            capture_output=True, text=True, check=True, timeout=20,
        )  # fmt: skip
        return "NFQUEUE" in said.stdout

    def pod(self, name: str) -> dict[str, str]:
        """What the journal knows of the instance's pod."""
        with contextlib.closing(sqlite3.connect(f"file:{self.state}/lib/journal.db?mode=ro", uri=True)) as db:
            (blob,) = db.execute("select record from instance where id = ?", (f"{name}-0",)).fetchone()
        return dict(json.loads(blob)["pod"])

    def gone(self, name: str) -> None:
        with self.client() as client, contextlib.suppress(NotFoundError):
            client.delete(name, wait=True)


class Call(threading.Thread):
    """One request in a thread of its own: what a client saw."""

    def __init__(self, ip: str, seconds: float = 60) -> None:
        super().__init__(daemon=True)
        self.ip, self.seconds = ip, seconds
        self.answer: Answer | None = None
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.answer = ask(self.ip, seconds=self.seconds)
        except BaseException as error:
            self.error = error

    def answered(self) -> Answer:
        self.join(self.seconds + 5)
        assert self.error is None, f"the caller saw {self.error!r}"
        assert self.answer is not None, "the caller has no answer"
        return self.answer

    def failed(self, seconds: float) -> BaseException:
        self.join(seconds)
        assert self.error is not None, f"the caller has {self.answer or 'nothing yet'}, not an error"
        return self.error


def in_background(work: object, *arguments: object) -> threading.Thread:
    """What an agent that dies cannot answer: its error is expected."""

    def run() -> None:
        with contextlib.suppress(KybernateError, OSError):
            work(*arguments)  # type: ignore[operator]

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


@contextlib.contextmanager
def mortal_agent_on(bed: NodeBed, folder: Path, settings: str = "") -> Iterator[MortalAgent]:
    """A mortal agent that runs; at the end it has no instance left and leaves no folder."""
    agent = MortalAgent(bed, folder, settings)
    try:
        agent.begin()
        yield agent
    finally:
        agent.order_to_die.unlink(missing_ok=True)
        if agent.process and agent.process.poll() is not None:
            agent.begin()
        agent.delete_all()
        agent.stop()
        shutil.rmtree(agent.state, ignore_errors=True)


def keeper_of(bed: NodeBed, container: str) -> int:
    """Its pid."""
    return int(json.loads((bed.run / "keepers" / container / "state.json").read_text())["keeper_pid"])


class Copies:
    """Watches, as fast as it can, how many processes of a workload live at once."""

    def __init__(self, word: str) -> None:
        self.most = 0
        self._word = word
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._over.wait(0.01):
            self.most = max(self.most, len(processes_with(self._word)))

    def __enter__(self) -> Copies:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
