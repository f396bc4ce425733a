"""The whole path: a real server in a real container sleeps and wakes, and its clients notice nothing."""

from __future__ import annotations

import contextlib
import http.client
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_bed import Agent, agent_on, ask, eventually, processes_with, workload
from node_bed import NodeBed

from kybernate.errors import NotFoundError, RefusedError


@pytest.fixture(scope="module")
def agent(node_bed: NodeBed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    with agent_on(node_bed, tmp_path_factory.mktemp("agent")) as found:
        yield found


@contextlib.contextmanager
def running(agent: Agent, name: str, **more: object) -> Iterator[str]:
    """A workload that runs and answers; its address."""
    agent.apply(name, **more)
    try:
        yield agent.wait(name, "Running").ip
    finally:
        with agent.client() as client, contextlib.suppress(NotFoundError):
            client.delete(name, wait=True)


def served(agent: Agent, name: str) -> None:
    eventually(lambda: agent.ask(name).count, 30, f"{name} serves")


def test_an_idle_container_sinks_to_disk_and_a_call_brings_it_back(agent: Agent) -> None:
    with running(agent, "idle", idle={"suspendAfter": "2s", "parkAfter": "500ms"}, env={"MARK": "idle-mark"}):
        served(agent, "idle")
        before = agent.ask("idle")
        parked = agent.wait("idle", "Parked")
        assert parked.tier == "NVME"
        assert parked.stored_bytes > 4 << 20
        assert processes_with("MARK=idle-mark") == []
        after = agent.ask("idle")
        assert (after.count, after.born) == (before.count + 1, before.born)
        woken = agent.get("idle")
        assert (woken.last_wake_from, woken.epoch) == ("NVME", 1)
        path = ["suspend", "park", "resume"]
        eventually(lambda: [t.verb for t in agent.get("idle").history][-3:] == path, 10, "its history")


def test_a_call_wakes_from_ram(agent: Agent) -> None:
    with running(agent, "ram"):
        served(agent, "ram")
        before = agent.ask("ram")
        assert agent.order("suspend", "ram").tier == "RAM"
        assert agent.ask("ram").born == before.born
        eventually(lambda: agent.get("ram").last_wake_from == "RAM", 10, "it says where it came from")


def test_orders_are_idempotent_and_resume_wakes(agent: Agent) -> None:
    with running(agent, "orders"):
        served(agent, "orders")
        for verb, state in (("suspend", "Suspended"), ("park", "Parked"), ("resume", "Running")):
            assert agent.order(verb, "orders").state == state
            assert agent.order(verb, "orders").state == state
        assert agent.order("park", "orders").state == "Parked"
        assert agent.ask("orders").count > 1


@pytest.mark.parametrize("verb", ["suspend", "park"])
def test_a_keep_alive_connection_goes_on(agent: Agent, verb: str) -> None:
    with running(agent, f"alive-{verb}") as ip:
        served(agent, f"alive-{verb}")
        connection = http.client.HTTPConnection(ip, 8080, timeout=30)
        connection.request("GET", "/")
        first = connection.getresponse().read().split()
        mine = connection.sock.getsockname()
        agent.order(verb, f"alive-{verb}")
        connection.request("GET", "/")
        second = connection.getresponse().read().split()
        assert connection.sock.getsockname() == mine
        assert (int(second[0]), second[1]) == (int(first[0]) + 1, first[1])
        connection.close()


@pytest.mark.parametrize("verb", ["suspend", "park"])
def test_a_server_first_protocol_wakes_and_goes_on(agent: Agent, verb: str) -> None:
    with running(agent, f"first-{verb}", app="greeting.py") as ip:

        def greeted() -> socket.socket:
            connection = socket.create_connection((ip, 8080), timeout=30)
            assert connection.makefile("rb").readline() == b"hello\n"
            return connection

        old = eventually(greeted, 20, "it greets")
        agent.order(verb, f"first-{verb}")
        new = greeted()  # says nothing itself: the SYN is what wakes
        old.sendall(b"still there\n")
        assert old.makefile("rb").readline() == b"1 still there\n"
        for connection in (old, new):
            connection.close()


@pytest.mark.parametrize("verb", ["suspend", "park"])
def test_a_streaming_answer_goes_on_where_it_was(agent: Agent, verb: str) -> None:
    name = f"stream-{verb}"
    with running(agent, name) as ip:
        served(agent, name)
        with socket.create_connection((ip, 8080), timeout=30) as connection:
            connection.sendall(b"GET /stream/20 HTTP/1.0\r\n\r\n")
            lines = connection.makefile("rb")
            while lines.readline().strip() != b"3":
                pass
            agent.order(verb, name)
            agent.ask(name)  # another request wakes it
            rest = lines.read().split()
        assert rest == [b"%d" % n for n in range(4, 20)]


def test_a_silent_request_is_never_interrupted(agent: Agent) -> None:
    with running(agent, "silent", idle={"suspendAfter": "300ms"}) as ip:
        served(agent, "silent")
        with socket.create_connection((ip, 8080), timeout=30) as connection:
            connection.sendall(b"GET /slow/2 HTTP/1.0\r\n\r\n")
            lines = connection.makefile("rb")
            seen = set()
            connection.settimeout(0.1)
            until = time.monotonic() + 1.5
            while time.monotonic() < until:
                seen.add(agent.get("silent").state)
            connection.settimeout(30)
            assert b"200" in lines.readline()
        assert "Suspended" not in seen
        agent.wait("silent", "Suspended")


def test_exec_wakes_and_sees_the_processes(agent: Agent) -> None:
    with running(agent, "exec"):
        served(agent, "exec")
        agent.order("park", "exec")
        with agent.client() as client:
            argv = client.exec_target("exec")
        done = subprocess.run(
            [*argv, "/usr/bin/python3", "-c", "print(open('/proc/1/cmdline').read())"],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "counting.py" in done.stdout
        assert agent.get("exec").last_wake_from == "NVME"


def test_exec_is_refused_where_it_must_not_wake(agent: Agent) -> None:
    with running(agent, "noexec", wake={"onExec": False}):
        served(agent, "noexec")
        agent.order("suspend", "noexec")
        with agent.client() as client:
            argv = client.exec_target("noexec")
        done = subprocess.run([*argv, "/bin/true"], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode != 0
        assert "onExec is false" in done.stderr
        assert agent.get("noexec").state == "Suspended"


def test_logs_go_on_after_a_park(agent: Agent) -> None:
    with running(agent, "logs"):
        served(agent, "logs")
        agent.order("park", "logs")
        count = agent.ask("logs").count

        def shown() -> bool:
            with agent.client() as client:
                return f"request {count}".encode() in b"".join(chunk.data for chunk in client.logs("logs"))

        eventually(shown, 10, "the request after the wake is in the log")


def test_a_call_that_waits_too_long_is_reset_and_it_is_said(agent: Agent) -> None:
    with running(agent, "late", wake={"timeout": "1s"}) as ip:
        served(agent, "late")
        agent.order("park", "late")
        images = next((agent.state / "lib/store/instances/late-0").glob("*/images"))
        hidden = images.with_name("hidden")
        images.rename(hidden)  # it cannot be woken now
        with pytest.raises((ConnectionError, TimeoutError)):
            ask(ip, seconds=15)
        eventually(lambda: any("reset" in e.message for e in agent.get("late").events), 10, "an event says so")


def test_an_ordered_suspend_waits_for_the_request_at_most_drain_timeout(agent: Agent) -> None:
    with running(agent, "drain", idle={"drainTimeout": "1s"}) as ip:
        served(agent, "drain")
        with socket.create_connection((ip, 8080), timeout=30) as connection:
            connection.sendall(b"GET /slow/3 HTTP/1.0\r\n\r\n")
            eventually(lambda: agent.get("drain").ram_bytes, 5, "it runs")
            suspended = agent.order("suspend", "drain")
            assert suspended.state == "Suspended"
            agent.order("resume", "drain")
            assert b"200" in connection.makefile("rb").readline()


def test_deleting_a_sleeper_ends_it_at_once_and_leaves_nothing(agent: Agent, node_bed: NodeBed) -> None:
    for verb in ("suspend", "park"):
        name = f"gone-{verb}"
        with running(agent, name, env={"MARK": f"mark-{verb}"}):
            served(agent, name)
            found = agent.order(verb, name)
            began = time.monotonic()
            with agent.client() as client:
                client.delete(name, wait=True)
            assert time.monotonic() - began < 20
        assert processes_with(f"MARK=mark-{verb}") == []
        assert not (node_bed.run / "keepers" / found.container_id).exists()
        assert not (agent.state / f"lib/store/instances/{name}-0").exists()
        assert not (agent.state / f"lib/pods/{found.uid}").exists()
        assert not any(found.uid in str(path) for path in Path("/sys/fs/cgroup").glob("*/kybernate-pods/*"))
        with agent.client() as client, pytest.raises(NotFoundError):
            client.get(name)


def test_many_calls_at_once_wake_it_once(agent: Agent) -> None:
    with running(agent, "crowd") as ip:
        served(agent, "crowd")
        before = agent.ask("crowd")
        agent.order("park", "crowd")
        earlier = [t.verb for t in agent.get("crowd").history].count("resume")
        answers: list[int] = []
        threads = [threading.Thread(target=lambda: answers.append(ask(ip).count)) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert sorted(answers) == list(range(before.count + 1, before.count + 21))
        # A wake is in the history when its verb is over: after the release of the calls, so maybe after their answers.
        wakes = eventually(
            lambda: [t.verb for t in agent.get("crowd").history].count("resume") - earlier, 10, "its history"
        )
        assert wakes == 1


def test_what_it_wrote_to_its_layer_is_there_after_a_wake(agent: Agent) -> None:
    with running(agent, "layer", command=["/usr/bin/python3", "-u", "/apps/counting.py", "mark"]):
        served(agent, "layer")
        agent.order("park", "layer")
        with agent.client() as client:
            argv = client.exec_target("layer")
        done = subprocess.run([*argv, "cat", "/written"], capture_output=True, text=True, timeout=60, check=False)
        assert done.stdout == "mark"


def test_a_container_that_ends_is_started_again(agent: Agent) -> None:
    with running(agent, "ends"):
        served(agent, "ends")
        before = agent.ask("ends")
        found = agent.get("ends")
        subprocess.run(["kill", "-TERM", str(found.pid)], check=True, timeout=10)
        eventually(lambda: agent.get("ends").container_id != found.container_id, 30, "a new container")
        agent.wait("ends", "Running")
        served(agent, "ends")
        assert agent.ask("ends").born != before.born


def test_a_manifest_in_the_folder_runs_and_goes_with_its_file(agent: Agent) -> None:
    folder = agent.state / "lib/workloads"
    (folder / "dropped.yaml").write_text(workload("dropped"))
    (folder / "broken.yaml").write_text(workload("broken").replace("spec:", "spec:\n  replicas: many", 1))
    eventually(lambda: agent.get("dropped").state == "Running", 30, "the file's workload runs")
    assert "broken.yaml:6" in agent.log.read_text()
    assert "spec.replicas" in agent.log.read_text()
    (folder / "dropped.yaml").unlink()
    (folder / "broken.yaml").unlink()

    def gone() -> bool:
        try:
            agent.get("dropped")
        except NotFoundError:
            return True
        return False

    eventually(gone, 30, "it went with its file")


def test_an_order_for_something_that_does_not_start_is_refused(agent: Agent) -> None:
    agent.apply("nostart", command=["/does/not/exist"])
    try:
        eventually(lambda: agent.get("nostart").conditions, 30, "it says why it does not start")
        assert "/does/not/exist" in agent.get("nostart").conditions[0].message
        with pytest.raises(RefusedError):
            agent.order("park", "nostart")
    finally:
        with agent.client() as client:
            client.delete("nostart", wait=True)
