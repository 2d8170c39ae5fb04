"""What models take on the disk, and taking it back: `du`, `rm`, `prune`.

Bytes are those that the disk gives to files, so that what is said to be freed is freed. Everything
is looked at and removed under the store's lock. A process that has a model loaded keeps its files
until it ends. A kill at any point leaves a store that works: a manifest goes first, then what it
alone needed; what is left of that is found by the next `prune`.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from qh_runtime.errors import IntegrityError, ModelNotFoundError, StoreError
from qh_runtime.store.layout import StoreLayout, name_of_slug
from qh_runtime.store.locking import store_lock, unused, unused_key
from qh_runtime.store.looks import is_abandoned, is_look
from qh_runtime.store.manifest import Manifest, read_manifest
from qh_runtime.store.packs import (
    CacheUsers,
    Derived,
    derived_in,
    pack_locks,
    temporary_packs,
    temporary_records,
)
from qh_runtime.store.part import disk_errors

__all__ = [
    "DiskUse",
    "ModelUse",
    "Piece",
    "Pruning",
    "Removal",
    "blob_users",
    "disk_use",
    "prune",
    "remove",
    "remove_packed",
]

Kind = Literal["manifest", "links", "blob", "part", "pack", "self-test", "lock", "temporary"]

_BLOB = re.compile(r"([0-9a-f]{64})(\.crc)?")
_LOCK = re.compile(r"(git-[0-9a-f]{40}|[0-9a-f]{64}|look-[0-9a-f]{8})\.lock")
_PART = re.compile(r"(git-[0-9a-f]{40}|[0-9a-f]{64})\.(part|journal)")
# Temporary files exist for moments, and a file whose hash is not known beforehand is named by its
# manifest moments after it is complete. What is this old belongs to a process that was killed.
_SETTLED_S = 3600.0
# A file without a model that is younger may be of a pull that has just begun.
_FRESH_S = 60.0


@dataclass(frozen=True)
class Piece:
    """A file or folder of the store or the cache.

    Attributes:
        bytes: that the disk gives to it, and to everything in it.
    """

    kind: Kind
    path: Path
    bytes: int


@dataclass(frozen=True)
class ModelUse:
    """What one model takes.

    Attributes:
        state: "ready", "pulling", "damaged" (its manifest cannot be read), or "folder" for models
            outside the store, of which only the packs are counted.
        own_bytes: what it shares with no other model, what has arrived of it included.
        shared_bytes: what other models need, too, packs of the same weights included.
        packed_bytes: its own packs, and records of self-tests, in the cache folder.
    """

    name: str
    state: Literal["ready", "pulling", "damaged", "folder"]
    own_bytes: int
    shared_bytes: int
    packed_bytes: int

    @property
    def freed_bytes(self) -> int:
        """What removing it frees."""
        return self.own_bytes + self.packed_bytes


@dataclass(frozen=True)
class DiskUse:
    """What everything takes.

    Attributes:
        shared_bytes: of files that several models need, each once.
        unfinished_bytes: of the models' own bytes, parts of files.
        left_over_bytes: what `prune` removes.
        other_packed_bytes: packs and records of folders that are not among the models.
        total_bytes: store and cache folder.
    """

    models: tuple[ModelUse, ...]
    shared_bytes: int
    unfinished_bytes: int
    left_over_bytes: int
    other_packed_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class Removal:
    """What `remove` takes away.

    Attributes:
        shared_bytes: of the model, what stays. shared_with: names of the models that need it.
    """

    name: str
    pieces: tuple[Piece, ...]
    shared_bytes: int = 0
    shared_with: tuple[str, ...] = ()

    @property
    def freed_bytes(self) -> int:
        """Sum of the pieces."""
        return sum(x.bytes for x in self.pieces)


@dataclass(frozen=True)
class Pruning:
    """What `prune` takes away.

    Attributes:
        kept: why something that looks left over stays, in sentences.
    """

    pieces: tuple[Piece, ...]
    kept: tuple[str, ...] = ()

    @property
    def freed_bytes(self) -> int:
        """Sum of the pieces."""
        return sum(x.bytes for x in self.pieces)


def disk_use(
    layout: StoreLayout, packed_dir: Path, folders: Sequence[tuple[str, Path]] = ()
) -> DiskUse:
    """Return what every model takes.

    Args:
        packed_dir: the cache folder of packs.
        folders: names and folders of models outside the store, whose packs are counted.

    Raises:
        StoreError: the store cannot be read or locked.
    """
    with _locked(layout):
        found = _Inventory(layout)
        users = CacheUsers(layout, found.manifests)
        packs = [(x, users.of(x)) for x in derived_in(packed_dir)]
        left_over = list(_left_over(found, packed_dir, users, _SETTLED_S))
        useless = {x.path for x in left_over}
        packs = [x for x in packs if x[0].path not in useless]
        models = [_use(found, name, packs) for name in found.manifests]
        outside = {str(folder.absolute()): name for name, folder in folders}
        counts = dict.fromkeys(outside.values(), 0)
        other = 0
        for pack, names in packs:
            if not names and pack.folder in outside:
                counts[outside[pack.folder]] += _tree_bytes(pack.path)
            elif not names:
                other += _tree_bytes(pack.path)
        models += [ModelUse(name, "folder", 0, 0, count) for name, count in counts.items()]
        shared = [path for x, names in found.blob_users.items() if len(names) > 1
                  for path in found.blobs.get(x, ())]  # fmt: skip
        shared += [path for x, names in found.part_users.items() if len(names) > 1
                   for path in found.parts.get(x, ())]  # fmt: skip
        shared += [x.path for x, names in packs if len(names) > 1]
        return DiskUse(
            models=tuple(models),
            shared_bytes=_bytes(shared),
            unfinished_bytes=sum(_bytes(found.parts.get(x, ())) for x in found.part_users),
            left_over_bytes=sum(x.bytes for x in left_over),
            other_packed_bytes=other,
            total_bytes=_tree_bytes(layout.root) + _tree_bytes(packed_dir),
        )


def remove(layout: StoreLayout, packed_dir: Path, name: str, *, dry_run: bool = False) -> Removal:
    """Remove a model, with everything that no other model needs, and return what that was.

    Args:
        dry_run: only say what would be removed.

    Raises:
        ModelNotFoundError: no such model in the store. Facts: name.
        StoreError: another process is fetching it, or the disk refuses; the same again goes on.
    """
    with _locked(layout), ExitStack() as holding:
        found = _Inventory(layout)
        if name not in found.manifests:
            raise ModelNotFoundError(
                f"model {name}: expected in the store, found nothing of that name",
                hint="qh-chat ls lists the models; folders of your own are yours to remove",
                name=name,
                known=tuple(found.manifests),
            )
        keys = [x for x, names in found.part_users.items() if names == {name}]
        for key in keys:
            if not holding.enter_context(unused_key(layout, key)):
                raise StoreError(
                    f"model {name}: another process is fetching it",
                    hint="stop that first",
                    name=name,
                )
        blobs = [x for x, names in found.blob_users.items() if names == {name}]
        pieces = [_piece("manifest", layout.manifest(name))]
        if name in found.snapshots:
            pieces.append(_piece("links", found.snapshots[name]))
        pieces += [_piece("blob", x) for key in blobs for x in found.blobs.get(key, ())]
        pieces += [_piece("part", x) for key in keys for x in found.parts.get(key, ())]
        users = CacheUsers(layout, found.manifests)
        derived = [(x, users.of(x)) for x in derived_in(packed_dir)]
        pieces += [_piece(x.kind, x.path) for x, names in derived if names == frozenset({name})]
        shared, others = _shared(found, name, derived)
        removal = Removal(name, tuple(pieces), _bytes(shared), tuple(sorted(others)))
        if not dry_run:
            _remove(pieces)
        return removal


def remove_packed(
    layout: StoreLayout,
    packed_dir: Path,
    name: str,
    folder: Path | None = None,
    *,
    dry_run: bool = False,
) -> Removal:
    """Remove what was derived from a model, and return what that was; the next load makes it again.

    What another model of the store uses, too, stays.

    Args:
        folder: of a model outside the store; None for one in it.
        dry_run: only say what would be removed.

    Raises:
        StoreError: the store cannot be locked, or the disk refuses; the same again goes on.
    """
    with _locked(layout):
        users = CacheUsers(layout, _Inventory(layout).manifests)
        derived = [(x, users.of(x)) for x in derived_in(packed_dir)]
        if folder is None:
            own = [x for x, names in derived if names == frozenset({name})]
        else:
            own = [x for x, names in derived if not names and x.folder == str(folder.absolute())]
        pieces = tuple(_piece(x.kind, x.path) for x in own)
        if not dry_run:
            _remove(pieces)
        return Removal(name, pieces)


def prune(
    layout: StoreLayout, packed_dir: Path, *, dry_run: bool = False, settled_s: float = _SETTLED_S
) -> Pruning:
    """Remove what no model needs, and return what that was.

    That is: blobs that no manifest names, parts that no unfinished model names, folders of links
    without a manifest, temporary files, packs and records of self-tests that no load will take,
    and lock files that nobody holds.

    Args:
        dry_run: only say what would be removed.
        settled_s: how old temporary files must be, and, while a model is being fetched, files that
            its manifest may not name yet. Other files need an age of a minute at most.

    Raises:
        StoreError: the store cannot be locked, or the disk refuses; the same again goes on.
    """
    pieces: list[Piece] = []
    kept: dict[str, None] = {}
    with _locked(layout):
        found = _Inventory(layout)
        users = CacheUsers(layout, found.manifests)
        for piece in _left_over(found, packed_dir, users, settled_s):
            lock_file = piece.path if piece.kind == "lock" else found.lock_of(piece.path)
            with nullcontext(True) if lock_file is None else unused(lock_file) as free:
                if not free:
                    if piece.kind != "lock":
                        kept[f"{piece.path.stem}: another process is using it"] = None
                    continue
                if not dry_run:
                    # A lock file, too, goes while it is held: see `remove_held`.
                    _remove([piece])
                pieces.append(piece)
        if found.damaged:
            names = ", ".join(found.damaged)
            kept[
                f"{names}: its manifest is damaged, so nobody knows which files are of it, and "
                "all of them stay; pull it again or remove it first"
            ] = None
    return Pruning(tuple(pieces), tuple(kept))


def blob_users(layout: StoreLayout) -> dict[str, set[str]]:
    """Blob to the names of models whose manifest names it; the caller holds the store's lock."""
    return dict(_Inventory(layout).blob_users)


