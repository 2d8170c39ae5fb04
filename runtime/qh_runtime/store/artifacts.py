"""Which files of a repository are one model that can be loaded, and why the others are not.

A model is `model.safetensors`, or `model.safetensors.index.json` with its shards, and the files by
name that the loader reads. No pattern of names is fetched, so no code and no pickle ever is. What
lies in a folder of the repository is an artifact with that folder's name; in the store its files
lie at the top, as the loader wants them, and what the folder lacks is taken from above it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, NoReturn

from qh_runtime.checkpoints.folder import SINGLE
from qh_runtime.checkpoints.shard_index import INDEX, MAX_INDEX_BYTES
from qh_runtime.checkpoints.strict_json import quoted
from qh_runtime.errors import StoreError
from qh_runtime.store.hub import RepoListing
from qh_runtime.store.names import check_file_names
from qh_runtime.store.transfer import RemoteFile

__all__ = [
    "Artifact",
    "ArtifactFile",
    "alternatives",
    "artifact_names",
    "choose_artifact",
    "with_shards",
]

_MIB = 1 << 20
# What the readers of these files take at most.
_SIDE_FILES = {
    "config.json": _MIB,
    "generation_config.json": _MIB,
    "tokenizer.json": 64 * _MIB,
    "tokenizer_config.json": 4 * _MIB,
    "special_tokens_map.json": 4 * _MIB,
    "chat_template.jinja": _MIB,
    "chat_template.json": 4 * _MIB,
}
_REQUIRED = ("config.json", "tokenizer.json")
_LICENCE = re.compile(r"(?i)(licen[cs]e|notice|copying|use_policy)([._-][A-Za-z0-9._-]*)?")
_MAX_LICENCE_BYTES = _MIB
_MAX_LICENCES = 8
_WORD = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?")

# Kind -> (file names, why it is not loaded). Asked in this order; the first that fits counts.
_OTHERS: dict[str, tuple[re.Pattern[str], str]] = {
    "adapter": (
        re.compile(r"(?i)adapter_(model|config)\..*"),
        "an adapter changes a model and is none itself",
    ),
    "pipeline": (re.compile(r"model_index\.json"), "pipelines for pictures are not run here"),
    "gguf": (re.compile(r"(?i).*\.gguf"), "GGUF is not read by this version"),
    "pickle": (
        re.compile(r"(?i).*\.(bin|pt|pth|ckpt|pkl|pickle|joblib|nemo|npz|npy)"),
        "such files run code when they are loaded",
    ),
    "safetensors": (
        re.compile(r"(?i).*\.safetensors"),
        f"expected the name {SINGLE}, or {INDEX} beside it",
    ),
    "other": (
        re.compile(r"(?i).*\.(onnx|h5|keras|msgpack|tflite|mlmodel|mlpackage|pb|ot|exl2|engine)"),
        "not read here",
    ),
    "code": (re.compile(r"(?i).*\.(py|so|dll|dylib)"), "code of a repository is never run"),
}


@dataclass(frozen=True)
class ArtifactFile:
    """One file of a model.

    Attributes:
        path: its name in the store. remote: where it comes from.
        kind: "weights", or "side" for what is small and comes first.
    """

    path: str
    remote: RemoteFile
    kind: Literal["side", "weights"]


@dataclass(frozen=True)
class Artifact:
    """The files of one model.

    Attributes:
        name: "" for the usual one, else the folder in the repository.
        files: side files first.
        sharded: the weights lie in shards, which `with_shards` adds.
    """

    name: str
    files: tuple[ArtifactFile, ...]
    sharded: bool

    @property
    def side_files(self) -> tuple[ArtifactFile, ...]:
        """What comes before any weights."""
        return tuple(x for x in self.files if x.kind == "side")

    @property
    def weights(self) -> tuple[ArtifactFile, ...]:
        """The weight files; empty until `with_shards` where they are sharded."""
        return tuple(x for x in self.files if x.kind == "weights")


def artifact_names(listing: RepoListing) -> tuple[str, ...]:
    """Names of the artifacts of a repository that hold weights which are read: "" first."""
    found = set()
    for file in listing.files:
        folder, _, name = file.path.rpartition("/")
        if name in (SINGLE, INDEX) and (not folder or _WORD.fullmatch(folder)):
            found.add(folder)
    return tuple(sorted(found))


def choose_artifact(listing: RepoListing, name: str = "") -> Artifact:
    """Return the files of an artifact, shards apart.

    Raises:
        StoreError: no such artifact, nothing that is read, or a needed file that is missing,
            unsound or too large. Facts: name, rule, artifacts, found.
    """
    weights = listing.find(_within(name, SINGLE))
    index = None if weights else listing.find(_within(name, INDEX))
    if weights is None and index is None:
        _refuse(listing, name, artifact_names(listing))
    files: list[ArtifactFile] = []
    for path, limit in _SIDE_FILES.items():
        remote = _nearest(listing, name, path)
        if remote is not None:
            files.append(_side(listing, path, remote, limit))
        elif path in _REQUIRED:
            _missing(listing, name, path)
    files += _licences(listing, name)
    if index is not None:
        files.append(_side(listing, INDEX, index, MAX_INDEX_BYTES))
    if weights is not None:
        files.append(ArtifactFile(SINGLE, weights, "weights"))
    check_file_names(x.path for x in files)
    return Artifact(name, tuple(files), sharded=index is not None)


def with_shards(listing: RepoListing, artifact: Artifact, shards: Iterable[str]) -> Artifact:
    """Return the artifact with the shards that its index names.

    Raises:
        StoreError: a shard is not in the repository. Facts: name, rule, file.
    """
    files = list(artifact.side_files)
    for shard in sorted(set(shards)):
        remote = listing.find(_within(artifact.name, shard))
        if remote is None:
            raise StoreError(
                f"{listing.repo}: {quoted(shard)}: named by {INDEX}, not in the repository",
                hint="its upload is incomplete; choose another revision or another model",
                name=listing.repo,
                rule="missing shard",
                file=shard,
            )
        files.append(ArtifactFile(shard, remote, "weights"))
    check_file_names(x.path for x in files)
    return replace(artifact, files=tuple(files))


def alternatives(listing: RepoListing, artifact: str) -> str:
    """Return a sentence with names that may be pulled instead, "" where the listing has none.

    Args:
        artifact: the one that is no use.
    """
    others = [x for x in artifact_names(listing) if x != artifact]
    names = [f"{listing.repo}:{x}" if x else listing.repo for x in others]
    names += [x for x in listing.base_model if x != listing.repo]
    return f"try {' or '.join(names[:4])}" if names else ""


def _within(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _nearest(listing: RepoListing, folder: str, name: str) -> RemoteFile | None:
    """The file in the artifact's folder, else the one at the top."""
    return listing.find(_within(folder, name)) or (listing.find(name) if folder else None)


