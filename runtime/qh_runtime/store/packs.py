"""Packed weights in the cache folder: which model each was made from, and which are of no use."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from qh_runtime.checkpoints.files import open_regular
from qh_runtime.checkpoints.safetensors_header import read_header
from qh_runtime.errors import CheckpointError, QhError
from qh_runtime.store.layout import StoreLayout
from qh_runtime.store.locking import unused
from qh_runtime.store.manifest import Manifest

__all__ = ["PackRecord", "PackUsers", "packs_in", "temporary_packs"]


@dataclass(frozen=True)
class PackRecord:
    """One pack, as its header describes it.

    Attributes:
        folder: of the checkpoint that it was made from; "" where it does not say.
        source: identity of that checkpoint then. version: of the pack format.
    """

    path: Path
    folder: str
    source: str
    version: str


def packs_in(packed_dir: Path) -> tuple[PackRecord, ...]:
    """Return every pack of a folder, sorted by name; damaged ones with empty fields."""
    from qh_runtime.packing.pack_file import FOLDER_KEY, SOURCE_KEY

    found = []
    for path in sorted(packed_dir.glob("[!.]*.safetensors")):
        metadata = _metadata(path)
        found.append(
            PackRecord(
                path,
                metadata.get(FOLDER_KEY, ""),
                metadata.get(SOURCE_KEY, ""),
                metadata.get("qh_pack_version", ""),
            )
        )
    return tuple(found)


class PackUsers:
    """Which models of the store each pack serves. Models with the same weights share their packs.

    Args:
        manifests: by name; None for one that cannot be read.
    """

    def __init__(self, layout: StoreLayout, manifests: Mapping[str, Manifest | None]) -> None:
        self._layout = layout
        self._manifests = manifests
        self._folders = {str(layout.snapshot(x).absolute()): x for x in manifests}
        self._identities: dict[str, str | None] = {}

    def of(self, pack: PackRecord) -> frozenset[str]:
        """Names of the models; none where it was made from a folder outside the store."""
        name = self._folders.get(pack.folder)
        if name is None:
            return self._by_identity(pack.source)
        weights = _weights(self._manifests[name])
        if not weights:
            return frozenset({name})
        return frozenset(x for x, m in self._manifests.items() if _weights(m) == weights)

    def useless(self, packs: Iterable[PackRecord]) -> Iterator[PackRecord]:
        """Yield those that no load will take: their checkpoint is gone or was changed since.

        So are packs of another version, and those that do not say what they were made from.
        """
        from qh_runtime.packing.pack_file import PACK_VERSION

        for pack in packs:
            current = pack.source and pack.version == str(PACK_VERSION)
            if not current or (
                pack.source != self._identity(pack.folder) and not self._by_identity(pack.source)
            ):
                yield pack

    def _by_identity(self, source: str) -> frozenset[str]:
        folders = self._folders.items()
        return frozenset(x for folder, x in folders if source and self._identity(folder) == source)

    def _identity(self, folder: str) -> str | None:
        if folder not in self._identities:
            self._identities[folder] = _identity(folder)
        return self._identities[folder]


def temporary_packs(packed_dir: Path) -> Iterator[Path]:
    """Yield what killed processes left of packs; those being written just now are left out."""
    for path in sorted(packed_dir.glob(".*.safetensors.*.part")):
        name = path.name.rpartition(".part")[0].rpartition(".")[0]
        with unused(path.with_name(f"{name}.lock")) as free:
            if free:
                yield path


def _metadata(path: Path) -> dict[str, str]:
    try:
        with open_regular(path) as (file, size):
            return dict(read_header(lambda begin, end: file.read(end - begin), size, path).metadata)
    except CheckpointError:
        return {}


def _identity(folder: str) -> str | None:
    """Identity of the checkpoint in a folder now; None where there is none."""
    from qh_runtime.store.source import open_source

    if not folder:
        return None
    try:
        source = open_source(Path(folder))
    except (QhError, OSError):
        return None
    try:
        return source.identity()
    finally:
        source.close()


def _weights(manifest: Manifest | None) -> tuple[tuple[str, str], ...]:
    """Names and hashes of the weight files of a model that is ready; () for any other."""
    if manifest is None or manifest.state != "ready":
        return ()
    return tuple(
        sorted((x.path, x.sha256) for x in manifest.files if x.path.endswith(".safetensors"))
    )
