"""The program as a person or a script sees it: a subprocess, its output and exit status.

The agent behind it is agent_standin's: a real gRPC server with canned data that takes no steps.
"""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import pytest
import yaml
from agent_standin import Server

from kybernate.cli.main import COMMANDS

MANIFEST = """\
apiVersion: kybernate.io/v1alpha1
kind: GpuWorkload
metadata: {name: chat}
spec:
  template: {spec: {containers: [{name: server, image: localhost/chat:1}]}}
"""


class Ended(NamedTuple):
    status: int
    out: str
    err: str


class Run(Protocol):
    def __call__(self, *arguments: str, stdin: str = "", **environment: str) -> Ended: ...


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("run") / "agent.sock")
    yield server
    server.close()


@pytest.fixture
def kybernate(server: Server) -> Run:
    """Runs the program towards the stand-in. On a pipe, unless `terminal`."""

    def run(*arguments: str, stdin: str = "", **environment: str) -> Ended:
        done = subprocess.run(
            [sys.executable, "-m", "kybernate.cli", *arguments],
            input=stdin.encode(),
            capture_output=True,
            timeout=60,
            env={**os.environ, "KYBERNATE_SOCKET": str(server.path), "NO_COLOR": "", **environment},
            check=False,
        )
        return Ended(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode())

    return run


def on_terminal(
    server: Server, *arguments: str, heard: Callable[[bytes], None] = lambda said: None, **environment: str
) -> str:
    """What the program writes to a terminal. `heard` is called with all so far, each time it writes."""
    master, slave = pty.openpty()
    variables = {**os.environ, "KYBERNATE_SOCKET": str(server.path), "TERM": "xterm", "NO_COLOR": "", **environment}
    command = [sys.executable, "-m", "kybernate.cli", *arguments]
    with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=variables) as process:
        os.close(slave)
        said = b""
        try:
            while part := os.read(master, 4096):
                said += part
                heard(said)
        except OSError:  # EIO: the last one who had the terminal open is gone
            process.wait(60)
        finally:
            os.close(master)
    return said.decode()


def test_get_is_a_table(kybernate: Run) -> None:
    status, out, _ = kybernate("get")
    assert status == 0
    header, chat, embed = (re.split(r" {3,}", re.sub(r" {2,}", "   ", line)) for line in out.splitlines())
    assert header == ["NAME", "STATE", "TIER", "SINCE", "NEXT", "RAM", "LAST WAKE"]
    assert (chat[:3], chat[4:]) == (["chat-0", "Parked", "NVME"], ["-", "-", "0.14s from NVME"])
    assert (embed[:3], embed[5:]) == (["embed-0", "Running", "-"], ["64Mi", "-"])
    # The times are counted from when the stand-in was loaded, perhaps minutes ago.
    assert re.fullmatch(r"1\dm(\d+s)?", chat[3])
    assert (embed[3][:2], embed[4][:10]) == ("3h", "suspend in")


def test_get_is_data_for_programs(kybernate: Run) -> None:
    chat, embed = json.loads(kybernate("get", "-o", "json").out)
    assert (chat["name"], chat["state"], chat["tier"], chat["storedBytes"]) == ("chat-0", "Parked", "NVME", 71303168)
    assert chat["lastWake"] == {"seconds": 0.14, "from": "NVME"}
    assert chat["history"][0]["phaseSeconds"] == {"dump": 0.2, "commit": 0.1}
    assert embed["next"]["verb"] == "suspend"
    assert "tier" not in embed
    assert yaml.safe_load(kybernate("get", "chat", "-o", "yaml").out) == chat


def test_watch_goes_on_with_changes(kybernate: Run) -> None:
    status, out, _ = kybernate("get", "--watch")
    lines = [line.split() for line in out.splitlines()]
    assert status == 0
    assert [line[:2] for line in lines] == [
        ["NAME", "STATE"],
        ["chat-0", "Parked"],
        ["chat-0", "Running"],
        ["chat-0", "Deleted"],
    ]
    events = [json.loads(line) for line in kybernate("get", "-w", "-o", "json").out.splitlines()]
    assert [(event["type"], event["instance"]["name"]) for event in events] == [
        ("ADDED", "chat-0"),
        ("MODIFIED", "chat-0"),
        ("DELETED", "chat-0"),
    ]
    documents = list(yaml.safe_load_all(kybernate("get", "chat", "-w", "-o", "yaml").out))
    assert documents == events


