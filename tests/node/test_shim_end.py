"""How managed containers end: exit codes and signals as with runc, in every state; nothing is left behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kybernate_shim import cgroup, record, wire
from shim_bed import COUNT, Bed, Container, groups_of, nothing_left, until

TRAPS = "trap 'echo got-term; exit 7' TERM; trap 'echo got-usr1' USR1; " + COUNT
LIMIT_SECONDS = 10.0


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    made = Bed(tmp_path_factory.mktemp("end"))
    yield made
    made.close()


@pytest.fixture(autouse=True)
def as_told(bed: Bed) -> Iterator[None]:
    told = dict(bed.agent.answers)
    yield
    bed.agent.answers = told
    bed.criu("")


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def to_running(container: Container) -> None:
    container.grows()


def to_frozen(container: Container) -> None:
    container.grows()
    container.ok("freeze")


def to_parked(container: Container) -> None:
    container.grows()
    assert container.dump()["ok"]


def to_restored(container: Container) -> None:
    to_parked(container)
    assert container.restore()["ok"]
    container.grows()


@pytest.mark.parametrize("managed", [False, True], ids=["plain runc", "managed"])
@pytest.mark.parametrize(
    ("script", "number", "code"),
    [
        ("exit 0", None, 0),
        ("exit 3", None, 3),
        (TRAPS, "TERM", 7),
        (COUNT, "KILL", 137),
        ("sleep 0.1 & exit 5", None, 5),
    ],
)
def test_exit_codes_are_those_of_runc(bed: Bed, managed: bool, script: str, number: str | None, code: int) -> None:
    container = bed.container(script, managed=managed)
    if number:
        container.grows()
        assert container.ctr("task", "kill", "--signal", number, container.id).returncode == 0
    assert container.wait_exit() == code
    nothing_left(container)


def test_restored_container_ends_with_its_own_code(bed: Bed) -> None:
    container = bed.container(TRAPS)
    to_restored(container)
    container.ctr("task", "kill", "--signal", "TERM", container.id)
    assert container.wait_exit() == 7
    assert container.lines()[-1] == "got-term"
    nothing_left(container)


def test_kill_of_a_stopped_container_is_answered_as_by_runc(bed: Bed) -> None:
    container = bed.container("exit 0")
    until(lambda: container.task() == "STOPPED")
    plain = bed.container("exit 0", managed=False)
    until(lambda: plain.task() == "STOPPED")
    ours, theirs = (one.runc("kill", one.id, "TERM") for one in (container, plain))
    said = [(one.returncode, re.sub(r'time="[^"]*"', "", one.stderr)) for one in (ours, theirs)]
    assert said[0] == said[1]
    assert "container not running" in said[0][1]


@pytest.mark.parametrize("number", ["TERM", "INT", "QUIT", "KILL"])
@pytest.mark.parametrize("prepare", [to_frozen, to_parked])
def test_sleeper_dies_of_a_signal_without_waking(bed: Bed, prepare: Callable[[Container], None], number: str) -> None:
    container = bed.container(TRAPS)
    prepare(container)
    before = container.lines()
    began = time.monotonic()
    assert container.ctr("task", "kill", "--signal", number, container.id).returncode == 0
    assert container.wait_exit() == 128 + int(getattr(signal, "SIG" + number))
    assert time.monotonic() - began < LIMIT_SECONDS
    assert container.lines() == before
    nothing_left(container)


def test_other_signals_wake_a_sleeper_and_reach_it(bed: Bed) -> None:
    container = bed.container(TRAPS)
    to_parked(container)
    bed.agent.answers["signal"] = lambda request: container.restore()
    assert container.ctr("task", "kill", "--signal", "USR1", container.id).returncode == 0
    until(lambda: "got-usr1" in container.lines())
    container.grows()


def test_signal_to_the_pid_that_containerd_shows_reaches_the_application(bed: Bed) -> None:
    container = bed.container(TRAPS)
    container.grows()
    os.kill(container.record()["keeper_pid"], signal.SIGTERM)
    assert container.wait_exit() == 7


@pytest.mark.parametrize("step", ["dump", "restore"])
def test_kill_preempts_a_step_that_hangs(bed: Bed, step: str) -> None:
    container = bed.container(COUNT)
    container.grows()
    if step == "restore":
        assert container.dump()["ok"]
    bed.criu(f"echo $$ > {bed.root}/hung\nexec sleep 100\n")
    replies: list[wire.Message] = []
    asking = threading.Thread(target=lambda: replies.append(getattr(container, step)()))
    asking.start()
    hung = Path(bed.root, "hung")
    until(lambda: hung.exists() and hung.read_text())
    began = time.monotonic()
    container.ctr("task", "kill", "--signal", "KILL", container.id)
    assert container.wait_exit() == 137
    assert time.monotonic() - began < LIMIT_SECONDS
    asking.join(5)
    assert replies[0]["error"] == "ended"
    until(lambda: record.start_time(int(hung.read_text())) == 0)
    hung.unlink()
    nothing_left(container)


def test_kill_preempts_a_restore_whose_processes_are_half_there(bed: Bed) -> None:
    container = bed.container(COUNT)
    to_parked(container)
    with open(container.images / "pages-1.img", "r+b") as pages:
        pages.truncate(4096)  # CRIU spins for ever on it
    asking = threading.Thread(target=container.restore)
    asking.start()
    until(lambda: len(cgroup.processes(container.record()["cgroups"])) > 1)
    container.ctr("task", "kill", "--signal", "KILL", container.id)
    assert container.wait_exit() == 137
    asking.join(5)
    nothing_left(container)


def test_restore_that_spins_is_ended_at_its_deadline_with_all_its_processes(bed: Bed) -> None:
    container = bed.container(COUNT)
    to_parked(container)
    pages = (container.images / "pages-1.img").read_bytes()
    (container.images / "pages-1.img").write_bytes(pages[:4096])
    reply = container.restore(deadline_seconds=1)
    assert reply["ok"] is False
    assert cgroup.processes(container.record()["cgroups"]) == []
    (container.images / "pages-1.img").write_bytes(pages)
    assert container.restore()["ok"]
    container.grows()


@pytest.mark.parametrize("prepare", [to_running, to_frozen, to_parked, to_restored])
def test_forced_delete_leaves_nothing_in_every_state(bed: Bed, prepare: Callable[[Container], None]) -> None:
    container = bed.container(COUNT)
    prepare(container)
    known = container.record()
    assert container.runc("delete", container.id).returncode == 1
    assert container.runc("delete", "--force", container.id).returncode == 0
    nothing_left(container)
    assert record.start_time(known["keeper_pid"]) in (0, known["keeper_start"])
    until(lambda: record.start_time(known["keeper_pid"]) == 0)


def test_the_yard_of_a_killed_criu_goes_once_no_criu_runs(bed: Bed) -> None:
    """With the next container that ends; as long as one runs the yard may be that one's."""
    yard = tempfile.mkdtemp(prefix=".criu.mntns.", dir="/tmp")
    subprocess.run(["mount", "-t", "tmpfs", "yard", yard], check=True)
    program = bed.root / "as-criu" / "criu"
    program.parent.mkdir()
    shutil.copy(shutil.which("sleep") or "/bin/sleep", program)

    def stays_when_one_ends() -> bool:
        container = bed.container(COUNT)
        container.grows()
        assert container.runc("delete", "--force", container.id).returncode == 0
        return os.path.ismount(yard)

    try:
        with subprocess.Popen([program, "600"]) as criu:
            try:
                assert stays_when_one_ends()
            finally:
                criu.kill()
        until(lambda: not stays_when_one_ends(), 60, "no other CRIU runs and it goes")
    finally:
        if os.path.ismount(yard):
            subprocess.run(["umount", yard], check=True)
        os.rmdir(yard)


