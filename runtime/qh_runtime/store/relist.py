"""Where the files of a pulled model can be fetched again: for repairs."""

from __future__ import annotations

from qh_runtime.errors import StoreError
from qh_runtime.store.hub import RepoListing, list_repo
from qh_runtime.store.manifest import Manifest, StoredFile
from qh_runtime.store.transfer import FetchOptions, RemoteFile, StopSignal

__all__ = ["remote_files"]


def remote_files(
    manifest: Manifest,
    options: FetchOptions,
    *,
    endpoint: str | None = None,
    stop: StopSignal | None = None,
) -> dict[str, RemoteFile] | None:
    """Return where each file of a model is on the hub, by its name in the store; None if stopped.

    A file counts only if the hub still has it with the very hash that the manifest names.

    Args:
        endpoint: another hub than that of HF_ENDPOINT.

    Raises:
        ModelNotFoundError, DownloadError: as `list_repo`.
        StoreError: the model was imported, or the hub has another file there. Facts: name, file.
    """
    if manifest.origin != "hub":
        raise StoreError(
            f"{manifest.name}: expected a model of the hub, found one imported from "
            f"{manifest.endpoint}",
            hint="import it again",
            name=manifest.name,
        )
    listing = list_repo(
        manifest.repo, manifest.commit, endpoint=endpoint, options=options, stop=stop
    )
    if listing is None:
        return None
    return {x.path: _find(manifest, listing, x) for x in manifest.files}


def _find(manifest: Manifest, listing: RepoListing, file: StoredFile) -> RemoteFile:
    """In the artifact's folder, or at the top, as it was chosen."""
    for path in (f"{manifest.artifact}/{file.path}" if manifest.artifact else file.path, file.path):
        remote = listing.find(path)
        if remote is not None and remote.key == file.key and remote.size == file.size:
            return remote
    raise StoreError(
        f"{manifest.name}: {file.path}: expected the hub to have it with hash {file.key}, "
        "found it missing or changed",
        hint=f"pull {manifest.name} again",
        name=manifest.name,
        file=file.path,
    )
