"""Where checkpoints are kept: an interface (`Store`) and its form on a local disk (`FolderStore`)."""

from kybernate.store.errors import (
    ArchiveFailedError,
    ArchiveUnsafeError,
    EpochTakenError,
    ImageDamagedError,
    InstanceNameError,
    ManifestDamagedError,
    NoRoomError,
    OutOfResourcesError,
    StoreFailedError,
    UnsafePathError,
)
from kybernate.store.folder import FolderStore
from kybernate.store.interface import Store
from kybernate.store.paths import load_key
from kybernate.store.types import ImageFile, Manifest, Staging

__all__ = [
    "ArchiveFailedError",
    "ArchiveUnsafeError",
    "EpochTakenError",
    "FolderStore",
    "ImageDamagedError",
    "ImageFile",
    "InstanceNameError",
    "Manifest",
    "ManifestDamagedError",
    "NoRoomError",
    "OutOfResourcesError",
    "Staging",
    "Store",
    "StoreFailedError",
    "UnsafePathError",
    "load_key",
]
