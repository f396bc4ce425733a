"""The keeper: one process per managed container, in the place of its init towards containerd.

containerd is told the keeper's pid. Whatever becomes of the real processes, frozen, written out, brought back, the
keeper stays, and when the real init ends for good the keeper ends in the same way, with the same code or signal. It
is a subreaper, so runc's and CRIU's children become its own: nothing about them is ever polled.

States (record.py) and who may change them: docs/design/01_keeper.md.
"""

from __future__ import annotations

import os
import signal
import sys
import time

from kybernate_shim import cgroup, direct, mounts, process, sleep, wire
from kybernate_shim import record as states
from kybernate_shim.loop import Client, Loop, Refused, Wait

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from kybernate_shim.loop import Step

TERMINATING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGKILL)
START_SECONDS = 110.0
RUNC_SECONDS = 30.0
END_SECONDS = 10.0
LOG_LIMIT_BYTES = 256 * 1024


class Keeper:
    """One container: its record, its loop, its verbs."""

    def __init__(self, record: states.Record, ready: int) -> None:
        self.record, self.ready = record, ready
        self.loop = Loop(self.on_request, self.on_exit, self.on_signal)
        self.loop.state = lambda: record.state
        self.helper = 0
        self.work = ""
        self.starting = False
        self.init_status: int | None = None
        self.verbs: dict[str, Callable[[Keeper, wire.Message], Step]] = {
            "freeze": sleep.freeze,
            "thaw": sleep.thaw,
            "dump": sleep.dump,
            "restore": sleep.restore,
            "start": start,
            "pause": pause,
            "resume": pause,
            "update": update,
        }

    def ok(self, **more: object) -> wire.Message:
        record = self.record
        init = {"init_pid": record.init_pid, "init_start": record.init_start}
        return {"ok": True, "state": record.state, **init, **more}

    def log(self, words: str) -> None:
        """A line in keeper.log, which starts anew when it has grown too long."""
        line = f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {words}\n".encode()
        try:
            fd = os.open(self.record.path("keeper.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb", 0) as file:
                if os.fstat(fd).st_size > LOG_LIMIT_BYTES:
                    file.truncate(0)
                file.write(line)
        except OSError:  # a full /run: the container's life matters more than its log
            return

    # What comes in

    def on_request(self, request: wire.Message, client: Client) -> None:
        verb, began = request["verb"], time.monotonic()

        def done(message: wire.Message) -> None:
            outcome = message["state"] if message["ok"] else f"{message['error']}: {message['message']}"
            self.log(f"{verb} {time.monotonic() - began:.3f} s -> {outcome}")
            client.reply(message)
            self.over()

        try:
            self._take(verb, request, client, done)
        except (KeyError, TypeError, ValueError) as error:
            done(Refused("bad_request", f"{verb}: {type(error).__name__}: {error}").reply(self.record.state))

    def _take(self, verb: str, request: wire.Message, client: Client, done: Callable[[wire.Message], None]) -> None:
        if verb == "state":
            more = {"started": self.record.started, "paused": self.record.paused, "keeper_pid": os.getpid()}
            if request.get("sessions"):
                more["sessions"] = len(cgroup.strangers(self.record.cgroups, self.record.init_pid))
            client.reply(self.ok(**more))
        elif verb == "kill":
            self.kill(int(request["signal"]), bool(request.get("all")), done)
        elif verb == "delete":
            self.delete(bool(request.get("force")), done)
        elif verb in self.verbs:
            self.loop.begin(self.guarded(self.verbs[verb](self, request)), done)
        else:
            done(Refused("bad_request", f"unknown verb {verb!r}").reply(self.record.state))

    def guarded(self, step: Step) -> Step:
        """A verb that fails in a way nobody foresaw ends alone: the keeper, and the container with it, live on."""
        was = self.record.state
        try:
            return (yield from step)
        except Refused:
            raise
        except Exception as error:
            import traceback

            self.log("".join(traceback.format_exception(error)))
            dumped = self.record.state == states.DUMPING and sleep.is_committed(self.record)
            if self.record.state in (states.DUMPING, states.RESTORING) and not dumped:
                self.record.state = was
            raise Refused("internal", f"{type(error).__name__}: {error} (see keeper.log)") from error

    def on_signal(self, number: int) -> None:
        """Somebody signalled the pid that containerd shows; the application was meant."""
        self.kill(number, False, lambda message: self.log(f"signal {number} from outside"))

    def on_exit(self, pid: int, status: int) -> None:
        if pid != self.record.init_pid:
            return
        if self.record.state == states.DUMPING or self.starting:
            self.init_status = status  # CRIU ends it after a commit; `runc start` has yet to say how it went
            if self.loop.step is None:
                self.over()  # it took its time: the dump has been answered
        elif self.record.state != states.ENDED:
            self.loop.preempt()
            self.leave(status)

    def over(self) -> None:
        """No verb is under way. If the init has gone: parked where it had been dumped, else the container's end."""
        if self.init_status is None:
            return
        if self.record.state == states.DUMPING and sleep.is_committed(self.record):
            sleep.parked(self)
        else:
            self.leave(self.init_status)

    # Ends

    def kill(self, number: int, everyone: bool, done: Callable[[wire.Message], None]) -> None:
        """A signal from outside. A sleeper dies of a terminating one without waking; others need it awake."""
        record = self.record
        if record.state in (states.CREATED, states.RUNNING):
            if number in TERMINATING and record.state == states.RUNNING:
                self.loop.preempt()  # a freeze on its way would hold the signal back
            for pid in cgroup.processes(record.cgroups) if everyone else ():
                if pid not in (os.getpid(), record.init_pid):
                    process.kill(pid, number)
            process.kill(record.init_pid, number)
            if number == signal.SIGKILL and record.paused:
                cgroup.switch(record.cgroups, False)  # v1 delivers nothing to a frozen group
            done(self.ok())
        elif number in TERMINATING:
            self.finish(number, done)
        else:
            done(Refused("wrong_state", f"{record.container} is {record.state}").reply(record.state))

    def delete(self, force: bool, done: Callable[[wire.Message], None]) -> None:
        waiting = self.record.state == states.AWAITING and not self.record.started
        if force or waiting or self.record.state in (states.CREATING, states.CREATED):
            self.finish(signal.SIGKILL, done)
        else:
            message = f"cannot delete container {self.record.container} that is not stopped: {self.record.state}"
            done(Refused("wrong_state", message).reply(self.record.state))

    def finish(self, number: int, done: Callable[[wire.Message], None]) -> None:
        """End whatever is left and then this process, as if `number` had ended the container."""
        if self.record.state == states.ENDED:
            done(self.ok())
            return

        def over(message: wire.Message) -> None:
            done(message)
            self.leave(number)

        self.loop.preempt()
        self.record.killed = True
        self._note_end(-number)
        self.loop.begin(self._finish(), over)

    def _finish(self) -> Step:
        if self.helper:
            process.kill_group(self.helper)
        gone = yield from sleep.clear(self, time.monotonic() + END_SECONDS)
        if self.work:
            mounts.unmount_below([f"{self.record.runc_root}/{self.record.container}", self.work])
        if not gone:
            self.log(f"processes that do not end: {cgroup.processes(self.record.cgroups)}")
        return self.ok()

    def leave(self, status: int) -> NoReturn:
        """End as the real init did: `status` is its wait status."""
        code = os.waitstatus_to_exitcode(status)
        self._note_end(code)
        self.log(f"ended with {self.record.exit}")
        end_as(code)

    def _note_end(self, code: int) -> None:
        """Write it down if that is possible; a full disk must not keep a container from ending."""
        self.record.exit = {"signal": -code} if code < 0 else {"code": code}
        try:
            self.record.enter(states.ENDED)
        except OSError as error:
            self.log(f"the record cannot be written: {error}")


def end_as(code: int) -> NoReturn:
    """Exit with `code`, or by the signal -code, without a core file of our own."""
    if code < 0:
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if -code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-code, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [-code])
        os.kill(os.getpid(), -code)
    os._exit(code if code >= 0 else 128 - code)


