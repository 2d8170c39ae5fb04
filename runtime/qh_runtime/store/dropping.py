"""Removing the source of a model whose packed form is there and proven: `qh-chat rm NAME --source`.

In this order: every byte of the source is checked against its SHA-256 and every byte of the pack
against the source; what the pack lacks, and the pack itself, become files of the store; the
manifest is replaced; the weights go, unless another model needs them. A kill before the manifest is
replaced leaves the model as it was, one after it leaves weights that `prune` removes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import threading
import zlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from qh_runtime.architectures import spec_from_config
from qh_runtime.architectures.base import DecoderSpec
from qh_runtime.checkpoints import TensorSource, open_checkpoint, read_config
from qh_runtime.checkpoints.layouts import Layout, layout_for
from qh_runtime.errors import IntegrityError, StoreError
from qh_runtime.packing.pack_check import FoundPack, check_pack, find_packs
from qh_runtime.store.copying import copy_file
from qh_runtime.store.disk import blob_users
from qh_runtime.store.dropped_source import KEPT, PACKED, RECORD, KeptRecord
from qh_runtime.store.integrity import Verifier, VerifyProgress
from qh_runtime.store.layout import StoreLayout
from qh_runtime.store.locking import store_lock
from qh_runtime.store.manifest import (
    Manifest,
    StoredFile,
    read_manifest,
    sync_folder,
    write_manifest,
)
from qh_runtime.store.part import CHUNK_BYTES, check_space, disk_errors, write_checks
from qh_runtime.store.snapshot import link_snapshot
from qh_runtime.store.transfer import StopSignal

__all__ = ["DropProgress", "Dropped", "drop_source", "source_gain"]

_WEIGHTS = (".safetensors", ".safetensors.index.json")
_HEAD = "lm_head.weight"


@dataclass(frozen=True)
class DropProgress:
    """How far it is: "verify" reads the source, "compare" packs it again, "keep" writes."""

    stage: Literal["verify", "compare", "keep"]
    done_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class Dropped:
    """What was done.

    Attributes:
        pack_format: of the form that stands for the source now; None where it was never asked for.
        freed_bytes: of weight files that no other model needs, less what is kept of them.
    """

    manifest: Manifest
    pack_format: str | None
    freed_bytes: int


OnDrop = Callable[[DropProgress], None]


def drop_source(
    layout: StoreLayout,
    packed_dir: Path,
    name: str,
    pack_format: str | None = None,
    on_progress: OnDrop | None = None,
    stop: StopSignal | None = None,
) -> Dropped | None:
    """Remove the weights of a model and keep its packed form; None if stopped.

    Args:
        pack_format: which of several packs stays; None where there is one.

    Raises:
        StoreError: there is no pack, or more than one, or nothing would be gained. Facts: name.
        IntegrityError: source or pack are damaged.
    """
    stop = stop or StopSignal()
    report = on_progress or (lambda progress: None)
    manifest = _undropped(layout, name)
    with _opened(layout, manifest) as (spec, source, meaning):
        packs = list(find_packs(spec, source, meaning, packed_dir))
        pack = _the_pack(name, packs, pack_format)
        kept = _kept_names(spec, source, pack)
        gain = _gain(layout, manifest, source, kept, pack)
        if not _is_sound(layout, manifest, report, stop):
            return None
        total = sum(x.nbytes for x in pack.matrices if x.repacked)
        done = 0
        lock = threading.Lock()

        def compared(count: int) -> None:
            nonlocal done
            with lock:
                done += count
                report(DropProgress("compare", done, total))

        if not check_pack(spec, source, meaning, pack, compared, lambda: stop.stopped):
            return None
        source.check_unchanged()
        report(DropProgress("keep", 0, 1))
        record = KeptRecord(
            name=name,
            again=_again(manifest),
            identity=source.identity(),
            pack_format=pack.format,
            source_bytes=sum(x.size for x in manifest.files if _is_weights(x)),
            tensors=tuple(source.info(x) for x in source.names()),
        )
        files = _keep(layout, source, kept, record, pack, stop)
    if files is None:
        return None
    replaced = _replace(layout, manifest, files, pack)
    # The store has the pack now.
    with disk_errors("remove", pack.path, 0):
        pack.path.unlink(missing_ok=True)
    report(DropProgress("keep", 1, 1))
    return Dropped(replaced, pack.format, gain)


def source_gain(
    layout: StoreLayout, packed_dir: Path, name: str, pack_format: str | None = None
) -> int:
    """Return what `drop_source` would free, from headers alone.

    Raises:
        StoreError, CheckpointError: it would refuse.
    """
    manifest = _undropped(layout, name)
    with _opened(layout, manifest) as (spec, source, meaning):
        pack = _the_pack(name, list(find_packs(spec, source, meaning, packed_dir)), pack_format)
        return _gain(layout, manifest, source, _kept_names(spec, source, pack), pack)


def _undropped(layout: StoreLayout, name: str) -> Manifest:
    """The manifest of a model whose source is there."""
    manifest = read_manifest(layout.manifest(name))
    if manifest.state != "ready" or manifest.dropped:
        state = "its source is removed already" if manifest.dropped else "it is not complete"
        raise StoreError(f"model {name}: {state}", hint="qh-chat ls shows its state", name=name)
    return manifest


@contextlib.contextmanager
def _opened(
    layout: StoreLayout, manifest: Manifest
) -> Iterator[tuple[DecoderSpec, TensorSource, Layout]]:
    with store_lock(layout):
        folder = link_snapshot(layout, manifest)
    config = read_config(folder).model
    spec, meaning = spec_from_config(config), layout_for(config)
    source = open_checkpoint(folder)
    with contextlib.closing(source):
        yield spec, source, meaning


def _the_pack(name: str, packs: list[FoundPack], wanted: str | None) -> FoundPack:
    if wanted is not None:
        packs = [x for x in packs if x.format == wanted]
    if len(packs) == 1:
        return packs[0]
    if packs:
        names = ", ".join(x.format or "ternary" for x in packs)
        raise StoreError(
            f"model {name}: expected one packed form that is to stay, found {names}",
            hint="choose with --pack",
            name=name,
            packs=tuple(x.format for x in packs),
        )
    asked = f" as {wanted}" if wanted else ""
    raise StoreError(
        f"model {name}: expected its packed form{asked}, found none",
        hint=f"make it first: qh-chat run -m {name} --pack {wanted or 'int4_g32'} hello",
        name=name,
        packs=(),
    )


def _kept_names(spec: DecoderSpec, source: TensorSource, pack: FoundPack) -> tuple[str, ...]:
    """Tensors that a load reads besides the pack."""
    gone = {f"{x.name}.weight" for x in pack.matrices if x.repacked}
    if spec.tied_head:
        # A copy of the embedding that nothing reads.
        gone.add(_HEAD)
    return tuple(x for x in source.names() if x not in gone)


def _gain(
    layout: StoreLayout,
    manifest: Manifest,
    source: TensorSource,
    kept: tuple[str, ...],
    pack: FoundPack,
) -> int:
    """Bytes that the disk has more afterwards, weights that other models share left out."""
    with store_lock(layout):
        users = blob_users(layout)
    own = {
        x.sha256: x.size
        for x in manifest.files
        if _is_weights(x) and users.get(x.sha256) == {manifest.name}
    }
    gain = sum(own.values()) - sum(source.info(x).nbytes for x in kept)
    if gain <= 0:
        raise StoreError(
            f"model {manifest.name}: nothing would be freed: "
            + ("another model needs the same weights" if not own else "most of it is not packed"),
            hint="leave it as it is",
            name=manifest.name,
        )
    return gain


def _is_sound(layout: StoreLayout, manifest: Manifest, report: OnDrop, stop: StopSignal) -> bool:
    def show(progress: VerifyProgress) -> None:
        report(DropProgress("verify", progress.done_bytes, progress.total_bytes))

    findings = Verifier(layout, show, stop).verify(manifest)
    if findings is None:
        return False
    bad = [x for x in findings if x.problem not in ("checks", "link")]
    if bad:
        raise IntegrityError(
            f"{manifest.name}: {bad[0].path}: {bad[0].message}",
            hint=f"qh-chat verify {manifest.name} --repair, then load it once more",
            path=str(layout.blob(bad[0].sha256)),
            expected=bad[0].sha256,
            found=bad[0].message,
        )
    return True


def _again(manifest: Manifest) -> str:
    if manifest.origin == "hub":
        return f"qh-chat pull {manifest.name}"
    return f"qh-chat import {manifest.endpoint} --name {manifest.name}"


def _is_weights(file: StoredFile) -> bool:
    return file.path.endswith(_WEIGHTS)


def _keep(
    layout: StoreLayout,
    source: TensorSource,
    kept: tuple[str, ...],
    record: KeptRecord,
    pack: FoundPack,
    stop: StopSignal,
) -> list[StoredFile] | None:
    """The three files in the store; None if stopped."""
    text = json.dumps(record.to_json()).encode()
    tensors = list(_tensor_bytes(source, kept))
    check_space(layout.root, sum(len(x) for x in tensors) + len(text))
    found = [
        _stored(KEPT, *_put(layout, tensors)),
        _stored(RECORD, *_put(layout, [memoryview(text)])),
    ]
    sha256 = _adopt(layout, pack.path, stop)
    if sha256 is None:
        return None
    return [*found, _stored(PACKED, sha256, pack.path.stat().st_size)]


def _stored(path: str, sha256: str, size: int) -> StoredFile:
    return StoredFile(path, size, sha256, sha256)


def _tensor_bytes(source: TensorSource, names: tuple[str, ...]) -> Iterator[memoryview]:
    """A safetensors file of these tensors, largest alignment first, in pieces."""
    order = sorted(names, key=lambda x: (-source.info(x).nbytes, x))
    header: dict[str, Any] = {}
    end = 0
    for name in order:
        info = source.info(name)
        span = [end, end + info.nbytes]
        header[name] = {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": span}
        end += info.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 64)
    yield memoryview(len(text).to_bytes(8, "little") + text)
    for name in order:
        yield source.read(name).reshape(-1).view("u1").data


def _put(layout: StoreLayout, pieces: Sequence[memoryview]) -> tuple[str, int]:
    """Make a blob of these bytes; returns hash and size."""
    layout.blobs.mkdir(parents=True, exist_ok=True)
    temporary = layout.blobs / f".kept.{secrets.token_hex(4)}.tmp"
    with disk_errors("write", temporary, sum(len(x) for x in pieces)):
        try:
            with open(temporary, "xb") as out:
                for piece in pieces:
                    out.write(piece)
                out.flush()
                os.fchmod(out.fileno(), 0o444)
                os.fsync(out.fileno())
            return _name_by_content(layout, temporary)
        finally:
            temporary.unlink(missing_ok=True)


def _adopt(layout: StoreLayout, path: Path, stop: StopSignal) -> str | None:
    """Make a finished file of another folder a blob: by a link where that works, else by a copy."""
    temporary = layout.blobs / f".pack.{secrets.token_hex(4)}.tmp"
    try:
        os.link(path, temporary)
    except OSError:
        # Another disk, or one without links.
        return copy_file(layout, path, None, None, stop)
    with disk_errors("write", temporary, 0):
        try:
            temporary.chmod(0o444)
            return _name_by_content(layout, temporary)[0]
        finally:
            temporary.unlink(missing_ok=True)


def _name_by_content(layout: StoreLayout, temporary: Path) -> tuple[str, int]:
    """Give a finished file its name, with its CRCs; returns hash and size."""
    digest = hashlib.sha256()
    crcs = array("I")
    size = 0
    with open(temporary, "rb", buffering=0) as file:
        while data := file.read(CHUNK_BYTES):
            digest.update(data)
            crcs.append(zlib.crc32(data))
            size += len(data)
    sha256 = digest.hexdigest()
    write_checks(layout, sha256, size, crcs)
    os.rename(temporary, layout.blob(sha256))
    return sha256, size


def _replace(
    layout: StoreLayout, manifest: Manifest, files: list[StoredFile], pack: FoundPack
) -> Manifest:
    """Put the new manifest in place and remove the weights that only the old one named."""
    stays = [x for x in manifest.files if not _is_weights(x)]
    changed = replace(
        manifest,
        files=(*stays, *files),
        dropped=True,
        format=pack.format or manifest.format,
        packed_bytes=0,
    )
    with store_lock(layout), disk_errors("write", layout.manifest(manifest.name), 0):
        missing = [x.path for x in files if not layout.blob(x.sha256).exists()]
        if missing or read_manifest(layout.manifest(manifest.name)) != manifest:
            raise StoreError(
                f"model {manifest.name}: another process changed it meanwhile; nothing was removed",
                hint="the same command again",
                name=manifest.name,
            )
        sync_folder(layout.blobs)
        write_manifest(layout, changed)
        link_snapshot(layout, changed)
        users = blob_users(layout)
        for file in manifest.files:
            if file.sha256 not in users:
                layout.blob(file.sha256).unlink(missing_ok=True)
                layout.blob_checks(file.sha256).unlink(missing_ok=True)
    return changed
