"""What is known about CRIU: its options, its images, its log, what it needs, and what it cannot do. It is run by others."""

from kybernate.criu.causes import Cause
from kybernate.criu.errors import (
    ExecSessionError,
    ImageFormatError,
    OptionError,
    OtherUserError,
    OverlayInBindError,
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
from kybernate.criu.preflight import Finding, Preflight, clear_stale_kdat, has_sys_resource, preflight
from kybernate.criu.suitable import refuse_unsuitable

__all__ = [
    "Cause",
    "DumpStats",
    "ExecSessionError",
    "Finding",
    "ImageFormatError",
    "OptionError",
    "OtherUserError",
    "OverlayInBindError",
    "Preflight",
    "ProgramDeadlineError",
    "ProgramMissingError",
    "RestoreStats",
    "StoppedError",
    "TerminalError",
    "TracedError",
    "UnsuitableError",
    "clear_stale_kdat",
    "drop_empty_tmpfs",
    "dump_conf",
    "dump_stats",
    "empty_tmpfs",
    "explain",
    "has_sys_resource",
    "preflight",
    "refuse_unsuitable",
    "restore_conf",
    "restore_stats",
    "still_empty",
]
