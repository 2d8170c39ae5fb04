"""What the commands over stored models have in common: names, and the settings of transfers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qh_runtime.errors import IntegrityError, StoreError

if TYPE_CHECKING:
    from qh_chat.loading import Models
    from qh_chat.settings import Settings
    from qh_runtime.store.entry import ModelEntry
    from qh_runtime.store.layout import StoreLayout
    from qh_runtime.store.manifest import Manifest
    from qh_runtime.store.transfer import FetchOptions

__all__ = ["quota_bytes", "stored_entry", "stored_manifest", "transfer_options"]


def stored_entry(models: Models, name: str, action: str) -> ModelEntry:
    """Return the model of the store that a name stands for.

    Args:
        action: what cannot be done with others, such as "removed".

    Raises:
        ModelNotFoundError: no such model.
        StoreError: it is built in, or a folder of the person's own. Facts: name, path.
    """
    entry = models.store().resolve(name)
    if entry.origin == "store":
        return entry
    what = "is built in" if entry.origin == "built-in" else "is a folder of your own"
    raise StoreError(
        f"model {entry.name}: {what}; only pulled and imported ones can be {action}",
        hint="qh-chat ls shows which are in the store"
        if entry.origin == "built-in"
        else f"it lies in {entry.folder}; qh-chat import copies it into the store",
        name=entry.name,
        path=str(entry.folder),
    )


def stored_manifest(layout: StoreLayout, name: str) -> Manifest | None:
    """Return the manifest of a model; None where there is none that can be read."""
    from qh_runtime.store.manifest import read_manifest

    try:
        path = layout.manifest(name)
        return read_manifest(path) if path.exists() else None
    except (IntegrityError, StoreError):
        return None


def transfer_options(settings: Settings) -> FetchOptions:
    """Return how files are fetched."""
    from qh_runtime.store.transfer import FetchOptions

    limit = settings.models.download_limit_mb_s
    return FetchOptions(bytes_per_s=None if limit is None else limit * 1e6)


def quota_bytes(settings: Settings) -> int | None:
    """Return what the store may take in all; None for no limit."""
    quota = settings.models.quota_gb
    return None if quota is None else round(quota * 1e9)