@dataclass
class _Inventory:
    """Everything in the store by what it is."""

    layout: StoreLayout
    manifests: dict[str, Manifest | None] = field(default_factory=dict)
    blobs: dict[str, list[Path]] = field(default_factory=lambda: defaultdict(list))
    parts: dict[str, list[Path]] = field(default_factory=lambda: defaultdict(list))
    snapshots: dict[str, Path] = field(default_factory=dict)
    temporary: list[Path] = field(default_factory=list)
    locks: list[Path] = field(default_factory=list)
    # Blob or part to the names of models that need it.
    blob_users: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    part_users: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    def __post_init__(self) -> None:
        self._look_at_manifests()
        for path in _entries(self.layout.blobs):
            match = _BLOB.fullmatch(path.name)
            if match:
                self.blobs[match[1]].append(path)
        for path in _entries(self.layout.parts):
            match = _PART.fullmatch(path.name)
            if match:
                self.parts[match[1]].append(path)
        for path in _entries(self.layout.snapshots):
            name = _name(path.name)
            if name is not None:
                self.snapshots[name] = path
        layout = self.layout
        places = (layout.manifests, layout.blobs, layout.parts, layout.locks, layout.snapshots)
        for folder in places:
            self.temporary += [x for x in _entries(folder) if _is_temporary(x)]
        locks = [x for x in _entries(layout.locks) if _LOCK.fullmatch(x.name)]
        self.locks = [x for x in locks if x != layout.store_lock]

    @property
    def damaged(self) -> tuple[str, ...]:
        """Names of models whose manifest cannot be read."""
        return tuple(name for name, manifest in self.manifests.items() if manifest is None)

    @property
    def expects_unnamed(self) -> bool:
        """Whether an unfinished model has files whose blob is not known yet."""
        unfinished = [x for x in self.manifests.values() if x is not None and x.state == "pulling"]
        return any(not file.sha256 for x in unfinished for file in x.files)

    def claimed(self) -> set[str]:
        """Blobs that a pull looks at before it is decided on, by links in a temporary folder."""
        folders = [x for x in self.temporary if x.parent == self.layout.snapshots]
        links = [y for x in folders if not is_abandoned(self.layout, x) for y in _entries(x)]
        targets = set()
        for link in links:
            # What a pull is about to move into place may be gone by now; a copy is no link.
            with contextlib.suppress(OSError):
                targets.add(os.readlink(link).rpartition("/")[2])
        return targets

    def is_dead(self, temporary: Path, settled_s: float) -> bool:
        """Whether a temporary file or folder is of a process that was killed."""
        if temporary.parent == self.layout.manifests:
            # They are written under the store's lock, which this process holds.
            return True
        if temporary.parent == self.layout.snapshots and is_look(temporary):
            return is_abandoned(self.layout, temporary)
        return _is_settled(temporary, settled_s)

    def lock_of(self, path: Path) -> Path | None:
        """The lock of a blob or part; None for other files."""
        match = _BLOB.fullmatch(path.name) or _PART.fullmatch(path.name)
        inside = match and path.parent.parent == self.layout.root
        return self.layout.lock(match[1]) if match and inside else None

    def _look_at_manifests(self) -> None:
        for path in _entries(self.layout.manifests):
            name = _name(path.name.removesuffix(".json")) if path.suffix == ".json" else None
            if name is None:
                continue
            try:
                manifest = self.manifests[name] = read_manifest(path)
            except IntegrityError:
                self.manifests[name] = None
                continue
            for file in manifest.files:
                if file.sha256:
                    self.blob_users[file.sha256].add(name)
                if manifest.state == "pulling" and file.key:
                    self.part_users[file.key].add(name)


