"""The OCI runtime that containerd calls: runc's command line in, runc's behaviour out.

Whatever concerns no managed container is handed to the next runtime at once (the launcher does most of that before
any Python starts). For a managed one the verbs stay true whether its processes run, are frozen, or are files in a
store: the keeper answers for them, and the agent is asked to wake them where a verb needs them awake. Unmanaged
containers never fail because of us; managed ones are never started past us.

A hook call is a fraction of a second of a container's start: only builtins are imported here, the rest where needed.
"""

from __future__ import annotations

import os
import sys

from kybernate_shim.command import Command, parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from kybernate_shim.wire import Message

ASLEEP = ("frozen", "dumping", "parked", "restoring", "awaiting-restore")
KEEPER_SECONDS = 115.0
WAKE_SECONDS = 110.0
AGENT_SECONDS = 60.0
CREATE_SECONDS = 115.0  # the agent may have to copy a writable layer; the kubelet gives a create two minutes
SANDBOX_SECONDS = 110.0  # then the kubelet tries again, and nothing is lost
RUNC_SECONDS = 60.0
TERMINATE_SECONDS = 1.0
STARTED_SECONDS = 5.0


class Failed(Exception):
    """What runc would say on stderr and in its log."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


class Hook:
    """One call: where things are, and what was asked."""

    def __init__(self, run: str, runc: str, lib: str, words: list[str]) -> None:
        self.run, self.runc, self.lib, self.words = run, runc, lib, words
        self.command: Command = parse(words)

    def pass_on(self) -> NoReturn:
        """Become the next runtime, with the signal dispositions that this process was given."""
        import _signal  # type: ignore[import-not-found]  # the signal module imports enum: 3 ms

        for number in (_signal.SIGPIPE, _signal.SIGXFSZ):
            _signal.signal(number, _signal.SIG_DFL)
        os.execv(self.runc, [self.runc, *self.words])  # noqa: S606

    def folder(self, container: str) -> str:
        return f"{self.run}/keepers/{container}"

    def keeper(self, verb: str, **more: object) -> Message | None:
        """Ask the container's keeper; None when it lives no more. Raises Failed when it does not answer."""
        from kybernate_shim import wire

        request = {"verb": verb, **more}
        try:
            return wire.ask(self.folder(self.command.container) + "/sock", request, KEEPER_SECONDS)
        except wire.Unreachable:
            return None
        except wire.NoAnswer as error:
            raise Failed(f"the container's keeper hangs: {error}") from error

    def agent(self, verb: str, seconds: float, **more: object) -> Message:
        """Ask the agent, waiting for one to come up. Raises Failed with its reason, or without one."""
        from kybernate_shim import wire

        try:
            reply = wire.ask_patiently(f"{self.run}/hook.sock", {"verb": verb, **more}, seconds)
        except (wire.Unreachable, wire.NoAnswer) as error:
            raise Failed(f"kybernate agent: {error}. Is kybernate-agent running on this node?") from error
        if reply.get("ok") is not True:
            raise Failed(f"kybernate agent refused {verb}: {reply.get('message', reply.get('error', 'no reason'))}")
        return reply

    def complain(self, message: str) -> None:
        """As runc does: a line in the log that containerd reads, and one for people on stderr, where that can be
        written to: a sandbox has a /dev/null that is open for reading alone."""
        if path := self.command.global_option("--log"):
            import json
            import time

            now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            if self.command.global_option("--log-format") == "json":
                line = json.dumps({"level": "error", "msg": message, "time": now})
            else:
                line = f'time="{now}" level=error msg={json.dumps(message)}'
            with open(path, "a") as log:
                log.write(line + "\n")
        try:  # noqa: SIM105  (contextlib would cost every call time)
            os.write(2, f"{message}\n".encode())
        except OSError:
            pass


def main(run: str, runc: str, lib: str, words: list[str]) -> NoReturn:
    hook = Hook(run, runc, lib, words)
    try:
        code = _dispatch(hook)
    except Failed as failure:
        hook.complain(str(failure))
        code = failure.code
    except Exception as error:  # containerd shows the log's last line, so it has to be there
        hook.complain(f"kybernate hook: {hook.command.verb}: {type(error).__name__}: {error}")
        code = 1
    sys.stdout.flush()
    os._exit(code)


def _dispatch(hook: Hook) -> int:
    verb, container = hook.command.verb, hook.command.container
    if verb in ("create", "restore"):
        from kybernate_shim import create

        return create.create(hook)
    if verb not in VERBS or container in ("", ".", "..") or "/" in container:
        hook.pass_on()
    if not os.path.isdir(hook.folder(container)):
        hook.pass_on()
    return VERBS[verb](hook)


