"""A container under containerd falls asleep and wakes; what containerd, its logs and its callers see of it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kybernate_shim import cgroup
from shim_bed import COUNT, RESTORE_CONF, Bed, groups_of, until

V1 = cgroup.is_v1(cgroup.own())
LIMIT = {"memory": {"limit": 64 << 20}} if V1 else {"unified": {"cgroup.max.depth": "5"}}


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    made = Bed(tmp_path_factory.mktemp("sleep"))
    yield made
    made.close()


@pytest.fixture(autouse=True)
def as_told(bed: Bed) -> Iterator[None]:
    told = dict(bed.agent.answers)
    yield
    bed.agent.answers = told
    bed.criu("")


def wakeups(pid: int) -> int:
    """How often a process has gone to sleep by itself: once for each time that it was woken."""
    return int(Path(f"/proc/{pid}/status").read_text().split("voluntary_ctxt_switches:")[1].split()[0])


def sleeps_on(pid: int) -> bool:
    before = wakeups(pid)
    time.sleep(0.3)
    return wakeups(pid) == before


def connect(port: int) -> socket.socket | None:
    try:
        return socket.create_connection(("127.0.0.1", port), 5)
    except ConnectionRefusedError:
        return None


def test_unmanaged_container_runs_without_a_keeper(bed: Bed) -> None:
    container = bed.container("exit 3", managed=False)
    assert container.wait_exit() == 3
    assert not container.folder.exists()


def test_frozen_container_stands_still_and_goes_on(bed: Bed) -> None:
    container = bed.container(COUNT)
    container.grows()
    assert container.ok("freeze")["state"] == "frozen"
    still = container.lines()
    assert container.task() == "RUNNING"
    assert container.lines() == still
    assert container.ok("thaw")["state"] == "running"
    container.grows()
    assert container.lines() == [str(n + 1) for n in range(len(container.lines()))]


def test_parked_container_has_no_processes_and_comes_back_with_its_state(bed: Bed) -> None:
    container = bed.container(COUNT)
    container.grows()
    container.ok("freeze")
    groups = groups_of(f"/default/{container.id}")
    assert (reply := container.dump())["ok"], reply
    assert cgroup.processes(container.record()["cgroups"]) == []
    assert groups_of(f"/default/{container.id}") == groups
    assert container.task() == "RUNNING"
    assert container.ctr("task", "metrics", container.id).returncode == 0
    assert (reply := container.restore())["ok"], reply
    container.grows()
    assert container.lines() == [str(n + 1) for n in range(len(container.lines()))]


def test_container_parks_again_and_again_from_running(bed: Bed) -> None:
    container = bed.container(COUNT)
    for _ in range(3):
        container.grows()
        assert container.dump()["state"] == "parked"
        assert container.restore()["state"] == "running"
    container.grows()
    assert container.lines() == [str(n + 1) for n in range(len(container.lines()))]


@pytest.mark.parametrize("was", ["running", "frozen"])
def test_veto_leaves_the_container_as_it_was(bed: Bed, was: str) -> None:
    bed.agent.answers["post-dump"] = {"ok": False, "error": "no_room", "message": "the store is full"}
    container = bed.container(COUNT)
    container.grows()
    if was == "frozen":
        container.ok("freeze")
    reply = container.dump()
    assert reply["error"] == "dump_failed"
    assert container.state() == was
    if was == "frozen":
        still = container.lines()
        assert cgroup.settled(container.record()["cgroups"], True)
        assert container.lines() == still
        container.ok("thaw")
    container.grows()


def test_dump_without_an_agent_is_vetoed(bed: Bed) -> None:
    container = bed.container(COUNT)
    os.rename(bed.agent.path, f"{bed.agent.path}.away")
    try:
        assert container.dump()["error"] == "dump_failed"
    finally:
        os.rename(f"{bed.agent.path}.away", bed.agent.path)
    container.grows()


def test_agent_that_never_answers_post_dump_is_a_veto_before_the_deadline(bed: Bed) -> None:
    answer = threading.Event()
    bed.agent.answers["post-dump"] = lambda request: answer.wait(30) or None
    container = bed.container(COUNT)
    try:
        assert container.dump(deadline_seconds=4)["error"] == "dump_failed"
    finally:
        answer.set()
    container.grows()


def test_dump_that_fails_after_the_commit_still_ends_parked(bed: Bed) -> None:
    container = bed.container(COUNT)
    container.grows()
    script = bed.root / "prefix/lib/post-dump"
    kept = script.read_text()
    script.write_text(kept.replace("exec ", "") + '[ $? = 0 ] && kill -9 "$PPID"\n')  # CRIU dies of it
    try:
        assert container.dump()["state"] == "parked"
    finally:
        script.write_text(kept)
    assert cgroup.processes(container.record()["cgroups"]) == []
    assert (reply := container.restore())["ok"], reply
    container.grows()


def test_exec_session_is_seen_and_ends_with_a_park_but_not_with_a_veto(bed: Bed) -> None:
    container = bed.container(COUNT)
    words = ("task", "exec", "--exec-id", "s", container.id, "/bin/sh", "-c", "echo in; exec sleep 1000")
    session = subprocess.Popen(bed.ctr(*words), stdout=subprocess.PIPE)
    assert session.stdout is not None
    assert session.stdout.readline() == b"in\n"
    assert container.ok("state", sessions=True)["sessions"] == 1
    bed.agent.answers["post-dump"] = {"ok": False}
    assert not container.dump()["ok"]
    assert session.poll() is None
    bed.agent.answers["post-dump"] = {"ok": True}
    assert (reply := container.dump())["ok"], reply
    assert session.wait(10) == 137
    assert container.ok("state", sessions=True)["sessions"] == 0


def test_malformed_requests_do_no_harm(bed: Bed) -> None:
    container = bed.container(COUNT)
    assert container.ask("kill")["error"] == "bad_request"
    assert container.ask("kill", signal="x")["error"] == "bad_request"
    assert container.ask("dance")["error"] == "bad_request"
    assert container.ask("dump")["ok"] is False
    container.grows()


@pytest.mark.parametrize("was", ["running", "frozen"])
def test_connections_go_on_after_a_criu_that_was_killed_in_the_middle(bed: Bed, was: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    container = bed.container(f"sleep 1000 | /bin/busybox nc -l -p {port}", options=("--net-host",))
    client = until(lambda: connect(port))
    client.sendall(b"before\n")
    until(lambda: container.lines() == ["before"])
    if was == "frozen":
        container.ok("freeze")
    script = bed.root / "prefix/lib/post-dump"
    kept = script.read_text()
    script.write_text('#!/bin/sh\n[ "$CRTOOLS_SCRIPT_ACTION" = post-dump ] && sleep 100\nexit 0\n')
    try:
        assert container.dump(deadline_seconds=1.5)["error"] == "deadline"
    finally:
        script.write_text(kept)
    assert container.state() == was
    if was == "frozen":
        container.ok("thaw")
    client.sendall(b"after\n")
    until(lambda: container.lines() == ["before", "after"])
    client.close()


def test_hanging_dump_ends_at_its_deadline_and_the_container_runs_on(bed: Bed) -> None:
    container = bed.container(COUNT)
    bed.criu("exec sleep 100\n")
    reply = container.dump(deadline_seconds=0.7)
    assert (reply["error"], reply["state"]) == ("deadline", "running")
    container.grows()
    bed.criu("")
    assert (reply := container.dump())["ok"], reply


def test_failed_restore_stays_parked_and_a_good_one_follows(bed: Bed) -> None:
    container = bed.container(COUNT)
    container.grows()
    assert (reply := container.dump())["ok"], reply
    (container.images / "inventory.img").rename(container.images / "away")
    reply = container.restore()
    assert (reply["error"], reply["state"]) == ("restore_failed", "parked")
    assert reply["log"].endswith("restore.log")
    (container.images / "away").rename(container.images / "inventory.img")
    assert (reply := container.restore())["ok"], reply
    container.grows()


def test_hanging_restore_ends_at_its_deadline(bed: Bed) -> None:
    container = bed.container(COUNT)
    container.grows()
    assert (reply := container.dump())["ok"], reply
    bed.criu("exec sleep 100\n")
    assert container.restore(deadline_seconds=0.7)["error"] == "deadline"
    bed.criu("")
    assert (reply := container.restore())["ok"], reply
    container.grows()


def test_exec_wakes_a_parked_container(bed: Bed) -> None:
    container = bed.container(COUNT)
    container.grows()
    assert (reply := container.dump())["ok"], reply
    bed.agent.answers["exec"] = lambda request: container.restore()
    ran = container.ctr("task", "exec", "--exec-id", "x", container.id, "/bin/echo", "awake")
    assert ran.stdout == "awake\n"
    mine = [asked for asked in bed.agent.heard if (asked["verb"], asked["container"]) == ("exec", container.id)]
    assert [asked["argv"] for asked in mine] == [["/bin/echo", "awake"]]


def test_what_runc_would_say_of_a_parked_container(bed: Bed) -> None:
    container = bed.container(COUNT)
    container.grows()
    assert (reply := container.dump())["ok"], reply
    said = json.loads(container.runc("state", container.id).stdout)
    assert (said["status"], said["pid"]) == ("running", container.record()["keeper_pid"])
    keeper = container.record()["keeper_pid"]
    assert container.runc("ps", "--format", "json", container.id).stdout == f"[{keeper}]\n"
    for verb in ("pause", "resume", "checkpoint"):
        assert container.runc(verb, container.id).returncode == 1
    assert "parked" in container.runc("pause", container.id).stderr


def test_pause_by_containerd_holds_and_forbids_sleep(bed: Bed) -> None:
    container = bed.container(COUNT)
    assert container.ctr("task", "pause", container.id).returncode == 0
    assert container.task() == "PAUSED"
    assert container.dump()["error"] == "wrong_state"
    assert container.ctr("task", "resume", container.id).returncode == 0
    container.grows()


def test_update_of_a_parked_container_holds_after_the_restore(bed: Bed) -> None:
    container = bed.container(COUNT)
    container.grows()
    assert (reply := container.dump())["ok"], reply
    updated = container.runc("update", "--resources", "-", container.id, input=json.dumps(LIMIT))
    assert updated.returncode == 0, updated.stderr
    assert (reply := container.restore())["ok"], reply
    groups = container.record()["cgroups"]
    if V1:
        assert cgroup.read(groups["memory"] + "/memory.limit_in_bytes").strip() == str(64 << 20)
    else:
        assert cgroup.read(groups[""] + "/cgroup.max.depth").strip() == "5"


def test_container_is_restored_instead_of_created_on_the_agents_word(bed: Bed) -> None:
    first = bed.container(COUNT)
    first.grows()
    assert first.dump()["ok"]
    counted = int(first.lines()[-1])
    bed.agent.answers["create"] = {"ok": True, "action": "restore"}
    second = bed.container("false", rootfs=first.rootfs)
    assert second.state() == "awaiting-restore"
    assert "started" in bed.agent.verbs()
    assert json.loads(second.runc("state", second.id).stdout)["status"] == "running"
    second.images = first.images
    assert second.restore()["ok"]
    until(second.lines)
    assert int(second.lines()[0]) == counted + 1


def test_container_cannot_be_created_when_the_agent_refuses(bed: Bed) -> None:
    bed.agent.answers["create"] = {"ok": False, "error": "refused", "message": "another copy lives"}
    container = bed.container(COUNT, check=False)
    assert "another copy lives" in container.ran.stderr
    assert not container.folder.exists()


def test_managed_container_with_a_terminal_is_refused(bed: Bed) -> None:
    container = bed.container(COUNT)
    bundle = container.bed.root / "tty"
    bundle.mkdir()
    config = json.loads(Path(container.record()["bundle"], "config.json").read_text())
    config["process"]["terminal"] = True
    (bundle / "config.json").write_text(json.dumps(config))
    ran = container.runc("create", "--bundle", str(bundle), "with-a-terminal")
    assert ran.returncode == 1
    assert "tty: false" in ran.stderr
    assert not (bed.run / "keepers/with-a-terminal").exists()


def test_create_that_runc_refuses_fails_as_with_runc(bed: Bed) -> None:
    container = bed.container(COUNT, check=False, command=("/bin/none-such",))
    assert "none-such" in container.ran.stderr
    assert not container.folder.exists()


def test_namespace_path_of_a_keeper_becomes_the_real_inits(bed: Bed) -> None:
    container = bed.container(COUNT)
    record = container.record()
    bed.agent.answers["target"] = {"ok": True, "init_pid": record["init_pid"]}
    visitor = bed.container(
        "sleep 30", managed=False, options=("--with-ns", f"pid:/proc/{record['keeper_pid']}/ns/pid")
    )
    joined = visitor.ctr("task", "ls").stdout
    pid = next(line.split()[1] for line in joined.splitlines() if line.startswith(visitor.id))
    assert os.readlink(f"/proc/{pid}/ns/pid") == os.readlink(f"/proc/{record['init_pid']}/ns/pid")
    bed.agent.answers["target"] = {"ok": False, "error": "refused", "message": "asleep for good"}
    refused = bed.container(
        "sleep 30", managed=False, check=False, options=("--with-ns", f"pid:/proc/{record['keeper_pid']}/ns/pid")
    )
    assert "asleep for good" in refused.ran.stderr


def test_io_uring_is_refused_and_mptcp_is_off(bed: Bed) -> None:
    container = bed.container(COUNT)
    config: dict[str, Any] = json.loads(Path(container.record()["bundle"], "config.json").read_text())
    rules = config["linux"]["seccomp"]["syscalls"]
    assert {"names": ["io_uring_setup", "io_uring_enter", "io_uring_register"], "action": "SCMP_ACT_ERRNO",
            "errnoRet": 38} in rules  # fmt: skip
    if os.path.exists("/proc/sys/net/mptcp/enabled"):
        ran = container.ctr("task", "exec", "--exec-id", "m", container.id, "/bin/cat", "/proc/sys/net/mptcp/enabled")
        assert ran.stdout == "0\n"


def test_keeper_is_small_and_idle(bed: Bed) -> None:
    # Not one long sleep: an interrupted nanosleep ends with EINTR at a restore, and some programs end with it.
    container = bed.container(COUNT)
    container.grows()
    assert (reply := container.dump())["ok"], reply
    assert (reply := container.restore())["ok"], reply
    pid = container.record()["keeper_pid"]
    sizes = {
        line.split()[0]: int(line.split()[1]) for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    }
    assert sizes["Rss:"] <= 12 * 1024
    assert sizes["Private_Clean:"] + sizes["Private_Dirty:"] <= 6 * 1024
    assert Path(f"/proc/{pid}/comm").read_text() == "kyb-keeper\n"
    until(lambda: sleeps_on(pid), 3, "the keeper sleeps")


def test_conf_of_the_dump_does_not_reach_the_restore(bed: Bed) -> None:
    container = bed.container(COUNT)
    container.grows()
    assert (reply := container.dump())["ok"], reply
    assert "action-script" in (container.folder / "criu.conf").read_text()
    assert (reply := container.restore())["ok"], reply
    assert (container.folder / "criu.conf").read_text() == RESTORE_CONF