def _use(found: _Inventory, name: str, packs: Sequence[tuple[Derived, frozenset[str]]]) -> ModelUse:
    manifest = found.manifests[name]
    own = [found.layout.manifest(name)]
    own += [found.snapshots[name]] if name in found.snapshots else []
    for users, paths in ((found.blob_users, found.blobs), (found.part_users, found.parts)):
        own += [x for key, names in users.items() if names == {name} for x in paths.get(key, ())]
    shared, _ = _shared(found, name, packs)
    return ModelUse(
        name=name,
        state="damaged" if manifest is None else manifest.state,
        own_bytes=_bytes(own),
        shared_bytes=_bytes(shared),
        packed_bytes=_bytes(x.path for x, names in packs if names == frozenset({name})),
    )


def _shared(
    found: _Inventory, name: str, packs: Sequence[tuple[Derived, frozenset[str]]]
) -> tuple[list[Path], set[str]]:
    """What a model has in common with others, and with which."""
    paths: list[Path] = []
    others: set[str] = set()
    for users, places in ((found.blob_users, found.blobs), (found.part_users, found.parts)):
        for key, names in users.items():
            if name in names and len(names) > 1 and key in places:
                paths += places[key]
                others |= names
    for pack, of in packs:
        if name in of and len(of) > 1:
            paths.append(pack.path)
            others |= of
    return paths, others - {name}


