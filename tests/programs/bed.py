"""Programs as workloads: a manifest without a setting, and a client that keeps its connection."""

from __future__ import annotations

import contextlib
import http.client
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import yaml
from agent_bed import Agent, eventually
from node_bed import NodeBed

from kybernate.errors import NotFoundError
from kybernate.lab import Image

PORT = 8080


@dataclass(frozen=True)
class Said:
    count: int
    rest: list[str]


def count_first(text: str) -> Said:
    """An answer whose first word is the count, the others the same in every answer."""
    count, *rest = text.split()
    return Said(int(count), rest)


@dataclass(frozen=True)
class Program:
    """A server that counts its requests. `is_what` tells of the rest of an answer that it is what the test is about."""

    name: str
    image: Callable[[], Image]
    is_what: Callable[[str], bool]
    path: str = "/"
    read: Callable[[str], Said] = count_first


class Caller:
    """One client, one connection for all its calls."""

    def __init__(self, ip: str, program: Program) -> None:
        self.program = program
        self.http = http.client.HTTPConnection(ip, PORT, timeout=60)

    def call(self) -> Said:
        if self.http.sock is None:
            self.http.connect()
        before = self.http.sock
        self.http.request("GET", self.program.path)
        text = self.http.getresponse().read().decode()
        assert self.http.sock is before, "the server ended the connection"
        return self.program.read(text)

    def close(self) -> None:
        self.http.close()


@contextlib.contextmanager
def running(bed: NodeBed, agent: Agent, program: Program, annotations: dict[str, str] | None = None) -> Iterator[str]:
    """The program as a workload that answers; its address."""
    image = program.image()
    bed.load(image)
    with agent.client() as client:
        client.apply(manifest(program, image, annotations or {}), f"{program.name}.yaml")
    try:
        ip = agent.wait(program.name, "Running").ip
        eventually(lambda: called(ip, program), 60, f"{program.name} answers")
        yield ip
    finally:
        with agent.client() as client, contextlib.suppress(NotFoundError):
            client.delete(program.name, wait=True)


def manifest(program: Program, image: Image, annotations: dict[str, str]) -> str:
    """What a user has to write, and not a word more but `annotations`."""
    metadata = {"metadata": {"annotations": annotations}} if annotations else {}
    container = {"name": program.name, "image": image.name, "ports": [{"containerPort": PORT}]}
    return yaml.safe_dump(
        {
            "apiVersion": "kybernate.io/v1alpha1",
            "kind": "GpuWorkload",
            "metadata": {"name": program.name},
            "spec": {"template": {**metadata, "spec": {"containers": [container]}}},
        }
    )


def called(ip: str, program: Program) -> Said:
    """One call over a connection of its own."""
    caller = Caller(ip, program)
    try:
        return caller.call()
    finally:
        caller.close()


def sleeps_and_wakes(agent: Agent, ip: str, program: Program) -> list[str]:
    """Suspended once and parked twice, the second time what a restore has brought back; each time a call wakes it.

    The tiers that it woke from.
    """
    kept = Caller(ip, program)
    first = kept.call()
    assert program.is_what(" ".join(first.rest)), first
    count = first.count
    woken_from = []
    for verb, state in (("suspend", "Suspended"), ("park", "Parked"), ("park", "Parked")):
        assert agent.order(verb, program.name).state == state
        assert called(ip, program) == Said(count + 1, first.rest)
        count += 2
        assert kept.call() == Said(count, first.rest)
        woken_from.append(agent.wait(program.name, "Running").last_wake_from)
    kept.close()
    return woken_from
