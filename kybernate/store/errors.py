"""What can go wrong in a store: the leaves, each below one of the six branches of `kybernate.errors`."""

from __future__ import annotations

from kybernate.errors import ExternalError, InvalidError, RefusedError, StateLostError


class InstanceNameError(InvalidError):
    """{instance!r} at epoch {epoch!r} cannot be stored: names are DNS-1123 subdomains, epochs are numbers from 0 up."""


class NoRoomError(RefusedError):
    """{instance}: {path} needs {needed_bytes} bytes for this checkpoint, {room_bytes} are to be had (besides the
    reserve of {reserve_bytes}). Free space there, or let fewer instances park on this node."""

    exit_code = 25


class EpochTakenError(RefusedError):
    """{instance}: epoch {epoch} is committed already; an epoch is written once. Go on with a higher one."""


class UnsafePathError(RefusedError):
    """{path}: {problem}. The store takes only what root alone can write: repair owner and mode, or move it away."""


class StoreFailedError(ExternalError):
    """{path}: {problem}. Nothing was committed; look at the disk and the kernel's log."""


class OutOfResourcesError(ExternalError):
    """{path}: {problem}. Nothing was changed, and nothing is wrong with the checkpoint. Where too many files are open,
    raise the limit of the agent (LimitNOFILE) or of the machine (fs.file-max)."""


class ManifestDamagedError(StateLostError):
    """{path}: {problem}. This checkpoint is not used; an older one may be."""


class ImageDamagedError(StateLostError):
    """{instance}, epoch {epoch}: {path}: {problem}. This checkpoint is not restored; an older one may be."""


class ArchiveFailedError(ExternalError):
    """{path}: {problem}. Nothing was changed in the instance; look at the disk and the kernel's log."""


class ArchiveUnsafeError(RefusedError):
    """{path}: {problem}. Nothing more was unpacked; only a folder that nobody else uses can be filled."""