def start(hook: Hook) -> int:
    """The agent hears of it. What runs already runs on without one: the next agent finds it."""
    reply = _insist(hook.keeper("start"), hook)
    if reply["state"] == "awaiting-restore":
        hook.agent("started", AGENT_SECONDS, container=hook.command.container)
    elif reply["state"] == "running":
        from kybernate_shim import wire

        request = {"verb": "started", "container": hook.command.container}
        try:  # noqa: SIM105  (contextlib would cost every hook call)
            wire.ask(f"{hook.run}/hook.sock", request, STARTED_SECONDS)
        except (wire.Unreachable, wire.NoAnswer):
            pass
    return _relay(reply)


def state(hook: Hook) -> int:
    """runc's answer, with the keeper's pid, and "running" for whatever sleeps."""
    import json

    reply = hook.keeper("state")
    if reply is None:
        hook.pass_on()
    from kybernate_shim.record import Record

    record = Record.load(hook.folder(hook.command.container))
    with open(record.bundle + "/config.json") as file:
        config = json.load(file)
    before_start = reply["state"] in ("creating", "created") or not reply["started"]
    answer = {
        "ociVersion": config.get("ociVersion", "1.0.2"),
        "id": record.container,
        "pid": reply["keeper_pid"],
        "status": "paused" if reply["paused"] else "created" if before_start else "running",
        "bundle": record.bundle,
        "rootfs": os.path.join(record.bundle, config["root"]["path"]),
        "created": record.created,
        "annotations": config.get("annotations") or {},
        "owner": "",
    }
    print(json.dumps(answer, indent=2))
    return 0


def kill(hook: Hook) -> int:
    """A keeper that is gone leaves the answer to runc; a sleeper that has to hear the signal is woken first."""
    number = signal_number(hook.command.arguments[1] if len(hook.command.arguments) > 1 else "TERM")
    everyone = hook.command.has("--all", "-a")
    if not everyone and _agent_ends_it(hook, number):
        return 0
    for attempt in (1, 2):
        reply = hook.keeper("kill", signal=number, all=everyone)
        if reply is None:
            if everyone:
                _leave_the_state_to_the_agent(hook)
            hook.pass_on()
        if reply["ok"]:
            return 0
        if reply["error"] != "wrong_state" or attempt == 2:
            break
        hook.agent("signal", WAKE_SECONDS, container=hook.command.container, signal=number)
    raise Failed(str(reply and reply["message"]))


def _agent_ends_it(hook: Hook, number: int) -> bool:
    """Whether the agent sees to a container that containerd wants to end: it parks it first, for a pod that is evicted,
    and passes the signal on. Nobody to ask, no answer in a second, no keeper: the signal goes where it was sent."""
    import _signal

    if number not in (_signal.SIGTERM, _signal.SIGINT, _signal.SIGQUIT) or hook.keeper("state") is None:
        return False
    import time

    from kybernate_shim import wire

    until = time.monotonic() + TERMINATE_SECONDS
    request = {"verb": "terminate", "container": hook.command.container, "signal": number, "until": until}
    try:
        reply = wire.ask_patiently(f"{hook.run}/hook.sock", request, TERMINATE_SECONDS)
    except (wire.Unreachable, wire.NoAnswer):
        return False
    return reply.get("ok") is True and reply.get("action") == "park"


def exec_(hook: Hook) -> int:
    """Awake first, unless the agent says that it need not be; while an agent is away, only what runs can be entered."""
    now = hook.keeper("state")
    if now is None:
        hook.pass_on()
    from kybernate_shim import pretend, wire

    question = pretend.question(hook.command)
    if now["state"] != "running":
        reply = hook.agent("exec", WAKE_SECONDS, **question)
    else:
        try:
            reply = wire.ask(f"{hook.run}/hook.sock", {"verb": "exec", **question}, WAKE_SECONDS)
        except (wire.Unreachable, wire.NoAnswer):
            hook.pass_on()
        if reply.get("ok") is not True:
            raise Failed(f"kybernate agent refused exec: {reply.get('message', reply.get('error'))}")
    if reply.get("action") != "pretend":
        hook.pass_on()
    return pretend.pretend(hook.command, int(reply.get("exit", 0)))


def ps(hook: Hook) -> int:
    """Of a parked container the keeper: containerd, when it starts anew, takes a shim whose container has no process at
    all for one that a crash has left, and ends it."""
    reply = hook.keeper("state")
    if reply is None or reply["state"] in ("created", "running", "frozen", "dumping"):
        hook.pass_on()
    as_json = hook.command.option("--format", "-f") == "json"
    print(f"[{reply['keeper_pid']}]" if as_json else "UID          PID    PPID  C STIME TTY          TIME CMD")
    return 0


