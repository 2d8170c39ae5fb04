"""The source of a packed model may be removed: what is left loads to the same bits, or says why."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qh_runtime.architectures import spec_from_config
from qh_runtime.checkpoints import open_checkpoint, read_config
from qh_runtime.checkpoints.layouts import layout_for
from qh_runtime.errors import CheckpointError, IntegrityError, StoreError
from qh_runtime.packing import PackedModel, load_packed_model
from qh_runtime.store.disk import disk_use, prune
from qh_runtime.store.dropped_source import DroppedSource
from qh_runtime.store.dropping import Dropped, DropProgress, drop_source, source_gain
from qh_runtime.store.integrity import Verifier, check
from qh_runtime.store.layout import StoreLayout
from qh_runtime.store.manifest import Manifest, read_manifest
from qh_runtime.store.source import open_source
from qh_runtime.store.transfer import StopSignal
from tests.support.cli import REPOSITORY, qh_environment, write_tiny_model
from tests.support.figures import Record
from tests.support.model_tensors import config, random_tensors, write_checkpoint
from tests.support.stored_models import folder_files, store_model

NAME = "org/model"


@pytest.fixture
def layout(store_root: Path) -> StoreLayout:
    return StoreLayout(store_root / "store")


@pytest.fixture
def packed(store_root: Path) -> Path:
    return store_root / "packed"


def store_dense(layout: StoreLayout, name: str = NAME, **changes: Any) -> Manifest:
    """A dense model, as large as makes its weights more than a header."""
    settings = config(hidden_size=256, head_dim=64, intermediate_size=512, **changes)
    scratch = layout.root.parent / "scratch"
    write_checkpoint(scratch, settings, random_tensors(spec_from_config(settings)))
    return store_model(layout, name, folder_files(scratch), format="bf16")


def load(folder: Path, packed: Path, pack: str | None) -> PackedModel:
    settings = read_config(folder).model
    source = open_source(folder)
    model = load_packed_model(
        spec_from_config(settings),
        source,
        layout_for(settings),
        pack=pack,
        cache_folder=packed,
        folder=folder,
        kept_pack=source.pack_path if isinstance(source, DroppedSource) else None,
    )
    assert model is not None
    return model


def content(model: PackedModel) -> bytes:
    """Every byte that the decoder is given."""
    weights = model.weights
    parts: list[Any] = [weights.embedding.data, weights.head.data, weights.final_norm]
    for layer in weights.layers:
        for value in vars(layer).values():
            part = getattr(value, "data", value) if not isinstance(value, np.ndarray) else value
            parts += [] if part is None else [part]
    return b"".join(np.asarray(x).tobytes() for x in parts)


def drop(layout: StoreLayout, packed: Path, pack: str | None = None, name: str = NAME) -> Dropped:
    done = drop_source(layout, packed, name, pack)
    assert done is not None
    return done


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("pack", ["int8", "int4_g32"])
def test_what_is_left_loads_to_the_same_bits(
    layout: StoreLayout, packed: Path, pack: str, tied: bool
) -> None:
    store_dense(layout, tie_word_embeddings=tied)
    folder = layout.snapshot(NAME)
    before = load(folder, packed, pack)
    was = disk_use(layout, packed).total_bytes
    gain = source_gain(layout, packed, NAME)
    done = drop(layout, packed)
    assert gain == done.freed_bytes
    assert (done.pack_format, done.manifest.format, done.manifest.dropped) == (pack, pack, True)
    now = disk_use(layout, packed).total_bytes
    # Sizes in bytes against blocks of the disk, the larger of the two by a few of these.
    assert abs((was - now) - done.freed_bytes) < 40_000
    assert not list(packed.glob("*.safetensors"))
    assert not (folder / "model.safetensors").exists()
    after = load(folder, packed, pack)
    assert (after.origin, after.matrices) == ("mapped", before.matrices)
    assert content(after) == content(before)
    # Nothing was made again.
    assert not list(packed.glob("*.safetensors"))
    manifest = read_manifest(layout.manifest(NAME))
    assert Verifier(layout).verify(manifest) == ()
    check(layout, manifest)
    assert [x for x in prune(layout, packed).pieces if x.kind != "lock"] == []


def test_a_packed_checkpoint_that_nobody_asked_to_pack(layout: StoreLayout, packed: Path) -> None:
    """BitNet layers are packed always; their bfloat16 embedding is kept as it is."""
    write_tiny_model(layout.root.parent / "tiny", hidden_size=128, intermediate_size=1024)
    store_model(layout, NAME, folder_files(layout.root.parent / "tiny"))
    folder = layout.snapshot(NAME)
    before = load(folder, packed, None)
    source = open_checkpoint(folder)
    infos = [source.info(x) for x in source.names()]
    identity = source.identity()
    done = drop(layout, packed)
    assert (done.pack_format, done.manifest.format) == (None, "ternary")
    left = open_source(folder)
    assert isinstance(left, DroppedSource)
    assert [left.info(x) for x in left.names()] == infos
    assert left.identity() == identity
    assert content(load(folder, packed, None)) == content(before)


def test_what_only_the_source_has_is_refused_with_the_way_back(
    layout: StoreLayout, packed: Path
) -> None:
    manifest = store_dense(layout)
    folder = layout.snapshot(NAME)
    load(folder, packed, "int4_g32")
    drop(layout, packed)
    size = next(x.size for x in manifest.files if x.path == "model.safetensors")
    for other in ("int8", "f16", None):
        with pytest.raises(CheckpointError) as caught:
            load(folder, packed, other)
        assert caught.value.facts["rule"] == "dropped"
        assert caught.value.facts["source_bytes"] == size
        assert f"qh-chat pull {NAME}" in (caught.value.hint or "")
        assert not list(packed.glob("*.safetensors"))
    with pytest.raises(StoreError):
        drop_source(layout, packed, NAME)


def test_one_of_several_packs_is_chosen_and_the_others_go_on(
    layout: StoreLayout, packed: Path
) -> None:
    store_dense(layout)
    folder = layout.snapshot(NAME)
    with pytest.raises(StoreError) as none:
        drop_source(layout, packed, NAME)
    assert none.value.facts["packs"] == ()
    contents = {x: content(load(folder, packed, x)) for x in ("int8", "int4_g32")}
    with pytest.raises(StoreError) as caught:
        drop_source(layout, packed, NAME)
    assert set(caught.value.facts["packs"]) == {"int8", "int4_g32"}
    drop(layout, packed, "int8")
    for name, expected in contents.items():
        assert content(load(folder, packed, name)) == expected


def test_nothing_to_gain_is_refused(layout: StoreLayout, packed: Path) -> None:
    # Weights that another model needs stay anyway.
    store_dense(layout)
    load(layout.snapshot(NAME), packed, "int8")
    store_dense(layout, "org/twin")
    with pytest.raises(StoreError, match="another model"):
        drop_source(layout, packed, NAME)
    # A dense model that runs as it is has no packed form.
    with pytest.raises(StoreError) as caught:
        drop_source(layout, packed, "org/twin", "bf16")
    assert caught.value.facts["packs"] == ()
    assert read_manifest(layout.manifest(NAME)).dropped is False


def test_a_damaged_source_or_pack_is_never_what_is_left(layout: StoreLayout, packed: Path) -> None:
    manifest = store_dense(layout)
    folder = layout.snapshot(NAME)
    path = load(folder, packed, "int8").pack_path
    assert path is not None
    good = path.read_bytes()
    start = 8 + int.from_bytes(good[:8], "little")
    span = json.loads(good[8:start])["model.layers.0.mlp.gate_proj"]["data_offsets"]
    # A byte between the first two windows of the pack's own samples.
    bad = bytearray(good)
    bad[start + span[0] + 20_000] ^= 1
    path.write_bytes(bad)
    with pytest.raises(IntegrityError) as caught:
        drop_source(layout, packed, NAME)
    assert caught.value.facts["path"] == str(path)
    path.write_bytes(good)
    weights = next(x for x in manifest.files if x.path == "model.safetensors")
    blob = layout.blob(weights.sha256)
    blob.chmod(0o644)
    times = blob.stat()
    data = bytearray(blob.read_bytes())
    data[-5] ^= 1
    blob.write_bytes(data)
    os.utime(blob, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(IntegrityError) as caught:
        drop_source(layout, packed, NAME)
    assert caught.value.facts["path"] == str(blob)
    assert read_manifest(layout.manifest(NAME)) == manifest


def test_progress_and_stop(layout: StoreLayout, packed: Path) -> None:
    manifest = store_dense(layout)
    load(layout.snapshot(NAME), packed, "int8")
    for stage in ("verify", "compare"):
        stop = StopSignal()

        def stop_in(progress: DropProgress, at: str = stage, stop: StopSignal = stop) -> None:
            if progress.stage == at:
                stop.stop()

        assert drop_source(layout, packed, NAME, on_progress=stop_in, stop=stop) is None
    assert read_manifest(layout.manifest(NAME)) == manifest
    assert len(list(layout.blobs.iterdir())) == 2 * len(manifest.files)
    seen: list[DropProgress] = []
    drop_source(layout, packed, NAME, on_progress=seen.append)
    assert list(dict.fromkeys(x.stage for x in seen)) == ["verify", "compare", "keep"]
    for stage in ("verify", "compare"):
        last = [x for x in seen if x.stage == stage][-1]
        assert last.done_bytes == last.total_bytes > 0


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        (b"{", "syntax"),
        (b"[]", "object"),
        (b"{}", "record"),
        (b'{"version": 2}', "record"),
        (b'{"version":1,"name":"a","again":"b","identity":3,"pack_format":null,'
         b'"source_bytes":1,"tensors":[]}', "record"),
        (b'{"version":1,"name":"a","again":"b","identity":"","pack_format":null,'
         b'"source_bytes":1,"tensors":[["a","F32",[0],""]]}', "record"),
        (b'{"version":1,"name":"a","again":"b","identity":"","pack_format":null,'
         b'"source_bytes":1,"tensors":[["a","F32",[2]]]}', "record"),
        (b'{"version":1,"name":"a","again":"b","identity":"","pack_format":null,'
         b'"source_bytes":1,"tensors":[["a","X9",[2],""]]}', "record"),
    ],
)  # fmt: skip
def test_records_that_break_a_rule(
    layout: StoreLayout, packed: Path, data: bytes, rule: str
) -> None:
    store_dense(layout)
    load(layout.snapshot(NAME), packed, "int8")
    drop(layout, packed)
    record = layout.snapshot(NAME) / "kept.json"
    record.unlink()
    record.write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        open_source(layout.snapshot(NAME))
    assert caught.value.facts["rule"] == rule


@pytest.mark.parametrize(
    ("how", "most"),
    [
        ("kill,refuse", "20,5"),
        pytest.param("kill,refuse", "200,200", marks=pytest.mark.slow),
    ],
)
def test_disturbed_at_any_point_it_loads_before_and_after(
    store_root: Path, how: str, most: str, record_property: Record
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.dropping_kills", how, most, str(store_root)],
        cwd=REPOSITORY,
        env=qh_environment(store_root),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    record_property("cases", int(done.stdout))
    assert int(done.stdout) >= 10
