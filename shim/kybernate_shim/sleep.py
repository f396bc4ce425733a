"""Falling asleep and waking: freeze, thaw, dump, restore.

freeze   every process stops where it is; memory stays.
dump     runc checkpoint -> CRIU writes the images -> its post-dump script asks the agent -> only after "committed" do
         the processes end. Whatever fails before that leaves the container as it was: frozen if frozen, running if
         running.
restore  runc restore; the new init becomes the keeper's child (it is a subreaper).

runc destroys a container's cgroup, runs its poststop hooks and stops its systemd scope when a checkpoint ends it. The
container is not over, so `runc checkpoint` is given a copy of runc's own state in a root of the keeper's, whose cgroup
is a decoy and whose hooks are empty; CRIU is told the real freezer by `freeze-cgroup`. The cgroup with its limits,
counters and watchers is never touched, and nobody retries to remove it.
"""

from __future__ import annotations

import json
import os
import sys
import time

from kybernate_shim import cgroup, direct, mounts, process
from kybernate_shim import record as states
from kybernate_shim.loop import Refused, Wait

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from kybernate_shim.keeper import Keeper
    from kybernate_shim.loop import Step
    from kybernate_shim.wire import Message

    Ran = Generator[Wait, bool, tuple[int, str]]

UNDO_SECONDS = 5.0
REAP_SECONDS = 10.0
FORWARD_SECONDS = 60.0
POSTDUMP_RESERVE_SECONDS = 2.0
THAW_EACH = 50  # looks, about a second: v1 can stay FREEZING for good; runc lets such a group run for a moment, too


class Program:
    """One that runs: it leads a process group; `words` is the file in which it says what is wrong."""

    def __init__(self, name: str, pid: int, words: str) -> None:
        self.name, self.pid, self.words = name, pid, words


def freeze(keeper: Keeper, request: Message) -> Step:
    """running -> frozen. On a deadline it runs on."""
    record = keeper.record
    if record.state != states.FROZEN:
        require(keeper, states.RUNNING)
        yield from _stop(keeper, deadline(request, 10))
        record.enter(states.FROZEN)
    return keeper.ok()


def thaw(keeper: Keeper, request: Message) -> Step:
    """frozen -> running."""
    record = keeper.record
    if record.state != states.RUNNING:
        require(keeper, states.FROZEN)
        yield from _settle(keeper, False, deadline(request, 10))
        record.enter(states.RUNNING)
    return keeper.ok()


def dump(keeper: Keeper, request: Message) -> Step:
    """running or frozen -> parked; after any failure as it was before."""
    record = keeper.record
    require(keeper, states.RUNNING, states.FROZEN)
    was, until = record.state, deadline(request, 120)
    images, work = request["images"], request["work"]
    _forget_commit(record)
    record.enter(states.DUMPING)
    try:
        yield from _stop(keeper, until)
        root = _root_for_dump(record)
        _write_conf(record, request["conf"])
        argv = [record.runc, "--root", root, "--log", f"{work}/runc.log", "checkpoint"]
        argv += ["--image-path", images, "--work-path", work, record.container]
        for_script = {
            "KYBERNATE_CONTAINER": record.container,
            "KYBERNATE_IMAGES": images,
            "KYBERNATE_UNTIL": str(until - POSTDUMP_RESERVE_SECONDS),
        }
        pid = process.spawn(argv, record.path("stderr"), for_script)
        program = Program(argv[0], pid, record.path("stderr"))
        yield from _run(keeper, program, until, "dump_failed", f"{work}/dump.log")
        yield from _ended(keeper)
    except (Refused, OSError, ValueError) as error:
        if is_committed(record):  # CRIU may have ended some of them: only forward is whole
            yield from _go_forward(keeper)  # who outlives that, in a file system that hangs, is parked when it ends
        elif keeper.init_status is not None:
            raise Refused("ended", f"{record.container} ended during the dump") from error
        else:
            try:
                yield from _undo_dump(keeper, was)
            finally:
                record.state = was  # also where its file cannot be written: never a state that no verb leaves
            raise error if isinstance(error, Refused) else Refused("dump_failed", f"cannot prepare: {error}") from error
    parked(keeper)
    return keeper.ok()


def is_committed(record: states.Record) -> bool:
    """Whether CRIU has the agent's yes to the newest dump: the processes end, whatever else happens."""
    return os.path.exists(record.path("committed"))


def parked(keeper: Keeper) -> None:
    """The processes are gone: it is parked, whatever becomes of the rest."""
    record = keeper.record
    keeper.init_status, record.init_pid, record.init_start = None, 0, 0
    record.state = states.PARKED
    _tidy(keeper)


def _tidy(keeper: Keeper) -> None:
    """After a dump: what the way back needs, and nothing of runc's. A full disk costs only time at the wake."""
    record = keeper.record
    steps: list[Callable[[], object]] = [
        lambda: cgroup.switch(record.cgroups, False),
        lambda: direct.keep(record),
        lambda: states.remove_tree(f"{record.runc_root}/{record.container}"),
        lambda: states.remove_tree(record.path("runc")),
        lambda: record.enter(states.PARKED),
    ]
    _do_all(keeper, "dump", steps)


