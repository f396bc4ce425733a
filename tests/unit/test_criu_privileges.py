"""Rights in images against a container's configuration: what exceeds is named. Real images: tests/node."""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path
from typing import Any

import pytest

from kybernate.criu import ImageFormatError, PrivilegesExceedError, images
from kybernate.criu._pb import criu_images_pb2 as pb
from kybernate.criu.privileges import CAPABILITIES, Allowed, Held, allowed, held, refuse_exceeding, seccomp_digest

NET_RAW = 1 << CAPABILITIES.index("NET_RAW")
SETUID, SETGID = 1 << 7, 1 << 6
PROFILE = {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["read", "write"], "action": "SCMP_ACT_ALLOW"}]}
OURS = {"names": ["io_uring_setup", "io_uring_enter", "io_uring_register"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}

ROOT = Held(7, True, "app", frozenset({0}), frozenset({0}), NET_RAW, False, 2, "")
USER = Held(7, True, "app", frozenset({1000}), frozenset({1000}), 0, True, 2, "")
LOOSE = Allowed(0, frozenset({0}), NET_RAW | SETUID | SETGID, False, "", "", "")
STRICT = Allowed(1000, frozenset({1000}), 0, True, "", "", "")


def thread(of: Held, **changes: Any) -> Held:
    return dataclasses.replace(of, **changes)


def limits(of: Allowed, **changes: Any) -> Allowed:
    return dataclasses.replace(of, **changes)


@pytest.mark.parametrize(
    ("one", "limit", "said"),
    [
        (ROOT, LOOSE, ""),
        (USER, STRICT, ""),
        (ROOT, limits(LOOSE, bounding=SETUID), "has CAP_NET_RAW"),
        (thread(ROOT, capabilities=1 << 50), LOOSE, "has capability 50"),
        (thread(ROOT, users=frozenset({0, 33})), LOOSE, ""),
        (thread(USER, users=frozenset({0, 1000})), STRICT, "runs as user 0"),
        (thread(USER, users=frozenset({0, 1000})), limits(STRICT, no_new_privileges=False), "runs as user 0"),
        (
            thread(ROOT, users=frozenset({33})),
            limits(LOOSE, bounding=NET_RAW, no_new_privileges=True),
            "runs as user 33",
        ),
        (thread(USER, groups=frozenset({1000, 4})), STRICT, "is in group 4"),
        (thread(USER, no_new_privileges=False), STRICT, "noNewPrivileges is off"),
        (thread(USER, seccomp=0), limits(STRICT, seccomp="d"), "has no seccomp filter"),
        (thread(USER, seccomp=0, first=False), limits(STRICT, seccomp="d"), ""),
        (USER, limits(STRICT, apparmor="cri"), "AppArmor profile unconfined, not in cri"),
        (thread(USER, profile="cri"), limits(STRICT, apparmor="cri"), ""),
        (thread(USER, profile="cri//child"), limits(STRICT, apparmor="cri"), ""),
        (thread(USER, profile="criminal"), limits(STRICT, apparmor="cri"), "AppArmor profile criminal"),
        (thread(USER, profile="u:r:box_t:s0:c1,c2"), limits(STRICT, selinux="u:r:box_t:s0:c7,c9"), ""),
        (thread(USER, profile="u:r:free_t:s0"), limits(STRICT, selinux="u:r:box_t:s0"), "label u:r:free_t:s0"),
    ],
)
def test_what_exceeds_is_named(one: Held, limit: Allowed, said: str) -> None:
    before = limits(LOOSE, user=77, seccomp=limit.seccomp)  # it was configured in another way
    if not said:
        refuse_exceeding("c", [one], limit, before)
        return
    with pytest.raises(PrivilegesExceedError) as caught:
        refuse_exceeding("c", [one], limit, before)
    assert said in str(caught.value)
    assert "thread 7 (app)" in str(caught.value)


@pytest.mark.parametrize("dumped", ["", "another"])
def test_another_seccomp_profile_is_refused(dumped: str) -> None:
    with pytest.raises(PrivilegesExceedError, match="seccomp"):
        refuse_exceeding("c", [USER], limits(STRICT, seccomp=seccomp_digest(PROFILE)), limits(STRICT, seccomp=dumped))
    refuse_exceeding("c", [USER], STRICT, limits(STRICT, seccomp=dumped))


def test_what_it_had_come_to_is_let_pass_where_it_is_configured_the_same() -> None:
    risen = thread(USER, users=frozenset({0, 1000}), groups=frozenset({0}))
    refuse_exceeding("c", [risen], STRICT, STRICT)
    with pytest.raises(PrivilegesExceedError, match="runs as user 0"):
        refuse_exceeding("c", [risen], STRICT, limits(STRICT, no_new_privileges=False))
    with pytest.raises(PrivilegesExceedError, match="CAP_NET_RAW"):
        refuse_exceeding("c", [thread(risen, capabilities=NET_RAW)], STRICT, STRICT)


def test_what_the_shim_adds_is_no_part_of_the_profile() -> None:
    with_ours = {**PROFILE, "syscalls": [*PROFILE["syscalls"], OURS]}
    assert seccomp_digest(with_ours) == seccomp_digest(PROFILE) != ""
    assert seccomp_digest({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [OURS]}) == seccomp_digest(None) == ""
    assert seccomp_digest({**PROFILE, "defaultAction": "SCMP_ACT_LOG"}) != seccomp_digest(PROFILE)


def test_a_configuration_is_read() -> None:
    config = {
        "process": {
            "user": {"uid": 5, "gid": 6, "additionalGids": [7]},
            "capabilities": {"bounding": ["CAP_CHOWN", "CAP_NET_RAW", "CAP_FROM_THE_FUTURE"]},
            "noNewPrivileges": True,
            "apparmorProfile": "cri",
            "selinuxLabel": "u:r:t:s0",
        },
        "linux": {"seccomp": PROFILE},
    }
    expected = Allowed(5, frozenset({6, 7}), 1 | NET_RAW, True, seccomp_digest(PROFILE), "cri", "u:r:t:s0")
    assert allowed(config) == expected
    assert allowed({}) == Allowed(0, frozenset({0}), 0, False, "", "", "")


def test_images_are_read(tmp_path: Path) -> None:
    creds = pb.Creds(uid=1, euid=2, suid=3, fsuid=4, gid=5, groups=[9], cap_eff=[1, 1], cap_bnd=[2, 0], no_new_privs=1)
    core = pb.Core(tc=pb.TaskCore(comm="app"), thread_core=pb.ThreadCore(creds=creds, seccomp_mode=2))
    body = core.SerializeToString()
    (tmp_path / "core-12.img").write_bytes(images.CORE + struct.pack("<I", len(body)) + body)
    (found,) = held(tmp_path)
    assert found == Held(12, True, "app", frozenset({1, 2, 3, 4}), frozenset({5, 0, 9}), 1 << 32 | 3, True, 2, "")


def test_an_image_without_credentials_is_no_image(tmp_path: Path) -> None:
    with pytest.raises(ImageFormatError, match="holds no process"):
        held(tmp_path)
    (tmp_path / "core-1.img").write_bytes(images.CORE)
    with pytest.raises(ImageFormatError, match=r"core-1\.img"):
        held(tmp_path)
