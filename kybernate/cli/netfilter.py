"""Can this kernel hold packets? Tried with the rule that the product uses, in a network namespace made for the try.

The rule needs the targets and matches of xtables (iptables with either back end); the packets are then read through
nfnetlink_queue, which is a module of its own. A namespace ends with the process that made it, and the rule with it.

Sources: linux/netfilter/nfnetlink_queue.h, linux/netfilter/nfnetlink.h; iptables-extensions(8).
"""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator

from kybernate.cli.checks import DEADLINE_SECONDS, Check, Status

RULES = """\
*mangle
-A PREROUTING -m mark --mark 0x1 -j RETURN
-A PREROUTING -p tcp -m multiport --dports 8080 -j NFQUEUE --queue-num 1
COMMIT
"""
_NETLINK_NETFILTER = 12
_QUEUE_CONFIG = 3 << 8 | 2  # NFNL_SUBSYS_QUEUE, NFQNL_MSG_CONFIG
_REQUEST_ACK = 1 | 4
_CFG_CMD, _PF_BIND = 1, 3
_NLMSG_ERROR = 2


def netfilter() -> Iterator[Check]:
    """IPv4, IPv6, and the way packets reach us."""
    for program in ("iptables", "ip6tables"):
        yield judge_rule(program, shutil.which(f"{program}-restore") is not None, *_try_rule(program))
    yield judge_queue(_bind_queue())


def judge_rule(program: str, present: bool, status: int, stderr: str) -> Check:
    """`status` and `stderr`: of the try, where the program is present."""
    if not present:
        return Check("netfilter", Status.FAILED, f"{program}-restore is missing", "Install the package iptables.")
    if status != 0:
        reason = (stderr.strip().splitlines() or [f"exit status {status}"])[0]
        remedy = "The kernel needs xt_NFQUEUE, xt_mark and xt_multiport (modprobe them), and the agent CAP_NET_ADMIN."
        return Check("netfilter", Status.FAILED, f"{program} takes no NFQUEUE rule: {reason}", remedy)
    return Check("netfilter", Status.OK, f"{program} takes an NFQUEUE rule")


def judge_queue(error: int) -> Check:
    """`error`: the kernel's answer, 0 where it has queues."""
    if error:
        remedy = "The kernel needs nfnetlink_queue (modprobe it), and the agent CAP_NET_ADMIN."
        return Check("netfilter", Status.FAILED, f"no packet queues: {os.strerror(error)}", remedy)
    return Check("netfilter", Status.OK, "packets can be queued (nfnetlink_queue)")


def _try_rule(program: str) -> tuple[int, str]:
    command = ["unshare", "--net", "--", f"{program}-restore", "--noflush", "--wait", "5"]
    try:
        done = subprocess.run(
            command, input=RULES, capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, str(error)
    return done.returncode, done.stderr


def _bind_queue() -> int:
    """Ask for what binds nothing (PF_BIND, without effect since 3.8) but is refused where no queues are; the errno."""
    command = struct.pack("=HHBBH", 8, _CFG_CMD, _PF_BIND, 0, socket.htons(socket.AF_INET))
    body = struct.pack("=BBH", socket.AF_UNSPEC, 0, 0) + command
    header = struct.pack("=IHHII", 16 + len(body), _QUEUE_CONFIG, _REQUEST_ACK, 1, 0)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as link:
            link.settimeout(DEADLINE_SECONDS)
            link.send(header + body)
            answer = link.recv(4096)
    except OSError as error:
        return error.errno or 1
    kind, code = struct.unpack_from("=H", answer, 4)[0], struct.unpack_from("=i", answer, 16)[0]
    return -code if kind == _NLMSG_ERROR else 0
