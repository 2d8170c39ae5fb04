"""Pull: a repository of a hub becomes a model in the store.

The line: listing, artifact, preflight, the person's word, a manifest that says "pulling", files
(small ones first), links, a manifest that says "ready". A pull that is stopped or killed goes on
from where it was, at the commit that it began with, so that no model is ever put together from two
commits. A model that is ready stays valid, at its commit, until the newer one is there as a whole.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from qh_runtime.checkpoints.strict_json import quoted
from qh_runtime.errors import (
    DownloadError,
    IntegrityError,
    ModelNotFoundError,
    StoreError,
)
from qh_runtime.hardware.profile import HardwareProfile
from qh_runtime.options import LoadOptions
from qh_runtime.store.artifacts import ArtifactFile
from qh_runtime.store.download import fetch_file, stored_blob
from qh_runtime.store.hub import RepoListing, hub_token, list_repo
from qh_runtime.store.hub_errors import terms_failure
from qh_runtime.store.layout import StoreLayout, model_slug
from qh_runtime.store.locking import store_lock
from qh_runtime.store.manifest import Manifest, StoredFile, read_manifest, write_manifest
from qh_runtime.store.part import disk_errors
from qh_runtime.store.preflight import Preflight, PreflightRequest, run_preflight
from qh_runtime.store.rate import RateMeter
from qh_runtime.store.snapshot import link_snapshot, wrong_links
from qh_runtime.store.transfer import FetchOptions, StopSignal, TransferProgress

__all__ = [
    "Checked",
    "Checking",
    "Confirm",
    "Finished",
    "Linked",
    "Listed",
    "OnPullEvent",
    "PullEvent",
    "PullRequest",
    "Transfer",
    "pull",
]

_log = logging.getLogger(__name__)

# Another process may remove blobs that no manifest names yet; then they are fetched once more.
_ROUNDS = 3


@dataclass(frozen=True)
class PullRequest:
    """What is wanted.

    Attributes:
        repo: hub name. revision: branch, tag or commit; "" for the usual branch.
        artifact: "" or a folder of the repository.
        newest: give up the commit of an unfinished pull for the branch's present one.
        load: how it will be loaded, for the plan. quota_bytes: for the whole store.
        endpoint: another hub than that of HF_ENDPOINT.
    """

    repo: str
    revision: str = ""
    artifact: str = ""
    newest: bool = False
    load: LoadOptions = field(default_factory=LoadOptions)
    quota_bytes: int | None = None
    endpoint: str | None = None

    @property
    def name(self) -> str:
        """Of the model in the store: `org/model@revision:artifact`."""
        revision = f"@{self.revision}" if self.revision else ""
        artifact = f":{self.artifact}" if self.artifact else ""
        return f"{self.repo}{revision}{artifact}"


@dataclass(frozen=True)
class Listed:
    """The hub has answered.

    Attributes:
        continues: an unfinished pull goes on, at its commit.
        replaces: the commit of the model that is there, where this is a newer one; else "".
    """

    listing: RepoListing
    continues: bool
    replaces: str


@dataclass(frozen=True)
class Checking:
    """A small file is on its way, before anything is decided."""

    file: TransferProgress


@dataclass(frozen=True)
class Checked:
    """Nothing large has moved yet; the person is asked next."""

    preflight: Preflight


@dataclass(frozen=True)
class Transfer:
    """How far the files are.

    Attributes:
        file: the one that moves. done_bytes, total_bytes: of all files.
        fetched_bytes: that came over the network in this run.
        bytes_per_s: over the last five seconds. left_s: seconds. None until that can be told.
    """

    file: TransferProgress
    done_bytes: int
    total_bytes: int
    fetched_bytes: int
    bytes_per_s: float | None
    left_s: float | None


@dataclass(frozen=True)
class Linked:
    """The folder that the loader opens is there."""

    folder: Path


@dataclass(frozen=True)
class Finished:
    """The model is ready. up_to_date: it had been before."""

    manifest: Manifest
    up_to_date: bool


PullEvent = Listed | Checking | Checked | Transfer | Linked | Finished
# Both are called from the thread that called `pull`.
OnPullEvent = Callable[[PullEvent], None]
# Whether gigabytes may move.
Confirm = Callable[[Preflight], bool]


def pull(
    request: PullRequest,
    layout: StoreLayout,
    options: FetchOptions,
    profile: HardwareProfile,
    *,
    confirm: Confirm | None = None,
    on_event: OnPullEvent | None = None,
    stop: StopSignal | None = None,
) -> Manifest | None:
    """Return the manifest of the model, which is ready; None if stopped or not confirmed.

    What arrived is kept in either case, and the same call goes on from there.

    Args:
        options: of the transfer; without a token the stored one is sent, to the hub alone.
        profile: the machine that the plan is for.
        confirm: asked before gigabytes move; None takes yes for granted.

    Raises:
        ModelNotFoundError: no such repository or revision.
        DownloadError, IntegrityError: the hub, the connection, or what came.
        StoreError: what is there is not read, terms, disk, quota, or the name is of an import.
        CheckpointError, TokenizerError, TemplateError: what the loader would refuse.
    """
    run = _Pull(request, layout, options, on_event or (lambda _: None), stop or StopSignal())
    return run.run(profile, confirm or (lambda _: True))


class _Pull:
    def __init__(
        self,
        request: PullRequest,
        layout: StoreLayout,
        options: FetchOptions,
        emit: OnPullEvent,
        stop: StopSignal,
    ) -> None:
        model_slug(request.name)
        self._request, self._layout, self._options = request, layout, options
        self._emit, self._stop = emit, stop
        self._there = _manifest_of(layout, request.name)

    def run(self, profile: HardwareProfile, confirm: Confirm) -> Manifest | None:
        listing = self._list()
        if listing is None:
            return None
        there = self._there
        ready = there is not None and there.state == "ready"
        if there is not None and ready and self._is_current(there, listing):
            self._link(there)
            self._emit(Finished(there, up_to_date=True))
            return there
        preflight = self._check(listing, profile)
        if preflight is None or not confirm(preflight) or self._stop.stopped:
            return None
        manifest = _manifest(preflight, self._request.revision)
        if not ready:
            self._write(manifest)
        for _ in range(_ROUNDS):
            done = self._fetch(manifest, preflight, intention=not ready)
            if done is None:
                return None
            manifest = done
            if self._finish(manifest):
                finished = _manifest_of(self._layout, manifest.name)
                assert finished is not None
                self._emit(Finished(finished, up_to_date=False))
                return finished
        raise StoreError(
            f"{manifest.name}: files that had been fetched were removed again, {_ROUNDS} times",
            hint="another process is cleaning the store; wait for it and pull again",
            name=manifest.name,
        )

    def _list(self) -> RepoListing | None:
        """The hub's answer; for an unfinished pull at its commit."""
        request, there = self._request, self._there
        continues = there is not None and there.state == "pulling" and not request.newest
        revision = there.commit if there is not None and continues else request.revision
        try:
            listing = list_repo(
                request.repo,
                revision,
                endpoint=request.endpoint,
                options=self._options,
                stop=self._stop,
            )
        except ModelNotFoundError as error:
            if not continues or "revision" not in error.facts:
                raise
            raise StoreError(
                f"{request.name}: the hub no longer has the commit {revision} that this pull "
                "began with",
                hint="pull it again with --newest",
                name=request.name,
                rule="commit gone",
            ) from error
        if listing is None:
            return None
        listing = replace(listing, revision=request.revision)
        if self._options.token is None and listing.files:
            token = hub_token(listing.files[0].url, listing.endpoint)
            self._options = replace(self._options, token=token)
        moved = there is not None and there.state == "ready" and there.commit != listing.commit
        replaces = there.commit if there is not None and moved else ""
        self._emit(Listed(listing, continues, replaces))
        return listing

    def _is_current(self, manifest: Manifest, listing: RepoListing) -> bool:
        # Of a model whose weights were removed, they are wanted again.
        return (
            not manifest.dropped
            and manifest.commit == listing.commit
            and all(stored_blob(self._layout, x.sha256, x.size) for x in manifest.files)
        )

    def _check(self, listing: RepoListing, profile: HardwareProfile) -> Preflight | None:
        request = self._request
        known = {x.key: x.sha256 for x in self._there.files if x.sha256} if self._there else {}
        preflight = run_preflight(
            self._layout,
            listing,
            PreflightRequest(
                name=request.name,
                artifact=request.artifact,
                load=request.load,
                profile=profile,
                quota_bytes=request.quota_bytes,
                known=known,
            ),
            self._options,
            self._stop,
            lambda progress: self._emit(Checking(progress)),
        )
        if preflight is not None:
            self._emit(Checked(preflight))
        return preflight

    def _fetch(
        self, manifest: Manifest, preflight: Preflight, *, intention: bool
    ) -> Manifest | None:
        """The manifest with every hash, once every blob is there; None if stopped."""
        listing = preflight.listing
        totals = _Totals(manifest.total_bytes, self._emit)
        for file in preflight.artifact.files:
            if self._stop.stopped:
                return None
            sha256 = next(x.sha256 for x in manifest.files if x.path == file.path)
            try:
                found = self._fetch_one(file, sha256, totals)
            except DownloadError as error:
                terms = terms_failure(error, listing.repo, listing.endpoint, listing.gated)
                if terms is None:
                    raise
                raise terms from error
            if found is None:
                return None
            totals.finish(file)
            if found != sha256:
                manifest = manifest.with_hash(file.path, found)
                if intention:
                    self._write(manifest)
        return manifest

    def _fetch_one(self, file: ArtifactFile, sha256: str, totals: _Totals) -> str | None:
        if sha256 and stored_blob(self._layout, sha256, file.remote.size):
            return sha256
        return fetch_file(self._layout, file.remote, self._options, totals, self._stop)

    def _finish(self, manifest: Manifest) -> bool:
        """Whether every blob is still there; then the model is ready."""
        with store_lock(self._layout):
            if not all(stored_blob(self._layout, x.sha256, x.size) for x in manifest.files):
                return False
            now = datetime.now(UTC).isoformat(timespec="seconds")
            with disk_errors("link", self._layout.snapshot(manifest.name), 0):
                folder = link_snapshot(self._layout, manifest)
                write_manifest(self._layout, replace(manifest, state="ready", pulled_at=now))
        self._emit(Linked(folder))
        return True

    def _link(self, manifest: Manifest) -> None:
        """Put links right that somebody has changed."""
        if wrong_links(self._layout, manifest):
            folder = self._layout.snapshot(manifest.name)
            with store_lock(self._layout), disk_errors("link", folder, 0):
                link_snapshot(self._layout, manifest)
            self._emit(Linked(folder))

    def _write(self, manifest: Manifest) -> None:
        with store_lock(self._layout), disk_errors("write", self._layout.manifests, 0):
            write_manifest(self._layout, manifest)