def bundle_like(model: Container, name: str) -> Path:
    """A bundle for another container with the rootfs of `model`, to call the launcher without containerd."""
    bundle = model.bed.root / name
    bundle.mkdir()
    config = json.loads(Path(model.record()["bundle"], "config.json").read_text())
    config["root"]["path"], config["linux"]["cgroupsPath"] = str(model.rootfs), f"/default/{name}"
    (bundle / "config.json").write_text(json.dumps(config))
    return bundle


def test_keeper_that_fails_after_runc_made_the_container_takes_it_away_again(bed: Bed) -> None:
    model = bed.container(COUNT)
    bundle = bundle_like(model, "half-made")
    words = ("create", "--bundle", str(bundle), "--pid-file", "/none/such/pid", "half-made")
    with open(bundle / "stderr", "w") as stderr:
        ran = model.runc(*words, capture_output=False, stdout=subprocess.DEVNULL, stderr=stderr)
    assert ran.returncode == 1
    assert "/none/such" in (bundle / "stderr").read_text()
    assert not (bed.run / "keepers/half-made").exists()
    assert groups_of("/default/half-made") == []
    assert not (bed.root / "runc/default/half-made").exists()


@pytest.mark.parametrize("action", ["start", "restore"])
def test_delete_before_the_start_leaves_nothing(bed: Bed, action: str) -> None:
    model, name = bed.container(COUNT), f"created-{action}"
    bundle = bundle_like(model, name)
    bed.agent.answers["create"] = {"ok": True, "action": action}
    words = ("create", "--bundle", str(bundle), "--pid-file", f"{bundle}/pid", name)
    model.runc(*words, check=True, capture_output=False, stdout=subprocess.DEVNULL)
    folder, keeper = bed.run / "keepers" / name, int((bundle / "pid").read_text())
    assert wire.ask(f"{folder}/sock", {"verb": "state"}, 5)["keeper_pid"] == keeper
    assert cgroup.of_process(keeper) == cgroup.of_path(f"/default/{name}")
    assert model.runc("delete", f"created-{action}").returncode == 0
    assert not folder.exists()
    assert groups_of(f"/default/created-{action}") == []