def _do_all(keeper: Keeper, verb: str, steps: list[Callable[[], object]]) -> None:
    """What follows a verb that is done: where one of them fails it is said, and the others are done."""
    for step in steps:
        try:
            step()
        except OSError as error:
            keeper.log(f"after the {verb}: {error}")


def restore(keeper: Keeper, request: Message) -> Step:
    """parked, or started and awaiting-restore -> running; after any failure as it was before."""
    record = keeper.record
    require(keeper, states.PARKED, states.AWAITING)
    if not record.started:
        raise Refused("wrong_state", "containerd has not started the container yet")
    was, until = record.state, deadline(request, 120)
    work = keeper.work = request["work"]
    record.enter(states.RESTORING)
    try:
        states.replace(record.path("criu.conf"), request["conf"])
        if (known := direct.ready(record)) is not None:
            program = Program("criu", direct.spawn(record, known, request["images"], work), record.path("stderr"))
        else:
            argv = _runc_restore(record, request["images"], work)
            program = Program(argv[0], process.spawn(argv, None), f"{work}/runc.log")
        yield from _run(keeper, program, until, "restore_failed", f"{work}/restore.log")
        init = int(cgroup.read(record.path("init.pid")))
        if known is not None:
            direct.give_back(record, known, init, states.start_time(init))
    except (Refused, OSError, ValueError) as error:
        yield from _undo_restore(keeper, work, was)
        raise error if isinstance(error, Refused) else Refused("restore_failed", str(error)) from error
    # It lives: no failure from here on may say otherwise.
    record.init_pid, record.init_start = init, states.start_time(init)
    if init in keeper.loop.exits:
        keeper.init_status = keeper.loop.exits[init]  # it ended before we knew which one it was
    else:
        _do_all(keeper, "restore", [lambda: record.cgroups.update(cgroup.of_process(init))])
    _do_all(keeper, "restore", [lambda: record.enter(states.RUNNING)])  # in memory also where /run is full
    return keeper.ok()


def _runc_restore(record: states.Record, images: str, work: str) -> list[str]:
    systemd = [word for word in record.runc_globals if word == "--systemd-cgroup"]
    argv = [record.runc, "--root", record.runc_root, "--log", f"{work}/runc.log", *systemd, "restore", "--detach"]
    argv += ["--manage-cgroups-mode", "ignore", "--image-path", images, "--work-path", work]
    argv += ["--bundle", record.bundle, "--pid-file", record.path("init.pid")]
    return [*argv, *(word for word in record.create_options if word == "--no-pivot"), record.container]


def require(keeper: Keeper, *wanted: str) -> None:
    record = keeper.record
    if record.state not in wanted:
        raise Refused("wrong_state", f"{record.container} is {record.state}, not {' or '.join(wanted)}")
    if record.paused:
        raise Refused("wrong_state", f"{record.container} is paused by containerd")


def deadline(request: Message, seconds: float) -> float:
    return time.monotonic() + float(request.get("deadline_seconds", seconds))


def clear(keeper: Keeper, until: float) -> Generator[Wait, bool, bool]:
    """Kill every process in the container's cgroup, frozen or not. True when none is left."""
    table, pause = keeper.record.cgroups, 0.001
    while True:
        left = [pid for pid in cgroup.processes(table) if pid != os.getpid()]
        for pid in left:
            process.kill(pid)
        cgroup.switch(table, False)
        if not left or time.monotonic() >= until:
            return not left
        yield Wait(time.monotonic() + pause)
        pause = min(pause * 2, 0.05)


def _stop(keeper: Keeper, until: float) -> Generator[Wait, bool, None]:
    """Freeze; on a deadline thaw again."""
    frozen = False
    try:
        yield from _settle(keeper, True, until)
        frozen = True
    finally:
        if not frozen:
            cgroup.switch(keeper.record.cgroups, False)


def _settle(keeper: Keeper, frozen: bool, until: float) -> Generator[Wait, bool, None]:
    """Write the switch and wait until the kernel has done it: an event on v2, reading again on v1."""
    table, pause, looks = keeper.record.cgroups, 0.0005, 0
    cgroup.switch(table, frozen)
    events = cgroup.open_events(table)
    try:
        while not cgroup.settled(table, frozen, events):
            now = time.monotonic()
            if now >= until:
                wanted, who = "frozen" if frozen else "thawed", cgroup.told(table)
                raise Refused("deadline", f"the cgroup did not become {wanted} in time; in it: {who}")
            if events is None:
                yield Wait(min(now + pause, until))
                looks += 1
                if frozen and looks % THAW_EACH == 0:
                    cgroup.switch(table, False)
                    yield Wait(min(time.monotonic() + 0.005, until))
                cgroup.switch(table, frozen)  # v1 leaves a group FREEZING until it is asked again
                pause = min(pause * 2, 0.02)
            else:
                yield Wait(until, fd=events)
    finally:
        if events is not None:
            os.close(events)


