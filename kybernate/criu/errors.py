"""What can go wrong around CRIU: leaves of `kybernate.errors`, each with its remedy."""

from __future__ import annotations

from kybernate.errors import DeadlineError, ExternalError, InvalidError, RefusedError


class OptionError(InvalidError):
    """{option}: {value!r} cannot be written into CRIU's configuration file: it has {problem}. Choose another path."""


class ImageFormatError(ExternalError):
    """{path}: {problem}. This CRIU writes images that are not understood here; install a version between 4.2 and 5."""


class ProgramMissingError(RefusedError):
    """{program} cannot be run: {problem}. Install it, or name its path in the agent's configuration."""


class ProgramDeadlineError(DeadlineError):
    """{command} gave no answer within {deadline_seconds} s. Look at the machine's load and at the kernel's log."""


class CacheError(ExternalError):
    """{path}: {problem}. Without its cache CRIU is 45 to 50 ms slower at each call; a tmpfs at /run gives it one."""


class UnsuitableError(RefusedError):
    """{container}: {problem}. {remedy}"""


class OtherUserError(UnsuitableError):
    """{container}: process {pid} ({name}) runs as user {uid} and CRIU lacks CAP_SYS_RESOURCE, without which it can dump
    only root's processes. Give the node's containerd that capability, or let the workload run as root."""

    exit_code = 26


class OverlayInBindError(UnsuitableError):
    """{container}: at {mountpoint} an overlay of the host came along with a bind mount; CRIU would mount a second one
    over the same folders. Bind the folder without its submounts, or unmount the overlay."""

    exit_code = 26


class TerminalError(UnsuitableError):
    """{container}: process {pid} ({name}) has a terminal ({path}) from outside of the container. Set tty: false."""

    exit_code = 26


class ExecSessionError(UnsuitableError):
    """{container}: process {pid} ({name}) came in by exec and would be lost. End the exec session, then try again."""

    exit_code = 26


class TracedError(UnsuitableError):
    """{container}: process {pid} ({name}) is traced by process {tracer}, and it can have one only. End the
    debugger or strace, then try again."""

    exit_code = 26


class StoppedError(UnsuitableError):
    """{container}: process {pid} ({name}) is stopped by a signal, CRIU would wait for it for ever. Send it SIGCONT."""

    exit_code = 26


class PrivilegesExceedError(RefusedError):
    """{container}: thread {thread} ({name}) of the images {problem}, more than the new container's configuration
    allows. Give the template the security context of before, or begin anew."""
