"""The cache folder: packed weights and self-tests that passed, of which model each is, which are of
no use, what killed processes left there, and lock files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qh_runtime.checkpoints.files import open_regular
from qh_runtime.checkpoints.safetensors_header import read_header
from qh_runtime.errors import CheckpointError, QhError
from qh_runtime.store.layout import StoreLayout
from qh_runtime.store.locking import unused
from qh_runtime.store.manifest import Manifest

__all__ = [
    "CacheUsers",
    "Derived",
    "derived_in",
    "pack_locks",
    "temporary_packs",
    "temporary_records",
]


@dataclass(frozen=True)
class Derived:
    """A pack, or the record of a self-test, as its header or text describes it.

    Attributes:
        folder: of the checkpoint that it was made from; "" where it does not say.
        source: identity of that checkpoint then.
        current: whether it is of the version, and the kernels, that a load of now would take.
    """

    kind: Literal["pack", "self-test"]
    path: Path
    folder: str
    source: str
    current: bool


def derived_in(packed_dir: Path) -> tuple[Derived, ...]:
    """Return every pack and every record of a folder; damaged ones with empty fields."""
    return (*_packs(packed_dir), *_records(packed_dir))


def _packs(packed_dir: Path) -> Iterator[Derived]:
    from qh_runtime.packing.pack_file import FOLDER_KEY, PACK_VERSION, SOURCE_KEY

    for path in sorted(packed_dir.glob("[!.]*.safetensors")):
        metadata = _metadata(path)
        yield Derived(
            "pack",
            path,
            metadata.get(FOLDER_KEY, ""),
            metadata.get(SOURCE_KEY, ""),
            metadata.get("qh_pack_version") == str(PACK_VERSION),
        )


def _records(packed_dir: Path) -> Iterator[Derived]:
    paths = sorted(packed_dir.glob("[!.]*.self-test.json"))
    if not paths:
        return
    # Here and not at the top: the extension is loaded for it.
    from qh_runtime.first_load.record import kernels_identity, read_provenance

    kernels = kernels_identity()
    for path in paths:
        of = read_provenance(path)
        if of is None:
            yield Derived("self-test", path, "", "", False)
        else:
            yield Derived("self-test", path, of.folder, of.source, of.kernels == kernels)


class CacheUsers:
    """Which models of the store each file serves. Models with the same weights share them.

    Args:
        manifests: by name; None for one that cannot be read.
    """

    def __init__(self, layout: StoreLayout, manifests: Mapping[str, Manifest | None]) -> None:
        self._layout = layout
        self._manifests = manifests
        self._folders = {str(layout.snapshot(x).absolute()): x for x in manifests}
        self._identities: dict[str, str | None] = {}

    def of(self, derived: Derived) -> frozenset[str]:
        """Names of the models; none where it was made from a folder outside the store."""
        name = self._folders.get(derived.folder)
        if name is None:
            return self._by_identity(derived.source)
        weights = _weights(self._manifests[name])
        if not weights:
            return frozenset({name})
        return frozenset(x for x, m in self._manifests.items() if _weights(m) == weights)

    def useless(self, files: Iterable[Derived]) -> Iterator[Derived]:
        """Yield those that no load will take: their checkpoint is gone or was changed since.

        So are those of another version, and those that do not say what they were made from.
        """
        for derived in files:
            if not (derived.source and derived.current) or (
                derived.source != self._identity(derived.folder)
                and not self._by_identity(derived.source)
            ):
                yield derived

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


def temporary_records(packed_dir: Path) -> list[Path]:
    """Records that were being written; each takes a moment."""
    return sorted(packed_dir.glob(".*.self-test.json.*.part"))


def pack_locks(packed_dir: Path) -> list[Path]:
    """Lock files of packs, held or not."""
    return sorted(packed_dir.glob(".*.safetensors.lock"))


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