def test_orphans_of_the_application_and_helpers_leave_no_zombies(bed: Bed) -> None:
    container = bed.container("(sleep 0.1 &) ; " + COUNT)
    to_restored(container)
    keeper = container.record()["keeper_pid"]
    assert children(keeper) == [container.record()["init_pid"]]


def test_out_of_the_blue_death_of_the_init_is_seen_while_frozen(bed: Bed) -> None:
    container = bed.container(COUNT)
    to_frozen(container)
    known = container.record()
    os.kill(known["init_pid"], signal.SIGKILL)
    cgroup.switch(known["cgroups"], False)
    assert container.wait_exit() == 137
    nothing_left(container)


def test_death_of_the_keeper_of_a_running_container_is_an_exit_and_delete_waits_for_the_rest(bed: Bed) -> None:
    container = bed.container(COUNT)
    container.grows()
    known = container.record()
    os.kill(known["keeper_pid"], signal.SIGKILL)
    until(lambda: container.task() == "STOPPED")
    assert record.start_time(known["init_pid"]) == known["init_start"]
    assert container.runc("delete", container.id).returncode != 0
    assert container.folder.exists()
    assert container.runc("kill", container.id, "KILL").returncode == 0
    until(lambda: record.start_time(known["init_pid"]) == 0)
    assert container.wait_exit() == 137
    nothing_left(container)


def test_death_of_the_keeper_of_a_parked_container_is_an_exit_and_keeps_the_images(bed: Bed) -> None:
    """And what the container wrote, until the agent says that it is safe."""
    container = bed.container(COUNT)
    to_parked(container)
    bed.agent.answers["delete"] = {"ok": False, "message": "its layer is not kept yet"}
    os.kill(container.record()["keeper_pid"], signal.SIGKILL)
    until(lambda: container.task() == "STOPPED")
    assert "not kept yet" in container.runc("delete", container.id).stderr
    assert container.folder.exists()
    del bed.agent.answers["delete"]
    assert container.wait_exit() == 137
    nothing_left(container)
    assert (container.images / "inventory.img").exists()


def test_delete_waits_for_the_agent_also_where_keeper_and_processes_are_dead(bed: Bed) -> None:
    """As after a rescue: what they wrote is put with the images still."""
    container = bed.container(COUNT)
    container.grows()
    known = container.record()
    bed.agent.answers["delete"] = {"ok": False, "message": "its layer is not kept yet"}
    os.kill(known["keeper_pid"], signal.SIGKILL)
    os.kill(known["init_pid"], signal.SIGKILL)
    until(lambda: container.task() == "STOPPED" and record.start_time(known["init_pid"]) == 0)
    assert "not kept yet" in container.runc("delete", container.id).stderr
    del bed.agent.answers["delete"]
    assert container.wait_exit() == 137
    nothing_left(container)