class _Totals:
    """Adds up the files of one pull; called with the progress of the one that moves."""

    def __init__(self, total_bytes: int, emit: OnPullEvent) -> None:
        self._total, self._emit = total_bytes, emit
        self._meter = RateMeter()
        # Of files that are complete, and of the one that moves.
        self._done = self._fetched = self._moving = 0

    def __call__(self, progress: TransferProgress) -> None:
        self._moving = progress.fetched_bytes
        done, fetched = self._done + progress.done_bytes, self._fetched + self._moving
        self._meter.add(fetched)
        self._emit(
            Transfer(
                file=progress,
                done_bytes=done,
                total_bytes=self._total,
                fetched_bytes=fetched,
                bytes_per_s=self._meter.bytes_per_s,
                left_s=self._meter.left_s(self._total - done),
            )
        )

    def finish(self, file: ArtifactFile) -> None:
        """Count a file as complete."""
        self._done += file.remote.size
        self._fetched += self._moving
        self._moving = 0


def _manifest_of(layout: StoreLayout, name: str) -> Manifest | None:
    """The manifest of a model, None where there is none or a damaged one, which is replaced.

    Raises:
        StoreError: the name is of an imported model. Facts: name.
    """
    path = layout.manifest(name)
    if not path.exists():
        return None
    try:
        manifest = read_manifest(path)
    except IntegrityError as error:
        _log.warning("%s is written again: %s", quoted(name), error)
        return None
    if manifest.origin != "hub":
        raise StoreError(
            f"{name}: expected a model of the hub, found an imported one of this name",
            hint=f"remove it first with: qh-chat rm {name}",
            name=name,
        )
    return manifest


def _manifest(preflight: Preflight, revision: str) -> Manifest:
    """The intention: every file that is wanted, with the hashes that are known."""
    listing = preflight.listing
    return Manifest(
        name=preflight.name,
        state="pulling",
        origin="hub",
        repo=listing.repo,
        revision=revision,
        commit=listing.commit,
        endpoint=listing.endpoint,
        artifact=preflight.artifact.name,
        license=listing.license,
        gated=listing.gated,
        model_type=preflight.model_type,
        format=preflight.format,
        packed_bytes=preflight.packed_bytes,
        files=tuple(
            StoredFile(
                path=x.path,
                size=x.remote.size,
                key=x.remote.key,
                sha256=preflight.side_hashes.get(x.path, x.remote.sha256),
            )
            for x in preflight.artifact.files
        ),
    )
