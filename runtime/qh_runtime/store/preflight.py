"""Before gigabytes move: small files are fetched, headers are read, and the whole load is planned.

What the loader would refuse (an architecture, a tensor type, a shape, a tokenizer, a file that lies
about its size) is refused here, for the price of a few requests; so is what the disk cannot hold.
Whether it fits into memory is said and not decided: people keep models for other machines.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qh_runtime.architectures import spec_from_config
from qh_runtime.checkpoints import read_config
from qh_runtime.checkpoints.config import read_json_file
from qh_runtime.checkpoints.files import read_small_file
from qh_runtime.checkpoints.layouts import layout_for
from qh_runtime.checkpoints.shard_index import INDEX, MAX_INDEX_BYTES, parse_index
from qh_runtime.errors import CheckpointError, DownloadError, QhError, StoreError
from qh_runtime.hardware.disk import read_disk
from qh_runtime.hardware.profile import HardwareProfile
from qh_runtime.options import LoadOptions
from qh_runtime.packing.matrices import check_tensors, plan_matrices
from qh_runtime.planned_model import PlannedModel, plan_checkpoint
from qh_runtime.planner.plan import Plan
from qh_runtime.store.artifacts import (
    Artifact,
    ArtifactFile,
    alternatives,
    choose_artifact,
    with_shards,
)
from qh_runtime.store.download import fetch_file, fetch_span, stored_blob
from qh_runtime.store.hub import RepoListing
from qh_runtime.store.hub_errors import terms_failure
from qh_runtime.store.layout import StoreLayout
from qh_runtime.store.looks import look_folder
from qh_runtime.store.part import disk_errors
from qh_runtime.store.remote_header import RemoteTensors
from qh_runtime.store.transfer import FetchOptions, OnTransfer, StopSignal
from qh_runtime.store.wire import Stopped
from qh_runtime.units import gigabytes

__all__ = ["Preflight", "PreflightRequest", "check_room", "run_preflight"]

# Beyond the bytes themselves; what a transfer asks for, too.
SPARE_SHARE = 0.05


@dataclass(frozen=True)
class PreflightRequest:
    """What is to be looked at.

    Attributes:
        name: of the model in the store.
        artifact: "" or a folder of the repository.
        load: how it would be loaded. profile: on which machine.
        quota_bytes: what the store may take in all, or None.
        known: key to SHA-256 of files that an older manifest of this model names.
    """

    name: str
    artifact: str
    load: LoadOptions
    profile: HardwareProfile
    quota_bytes: int | None = None
    known: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Preflight:
    """A model that can be pulled and loaded, as far as its small files and headers tell.

    Attributes:
        listing: of the hub. artifact: the files, shards included.
        side_hashes: name to SHA-256 of the small files, which are in the store now.
        model_type, format, parameters: as `ls` will show them.
        total_bytes: of all files. download_bytes: of these, what is not in the store yet.
        packed_bytes: what the packed weights beside it take; 0 where it is mapped as it is.
        free_bytes: on the store's file system, None where that is not known.
        plan: the sums of memory, and whether they fit.
        notes: what a person should know, in sentences.
    """

    name: str
    listing: RepoListing
    artifact: Artifact
    side_hashes: Mapping[str, str]
    model_type: str
    format: str
    parameters: int
    total_bytes: int
    download_bytes: int
    packed_bytes: int
    free_bytes: int | None
    plan: Plan
    notes: tuple[str, ...]

    @property
    def license(self) -> str:
        """As the card says; "" where it says nothing."""
        return self.listing.license

    @property
    def gated(self) -> bool:
        """Whether terms had to be accepted."""
        return self.listing.gated


def run_preflight(
    layout: StoreLayout,
    listing: RepoListing,
    request: PreflightRequest,
    options: FetchOptions,
    stop: StopSignal,
    on_progress: OnTransfer | None = None,
) -> Preflight | None:
    """Return what pulling this model means; None if stopped.

    Small files are in the store afterwards, also where the model is refused; `prune` removes them.

    Raises:
        StoreError: nothing in the repository that is read; no room on the disk or in the quota.
            Facts: name, rule, and required_bytes, free_bytes.
        CheckpointError, TokenizerError, TemplateError: what the loader would refuse.
        DownloadError, IntegrityError: the hub or the connection.
    """
    artifact = choose_artifact(listing, request.artifact)
    run = _Preflight(layout, listing, request, options, stop, on_progress)
    try:
        with look_folder(layout, request.name) as folder:
            return run.look(artifact, folder)
    except Stopped:
        return None
    except DownloadError as error:
        terms = terms_failure(error, listing.repo, listing.endpoint, listing.gated)
        if terms is None:
            raise
        raise terms from error
    except CheckpointError as error:
        raise _with_alternative(error, listing, request.artifact) from error


class _Preflight:
    def __init__(
        self,
        layout: StoreLayout,
        listing: RepoListing,
        request: PreflightRequest,
        options: FetchOptions,
        stop: StopSignal,
        on_progress: OnTransfer | None,
    ) -> None:
        self._layout, self._listing, self._request = layout, listing, request
        self._options, self._stop, self._on_progress = options, stop, on_progress
        self._hashes: dict[str, str] = {}

    def look(self, artifact: Artifact, folder: Path) -> Preflight:
        # The file that most refusals come from is the first, so that they cost one request.
        for file in sorted(artifact.side_files, key=lambda x: x.path != "config.json"):
            self._fetch_side(file, folder)
            if file.path == "config.json":
                settings = read_json_file(folder, file.path, required=True)
                spec_from_config(settings)
                layout_for(settings)
        config = read_config(folder)
        shard_of = None
        if artifact.sharded:
            index = read_small_file((folder / INDEX).resolve(), MAX_INDEX_BYTES, folder / INDEX)
            shard_of = parse_index(index, folder / INDEX)
            artifact = with_shards(self._listing, artifact, shard_of.values())
        planned = plan_checkpoint(
            config.model,
            lambda: RemoteTensors(artifact.weights, shard_of, self._read),
            self._request.load,
            self._request.profile,
        )
        check_tensors(planned.spec, planned.source, planned.layout)
        _check_tokenizer(folder, planned)
        return self._summary(artifact, planned, config.model)

    def _fetch_side(self, file: ArtifactFile, folder: Path) -> None:
        """The blob of a small file, linked into the folder."""
        sha256: str | None = (self._request.known or {}).get(file.remote.key, file.remote.sha256)
        if not sha256 or not stored_blob(self._layout, sha256, file.remote.size):
            sha256 = fetch_file(
                self._layout, file.remote, self._options, self._on_progress, self._stop
            )
        if sha256 is None or self._stop.stopped:
            raise Stopped
        self._hashes[file.path] = sha256
        with disk_errors("link", folder / file.path, 0):
            os.symlink(os.path.relpath(self._layout.blob(sha256), folder), folder / file.path)

    def _read(self, file: ArtifactFile, begin: int, end: int) -> bytes:
        """Bytes of a weight file, from its blob where there is one."""
        remote = file.remote
        if remote.sha256 and stored_blob(self._layout, remote.sha256, remote.size):
            path = self._layout.blob(remote.sha256)
            with disk_errors("read", path, 0), path.open("rb") as blob:
                blob.seek(begin)
                return blob.read(end - begin)
        data = fetch_span(remote, begin, end, self._options, self._stop)
        if data is None or self._stop.stopped:
            raise Stopped
        return data

    def _summary(
        self, artifact: Artifact, planned: PlannedModel, config: Mapping[str, Any]
    ) -> Preflight:
        held = planned
        if self._request.load.pack is not None:
            own = plan_matrices(planned.spec, planned.source, planned.layout)
            held = replace(planned, matrices=own)
        disk = read_disk(self._layout.root).value
        preflight = Preflight(
            name=self._request.name,
            listing=self._listing,
            artifact=artifact,
            side_hashes=self._hashes,
            model_type=planned.spec.model_type,
            format=held.format,
            parameters=planned.spec.parameters,
            total_bytes=sum(x.remote.size for x in artifact.files),
            download_bytes=sum(_missing_bytes(self._layout, x) for x in artifact.weights),
            packed_bytes=planned.packed_bytes,
            free_bytes=disk.free_bytes if disk is not None else None,
            plan=planned.plan,
            notes=tuple(_notes(self._listing, config, planned.plan)),
        )
        check_room(self._layout, preflight, self._request.quota_bytes)
        return preflight


def _check_tokenizer(folder: Path, planned: PlannedModel) -> None:
    from qh_runtime.tokenizers.chat_template import load_chat_template
    from qh_runtime.tokenizers.from_hf import load_tokenizer

    load_chat_template(folder, load_tokenizer(folder))


def _missing_bytes(layout: StoreLayout, file: ArtifactFile) -> int:
    """Bytes of a file that are not in the store, as blob or as part."""
    remote = file.remote
    if remote.sha256 and stored_blob(layout, remote.sha256, remote.size):
        return 0
    return remote.size - min(remote.size, _disk_bytes(layout.part(remote.key)))


def _disk_bytes(path: Path) -> int:
    """What the disk gives to a file, which for a part is what has arrived; 0 for none."""
    try:
        return path.lstat().st_blocks * 512
    except OSError:
        return 0


def check_room(layout: StoreLayout, found: Preflight, quota_bytes: int | None) -> None:
    """Return normally if disk and quota can hold a model; what is all there already is welcome.

    Raises:
        StoreError: facts name, rule ("disk" or "quota"), required_bytes, free_bytes.
    """
    needed = found.download_bytes + found.packed_bytes
    if found.download_bytes == 0:
        return
    parts = f"{gigabytes(found.download_bytes)} of files"
    if found.packed_bytes:
        parts += f" and {gigabytes(found.packed_bytes)} packed"
    required = int(needed * (1 + SPARE_SHARE))
    if found.free_bytes is not None and required > found.free_bytes:
        raise StoreError(
            f"{found.name}: needs {gigabytes(required)} ({parts}, and 5 % to spare), found "
            f"{gigabytes(found.free_bytes)} free on the disk of {layout.root}",
            hint="free some space, or move the store to another disk",
            name=found.name,
            rule="disk",
            required_bytes=required,
            free_bytes=found.free_bytes,
        )
    if quota_bytes is None:
        return
    held = sum(_disk_bytes(x) for place in (layout.blobs, layout.parts) for x in place.glob("*"))
    left = max(0, quota_bytes - held)
    if needed > left:
        raise StoreError(
            f"{found.name}: needs {gigabytes(needed)} ({parts}), found {gigabytes(left)} left of "
            f"the store's quota of {gigabytes(quota_bytes)}",
            hint="remove models that are not needed, or raise the quota",
            name=found.name,
            rule="quota",
            required_bytes=needed,
            free_bytes=left,
            quota_bytes=quota_bytes,
            held_bytes=held,
        )


def _notes(listing: RepoListing, config: Mapping[str, Any], plan: Plan) -> Iterator[str]:
    if "auto_map" in config:
        yield "config.json names code of the repository; it is neither fetched nor run"
    if not listing.license:
        yield "the repository states no licence"
    if not plan.fits:
        try:
            plan.require_fit()
        except QhError as error:
            yield f"does not fit into memory now: {error.message}"


def _with_alternative(
    error: CheckpointError, listing: RepoListing, artifact: str
) -> CheckpointError:
    """The same error with the repository's name, and what may be read instead where known."""
    hint = "; ".join(x for x in (error.hint, alternatives(listing, artifact)) if x) or None
    facts = {"name": listing.repo, "base_model": listing.base_model, **error.facts}
    return type(error)(f"{listing.repo}: {error.message}", hint=hint, **facts)