def _run(keeper: Keeper, program: Program, until: float, failure: str, log: str) -> Generator[Wait, bool, None]:
    """Wait for its end. Raises Refused with `failure`, or with deadline after its whole group was killed."""
    name, pid = program.name, program.pid
    keeper.helper = pid
    in_time = yield Wait(until, child=pid)
    if not in_time:
        yield from _kill_helper(pid)
    keeper.helper = 0
    said = process.tail(program.words)
    if not in_time:
        raise Refused("deadline", f"{name} did not end in time and was killed", log=log, stderr=said)
    code = os.waitstatus_to_exitcode(keeper.loop.exits[pid])
    if code != 0:
        raise Refused(failure, f"{name} ended with {code}", log=log, stderr=said)


def _kill_helper(pid: int) -> Generator[Wait, bool, None]:
    """End runc, CRIU and their scripts; CRIU has let go of the application once it is gone."""
    end = time.monotonic() + UNDO_SECONDS
    while process.kill_group(pid) and time.monotonic() < end:
        yield Wait(time.monotonic() + 0.005)


def _go_forward(keeper: Keeper) -> Generator[Wait, bool, None]:
    """The images are the state now: no process of the old copy may be left, however long that takes."""
    until = time.monotonic() + FORWARD_SECONDS
    while not (yield from clear(keeper, time.monotonic() + UNDO_SECONDS)) and time.monotonic() < until:
        keeper.log(f"processes that do not end: {cgroup.processes(keeper.record.cgroups)}")
    yield from _ended(keeper)


def _ended(keeper: Keeper) -> Generator[Wait, bool, None]:
    """After a dump: CRIU has killed the init; wait until it is reaped."""
    init = keeper.record.init_pid
    if keeper.init_status is None and not (yield Wait(time.monotonic() + REAP_SECONDS, child=init)):
        raise Refused("dump_failed", f"CRIU reported success, but process {init} lives")


def _undo_dump(keeper: Keeper, was: str) -> Generator[Wait, bool, None]:
    """As it was. A killed CRIU leaves its parasites to cure themselves, for which they have to run: thaw first."""
    record = keeper.record
    states.remove_tree(record.path("runc"))
    yield from _settle(keeper, False, time.monotonic() + UNDO_SECONDS)
    yield from _end_repair(keeper)
    if was == states.FROZEN:
        yield from _settle(keeper, True, time.monotonic() + UNDO_SECONDS)
    record.enter(was)


def _end_repair(keeper: Keeper) -> Generator[Wait, bool, None]:
    """Connections that a killed CRIU held in repair mode go on."""
    record = keeper.record
    pids = [str(pid) for pid in cgroup.processes(record.cgroups)]
    argv = [sys.executable, "-IS", f"{record.lib}/unrepair.py", *pids]
    pid = process.spawn(argv, record.path("stderr"))
    yield Wait(time.monotonic() + UNDO_SECONDS, child=pid)
    keeper.log(process.tail(record.path("stderr")))


def _undo_restore(keeper: Keeper, work: str, was: str) -> Generator[Wait, bool, None]:
    """Nothing half restored stays: processes, runc's state. runc removes the cgroup when it fails; make it again."""
    record = keeper.record
    direct.forget(record)  # if that was the way, the other one is next
    yield from clear(keeper, time.monotonic() + UNDO_SECONDS)
    mounts.unmount_below([f"{record.runc_root}/{record.container}", work])
    mounts.sweep_yards()
    states.remove_tree(f"{record.runc_root}/{record.container}")
    cgroup.make(record.cgroups)
    record.enter(was)


def _root_for_dump(record: states.Record) -> str:
    """A copy of runc's state whose end does not end the container; returns its --root."""
    state = json.loads(cgroup.read(f"{record.runc_root}/{record.container}/state.json"))
    decoy = f"{cgroup.own()['']}/dump-{record.container}" if not cgroup.is_v1(record.cgroups) else ""
    state["cgroup_paths"] = {"": decoy} if decoy else {}
    config = state["config"]
    kept = {name: value for name, value in config["cgroups"].items() if name.lower() != "systemd"}
    config["cgroups"] = {**kept, "path": f"/{cgroup.OWN}/dump-{record.container}"}
    config["Hooks"] = None
    root = record.path("runc")
    states.remove_tree(root)
    os.makedirs(f"{root}/{record.container}", 0o700)
    states.replace(f"{root}/{record.container}/state.json", json.dumps(state))
    return root


def _forget_commit(record: states.Record) -> None:
    """The mark that post-dump leaves after the agent's yes is about one dump."""
    if os.path.exists(record.path("committed")):
        os.unlink(record.path("committed"))


def _write_conf(record: states.Record, conf: str) -> None:
    """CRIU's options of this dump. The script lies in PREFIX: /run is often mounted noexec."""
    lines = [
        conf.rstrip("\n"),
        f"freeze-cgroup {cgroup.freezer(record.cgroups)}",
        f"action-script {record.lib}/post-dump",
    ]
    states.replace(record.path("criu.conf"), "\n".join(lines) + "\n")
