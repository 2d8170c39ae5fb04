"""Puts right what `Verifier` found in a model: only what is bad is fetched or copied again."""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qh_runtime.errors import IntegrityError, StoreError
from qh_runtime.store.copying import copy_file
from qh_runtime.store.hub import hub_token
from qh_runtime.store.integrity import Finding, Problem
from qh_runtime.store.layout import StoreLayout
from qh_runtime.store.locking import store_lock
from qh_runtime.store.manifest import Manifest, StoredFile
from qh_runtime.store.part import CHUNK_BYTES, disk_errors, write_checks
from qh_runtime.store.relist import remote_files
from qh_runtime.store.repair import repair_blob
from qh_runtime.store.snapshot import link_snapshot
from qh_runtime.store.transfer import (
    FetchOptions,
    OnTransfer,
    RemoteFile,
    StopSignal,
    TransferProgress,
)

__all__ = ["Repaired", "repair_model"]


@dataclass(frozen=True)
class Repaired:
    """One thing that was put right. fetched_bytes: that came over the network for it."""

    path: str
    problem: Problem
    fetched_bytes: int


def repair_model(
    layout: StoreLayout,
    manifest: Manifest,
    findings: Sequence[Finding],
    options: FetchOptions,
    on_progress: OnTransfer | None = None,
    stop: StopSignal | None = None,
) -> tuple[Repaired, ...] | None:
    """Return what was put right, all that was found; None if stopped.

    Content comes from the hub at the manifest's commit, or from the folder it was imported from.

    Raises:
        DownloadError, ModelNotFoundError: the hub or the connection.
        IntegrityError: there is nowhere to get it from. Facts: path, expected.
        StoreError: the disk, or the hub has another file there now.
    """
    run = _Repair(layout, manifest, options, on_progress, stop or StopSignal())
    return run.run(findings)


class _Repair:
    def __init__(
        self,
        layout: StoreLayout,
        manifest: Manifest,
        options: FetchOptions,
        on_progress: OnTransfer | None,
        stop: StopSignal,
    ) -> None:
        self._layout, self._manifest, self._options = layout, manifest, options
        self._on_progress, self._stop = on_progress, stop
        self._fetched = 0

    def run(self, findings: Sequence[Finding]) -> tuple[Repaired, ...] | None:
        files = {x.path: x for x in self._manifest.files}
        content = [x for x in findings if x.problem in ("missing", "size", "content")]
        remotes = self._remotes([files[x.path] for x in content])
        if remotes is None:
            return None
        done: list[Repaired] = []
        mended: set[str] = set()
        for finding in content:
            file = files[finding.path]
            self._fetched = 0
            # The same content under two names is one blob.
            if file.sha256 not in mended and not self._get(file, remotes.get(file.path)):
                return None
            mended.add(file.sha256)
            done.append(Repaired(finding.path, finding.problem, self._fetched))
        for finding in findings:
            file = files[finding.path]
            if finding.problem == "unreadable":
                with disk_errors("read", self._layout.blob(file.sha256), 0):
                    self._layout.blob(file.sha256).chmod(0o444)
            elif finding.problem == "checks":
                self._write_checks(file)
            elif finding.problem != "link":
                continue
            done.append(Repaired(finding.path, finding.problem, 0))
        if any(x.problem == "link" for x in findings):
            folder = self._layout.snapshot(self._manifest.name)
            with store_lock(self._layout), disk_errors("link", folder, 0):
                link_snapshot(self._layout, self._manifest)
        return tuple(done)

    def _remotes(self, files: Sequence[StoredFile]) -> dict[str, RemoteFile] | None:
        """Where files of a hub are; {} for those of a folder. None if stopped."""
        manifest = self._manifest
        if not files or manifest.origin != "hub":
            return {}
        if manifest.dropped:
            for file in files:
                if file.path in ("kept.json", "kept.safetensors", "packed.safetensors"):
                    raise self._lost(file, f"qh-chat pull {manifest.name} gets the model again")
        wanted = replace(manifest, files=tuple(files))
        found = remote_files(wanted, self._options, endpoint=manifest.endpoint, stop=self._stop)
        if found and self._options.token is None:
            token = hub_token(next(iter(found.values())).url, manifest.endpoint)
            self._options = replace(self._options, token=token)
        return found

    def _get(self, file: StoredFile, remote: RemoteFile | None) -> bool:
        """Get the content of a blob again; False if stopped."""
        if remote is not None:
            found = repair_blob(
                self._layout, remote, file.sha256, self._options, self._report, self._stop
            )
            return found is not None
        source = Path(self._manifest.endpoint) / file.path
        if self._manifest.origin != "import" or not source.is_file():
            raise self._lost(
                file, f"import it again from where it came from: {self._manifest.endpoint}"
            )
        with disk_errors("remove", self._layout.blob(file.sha256), 0):
            # Damaged, and of the right size it would be taken for what is wanted.
            self._layout.blob(file.sha256).unlink(missing_ok=True)
        report = self._on_progress
        return copy_file(self._layout, source, file.sha256, report, self._stop) is not None

    def _write_checks(self, file: StoredFile) -> None:
        """Make the CRCs of a blob again, whose content was found to be right."""
        crcs = array("I")
        blob = self._layout.blob(file.sha256)
        with disk_errors("write", blob, 0):
            with open(blob, "rb", buffering=0) as reader:
                while data := reader.read(CHUNK_BYTES):
                    crcs.append(zlib.crc32(data))
            write_checks(self._layout, file.sha256, file.size, crcs)

    def _report(self, progress: TransferProgress) -> None:
        self._fetched = progress.fetched_bytes
        if self._on_progress is not None:
            self._on_progress(progress)

    def _lost(self, file: StoredFile, hint: str) -> StoreError:
        return IntegrityError(
            f"{self._manifest.name}: {file.path}: damaged, and there is nowhere to get it from",
            hint=hint,
            path=str(self._layout.blob(file.sha256)),
            expected=file.sha256,
            found="other content",
        )