# Verbs that are runc's own


def create(keeper: Keeper) -> Step:
    """`runc create`, or only the cgroup where a restore is going to be; then stand in for the init."""
    record = keeper.record
    record.keeper_pid, record.keeper_start = os.getpid(), states.start_time(os.getpid())
    if record.state == states.AWAITING:
        cgroup.make(record.cgroups)
    else:
        pid_file = record.path("init.pid")
        argv = [record.runc, *record.runc_globals, "create", *record.create_options, "--pid-file", pid_file]
        pid = keeper.helper = process.spawn([*argv, record.container], None)
        if not (yield Wait(time.monotonic() + START_SECONDS, child=pid)):
            process.kill_group(pid)
            raise Refused("deadline", f"runc create did not end within {START_SECONDS:.0f} s")
        keeper.helper = 0
        if code := os.waitstatus_to_exitcode(keeper.loop.exits[pid]):
            return {"ok": False, "code": abs(code)}
        record.init_pid = int(cgroup.read(pid_file))
        record.init_start = states.start_time(record.init_pid)
        record.cgroups = cgroup.of_process(record.init_pid)
    cgroup.join(record.cgroups)  # containerd reads the container's cgroup from the pid it gets
    record.created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    record.enter(record.state if record.state == states.AWAITING else states.CREATED)
    os.symlink(f"../keepers/{record.container}", f"{record.folder}/../../pids/{os.getpid()}")
    if record.pid_file:
        states.replace(record.pid_file, str(os.getpid()), 0o644)
    return {"ok": True}


