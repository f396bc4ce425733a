"""The failures of CRIU that are known: a regular expression over its log, and what it means.

From top to bottom, special before general. `{1}` in a message is the first group of the expression. Most lines were
seen on CRIU 4.2.1; the others are in its source.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Cause:
    """`transient`: the same call may succeed a little later, nothing has to be changed for it."""

    code: str
    message: str
    remedy: str
    transient: bool = False


@dataclass(frozen=True)
class Known:
    pattern: re.Pattern[str]
    cause: Cause


def _known(pattern: str, code: str, message: str, remedy: str, transient: bool = False) -> Known:
    return Known(re.compile(pattern), Cause(code, message, remedy, transient))


_RETRY = "It is tried again a little later."
KNOWN = (
    _known(
        r"anon_inode:\[io_uring\]|send_fds failed \(-22\)",
        "io_uring",
        "the program uses io_uring, which CRIU cannot dump",
        "Restart the container without the annotation kybernate.io/allow-io-uring; then io_uring is refused to it and "
        "programs fall back to epoll.",
    ),
    _known(
        r"anon_inode:\[userfaultfd\]|[Uu]serfaultfd .*(unsupported|not supported)",
        "userfaultfd",
        "the program uses userfaultfd, which CRIU cannot dump",
        "Switch it off in the program, or do not park it.",
    ),
    _known(
        r"anon_inode:\[?\[?landlock",
        "landlock",
        "the program confines itself with Landlock, which CRIU cannot dump",
        "Switch Landlock off in the program's configuration, or do not park it.",
    ),
    _known(
        r"anon_inode:\[(fanotify|perf_event|bpf[\w-]*|kvm[\w-]*)\]",
        "kernel-object",
        "the program holds a kernel object that CRIU cannot dump ({0})",
        "Switch that feature off, or do not park it.",
    ),
    _known(
        r"Unsupported proto 262\b",
        "mptcp",
        "the program listens with MPTCP, which CRIU cannot dump",
        "Restart the container without the annotation kybernate.io/allow-mptcp (for Go: GODEBUG=multipathtcp=0).",
    ),
    _known(
        r"Unsupported proto (\d+)",
        "socket-protocol",
        "a socket has protocol {1}, which CRIU cannot dump",
        "Let the program use TCP, UDP or unix sockets, or do not park it.",
    ),
    _known(
        r"In-flight connection \(l\)",
        "in-flight-connection",
        "a client has connected and the program has not accepted it yet",
        _RETRY,
        True,
    ),
    _known(
        r"In-flight connection on non-listening|closed in-flight socket",
        "in-flight-connection",
        "a unix socket has a connection that is being made",
        _RETRY,
        True,
    ),
    _known(
        r"Some file locks are hold|Unresolved lock found|Dump file lock failed",
        "file-lock",
        "a file lock could not be recorded (its holder may be outside of the container)",
        "Release locks on files that are shared with processes outside of the container.",
    ),
    _known(
        r"Can't dump ghost file (\S+) of (\d+) size",
        "ghost-limit",
        "the deleted file {1} is still open and has {2} bytes, more than the ghost-limit of 1 GiB",
        "Let the program close it, or give the file a name.",
    ),
    _known(
        r"Can't create link remap|Can't link remap",
        "link-remap",
        "a deleted file with other hard links is open and CRIU could not link it",
        "Let the program close that file.",
    ),
    _known(
        r"Can't dump that handle|Can't find suitable path for handle|fsnotify.*Can't find mount",
        "inotify",
        "a folder that the program watches (inotify) could not be found by name",
        "Watch a folder of a volume, or name the folder in irmap-scan-path; or switch file watching off.",
    ),
    _known(
        r"Can't (?:get|set) rlimit|[Pp]rlimit.*(?:failed|not permitted)|Can't get rlimit",
        "cap-sys-resource",
        "CRIU may not look at a process that is not root's: CAP_SYS_RESOURCE is missing",
        "Give the node's containerd CAP_SYS_RESOURCE, or run the workload as root.",
    ),
    _known(
        r"unix: Dangling connection|name-less external socket|[Uu]nix socket \d+ with unreachable peer"
        r"|Can't dump half of stream unix connection",
        "unix-socket-outside",
        "a unix socket is connected with a process outside of the container",
        "Let the program close connections to sockets of the host (and to sockets in volumes) when idle.",
    ),
    _known(
        r"Can't lookup mount=\S+ for fd=\d+ path=(\S+)",
        "file-outside",
        "the program has {1} open, and that lies in no mount of the container: a file of the host (as stdout, say), "
        "or a POSIX message queue",
        "Give the container pipes as stdio; let the program close message queues, or do not park it.",
    ),
    _known(
        r"Can't dump nested (\w+) namespace",
        "nested-namespace",
        "a process has a {1} namespace of its own inside the container",
        "Do not run containers or sandboxes (bubblewrap, Chromium's) inside the container, or do not park it.",
    ),
    _known(
        r"Nested (?:mount|user|pid)\s*namespaces are not supported",
        "nested-namespace",
        "a process has a namespace of its own inside the container",
        "Do not run sandboxes inside it, or do not park it.",
    ),
    _known(
        r"Unable to interrupt task: \d+ \(Operation not permitted\)",
        "traced",
        "a process is being traced by another",
        "End the debugger or strace, then try again.",
    ),
    _known(
        r"Timeout reached|Unable to freeze cgroup|Unable to interrupt the",
        "freeze-timeout",
        "a process could not be stopped in time (it hangs in the kernel, or was stopped by a signal)",
        "Send SIGCONT to stopped processes; look for processes in state D.",
        True,
    ),
    _known(r"(?i)no space left on device", "no-space", "the disk is full", "Free space under the store's root."),
    _known(
        r"Script .* exited with|action scripts failed",
        "vetoed",
        "the checkpoint was not committed, so the dump was undone",
        "The agent's log says why.",
    ),
    _known(
        r"FS mnt (\S+) dev \S+ root \S+ unsupported",
        "file-system",
        "the file system mounted at {1} is of a kind that CRIU does not know",
        "Mount that volume in another way.",
    ),
    _known(
        r"Mount \d+ (\S+) .*has unreachable sharing",
        "shared-mount",
        "the mount at {1} shares its propagation with mounts outside of the container",
        "Set mountPropagation: None for that volume.",
    ),
    _known(
        r"doesn't have a proper root mount|unreachable sharing|Unable to find suitable mount point",
        "mount",
        "a mount or a file opened through it lies outside of what the container sees",
        "Open files of the host (as stdout, say) and mounts from outside cannot be kept: use pipes and plain volumes.",
    ),
    _known(
        r"No mapping for \d+:(\S+) mountpoint|A few mount points can't be mounted|Unable to mount (\S+)",
        "mount-missing",
        "a mount of the dumped container is not there to restore into",
        "Restore with the same volumes and mounts.",
    ),
    _known(
        r"(?:Found dangling tty|Found slave peer|tty: .*(?:Can't|Don't)|Don't have tty to inherit)|"
        r"session leader of .* is outside",
        "terminal",
        "a process has a terminal, or a session, from outside of the container",
        "Set tty: false, and end exec sessions.",
    ),
    _known(
        r"File (\S+) has bad (size|mode|build-ID)",
        "file-changed",
        "the file {1} is not the one that the program had open (its {2} differs)",
        "Restore with the very image and volumes of the dump; a changed file cannot be taken back.",
    ),
    _known(
        r"Can't open file (\S+)|Can't open (?:path|regular file) (\S+)",
        "file-missing",
        "a file that the program had open is gone ({1})",
        "Put it back; the state is kept meanwhile.",
    ),
    _known(
        r"[Bb]ind .*Cannot assign requested address",
        "address-gone",
        "a socket is bound to an address that this pod does not have (the former pod's, most likely)",
        "Let the program bind to every address (0.0.0.0 or ::) instead of the pod's own.",
    ),
    _known(
        r"Can't bind inet socket|Address already in use|Can't restore .*tcp|Can't bind",
        "address-in-use",
        "an address or port that the program had is not free",
        "Look for what took the port in the pod.",
    ),
    _known(
        r"Pid (\d+) do(?:es)? not match expected|clone3?.*File exists",
        "pid-taken",
        "the process id {1} is taken in the container's pid namespace",
        "End what runs there, then try again.",
    ),
    _known(
        r"kerndat_\w+ (?:has )?failed|Could not initialize kernel features",
        "kerndat",
        "CRIU could not find out what this kernel can do",
        "Run `criu check`; CRIU must be 4.2 or newer.",
    ),
    _known(
        r"[Vv]dso.*(?:fail|Can't)|Unable to get a socket name|SO_PASS(?:CRED|SEC)|SO_BUF_LOCK",
        "criu-too-old",
        "this CRIU does not know this kernel",
        "Install CRIU 4.2 or newer.",
    ),
    _known(
        r"Unknown shit \d+ \((.+)\)|Can't dump file \d+ of that type \[\d+\] \((.+)\)",
        "file-kind",
        "the program has a file of a kind that CRIU cannot dump ({0})",
        "Let the program close it, or do not park it.",
    ),
    _known(
        r"[Kk]illed by signal 9|exited, status=\d+.*SIGKILL",
        "killed",
        "a process was killed meanwhile",
        "Look for OOM kills.",
    ),
    _known(
        r"Can't fork for \d+: (?:Resource temporarily|Cannot allocate)|Can't allocate|Cannot allocate memory",
        "memory",
        "there was not memory enough",
        "Raise the container's memory limit, or free memory on the node.",
    ),
)
