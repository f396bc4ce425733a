"""CRIU's options and CRIU's log: what is written for it, and what is read from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from kybernate.criu import OptionError, dump_conf, explain, restore_conf


def test_a_dump_has_the_options_that_a_general_tool_needs() -> None:
    text = dump_conf(irmap_paths=["/app"], empty_tmpfs=["/dev/shm"], freeze_seconds=7)
    assert text.splitlines() == [
        "tcp-established",
        "file-locks",
        "link-remap",
        "ghost-limit 1G",
        "network-lock skip",
        "timeout 7",
        "irmap-scan-path /app",
        "external mnt[/dev/shm]:kybernate-empty-tmpfs",
    ]


def test_without_a_hold_of_ours_criu_locks_the_network() -> None:
    assert "network-lock" not in dump_conf(hold_is_ours=False) + restore_conf(hold_is_ours=False)
    assert "network-lock skip" in restore_conf()


@pytest.mark.parametrize(
    "path", ["relative", "/with blank", "/with\nnewline", "/with#hash", '/with"quote', "/with]", "/\x07"]
)
def test_a_path_that_criu_would_take_apart_is_refused(path: str) -> None:
    with pytest.raises(OptionError):
        dump_conf(irmap_paths=[path])
    with pytest.raises(OptionError):
        dump_conf(empty_tmpfs=[path])


LOGS = {  # as CRIU 4.2.1 wrote them
    "io_uring": ["pie: 1: Error (criu/pie/parasite.c:588): send_fds failed (-22)"],
    "mptcp": ["Error (criu/sk-inet.c:137): inet: Unsupported proto 262 for socket 20903"],
    "socket-protocol": ["Error (criu/sk-inet.c:137): inet: Unsupported proto 132 for socket 20903"],
    "in-flight-connection": ["Error (criu/sk-inet.c:185): inet: In-flight connection (l) for 20aee"],
    "ghost-limit": ["Error (criu/files-reg.c:1031): Can't dump ghost file /tmp/big of 2074794496 size, increase limit"],
    "inotify": ["Error (criu/fsnotify.c:284): fsnotify: \tCan't dump that handle"],
    "landlock": [
        "Error (criu/files-ext.c:94): Can't dump file 5 of that type [600] (anon anon_inode:[landlock-ruleset])"
    ],
    "kernel-object": [
        "Error (criu/files-ext.c:94): Can't dump file 5 of that type [600] (anon anon_inode:[perf_event])"
    ],
    "userfaultfd": [
        "Error (criu/files-ext.c:94): Can't dump file 5 of that type [600] (anon anon_inode:[userfaultfd])"
    ],
    "file-outside": ["Error (criu/files-reg.c:1790): Can't lookup mount=71 for fd=5 path=/queue"],
    "nested-namespace": ["Error (criu/namespaces.c:460): Can't dump nested pid namespace for 8373"],
    "cap-sys-resource": ["Error (criu/cr-dump.c:389): Can't get rlimit 0: Operation not permitted"],
    "unix-socket-outside": ["Error (criu/sk-unix.c:479): unix: Dangling connection 145178"],
    "traced": [
        "Warn  (compel/src/lib/infect.c:132): Unable to interrupt task: 10410 (Operation not permitted)",
        "Error (criu/cr-dump.c:1655): Timeout reached. Try to interrupt: 0",
    ],
    "freeze-timeout": ["Error (criu/cr-dump.c:1655): Timeout reached. Try to interrupt: 0"],
    "vetoed": ["Error (criu/action-scripts.c:94): Script /run/x/post-dump exited with 1"],
    "no-space": ["Error (criu/image.c:845): Can't write img file: No space left on device"],
    "file-lock": ["Error (criu/file-lock.c:110): Some file locks are hold by dumping tasks! You can try --file-locks"],
    "link-remap": ["Error (criu/files-reg.c:1122): Can't create link remap for /a. Use link-remap option."],
    "file-changed": ["Error (criu/files-reg.c:2175): File app/model.bin has bad size 12 (expect 13)"],
}
BEFORE = [
    "(00.001) Warn  (criu/kerndat.c:1290): Can't keep kdat cache on non-tempfs",
    "(00.002) Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted",
    "(00.003) Dumping file locks, vdso, mqueue",
]
AFTER = [
    "(00.104) Error (criu/cr-dump.c:1545): Dump files (pid: 1) failed with -1",
    "(00.105) Error (criu/cr-dump.c:1975): Dumping FAILED.",
]


@pytest.mark.parametrize("code", sorted(LOGS))
def test_the_first_known_error_is_the_cause(tmp_path: Path, code: str) -> None:
    log = tmp_path / "dump.log"
    log.write_text("\n".join([*BEFORE, *(f"(00.100) {line}" for line in LOGS[code]), *AFTER]))
    cause = explain(log)
    assert cause.code == code
    assert cause.message
    assert cause.remedy
    assert "{" not in cause.message


def test_what_the_log_names_is_in_the_message(tmp_path: Path) -> None:
    log = tmp_path / "restore.log"
    log.write_text(LOGS["file-changed"][0])
    assert "app/model.bin" in explain(log).message
    assert "size" in explain(log).message


def test_only_what_may_pass_by_itself_is_transient(tmp_path: Path) -> None:
    log = tmp_path / "dump.log"
    log.write_text(LOGS["in-flight-connection"][0])
    assert explain(log).transient
    log.write_text(LOGS["mptcp"][0])
    assert not explain(log).transient


def test_an_unknown_failure_shows_the_last_errors_and_the_log(tmp_path: Path) -> None:
    log = tmp_path / "dump.log"
    log.write_text("\n".join([*BEFORE, "(00.1) Error (criu/new.c:1): Strange thing", *AFTER]))
    cause = explain(log)
    assert cause.code == "unknown"
    assert "Strange thing" in cause.message
    assert "RLIMIT_NOFILE" not in cause.message
    assert str(log) in cause.remedy


def test_without_a_log_runc_is_asked(tmp_path: Path) -> None:
    cause = explain(tmp_path / "none", "runc run failed: unable to create new parent process\n")
    assert "unable to create new parent process" in cause.message
    assert explain(tmp_path / "none").message.endswith("CRIU said nothing")
