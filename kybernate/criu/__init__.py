"""What is known about CRIU: options, images, log, needs, limits. Others run it (the keeper, through runc)."""

from kybernate.criu.causes import Cause
from kybernate.criu.errors import (
    CacheError,
    ExecSessionError,
    ImageFormatError,
    OptionError,
    OtherUserError,
    OverlayInBindError,
    PrivilegesExceedError,
    ProgramDeadlineError,
    ProgramMissingError,
    StoppedError,
    TerminalError,
    TracedError,
    UnsuitableError,
)
from kybernate.criu.images import DumpStats, RestoreStats, dump_stats, restore_stats
from kybernate.criu.log import explain
from kybernate.criu.mounts import drop_empty_tmpfs, empty_tmpfs, still_empty
from kybernate.criu.options import dump_conf, restore_conf
from kybernate.criu.preflight import Finding, Preflight, has_sys_resource, preflight
from kybernate.criu.skeleton import Skeleton, Stand
from kybernate.criu.suitable import refuse_exec_sessions, refuse_unsuitable

__all__ = [
    "CacheError",
    "Cause",
    "DumpStats",
    "ExecSessionError",
    "Finding",
    "ImageFormatError",
    "OptionError",
    "OtherUserError",
    "OverlayInBindError",
    "Preflight",
    "PrivilegesExceedError",
    "ProgramDeadlineError",
    "ProgramMissingError",
    "RestoreStats",
    "Skeleton",
    "Stand",
    "StoppedError",
    "TerminalError",
    "TracedError",
    "UnsuitableError",
    "drop_empty_tmpfs",
    "dump_conf",
    "dump_stats",
    "empty_tmpfs",
    "explain",
    "has_sys_resource",
    "preflight",
    "refuse_exec_sessions",
    "refuse_unsuitable",
    "restore_conf",
    "restore_stats",
    "still_empty",
]
