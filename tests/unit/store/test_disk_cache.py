"""Records of self-tests, lock files, and folders that a pull looks through: whose they are, and who
takes them away."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from qh_runtime.checkpoints import open_checkpoint
from qh_runtime.first_load.record import (
    Provenance,
    Record,
    keep_record,
    kernels_identity,
    record_key,
)
from qh_runtime.store.disk import Piece, disk_use, prune, remove
from qh_runtime.store.file_lock import file_lock
from qh_runtime.store.layout import StoreLayout
from qh_runtime.store.looks import abandoned_looks, look_folder
from qh_runtime.store.transfer import StopSignal
from tests.support.cli import REPOSITORY, qh_environment
from tests.support.model_tensors import config, random_tensors, spec_of, write_checkpoint
from tests.support.stored_models import folder_files, put_blob, store_model


@pytest.fixture
def layout(store_root: Path) -> StoreLayout:
    return StoreLayout(store_root / "store")


@pytest.fixture
def packed(store_root: Path) -> Path:
    return store_root / "packed"


def put_model(layout: StoreLayout, name: str, seed: int = 0) -> Path:
    scratch = layout.root.parent / f"scratch{seed}"
    write_checkpoint(scratch, config(), random_tensors(spec_of(), seed=seed))
    store_model(layout, name, folder_files(scratch))
    return layout.snapshot(name)


def put_record(packed: Path, folder: Path, kernels: str = "") -> Path:
    """What a load of this folder leaves."""
    source = open_checkpoint(folder).identity()
    key = record_key((source, str(folder), kernels))
    of = Provenance(source, str(folder), kernels or kernels_identity())
    keep_record(packed, key, Record("scalar", ()), of)
    return packed / f"{key}.self-test.json"


def taken(pieces: tuple[Piece, ...], kind: str) -> list[Path]:
    return [x.path for x in pieces if x.kind == kind]


def test_a_record_goes_with_its_model(layout: StoreLayout, packed: Path) -> None:
    record = put_record(packed, put_model(layout, "org/one"))
    other = put_record(packed, put_model(layout, "org/other", seed=1))
    assert prune(layout, packed).pieces == ()
    use = {x.name: x for x in disk_use(layout, packed).models}
    assert use["org/one"].packed_bytes == record.lstat().st_blocks * 512
    assert use["org/one"].freed_bytes == remove(layout, packed, "org/one").freed_bytes
    assert [x.exists() for x in (record, other)] == [False, True]


def test_records_that_no_load_will_take_are_left_over(layout: StoreLayout, packed: Path) -> None:
    folder = put_model(layout, "org/one")
    good = put_record(packed, folder)
    old_build = put_record(packed, folder, "another build")
    outside = write_checkpoint(
        layout.root.parent / "mine", config(), random_tensors(spec_of(), seed=7)
    )
    changed = put_record(packed, outside)
    older = packed / "0.self-test.json"
    older.write_text(json.dumps({"version": 1, "key": "0", "isa": "scalar", "notes": []}))
    use = disk_use(layout, packed, [("mine", outside)])
    assert {x.name: x.packed_bytes for x in use.models}["mine"] > 0
    assert set(taken(prune(layout, packed).pieces, "self-test")) == {old_build, older}
    os.utime(outside / "model.safetensors", (1, 1))
    left_over = disk_use(layout, packed).left_over_bytes
    assert left_over == changed.lstat().st_blocks * 512
    assert taken(prune(layout, packed).pieces, "self-test") == [changed]
    assert good.exists()


def test_records_of_models_with_the_same_weights_serve_both(
    layout: StoreLayout, packed: Path
) -> None:
    record = put_record(packed, put_model(layout, "org/one"))
    put_model(layout, "org/two")
    remove(layout, packed, "org/one")
    prune(layout, packed)
    assert record.exists()
    remove(layout, packed, "org/two")
    assert not record.exists()


def test_locks_that_nobody_holds_go_and_others_stay(layout: StoreLayout, packed: Path) -> None:
    held_key, free_key = "a" * 64, "git-" + "b" * 40
    put_model(layout, "org/one")
    packed.mkdir()
    pack_lock = packed / ".0-int8.safetensors.lock"
    layout.locks.mkdir()
    for path in (layout.lock(free_key), layout.store_lock, pack_lock):
        path.write_bytes(b"")
    strange = layout.locks / "notes.lock"
    strange.write_text("mine")
    with file_lock(layout, held_key, StopSignal(), lambda: None):
        planned = prune(layout, packed, dry_run=True)
        assert pack_lock.exists()
        done = prune(layout, packed)
        assert planned == done
        assert done.kept == ()
        assert set(taken(done.pieces, "lock")) == {layout.lock(free_key), pack_lock}
        assert layout.lock(held_key).exists()
    assert set(layout.locks.iterdir()) == {layout.store_lock, layout.lock(held_key), strange}


def test_a_lock_that_is_pruned_all_the_time_is_still_one_lock(
    layout: StoreLayout, packed: Path
) -> None:
    """Whoever has opened a lock file that is removed then never works beside another."""
    key = "a" * 64
    stop = StopSignal()
    inside: list[int] = []
    rounds = [0, 0, 0]
    failures: list[str] = []

    def work(number: int) -> None:
        while not stop.stopped:
            with file_lock(layout, key, stop, lambda: None) as mine:
                if mine:
                    inside.append(number)
                    stop.wait(0.0005)
                    if inside != [number]:
                        failures.append(f"{inside} at once")
                    inside.remove(number)
                    rounds[number] += 1

    layout.root.mkdir()
    threads = [threading.Thread(target=work, args=(x,)) for x in range(3)]
    for thread in threads:
        thread.start()
    removed = 0
    try:
        while removed < 8 or sum(rounds) < 24:
            removed += len(prune(layout, packed).pieces)
    finally:
        stop.stop()
        for thread in threads:
            thread.join()
    assert failures == []


_LOOK = """
import sys, time
from pathlib import Path
from qh_runtime.store.layout import StoreLayout
from qh_runtime.store.looks import look_folder
layout = StoreLayout(Path(sys.argv[1]))
with look_folder(layout, "org/model") as folder:
    (folder / "config.json").symlink_to(f"../../blobs/{sys.argv[2]}")
    print(folder, flush=True)
    time.sleep(60)
"""


def test_what_a_killed_look_left_goes_at_once(layout: StoreLayout, packed: Path) -> None:
    looked_at = put_blob(layout, b"a small file")
    for path in layout.blobs.iterdir():
        os.utime(path, (1, 1))
    process = subprocess.Popen(
        [sys.executable, "-c", _LOOK, str(layout.root), looked_at],
        stdout=subprocess.PIPE,
        cwd=REPOSITORY,
        env=qh_environment(layout.root),
    )
    assert process.stdout is not None
    folder = Path(process.stdout.readline().decode().strip())
    try:
        # It lives: nobody takes the folder, nor what its links lead to.
        prune(layout, packed)
        assert list(abandoned_looks(layout)) == []
        with look_folder(layout, "org/model") as own:
            assert own != folder
        assert folder.exists()
        assert layout.blob(looked_at).exists()
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert list(abandoned_looks(layout)) == [folder]
    # The next one cleans, and so does a prune.
    with look_folder(layout, "org/other") as own:
        assert list(layout.snapshots.iterdir()) == [own]
    folder.mkdir()
    prune(layout, packed)
    assert list(layout.snapshots.iterdir()) == []
    assert list(layout.locks.iterdir()) == [layout.store_lock]
    assert not layout.blob(looked_at).exists()