def test_describe_tells_all(kybernate: Run) -> None:
    status, out, _ = kybernate("describe", "chat")
    assert status == 0
    for part in ("Parked since", "Stored:         68Mi", "0.14s from NVME", "History:", "dump 0.200, commit 0.100",
                 "NotSuspendable", "WakeTimeout", "a request waited 120 s", "c0ffee"):  # fmt: skip
        assert part in out


def test_apply_sends_what_is_right(kybernate: Run, server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(MANIFEST)
    (tmp_path / "notes.txt").write_text("no manifest")
    assert kybernate("apply", "-f", str(tmp_path)) == Ended(0, "gpuworkload chat created\n", "")
    assert (server.standin.seen[-1].text, server.standin.seen[-1].file_name) == (MANIFEST, str(tmp_path / "a.yaml"))
    assert kybernate("apply", "-f", "-", "-o", "json", stdin=MANIFEST).out.startswith("[")
    assert kybernate("apply", "-f", "-", "--wait", stdin=MANIFEST).status == 0


def test_apply_refuses_all_when_one_is_wrong(kybernate: Run, server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(MANIFEST)
    (tmp_path / "b.yaml").write_text(MANIFEST.replace("spec:\n", "spec:\n  gpu: {}\n  idle: {parkAfter: 1m}\n", 1))
    seen = len(server.standin.seen)
    status, out, err = kybernate("apply", "-f", str(tmp_path / "a.yaml"), "-f", str(tmp_path / "b.yaml"))
    assert (status, out, len(server.standin.seen)) == (2, "", seen)
    assert f"{tmp_path}/b.yaml:5:3: spec.gpu: not supported yet" in err


@pytest.mark.parametrize("name", ["nowhere.yaml", "empty", "binary"])
def test_apply_says_what_cannot_be_read(kybernate: Run, tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    status, _, err = kybernate("apply", "-f", str(tmp_path / name))
    assert (status, str(tmp_path / name) in err) == (2, True)


VERBS = [
    (("suspend", "chat"), 0, "chat-0: suspend ordered, now Suspended\n"),
    (("suspend", "chat", "--wait"), 0, "chat-0: Suspended, state in RAM\n"),
    (("park", "chat-0", "--wait", "--timeout", "1m"), 0, "chat-0: Parked, state in NVME\n"),
    (("resume", "chat"), 0, "chat-0: resume ordered, now Running\n"),
    (("delete", "chat", "--wait"), 0, "gpuworkload chat deleted\n"),
    (("delete", "chat"), 0, "gpuworkload chat is being deleted\n"),
]


@pytest.mark.parametrize(
    ("arguments", "status", "out"), VERBS, ids=lambda it: " ".join(it) if type(it) is tuple else ""
)
def test_verbs(kybernate: Run, server: Server, arguments: tuple[str, ...], status: int, out: str) -> None:
    assert kybernate(*arguments) == Ended(status, out, "")
    assert (server.standin.seen[-1].name, server.standin.seen[-1].wait) == (arguments[1], "--wait" in arguments)


def test_what_takes_longer_than_a_second_is_said_on_stderr(server: Server) -> None:
    def answer(said: bytes) -> None:
        if b"1s" in said:
            server.answer_resumes()

    server.hold_resumes()
    command = [sys.executable, "-m", "kybernate.cli", "--socket", str(server.path), "resume", "chat", "--wait"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        first = process.stderr.readline()
        answer(first)
        assert (first, process.stderr.read()) == (b"resume chat ... 1s\n", b"")
    server.hold_resumes()
    said = on_terminal(server, "resume", "chat", "--wait", heard=answer)
    assert "\r\033[Kresume chat ... 1s\r\033[K" in said


FAILURES = [
    (("get", "nobody"), 4, "no instance or workload 'nobody'"),
    (("get", "nobody", "--watch"), 4, "no instance or workload 'nobody'"),
    (("suspend", "embed"), 21, "embed-0: a request is in flight; try again when it has ended."),
    (("resume", "lost"), 24, "pages-1.img is 17 bytes short"),
    (("park", "hang", "--wait", "--timeout", "300ms"), 22, "did not answer Park within 0.3 s"),
    (("park", "chat", "--timeout", "5"), 2, "expected a duration such as 60s, 10m or 1h30m, got '5'"),
    (("exec", "nobody", "--", "true"), 4, "no instance or workload 'nobody'"),
    (("exec", "chat"), 2, "exec needs a command"),
    (("exec", "-t", "chat", "true"), 2, "-t needs a terminal"),
    (("logs", "chat", "--tail", "few"), 2, "expected a number of lines, got 'few'"),
    (("apply",), 2, "-f/--filename"),
    (("sleep",), 2, "invalid choice: 'sleep'"),
    (("help", "nothing"), 2, "no help on 'nothing'"),
    ((), 2, "required: COMMAND"),
    (("--socket", "/nowhere/agent.sock", "get"), 3, "No agent answers at /nowhere/agent.sock: No such file"),
    (("get", "--socket", "/nowhere/agent.sock"), 3, "If it listens elsewhere, say so with --socket"),
]


@pytest.mark.parametrize(
    ("arguments", "status", "says"), FAILURES, ids=lambda it: " ".join(it) if type(it) is tuple else ""
)
def test_a_failure_has_its_own_exit_status_and_says_why(
    kybernate: Run, arguments: tuple[str, ...], status: int, says: str
) -> None:
    ended = kybernate(*arguments)
    assert (ended.status, ended.out) == (status, "")
    assert says in ended.err
    assert "Traceback" not in ended.err


def test_logs_keep_streams_and_bytes_apart(kybernate: Run) -> None:
    assert kybernate("logs", "chat") == Ended(0, "one\ntwo \N{REPLACEMENT CHARACTER}\nthree\n", "oops\n")
    assert kybernate("logs", "chat", "--tail", "1", "-f").out == "three\n"


SHOW = 'echo "$IN_CONTAINER: $* $(cat)"; exit 7'


@pytest.mark.parametrize("arguments", [("chat", "--"), ("chat",), ("-i", "chat", "--"), ("chat", "-i", "--")])
def test_exec_becomes_the_command(kybernate: Run, arguments: tuple[str, ...]) -> None:
    status, out, _ = kybernate("exec", *arguments, "sh", "-c", SHOW, "sh", "-x", "--", "y", stdin="input")
    assert (status, out) == (7, f"yes: -x -- y {'input' if '-i' in arguments else ''}\n")


def test_exec_keeps_the_commands_own_dashes(kybernate: Run) -> None:
    assert kybernate("exec", "chat", "printf", "--", "%s", "-x").out == "-x"
    assert kybernate("exec", "chat", "--", "printf", "--", "%s", "--").out == "--"


def test_exec_with_a_terminal(server: Server) -> None:
    assert "yes tty" in on_terminal(server, "exec", "chat", "-it", "--", "sh", "-c", "test -t 0 && echo $IN_CONTAINER")


def test_colours_only_on_a_terminal_that_wants_them(kybernate: Run, server: Server) -> None:
    assert "\033[36mParked" in on_terminal(server, "get")
    assert "\033[" not in on_terminal(server, "get", NO_COLOR="1")
    assert "\033[" not in on_terminal(server, "get", TERM="dumb")
    assert "\033[" not in kybernate("get").out


def test_a_reader_that_has_enough_is_no_error(server: Server) -> None:
    command = f"set -o pipefail; {sys.executable} -m kybernate.cli describe chat | true"
    environment = {**os.environ, "KYBERNATE_SOCKET": str(server.path)}
    done = subprocess.run(["bash", "-c", command], capture_output=True, env=environment, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_an_interrupt_ends_without_a_trace(server: Server) -> None:
    environment = {**os.environ, "KYBERNATE_SOCKET": str(server.path), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "kybernate.cli", "resume", "hang", "--wait"]
    # Whoever starts the tests in the background may have SIGINT ignored, and children inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(command, stderr=subprocess.PIPE, env=environment, text=True)
    finally:
        signal.signal(signal.SIGINT, before)
    with process:
        assert process.stderr is not None
        assert process.stderr.readline() == "resume hang ... 1s\n"
        process.send_signal(signal.SIGINT)
        assert (process.wait(10), process.stderr.read().startswith("kybernate: interrupted")) == (130, True)


def test_help_is_there_for_every_command(kybernate: Run) -> None:
    assert all(f"    {name} " in kybernate("help").out for name in COMMANDS)
    assert "25  there is no room in the tier store" in kybernate("help", "exit-codes").out
    assert "--tail" in kybernate("help", "logs").out
    assert re.fullmatch(r"kybernate \d+\.\d+\.\d+ \(Python 3\..*\)\n", kybernate("version").out)


@pytest.mark.parametrize(("command", "option"), [("agent", "--config"), ("demo", "--keep")])
def test_agent_and_demo_are_programs_of_their_own(kybernate: Run, command: str, option: str) -> None:
    ended = kybernate(command, "--help")
    assert (ended.status, option in ended.out) == (0, True)
    assert kybernate(command, "--no-such-option").status == 2
