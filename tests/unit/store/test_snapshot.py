"""Snapshots: links that follow the manifest, whatever lay there before; one holder of the lock."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from qh_runtime.errors import StoreError
from qh_runtime.store.layout import StoreLayout
from qh_runtime.store.locking import store_lock
from qh_runtime.store.manifest import StoredFile
from qh_runtime.store.snapshot import link_snapshot, remove_snapshot, wrong_links
from tests.support.stored_models import put_blob, store_model

FILES = {"config.json": b"{}", "model.safetensors": b"weights", "onnx/a/note.txt": b"deep"}


@pytest.fixture
def layout(tmp_path: Path) -> StoreLayout:
    return StoreLayout(tmp_path / "store")


def tree(folder: Path) -> dict[str, bytes]:
    return {
        x.relative_to(folder).as_posix(): x.read_bytes() for x in folder.rglob("*") if x.is_file()
    }


def test_links_are_relative_and_read_as_files(layout: StoreLayout, tmp_path: Path) -> None:
    manifest = store_model(layout, "org/model", FILES)
    folder = layout.snapshot("org/model")
    assert tree(folder) == FILES
    assert wrong_links(layout, manifest) == ()
    # The whole store may be moved.
    os.rename(layout.root, tmp_path / "moved")
    assert tree(StoreLayout(tmp_path / "moved").snapshot("org/model")) == FILES


def test_any_state_of_the_folder_becomes_the_manifest(layout: StoreLayout) -> None:
    manifest = store_model(layout, "org/model", FILES)
    folder = layout.snapshot("org/model")
    outside = layout.root / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    (folder / "config.json" / "x").write_text("x")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("/etc/passwd")
    (folder / ".model.safetensors.abc.tmp").symlink_to("x")
    (folder / "extra").mkdir()
    (folder / "extra" / "file").write_text("x")
    (folder / "onnx" / "a" / "note.txt").unlink()
    (folder / "onnx" / "a").rmdir()
    (folder / "onnx" / "a").symlink_to(outside)
    assert set(wrong_links(layout, manifest)) == set(FILES)
    link_snapshot(layout, manifest)
    assert tree(folder) == FILES
    assert wrong_links(layout, manifest) == ()
    assert {x.name for x in folder.iterdir()} == {"config.json", "model.safetensors", "onnx"}
    assert {x.name for x in outside.iterdir()} == {"precious"}


def test_a_changed_manifest_changes_the_links(layout: StoreLayout) -> None:
    manifest = store_model(layout, "org/model", FILES)
    new = put_blob(layout, b"new")
    changed = replace(manifest, files=(StoredFile("new.json", 3, new, new), manifest.files[0]))
    assert wrong_links(layout, changed) == ("new.json",)
    link_snapshot(layout, changed)
    assert tree(layout.snapshot("org/model")) == {"new.json": b"new", "config.json": b"{}"}


def test_removing_leaves_blobs_and_what_links_lead_to(layout: StoreLayout) -> None:
    store_model(layout, "org/model", FILES)
    (layout.snapshot("org/model") / "out").symlink_to(layout.blobs)
    remove_snapshot(layout, "org/model")
    remove_snapshot(layout, "org/model")
    assert not layout.snapshot("org/model").exists()
    assert len(list(layout.blobs.iterdir())) == 6


def test_the_lock_has_one_holder_and_dies_with_it(layout: StoreLayout) -> None:
    code = (
        "import sys, time; from pathlib import Path\n"
        "from qh_runtime.store.layout import StoreLayout\n"
        "from qh_runtime.store.locking import store_lock\n"
        "with store_lock(StoreLayout(Path(sys.argv[1]))):\n"
        "    print('held', flush=True); time.sleep(60)\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(layout.root)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StoreError) as caught, store_lock(layout, timeout_s=0.05):
            pass
        assert caught.value.facts["path"] == str(layout.store_lock)
    finally:
        holder.kill()
        holder.communicate()
    with store_lock(layout, timeout_s=5):
        pass


def test_the_lock_holds_between_threads(layout: StoreLayout) -> None:
    order = []

    def second() -> None:
        with store_lock(layout):
            order.append("second")

    with store_lock(layout):
        thread = threading.Thread(target=second)
        thread.start()
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_a_store_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("in the way")
    with pytest.raises(StoreError), store_lock(StoreLayout(tmp_path / "store")):
        pass
