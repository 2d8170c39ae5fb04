"""Models in a store as a finished pull leaves them, made from bytes; no network."""

from __future__ import annotations

import hashlib
import zlib
from array import array
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from qh_runtime.store.layout import StoreLayout
from qh_runtime.store.manifest import Manifest, StoredFile, write_manifest
from qh_runtime.store.part import CHUNK_BYTES, write_checks
from qh_runtime.store.snapshot import link_snapshot
from tests.support.hub_stub import git_sha1

__all__ = ["folder_files", "put_blob", "store_model"]


def put_blob(layout: StoreLayout, data: bytes) -> str:
    """A whole file in the store, with its checks; returns its name."""
    sha256 = hashlib.sha256(data).hexdigest()
    layout.blobs.mkdir(parents=True, exist_ok=True)
    blob = layout.blob(sha256)
    if not blob.exists():
        blob.write_bytes(data)
        blob.chmod(0o444)
        chunks = (data[x : x + CHUNK_BYTES] for x in range(0, len(data), CHUNK_BYTES))
        write_checks(layout, sha256, len(data), array("I", map(zlib.crc32, chunks)))
    return sha256


def store_model(
    layout: StoreLayout, name: str, files: Mapping[str, bytes], **changes: Any
) -> Manifest:
    """A model that is ready: blobs, manifest and snapshot."""
    stored = []
    for path, data in files.items():
        sha256 = put_blob(layout, data)
        # As a hub has them: only large files are known by their SHA-256 beforehand.
        large = path.endswith(".safetensors")
        key = sha256 if large else f"git-{git_sha1(data)}"
        stored.append(StoredFile(path, len(data), key, sha256))
    manifest = Manifest(
        name=name,
        state="ready",
        origin="hub",
        repo=name,
        revision="main",
        commit="c" * 40,
        endpoint="https://huggingface.co",
        artifact="",
        license="apache-2.0",
        gated=False,
        model_type="bitnet",
        format="ternary",
        packed_bytes=0,
        files=tuple(stored),
        pulled_at="2026-11-23T00:00:00Z",
    )
    manifest = replace(manifest, **changes)
    write_manifest(layout, manifest)
    if manifest.state == "ready":
        link_snapshot(layout, manifest)
    return manifest


def folder_files(folder: Path) -> dict[str, bytes]:
    """Every file of a model folder by relative name."""
    return {
        x.relative_to(folder).as_posix(): x.read_bytes() for x in folder.rglob("*") if x.is_file()
    }