def _left_over(
    found: _Inventory, packed_dir: Path, users: CacheUsers, settled_s: float
) -> Iterator[Piece]:
    """What no model needs."""
    if not found.damaged:
        claimed = found.claimed()
        age_s = settled_s if found.expects_unnamed else min(settled_s, _FRESH_S)
        for sha256, paths in found.blobs.items():
            if sha256 in found.blob_users or sha256 in claimed:
                continue
            if all(_is_settled(x, age_s) for x in paths):
                yield from (_piece("blob", x) for x in paths)
        for key, paths in found.parts.items():
            if key not in found.part_users:
                yield from (_piece("part", x) for x in paths)
    for name, path in found.snapshots.items():
        if name not in found.manifests:
            yield _piece("links", path)
    for path in found.temporary:
        if found.is_dead(path, settled_s):
            yield _piece("temporary", path)
    for path in temporary_packs(packed_dir):
        yield _piece("temporary", path)
    for path in temporary_records(packed_dir):
        if _is_settled(path, settled_s):
            yield _piece("temporary", path)
    for derived in users.useless(derived_in(packed_dir)):
        yield _piece(derived.kind, derived.path)
    for path in (*found.locks, *pack_locks(packed_dir)):
        yield _piece("lock", path)


def _remove(pieces: Iterable[Piece]) -> None:
    for piece in pieces:
        with disk_errors("remove", piece.path, 0):
            if piece.path.is_dir() and not piece.path.is_symlink():
                shutil.rmtree(piece.path)
            else:
                piece.path.unlink(missing_ok=True)


@contextmanager
def _locked(layout: StoreLayout) -> Iterator[None]:
    """The store's lock; nothing is made where there is no store."""
    if not layout.root.exists():
        yield
        return
    with store_lock(layout):
        yield


def _name(slug: str) -> str | None:
    try:
        return name_of_slug(slug)
    except StoreError:
        return None


def _is_temporary(path: Path) -> bool:
    return path.name.startswith(".") and path.name.endswith(".tmp")


def _is_settled(path: Path, settled_s: float) -> bool:
    try:
        return time.time() - path.lstat().st_mtime >= settled_s
    except OSError:
        return True


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _piece(kind: Kind, path: Path) -> Piece:
    return Piece(kind, path, _tree_bytes(path))


def _bytes(paths: Iterable[Path]) -> int:
    return sum(_tree_bytes(x) for x in paths)


def _tree_bytes(path: Path) -> int:
    """Bytes that the disk gives to a file, or to the files of a folder; links are not followed."""
    try:
        if path.is_dir() and not path.is_symlink():
            return sum(_tree_bytes(x) for x in path.iterdir())
        return os.lstat(path).st_blocks * 512
    except OSError:
        return 0
