"""CRIU's options, as the text of the configuration file that runc passes on (annotation `org.criu.config`).

runc's own flags know only a part of CRIU's options, and the file holds for dump and restore alike whoever calls runc.
One thing is not for this file: `action-script` is added by the keeper, for dumps only.

Why each option (CRIU 4.2.1):

    tcp-established    without it CRIU refuses any connected socket
    file-locks         without it CRIU refuses any flock, fcntl or OFD lock, even in a file of the container's own
    link-remap         an open file whose name was deleted but which has another hard link; named POSIX semaphores
    ghost-limit        an open file without any name goes into the image up to this size; CRIU's own limit is 1 MiB
    network-lock skip  we hold the traffic ourselves; CRIU's lock runs iptables-restore twice, 100 ms a dump and restore
    timeout            seconds for the freezing phase; CRIU's own is 10
    irmap-scan-path    inotify watches a folder of the overlay: CRIU finds its name only below these paths
    manage-cgroups=ignore  (with "=": its argument is optional; for a restore) processes stay in the cgroup that CRIU is
                       in, where runc has put it. runc 1.1 drops its flag for that, whose value is 0; on cgroup v2 CRIU
                       would then move them into the cgroup of the dump, which in a new container is another's
    tcp-close          (a restore into another network namespace, instead of tcp-established) what was connected comes
                       back closed, as after a reset: the pod's address is another, and its peers' packets go astray
    external mnt[]:    a mount that CRIU neither dumps nor restores: see `kybernate.criu.mounts` and `.skeleton`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kybernate.criu.errors import OptionError

EMPTY_TMPFS = "kybernate-empty-tmpfs"  # the cookie of mounts that come back as fresh tmpfs
_GHOST_LIMIT = "1G"  # CRIU reads a number with K, M or G; no other unit, no space
_BOTH = ("file-locks", "link-remap", f"ghost-limit {_GHOST_LIMIT}", "network-lock skip")


def dump_conf(
    *,
    irmap_paths: Sequence[str] = (),
    empty_tmpfs: Sequence[str] = (),
    external: Mapping[str, str] | None = None,
    freeze_seconds: int = 10,
    hold_is_ours: bool = True,
) -> str:
    """The file's text for a dump. `hold_is_ours` False: CRIU locks the network itself (nobody else holds the traffic).

    `empty_tmpfs` are mount points for `mounts.drop_empty_tmpfs`;
    `external` maps more of them to the keys by which `restore_conf` names them. Raises OptionError for paths CRIU's
    parser would split.
    """
    lines = ["tcp-established", *_common(hold_is_ours), f"timeout {freeze_seconds:d}"]
    lines += [f"irmap-scan-path {_word('irmap-scan-path', path)}" for path in irmap_paths]
    lines += [f"external mnt[{_word('external mnt', path)}]:{EMPTY_TMPFS}" for path in empty_tmpfs]
    lines += [f"external mnt[{_word('external mnt', path)}]:{key}" for path, key in (external or {}).items()]
    return _text(lines)


def restore_conf(
    *, external: Mapping[str, str] | None = None, hold_is_ours: bool = True, keep_connections: bool = True
) -> str:
    """The file's text for a restore; `external` maps the keys of the dump to folders of the host. `keep_connections`
    False: the pod has another network, so what was connected comes back closed.

    Raises OptionError.
    """
    connected = "tcp-established" if keep_connections else "tcp-close"
    lines = [f"external mnt[{key}]:{_word('external mnt', path)}" for key, path in (external or {}).items()]
    return _text([connected, *_common(hold_is_ours), "manage-cgroups=ignore", *lines])


def _common(hold_is_ours: bool) -> list[str]:
    return [line for line in _BOTH if hold_is_ours or not line.startswith("network-lock")]


def _text(lines: Sequence[str]) -> str:
    return "\n".join(lines) + "\n"


def _word(option: str, value: str) -> str:
    """CRIU splits lines at white space, ends them at '#', and takes quotes away; brackets end a key."""
    if not value.startswith("/"):
        raise OptionError(option=option, value=value, problem="no absolute path")
    if any(sign.isspace() or sign in "#\"'[]\\" or not sign.isprintable() for sign in value):
        raise OptionError(
            option=option, value=value, problem="white space, a quote, a bracket, '#' or a control character"
        )
    return value