def start(keeper: Keeper, request: wire.Message) -> Step:
    """Leave the container's cgroup (what freezes it must not freeze us), then let it run."""
    record = keeper.record
    sleep.require(keeper, states.CREATED, states.AWAITING)
    cgroup.make(cgroup.own())
    cgroup.join(cgroup.own())
    record.started = True
    if record.state == states.AWAITING:
        record.save()
        return keeper.ok()
    keeper.starting = True
    try:
        code, words = yield from runc(keeper, ["start"], START_SECONDS)
    finally:
        keeper.starting = False
    if code == 0 and record.state == states.CREATED:
        record.enter(states.RUNNING)
    return keeper.ok(code=code, stderr=words)


def pause(keeper: Keeper, request: wire.Message) -> Step:
    """containerd's own pause and resume, for a container that is awake."""
    record, wanted = keeper.record, request["verb"] == "pause"
    if record.state != states.RUNNING:
        raise Refused("wrong_state", f"{record.container} is {record.state}: it cannot be {request['verb']}d now")
    code, words = yield from runc(keeper, [request["verb"]], RUNC_SECONDS)
    record.paused = wanted if code == 0 else record.paused
    record.save()
    return keeper.ok(code=code, stderr=words)


def update(keeper: Keeper, request: wire.Message) -> Step:
    """New limits: into config.json, from where every restore takes them, and at once where processes are."""
    import json

    from kybernate_shim import oci

    record = keeper.record
    path = record.bundle + "/config.json"
    config = json.loads(cgroup.read(path))
    oci.merge_resources(config, request["resources"])
    code, words = 0, ""
    if record.state in (states.CREATED, states.RUNNING, states.FROZEN):
        states.replace(record.path("resources.json"), json.dumps(request["resources"]))
        code, words = yield from runc(keeper, ["update", "--resources", record.path("resources.json")], RUNC_SECONDS)
    if code == 0:
        states.replace(path, json.dumps(config), 0o644)
        direct.forget(record)  # of a parked one runc's state has the old limits; runc sets the new ones
    return keeper.ok(code=code, stderr=words)


def runc(keeper: Keeper, words: list[str], seconds: float) -> sleep.Ran:
    """runc with containerd's own global options, so that errors reach its log. Returns (exit code, stderr)."""
    record, stderr = keeper.record, keeper.record.path("stderr")
    pid = keeper.helper = process.spawn([record.runc, *record.runc_globals, *words, record.container], stderr)
    try:
        if not (yield Wait(time.monotonic() + seconds, child=pid)):
            process.kill_group(pid)
            raise Refused("deadline", f"runc {words[0]} did not end within {seconds:.0f} s and was killed")
    finally:
        keeper.helper = 0
    return os.waitstatus_to_exitcode(keeper.loop.exits[pid]), process.tail(stderr)


def main(folder: str, ready: int) -> NoReturn:
    """`ready` is the pipe on which the hook waits for {"ok": ...}."""
    os.set_inheritable(ready, False)
    os.closerange(3, ready)
    os.closerange(ready + 1, 1024)
    cgroup.write("/proc/self/comm", "kyb-keeper")
    os.chdir("/")
    keeper = Keeper(states.Record.load(folder), ready)

    def created(message: wire.Message) -> None:
        if message["ok"]:
            keeper.loop.listen(folder + "/sock")
        try:
            os.write(ready, wire.encode(message))
        except BrokenPipeError:  # the hook was killed: nobody will ever ask for this container
            keeper.finish(signal.SIGKILL, lambda _: None)
        os.close(ready)
        if not message["ok"]:
            os._exit(1)

    keeper.loop.begin(keeper.guarded(create(keeper)), created)
    keeper.loop.forever()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