def pause(hook: Hook) -> int:
    return _relay(_insist(hook.keeper(hook.command.verb), hook))


def update(hook: Hook) -> int:
    import json

    source = hook.command.option("--resources", "-r")
    if source is None:
        raise Failed("a managed container takes updates by --resources only")
    with open(0 if source == "-" else source) as file:
        resources = json.load(file)
    return _relay(_insist(hook.keeper("update", resources=resources), hook))


def checkpoint(hook: Hook) -> int:
    if hook.keeper("state") is None:
        hook.pass_on()
    raise Failed("this container is managed by kybernate: checkpoint it with `kybernate checkpoint`")


def delete(hook: Hook) -> int:
    """In every state; what runc does not know of any more, we remove."""
    import subprocess

    from kybernate_shim import cgroup, mounts, record

    folder = hook.folder(hook.command.container)
    force = hook.command.has("--force", "-f")
    reply = hook.keeper("delete", force=force)
    if reply is not None and not reply["ok"]:
        raise Failed(reply["message"])
    try:
        known = record.Record.load(folder)
    except (FileNotFoundError, ValueError):
        hook.pass_on()
    _wait_for_end(known.keeper_pid, known.keeper_start)  # before its start it sits in the container's cgroup
    if reply is None:
        _leave_the_state_to_the_agent(hook, stop=True)
    if os.path.exists(f"{known.runc_root}/{known.container}/state.json"):
        try:
            ran = subprocess.run([hook.runc, *hook.words], check=False, timeout=RUNC_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise Failed(f"runc delete did not end within {RUNC_SECONDS:.0f} s") from error
        if ran.returncode != 0:
            return ran.returncode
    remains = f"{known.runc_root}/{known.container}"  # a restore that a kill ended leaves it half made
    mounts.unmount_below([remains])
    mounts.sweep_yards()
    record.remove_tree(remains)
    if busy := cgroup.remove(known.cgroups):
        hook.complain(f"cgroups of {known.container} cannot be removed, processes are in them: {', '.join(busy)}")
    record.discard(folder, known.keeper_pid)
    return 0


def _leave_the_state_to_the_agent(hook: Hook, stop: bool = False) -> None:
    """A keeper that was killed leaves its container's processes, or what they wrote before they were parked: the only
    copy of a state. containerd takes the container for ended and cleans up at once, with `kill --all` and `delete`; not
    before the agent has made it safe, or does not want it. Raises Failed.

    `stop`: the container is to go, whose layer is wanted also where no process is left. Processes wait frozen, because
    containerd closes the pipes of their logs when a `delete` has failed.
    """
    from kybernate_shim import cgroup, record

    try:
        known = record.Record.load(hook.folder(hook.command.container))
    except (FileNotFoundError, ValueError):
        return
    living = bool(known.cgroups) and bool(cgroup.processes(known.cgroups))
    if known.state != record.ENDED and (stop or living or known.state == record.RESTORING):
        if stop and living and known.state == record.RUNNING:
            cgroup.switch(known.cgroups, True)
        hook.agent("delete", AGENT_SECONDS, container=known.container)


def _wait_for_end(pid: int, start: int) -> None:
    """Until the keeper is gone, at most some seconds: it has been asked to end, or has ended."""
    import select

    from kybernate_shim.record import start_time

    try:
        fd = os.pidfd_open(pid)
    except OSError:
        return
    try:
        if start_time(pid) == start:
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            poll.poll(5000)
    finally:
        os.close(fd)


def signal_number(word: str) -> int:
    """runc takes 9, KILL and SIGKILL."""
    import _signal

    if word.isdigit():
        return int(word)
    name = word.upper().removeprefix("SIG")
    number = getattr(_signal, "SIG" + name, None)
    if not isinstance(number, int):
        raise Failed(f"unknown signal {word!r}")
    return number


def _insist(reply: Message | None, hook: Hook) -> Message:
    if reply is None:
        raise Failed(f"container {hook.command.container}: its keeper has ended")
    if not reply["ok"]:
        raise Failed(reply["message"])
    return reply


def _relay(reply: Message) -> int:
    """What runc said and how it ended, run by the keeper for us."""
    if reply.get("stderr"):
        print(reply["stderr"], file=sys.stderr)
    return int(reply.get("code", 0))


VERBS = {
    "start": start,
    "state": state,
    "kill": kill,
    "exec": exec_,
    "ps": ps,
    "pause": pause,
    "resume": pause,
    "update": update,
    "checkpoint": checkpoint,
    "delete": delete,
}
