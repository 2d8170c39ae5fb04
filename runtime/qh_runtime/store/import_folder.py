"""Import: a model that lies on this machine, on a stick or in a hub cache becomes one of the store.

The line of a pull, without a network: listing, artifact, checks, the person's word, a manifest that
says "pulling", copies (each hashed, and compared with the hash that a cache names it by), links, a
manifest that says "ready". The place it comes from is only read. An import that is stopped or
killed goes on where it was.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from qh_runtime.checkpoints import read_config
from qh_runtime.checkpoints.files import read_small_file, resolve_file
from qh_runtime.checkpoints.shard_index import INDEX, MAX_INDEX_BYTES, parse_index
from qh_runtime.errors import IntegrityError, StoreError
from qh_runtime.hardware.disk import read_disk
from qh_runtime.hardware.profile import HardwareProfile
from qh_runtime.options import LoadOptions
from qh_runtime.packing.matrices import check_tensors, plan_matrices
from qh_runtime.planned_model import PlannedModel, plan_checkpoint
from qh_runtime.store.artifacts import Artifact, ArtifactFile, choose_artifact, with_shards
from qh_runtime.store.copying import copy_file, copy_key
from qh_runtime.store.download import stored_blob
from qh_runtime.store.hub import RepoListing
from qh_runtime.store.import_place import ImportPlace, find_place, list_place
from qh_runtime.store.layout import StoreLayout, model_slug
from qh_runtime.store.locking import store_lock
from qh_runtime.store.manifest import Manifest, StoredFile, read_manifest, write_manifest
from qh_runtime.store.part import disk_errors
from qh_runtime.store.preflight import Preflight, check_room
from qh_runtime.store.pull import Checked, Confirm, Finished, Linked, OnPullEvent, Transfer
from qh_runtime.store.rate import RateMeter
from qh_runtime.store.snapshot import link_snapshot
from qh_runtime.store.source import open_source
from qh_runtime.store.transfer import StopSignal, TransferProgress

__all__ = ["ImportRequest", "import_folder"]

# Another process may remove blobs that no manifest names yet; then they are copied once more.
_ROUNDS = 3


@dataclass(frozen=True)
class ImportRequest:
    """What is wanted.

    Attributes:
        path: a folder, see `import_place`. name: for the store; "" takes the place's own.
        load: how it will be loaded, for the plan. quota_bytes: for the whole store.
    """

    path: Path
    name: str = ""
    load: LoadOptions = field(default_factory=LoadOptions)
    quota_bytes: int | None = None


def import_folder(
    request: ImportRequest,
    layout: StoreLayout,
    profile: HardwareProfile,
    *,
    confirm: Confirm | None = None,
    on_event: OnPullEvent | None = None,
    stop: StopSignal | None = None,
) -> Manifest | None:
    """Return the manifest of the model, which is ready; None if stopped or not confirmed.

    Args:
        profile: the machine that the plan is for.
        confirm: asked before gigabytes move; None takes yes for granted.
        on_event: of `pull`, without Listed and Checking; called from this thread.

    Raises:
        StoreError: no model there, one that is not read, a name that is taken or missing, or no
            room. Facts: path or name, rule.
        CheckpointError, TokenizerError, TemplateError: what the loader would refuse.
        IntegrityError: a file is not what its cache names it. Facts: path, expected, found.
    """
    place = find_place(request.path)
    name = request.name or place.name
    if not name:
        raise StoreError(
            f"{place.folder}: its name cannot be that of a model",
            hint="give one with --name",
            path=str(place.folder),
        )
    model_slug(name)
    _require_free(layout, name, place)
    run = _Import(layout, place, name, request, on_event or (lambda _: None), stop or StopSignal())
    preflight = run.look(profile)
    run.emit(Checked(preflight))
    if (confirm is not None and not confirm(preflight)) or run.stop.stopped:
        return None
    return run.copy(preflight)


class _Import:
    def __init__(
        self,
        layout: StoreLayout,
        place: ImportPlace,
        name: str,
        request: ImportRequest,
        emit: OnPullEvent,
        stop: StopSignal,
    ) -> None:
        self._layout, self._place, self._name, self._request = layout, place, name, request
        self.emit, self.stop = emit, stop

    def look(self, profile: HardwareProfile) -> Preflight:
        """What importing means, as far as small files and headers tell."""
        folder = self._place.folder
        listing = list_place(self._place)
        artifact = choose_artifact(listing)
        config = read_config(folder)
        if artifact.sharded:
            index = read_small_file(resolve_file(folder, INDEX), MAX_INDEX_BYTES, folder / INDEX)
            shards = parse_index(index, folder / INDEX)
            artifact = with_shards(listing, artifact, shards.values())
        planned = plan_checkpoint(
            config.model, lambda: open_source(folder), self._request.load, profile
        )
        try:
            check_tensors(planned.spec, planned.source, planned.layout)
            _check_tokenizer(folder)
            found = self._preflight(listing, artifact, planned, config.model)
        finally:
            planned.source.close()
        check_room(self._layout, found, self._request.quota_bytes)
        return found

    def _preflight(
        self,
        listing: RepoListing,
        artifact: Artifact,
        planned: PlannedModel,
        config: Mapping[str, Any],
    ) -> Preflight:
        held = planned
        if self._request.load.pack is not None:
            own = plan_matrices(planned.spec, planned.source, planned.layout)
            held = replace(planned, matrices=own)
        disk = read_disk(self._layout.root).value
        return Preflight(
            name=self._name,
            listing=listing,
            artifact=artifact,
            side_hashes={},
            model_type=planned.spec.model_type,
            format=held.format,
            parameters=planned.spec.parameters,
            total_bytes=sum(x.remote.size for x in artifact.files),
            download_bytes=sum(x.remote.size for x in artifact.files if not self._is_there(x)),
            packed_bytes=planned.packed_bytes,
            free_bytes=disk.free_bytes if disk is not None else None,
            plan=planned.plan,
            notes=tuple(_notes(listing, artifact, config)),
        )

    def copy(self, preflight: Preflight) -> Manifest | None:
        """Copy every file and make the model ready; None if stopped."""
        manifest = self._manifest(preflight)
        there = _manifest_of(self._layout, self._name)
        # A model that is ready stays so until the new one is there as a whole.
        intention = there is None or there.state == "pulling"
        if intention:
            self._write(manifest)
        for _ in range(_ROUNDS):
            totals = _Totals(preflight.total_bytes, self.emit)
            for file in preflight.artifact.files:
                sha256 = self._copy_one(file, totals)
                if sha256 is None:
                    return None
                totals.finish(file)
                manifest = manifest.with_hash(file.path, sha256)
                if intention:
                    self._write(manifest)
            ready = self._finish(manifest)
            if ready is not None:
                self.emit(Finished(ready, up_to_date=False))
                return ready
        raise StoreError(
            f"{self._name}: files that had been copied were removed again, {_ROUNDS} times",
            hint="another process is cleaning the store; wait for it and import again",
            name=self._name,
        )

    def _copy_one(self, file: ArtifactFile, totals: _Totals) -> str | None:
        source = self._source(file)
        if file.remote.git_sha1:
            _check_git_hash(source, file.remote.git_sha1)
        return copy_file(self._layout, source, file.remote.sha256 or None, totals, self.stop)

    def _finish(self, manifest: Manifest) -> Manifest | None:
        """The manifest that says "ready", once every blob is still there."""
        with store_lock(self._layout):
            if not all(stored_blob(self._layout, x.sha256, x.size) for x in manifest.files):
                return None
            now = datetime.now(UTC).isoformat(timespec="seconds")
            ready = replace(manifest, state="ready", pulled_at=now)
            with disk_errors("link", self._layout.snapshot(manifest.name), 0):
                folder = link_snapshot(self._layout, ready)
                write_manifest(self._layout, ready)
        self.emit(Linked(folder))
        return ready

    def _manifest(self, preflight: Preflight) -> Manifest:
        """The intention: every file that is wanted, with the hashes that are known."""
        return Manifest(
            name=self._name,
            state="pulling",
            origin="import",
            repo=self._place.repo,
            revision="",
            commit=self._place.commit,
            endpoint=str(self._place.folder),
            artifact="",
            license=preflight.license,
            gated=False,
            model_type=preflight.model_type,
            format=preflight.format,
            packed_bytes=preflight.packed_bytes,
            files=tuple(
                StoredFile(
                    x.path,
                    x.remote.size,
                    x.remote.sha256 or copy_key(self._source(x)),
                    x.remote.sha256,
                )
                for x in preflight.artifact.files
            ),
        )

    def _source(self, file: ArtifactFile) -> Path:
        return resolve_file(self._place.folder, file.remote.path)

    def _is_there(self, file: ArtifactFile) -> bool:
        known = file.remote.sha256
        return bool(known) and stored_blob(self._layout, known, file.remote.size)

    def _write(self, manifest: Manifest) -> None:
        with store_lock(self._layout), disk_errors("write", self._layout.manifests, 0):
            write_manifest(self._layout, manifest)


class _Totals:
    """Adds up the files of one import; called with the progress of the one that is copied."""

    def __init__(self, total_bytes: int, emit: OnPullEvent) -> None:
        self._total, self._emit = total_bytes, emit
        self._meter = RateMeter()
        self._done = 0

    def __call__(self, progress: TransferProgress) -> None:
        done = self._done + progress.done_bytes
        self._meter.add(done)
        left_s = self._meter.left_s(self._total - done)
        rate = self._meter.bytes_per_s
        self._emit(Transfer(progress, done, self._total, 0, rate, left_s))

    def finish(self, file: ArtifactFile) -> None:
        """Count a file as complete."""
        self._done += file.remote.size


def _require_free(layout: StoreLayout, name: str, place: ImportPlace) -> None:
    """Return normally if no other model has the name."""
    there = _manifest_of(layout, name)
    if there is None or (there.origin == "import" and there.endpoint == str(place.folder)):
        return
    raise StoreError(
        f"{name}: expected a name that is free, found a model of it in the store",
        hint=f"give another one with --name, or remove that one: qh-chat rm {name}",
        name=name,
        rule="name",
    )


def _manifest_of(layout: StoreLayout, name: str) -> Manifest | None:
    """The manifest of a model; None where there is none, or a damaged one, which is replaced."""
    path = layout.manifest(name)
    if not path.exists():
        return None
    try:
        return read_manifest(path)
    except IntegrityError:
        return None


def _check_git_hash(source: Path, expected: str) -> None:
    """Return normally if a small file of a cache has the content that it is named by."""
    with disk_errors("read", source, 0):
        digest = hashlib.sha1(b"blob %d\0" % os.stat(source).st_size, usedforsecurity=False)
        with source.open("rb") as file:
            while data := file.read(1 << 20):
                digest.update(data)
    if digest.hexdigest() != expected:
        raise IntegrityError(
            f"{source}: expected the git hash {expected}, found {digest.hexdigest()}",
            hint="the cache is damaged; get the model again",
            path=str(source),
            expected=expected,
            found=digest.hexdigest(),
        )


def _check_tokenizer(folder: Path) -> None:
    from qh_runtime.tokenizers.chat_template import load_chat_template
    from qh_runtime.tokenizers.from_hf import load_tokenizer

    load_chat_template(folder, load_tokenizer(folder))


def _notes(listing: RepoListing, artifact: Artifact, config: Mapping[str, Any]) -> Iterator[str]:
    if "auto_map" in config:
        yield "config.json names code that came with the model; it is neither copied nor run"
    taken = {x.remote.path for x in artifact.files}
    left = sum(x.path not in taken for x in listing.files)
    if left:
        yield f"{left} other files of the folder are not needed and stay where they are"
