"""What is done with the models of the store: the command line and the screens both do it here."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qh_chat.loading import Models
from qh_chat.offline import require_network
from qh_runtime.errors import IntegrityError, QhError, StoreError

if TYPE_CHECKING:
    from qh_chat.paths import Paths
    from qh_chat.settings import Settings
    from qh_runtime.store.disk import DiskUse, Pruning, Removal
    from qh_runtime.store.dropping import Dropped, DropProgress
    from qh_runtime.store.entry import ModelEntry
    from qh_runtime.store.integrity import Finding
    from qh_runtime.store.layout import StoreLayout
    from qh_runtime.store.manifest import Manifest
    from qh_runtime.store.preflight import Preflight
    from qh_runtime.store.pull import PullEvent
    from qh_runtime.store.repair_model import Repaired
    from qh_runtime.store.transfer import FetchOptions, OnTransfer, StopSignal

__all__ = ["Shelf", "stored_manifest"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shelf:
    """The store of this user.

    Attributes:
        environment: HF_ENDPOINT names the hub, where it is set.
        offline: nothing may be fetched.
    """

    paths: Paths
    environment: Mapping[str, str]
    offline: bool = False

    def models(self, settings: Settings) -> Models:
        """Return the models that these settings can name."""
        return Models(self.paths, settings.models.folders)

    @property
    def layout(self) -> StoreLayout:
        """Where pulled and imported models lie."""
        from qh_runtime.store.layout import StoreLayout

        return StoreLayout(self.paths.store_dir)

    def stored(self, name: str, settings: Settings, action: str) -> ModelEntry:
        """Return the model of the store that a name stands for.

        Args:
            action: what cannot be done with others, such as "removed".

        Raises:
            ModelNotFoundError: no such model.
            StoreError: it is built in, or a folder of the person's own. Facts: name, path.
        """
        entry = self.models(settings).store().resolve(name)
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

    def whole(self, name: str, settings: Settings) -> Manifest:
        """Return the manifest of a model of the store that is all here.

        Raises:
            ModelNotFoundError, StoreError: it is not, or not of the store.
        """
        entry = self.stored(name, settings, "verified")
        if entry.manifest is None or entry.problem is not None:
            raise StoreError(
                f"model {entry.name}: {entry.problem}",
                hint="there is nothing to verify yet",
                name=entry.name,
            )
        return entry.manifest

    def hub_name(self, text: str) -> str:
        """Return the name in the store of what a person typed or pasted for a model of the hub.

        Raises:
            StoreError: it cannot be a model of the hub. Facts: name.
        """
        from qh_runtime.store.hub_name import hub_name
        from qh_runtime.store.layout import model_slug
        from qh_runtime.store.pull import PullRequest

        found = hub_name(text, self.environment.get("HF_ENDPOINT", ""))
        name = PullRequest(found.repo, found.revision, found.artifact).name
        model_slug(name)
        return name

    def pull(
        self,
        name: str,
        settings: Settings,
        stop: StopSignal,
        on_event: Callable[[PullEvent], None],
        confirm: Callable[[Preflight], bool],
        *,
        artifact: str | None = None,
        newest: bool = False,
        endpoint: str | None = None,
    ) -> Manifest | None:
        """Pull `org/model@revision:artifact`, or the address of its page; see `pull` of the store.

        Args:
            artifact: instead of what the name says.
            endpoint: another hub than that of HF_ENDPOINT, or of an earlier pull of this name.

        Raises:
            OfflineError: nothing may be fetched.
            QhError: as `pull`.
        """
        from qh_runtime.store.hub_name import hub_name
        from qh_runtime.store.pull import PullRequest, pull

        require_network("pull", offline=self.offline)
        models, hub = self.models(settings), self.environment.get("HF_ENDPOINT", "")
        wanted = hub_name(name, endpoint or hub)
        request = PullRequest(
            repo=wanted.repo,
            revision=wanted.revision,
            artifact=wanted.artifact if artifact is None else artifact,
            newest=newest,
            load=settings.load_options(),
            quota_bytes=_quota_bytes(settings),
            endpoint=endpoint,
        )
        if endpoint is None and not hub:
            there = stored_manifest(self.layout, request.name)
            if there is not None and there.origin == "hub":
                request = dataclasses.replace(request, endpoint=there.endpoint)
        return pull(
            request,
            self.layout,
            _transfer_options(settings),
            models.profile(),
            confirm=confirm,
            on_event=on_event,
            stop=stop,
        )

    def name_of_folder(self, path: Path) -> str:
        """Return the name that an imported folder gets by itself; "" where it cannot have one.

        Raises:
            StoreError: there is no model, or more than one. Facts: path.
        """
        from qh_runtime.store.import_place import find_place

        return find_place(path).name

    def copy(
        self,
        path: Path,
        name: str,
        settings: Settings,
        stop: StopSignal,
        on_event: Callable[[PullEvent], None],
        confirm: Callable[[Preflight], bool],
    ) -> Manifest | None:
        """Import a folder; see `import_folder` of the store."""
        from qh_runtime.store.import_folder import ImportRequest, import_folder

        request = ImportRequest(path, name, settings.load_options(), _quota_bytes(settings))
        return import_folder(
            request,
            self.layout,
            self.models(settings).profile(),
            confirm=confirm,
            on_event=on_event,
            stop=stop,
        )

    def repair(
        self,
        manifest: Manifest,
        findings: tuple[Finding, ...],
        settings: Settings,
        on_progress: OnTransfer,
        stop: StopSignal,
    ) -> tuple[Repaired, ...] | None:
        """Put right what was found; see `repair_model` of the store.

        Raises:
            OfflineError: something must be fetched, which is refused.
            QhError: as `repair_model`.
        """
        from qh_runtime.store.repair_model import repair_model

        if manifest.origin == "hub" and any(x.problem in _CONTENT for x in findings):
            require_network("verify --repair", offline=self.offline)
        options = _transfer_options(settings)
        return repair_model(self.layout, manifest, findings, options, on_progress, stop)

    def remove(self, name: str, *, dry_run: bool = False) -> Removal:
        """Remove a model of the store, or say what that would free."""
        from qh_runtime.store.disk import remove

        return remove(self.layout, self.paths.packed_dir, name, dry_run=dry_run)

    def remove_packed(self, name: str, settings: Settings, *, dry_run: bool = False) -> Removal:
        """Remove the packed form of any model, or say what that would free."""
        from qh_runtime.store.disk import remove_packed

        entry = self.models(settings).store().resolve(name)
        folder = None if entry.origin == "store" else entry.folder
        packed = self.paths.packed_dir
        return remove_packed(self.layout, packed, entry.name, folder, dry_run=dry_run)

    def drop_source(
        self,
        name: str,
        pack: str | None,
        on_progress: Callable[[DropProgress], None],
        stop: StopSignal,
    ) -> Dropped | None:
        """Remove the weights that the packed form stands for; see `drop_source` of the store."""
        from qh_runtime.store.dropping import drop_source

        return drop_source(self.layout, self.paths.packed_dir, name, pack, on_progress, stop)

    def source_gain(self, name: str, settings: Settings) -> int | None:
        """Return what `drop_source` would free; None where it would refuse."""
        from qh_runtime.store.dropping import source_gain

        try:
            return source_gain(self.layout, self.paths.packed_dir, name, settings.models.pack)
        except QhError as error:
            log.info("%s keeps its source: %s", name, error)
            return None

    def use(self, settings: Settings) -> DiskUse:
        """Return what every model takes on the disk."""
        from qh_runtime.store.disk import disk_use

        store = self.models(settings).store()
        outside = [(x.name, x.folder) for x in store.list() if x.origin != "store"]
        return disk_use(self.layout, self.paths.packed_dir, outside)

    def prune(self, *, dry_run: bool = False) -> Pruning:
        """Remove what no model needs, or say what that would free."""
        from qh_runtime.store.disk import prune

        return prune(self.layout, self.paths.packed_dir, dry_run=dry_run)


# What is wrong with a file so that bytes of it must come from elsewhere.
_CONTENT = ("missing", "size", "content")


def stored_manifest(layout: StoreLayout, name: str) -> Manifest | None:
    """Return the manifest of a model; None where there is none that can be read."""
    from qh_runtime.store.manifest import read_manifest

    try:
        path = layout.manifest(name)
        return read_manifest(path) if path.exists() else None
    except (IntegrityError, StoreError):
        return None


def _transfer_options(settings: Settings) -> FetchOptions:
    """How files are fetched."""
    from qh_runtime.store.transfer import FetchOptions

    limit = settings.models.download_limit_mb_s
    return FetchOptions(bytes_per_s=None if limit is None else limit * 1e6)


def _quota_bytes(settings: Settings) -> int | None:
    """What the store may take in all; None for no limit."""
    quota = settings.models.quota_gb
    return None if quota is None else round(quota * 1e9)
