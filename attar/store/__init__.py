"""The teacher's knowledge on disk: keyed by content, sharded, checksummed, resumable."""

from attar.store.files import MANIFEST, STALE
from attar.store.folder import Store
from attar.store.keys import fingerprint, key
from attar.store.manifest import VERSION, stores
from attar.store.precision import Coded, Float, Kept
from attar.store.said import Said
from attar.store.upkeep import Finding, examine, prune

__all__ = [
    "MANIFEST",
    "STALE",
    "VERSION",
    "Coded",
    "Finding",
    "Float",
    "Kept",
    "Said",
    "Store",
    "examine",
    "fingerprint",
    "key",
    "prune",
    "stores",
]
