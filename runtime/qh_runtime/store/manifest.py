"""Manifest: what the store knows of one model; a small JSON file, checked when it is read."""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from qh_runtime.errors import IntegrityError
from qh_runtime.store.layout import StoreLayout, check_digest, model_slug
from qh_runtime.store.names import check_file_names

__all__ = ["Manifest", "ManifestState", "StoredFile", "read_manifest", "write_manifest"]

ManifestState = Literal["pulling", "ready"]
VERSION = 1
MAX_BYTES = 16 << 20


@dataclass(frozen=True)
class StoredFile:
    """One file of a model.

    Attributes:
        path: checked relative name. size: bytes.
        key: names its part while it is fetched (see layout). sha256: its blob; "" until known.
    """

    path: str
    size: int
    key: str
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """One model.

    Attributes:
        name: what `-m` takes: `org/model`, with `@revision` or `:artifact` where asked for.
        state: "pulling" until every file is a checked blob.
        origin: "hub" or "import".
        repo, revision, commit: of the hub; commit is what was pinned. "" for imports.
        endpoint: the hub it came from; for imports the folder.
        artifact: which of several sets of weights, "" for the usual one.
        license: as the hub's card says, or "". gated: terms had to be accepted on the hub.
        model_type, format: of config.json and the weights, as `ls` shows them.
        packed_bytes: what packed weights take beside it, as planned at the pull.
        files: all of them. dropped: the weights were removed on the person's word; the packed form
            stands for them. pulled_at: UTC, ISO 8601.
    """

    name: str
    state: ManifestState
    origin: Literal["hub", "import"]
    repo: str
    revision: str
    commit: str
    endpoint: str
    artifact: str
    license: str
    gated: bool
    model_type: str
    format: str
    packed_bytes: int
    files: tuple[StoredFile, ...]
    dropped: bool = False
    pulled_at: str = ""
    version: int = VERSION

    @property
    def total_bytes(self) -> int:
        """Size of all files."""
        return sum(x.size for x in self.files)

    def with_hash(self, path: str, sha256: str) -> Manifest:
        """The same with the hash of one file filled in."""
        files = tuple(replace(x, sha256=sha256) if x.path == path else x for x in self.files)
        return replace(self, files=files)


def write_manifest(layout: StoreLayout, manifest: Manifest) -> None:
    """Put a manifest in place of the one of its name, if any: whole or not at all.

    Raises:
        OSError: the disk refuses.
    """
    path = layout.manifest(manifest.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "x", encoding="utf-8") as file:
            json.dump(asdict(manifest), file, indent=1, ensure_ascii=True)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_manifest(path: Path) -> Manifest:
    """Return a manifest, every field checked.

    Raises:
        IntegrityError: it cannot be read or breaks a rule. Facts: path, field.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise _damaged(path, "size", f"more than {MAX_BYTES} bytes")
        data = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, "file", str(error)[:200]) from error
    if not isinstance(data, dict) or data.get("version") != VERSION:
        raise _damaged(path, "version", f"expected {VERSION}")
    try:
        manifest = _manifest(data)
        if f"{model_slug(manifest.name)}.json" != path.name:
            raise ValueError("name")
        check_file_names([x.path for x in manifest.files])
    except Exception as error:
        field = str(error.args[0])[:80] if error.args else type(error).__name__
        raise _damaged(path, field, "a missing field or one of the wrong kind") from error
    return manifest


def _manifest(data: dict[str, Any]) -> Manifest:
    wanted: dict[str, type] = {
        "name": str, "state": str, "origin": str, "repo": str, "revision": str, "commit": str,
        "endpoint": str, "artifact": str, "license": str, "gated": bool, "model_type": str,
        "format": str, "packed_bytes": int, "dropped": bool, "pulled_at": str,
    }  # fmt: skip
    for name, kind in wanted.items():
        if type(data[name]) is not kind:
            raise ValueError(name)
    if data["state"] not in ("pulling", "ready") or data["origin"] not in ("hub", "import"):
        raise ValueError("state")
    files = []
    for entry in data["files"]:
        if {x.name for x in fields(StoredFile)} != set(entry):
            raise ValueError("files")
        file = StoredFile(**entry)
        if not isinstance(file.path, str) or type(file.size) is not int or file.size < 0:
            raise ValueError("files")
        if file.sha256 or data["state"] == "ready":
            check_digest(file.sha256)
        files.append(file)
    return Manifest(files=tuple(files), **{name: data[name] for name in wanted})


def _damaged(path: Path, field: str, found: str) -> IntegrityError:
    return IntegrityError(
        f"{path.name}: {field}: {found}",
        hint="pull the model again, or remove it with qh-chat rm",
        path=str(path),
        field=field,
    )