def _side(listing: RepoListing, path: str, remote: RemoteFile, limit: int) -> ArtifactFile:
    if remote.size > limit:
        raise StoreError(
            f"{listing.repo}: {quoted(remote.path)}: expected at most {limit} bytes, "
            f"found {remote.size}",
            hint="no model needs that much; use another copy of the model",
            name=listing.repo,
            rule="size",
            file=remote.path,
            expected=limit,
            found=remote.size,
        )
    return ArtifactFile(path, remote, "side")


def _licences(listing: RepoListing, folder: str) -> list[ArtifactFile]:
    """Licence texts of reasonable size; names that differ in case alone count once."""
    found: dict[str, ArtifactFile] = {}
    for place in dict.fromkeys((folder, "")):
        for file in listing.files:
            at, _, name = file.path.rpartition("/")
            fits = at == place and _LICENCE.fullmatch(name) and file.size <= _MAX_LICENCE_BYTES
            if fits and len(found) < _MAX_LICENCES:
                found.setdefault(name.casefold(), ArtifactFile(name, file, "side"))
    return list(found.values())


def _missing(listing: RepoListing, artifact: str, path: str) -> NoReturn:
    if path == "tokenizer.json":
        others = sorted(
            x.path for x in listing.files if x.path.endswith((".model", "vocab.json", "vocab.txt"))
        )
        found = f"found {quoted(others[0])}, which is not read" if others else "found none"
    else:
        found = "found none"
    raise StoreError(
        f"{listing.repo}: expected {path}, {found}",
        hint=alternatives(listing, artifact)
        or "choose another copy of the model, or convert this one",
        name=listing.repo,
        rule="missing file",
        file=path,
    )


def _refuse(listing: RepoListing, name: str, artifacts: tuple[str, ...]) -> NoReturn:
    """Say what is there instead of what was asked for, and what would work."""
    inside = [x.path for x in listing.files if not name or x.path.startswith(f"{name}/")]
    unread = _unread(inside)
    what = f"{listing.repo}:{name}" if name else listing.repo
    if unread:
        message = "; ".join(
            f"{quoted(paths[0])}{f' and {len(paths) - 1} more' if len(paths) > 1 else ''}: "
            f"{_OTHERS[kind][1]}"
            for kind, paths in unread.items()
        )
    elif name and not inside:
        message = f"expected a folder {quoted(name)}, found none"
    else:
        message = f"expected {SINGLE} or {INDEX}, found neither"
    kinds = tuple(unread)
    raise StoreError(
        f"{quoted(what)[1:-1]}: {message}",
        hint=alternatives(listing, name) or "choose a repository with safetensors files",
        name=listing.repo,
        rule=kinds[0] if kinds else "nothing",
        found=kinds,
        artifacts=artifacts,
        base_model=listing.base_model,
    )


def _unread(paths: Iterable[str]) -> Mapping[str, list[str]]:
    """Kind to paths of what is there and is not read."""
    found: dict[str, list[str]] = {}
    for path in paths:
        name = path.rpartition("/")[2]
        for kind, (pattern, _) in _OTHERS.items():
            if pattern.fullmatch(name):
                found.setdefault(kind, []).append(path)
                break
    return {kind: sorted(found[kind]) for kind in _OTHERS if kind in found}
