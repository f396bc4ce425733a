"""`create`: is it ours, may it begin, and who stands in for its init.

The agent's word decides between starting and restoring; a tenant's annotation only says that the container is managed.

Before its agent is there a pod does not even get its sandbox. For a container that is made and does not run the kubelet
removes the dead one before it (it keeps one): on a node that starts anew that would be the container of a parked
instance, with its writable layer. The agent puts that with the images, and then says that the pod may go on.
"""

from __future__ import annotations

import os
import sys

from kybernate_shim import oci
from kybernate_shim.hook import CREATE_SECONDS, SANDBOX_SECONDS, WAKE_SECONDS, Failed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from kybernate_shim.hook import Hook
    from kybernate_shim.wire import Message

MPTCP_SWITCH = "/proc/sys/net/mptcp/enabled"
PR_SET_CHILD_SUBREAPER = 36


def create(hook: Hook) -> int:
    bundle = os.path.abspath(hook.command.option("--bundle", "-b") or ".")
    try:
        with open(bundle + "/config.json", "rb") as file:
            raw = file.read()
    except OSError:
        hook.pass_on()  # runc says best what is wrong with a bundle
    keepers = _keepers_named(hook, raw)
    if oci.MANAGED_MARK not in raw and not keepers:
        hook.pass_on()
    import json

    config = json.loads(raw)
    managed = oci.is_managed(config)
    if oci.is_managed_sandbox(config):
        hook.agent("sandbox", SANDBOX_SECONDS, pod_uid=oci.notes_of(config).get(oci.CRI_POD_UID, ""))
    if not managed and not keepers:
        hook.pass_on()
    if hook.command.verb == "restore":
        raise Failed("this container is managed by kybernate: restore it with `kybernate restore`")
    oci.redirect_namespaces(config, {pid: _real_init(hook, pid) for pid in keepers})
    if not managed:
        _write_config(bundle, config)
        hook.pass_on()
    if (config.get("process") or {}).get("terminal"):
        raise Failed("a managed container cannot have a terminal (tty: true): CRIU cannot give it back. Set tty: false")
    return _create_managed(hook, bundle, config)


def _keepers_named(hook: Hook, raw: bytes) -> list[str]:
    """The keepers that the bundle's namespace paths point at, as /proc names them."""
    return [pid.decode() for pid in oci.pids_in_namespace_paths(raw) if _is_keeper(hook, pid.decode())]


def _is_keeper(hook: Hook, pid: str) -> bool:
    """A link in RUN/pids whose process is still the one it was made for; pids are used again."""
    if not os.path.islink(f"{hook.run}/pids/{pid}"):
        return False
    try:
        with open(f"/proc/{pid}/comm") as comm:
            return comm.read() == "kyb-keeper\n"
    except OSError:
        return False


def _real_init(hook: Hook, pid: str) -> int:
    container = os.path.basename(os.readlink(f"{hook.run}/pids/{pid}"))
    reply = hook.agent("target", WAKE_SECONDS, container=container)
    return int(reply["init_pid"])


def _write_config(bundle: str, config: oci.Config) -> None:
    import json

    from kybernate_shim.record import replace

    replace(bundle + "/config.json", json.dumps(config), 0o644)


def _create_managed(hook: Hook, bundle: str, config: oci.Config) -> int:
    from kybernate_shim import cgroup, record

    command, notes = hook.command, oci.notes_of(config)
    facts = {
        "container": command.container,
        "pod_uid": notes.get(oci.CRI_POD_UID, ""),
        "name": notes.get(oci.CRI_NAME, ""),
        "sandbox": notes.get(oci.CRI_SANDBOX, ""),
        "bundle": bundle,
    }
    reply = hook.agent("create", CREATE_SECONDS, **facts, annotations=notes)
    folder = hook.folder(command.container)
    _make_folder(hook, folder)
    try:
        oci.prepare(config, folder + "/criu.conf", os.uname().machine, os.path.exists(MPTCP_SWITCH))
        record.replace(folder + "/criu.conf", "")
        _write_config(bundle, config)
        restore = reply["action"] == "restore"
        path = (config.get("linux") or {}).get("cgroupsPath") or f"/{command.container}"
        record.Record(
            folder,
            {
                **facts,
                "state": record.AWAITING if restore else record.CREATING,
                "runc": hook.runc,
                "runc_root": command.global_option("--root") or "/run/runc",
                "runc_globals": command.globals,
                "create_options": _without(command.options, "--pid-file"),
                "pid_file": os.path.abspath(pid_file) if (pid_file := command.option("--pid-file")) else "",
                "lib": hook.lib,
                "cgroups": cgroup.of_path(path) if restore else {},
            },
        ).save()
        outcome = _begin_keeper(hook, folder)
    except BaseException:
        record.discard(folder, 0)
        raise
    if outcome["ok"]:
        return 0
    if "message" not in outcome:
        record.discard(folder, 0)
        return int(outcome["code"])  # runc has said why, in the same places
    _undo(hook, folder)
    raise Failed(outcome["message"])


def _undo(hook: Hook, folder: str) -> None:
    """The keeper failed, perhaps after runc had made the container."""
    import subprocess

    from kybernate_shim import cgroup, record

    argv = [hook.runc, *hook.command.globals, "delete", "--force", hook.command.container]
    subprocess.run(argv, check=False, stderr=subprocess.DEVNULL, timeout=30)
    known = record.Record.load(folder)
    cgroup.remove(known.cgroups)
    record.discard(folder, known.keeper_pid)


def _make_folder(hook: Hook, folder: str) -> None:
    """RUN/keepers/<id>, fresh. What a dead keeper left under this id goes; a living one's id is taken."""
    from kybernate_shim import record

    for path in (hook.run, hook.run + "/keepers", hook.run + "/pids"):
        os.makedirs(path, 0o700, exist_ok=True)
    if os.path.isdir(folder):
        if hook.keeper("state") is not None:
            raise Failed(f"container with id {hook.command.container} already exists")
        try:
            pid = record.Record.load(folder).keeper_pid
        except (FileNotFoundError, ValueError):
            pid = 0
        record.discard(folder, pid)
    os.mkdir(folder, 0o700)


def _without(options: list[str], name: str) -> list[str]:
    """The options but `name` and its value. The bundle is made absolute: the keeper works in another folder."""
    kept, words = [], iter(options)
    for word in words:
        if word == name:
            next(words, None)
        elif word in ("--bundle", "-b"):
            kept += ["--bundle", os.path.abspath(next(words, "."))]
        elif not word.startswith(name + "="):
            kept.append(word)
    return kept


def _begin_keeper(hook: Hook, folder: str) -> Message:
    """Fork; the child becomes the keeper and says on a pipe when the container has been created."""
    from kybernate_shim import wire

    reader, writer = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        _become_keeper(hook, folder, writer)
    os.close(writer)
    answer = b""
    while part := os.read(reader, 65536):
        answer += part
    if answer:
        outcome: Message = wire.decode(answer)
        return outcome
    _, status = os.waitpid(child, 0)
    return {"ok": False, "message": f"the keeper ended ({os.waitstatus_to_exitcode(status)}) before the container was"}


def _become_keeper(hook: Hook, folder: str, writer: int) -> NoReturn:
    """A fresh interpreter: small, and a subreaper (which outlives exec)."""
    import ctypes

    try:
        os.setsid()
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        os.set_inheritable(writer, True)
        os.execv(sys.executable, [sys.executable, "-IS", hook.lib + "/keeper.py", folder, str(writer)])  # noqa: S606
    finally:
        os._exit(127)
