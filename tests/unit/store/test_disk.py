"""What models take on the disk, what removing them frees: the sums hold, what is needed stays."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from qh_runtime.architectures import spec_from_config
from qh_runtime.checkpoints import open_checkpoint, read_config
from qh_runtime.checkpoints.layouts import layout_for
from qh_runtime.errors import ModelNotFoundError, StoreError
from qh_runtime.packing import load_packed_model
from qh_runtime.store.disk import disk_use, prune, remove, remove_packed
from qh_runtime.store.integrity import Verifier
from qh_runtime.store.layout import StoreLayout, name_of_slug
from qh_runtime.store.looks import look_folder
from qh_runtime.store.manifest import StoredFile, read_manifest, write_manifest
from tests.support.cli import REPOSITORY, qh_environment
from tests.support.figures import Record
from tests.support.model_tensors import config, random_tensors, spec_of, write_checkpoint
from tests.support.stored_models import folder_files, put_blob, store_model


@pytest.fixture
def layout(store_root: Path) -> StoreLayout:
    return StoreLayout(store_root / "store")


@pytest.fixture
def packed(store_root: Path) -> Path:
    return store_root / "packed"


def disk_bytes(*folders: Path) -> int:
    """What the disk gives to all files below some folders."""
    total = 0
    for folder in folders:
        for top, names, files in os.walk(folder):
            links = [x for x in names if Path(top, x).is_symlink()]
            total += sum(os.lstat(Path(top, x)).st_blocks * 512 for x in (*files, *links))
    return total


def files_below(*folders: Path) -> set[Path]:
    return {
        Path(top, x)
        for folder in folders
        for top, _, files in os.walk(folder)
        for x in files
        if not x.endswith(".lock")
    }


def pruned(layout: StoreLayout, packed: Path) -> list[Path]:
    """What a prune takes, apart from lock files."""
    return [x.path for x in prune(layout, packed, settled_s=0).pieces if x.kind != "lock"]


def pack(folder: Path, packed: Path, format_name: str = "int8") -> Path:
    settings = read_config(folder).model
    model = load_packed_model(
        spec_from_config(settings),
        open_checkpoint(folder),
        layout_for(settings),
        pack=format_name,
        cache_folder=packed,
        folder=folder,
    )
    assert model is not None
    assert model.pack_path is not None
    return model.pack_path


def fill(layout: StoreLayout, packed: Path) -> None:
    """Three ready models that share files, two of them all weights, and one being fetched."""
    scratch = layout.root.parent / "scratch"
    write_checkpoint(scratch, config(), random_tensors(spec_of()))
    files = folder_files(scratch)
    store_model(layout, "org/one", {**files, "README.md": b"one" * 5000})
    store_model(layout, "org/two", {**files, "README.md": b"two" * 9000})
    write_checkpoint(scratch, config(), random_tensors(spec_of(), seed=3))
    store_model(layout, "org/other", {**folder_files(scratch), "README.md": b"one" * 5000})
    pack(layout.snapshot("org/one"), packed)
    pack(layout.snapshot("org/two"), packed, "int4_g32")
    pack(layout.snapshot("org/other"), packed)
    pulling = store_model(
        layout, "org/half", {"a.safetensors": b"a" * 70_000, "b": b"b" * 9000}, state="pulling"
    )
    a = pulling.files[0]
    layout.blob(a.sha256).unlink()
    layout.blob_checks(a.sha256).unlink()
    layout.parts.mkdir()
    layout.part(a.key).write_bytes(b"a" * 50_000)
    layout.journal(a.key).write_bytes(b"j" * 500)


def litter(layout: StoreLayout, packed: Path) -> None:
    """Everything that killed processes and changed models leave behind."""
    orphan = put_blob(layout, b"orphan" * 3000)
    for path in (layout.blob(orphan), layout.blob_checks(orphan)):
        os.utime(path, (1, 1))
    layout.part("d" * 64).write_bytes(b"x" * 30_000)
    layout.journal("d" * 64).write_bytes(b"x" * 300)
    layout.part("git-" + "d" * 40).write_bytes(b"x" * 3000)
    (layout.snapshots / "org--gone").mkdir()
    (layout.snapshots / "org--gone" / "config.json").symlink_to("../../blobs/" + "e" * 64)
    (layout.blobs / ".x.crc.1234.tmp").write_bytes(b"x" * 5000)
    look = layout.snapshots / ".org--x.0123abcd.tmp"
    look.mkdir()
    (look / "config.json").symlink_to("../../blobs/" + "e" * 64)
    (layout.manifests / ".org--one.json.12.tmp").write_bytes(b"x" * 5000)
    (packed / ".0-int8.safetensors.abcd.part").write_bytes(b"x" * 9000)
    (packed / "0-int8.safetensors").write_bytes(b"not a pack")
    (packed / "0.self-test.json").write_bytes(b"not a record")
    (packed / ".0.self-test.json.abcd.part").write_bytes(b"half a rec")
    (packed / ".0-int8.safetensors.lock").write_bytes(b"")
    layout.locks.mkdir(exist_ok=True)
    layout.lock("d" * 64).write_bytes(b"")
    (layout.locks / "look-0123abcd.lock").write_bytes(b"")


def test_sums_hold(layout: StoreLayout, packed: Path) -> None:
    fill(layout, packed)
    litter(layout, packed)
    outside = write_checkpoint(
        layout.root.parent / "models" / "mine", config(), random_tensors(spec_of(), seed=7)
    )
    pack(outside, packed)
    use = disk_use(layout, packed, [("mine", outside)])
    by_name = {x.name: x for x in use.models}
    assert set(by_name) == {"org/one", "org/two", "org/other", "org/half", "mine"}
    assert use.total_bytes == disk_bytes(layout.root, packed)
    one, two, half = by_name["org/one"], by_name["org/two"], by_name["org/half"]
    other = by_name["org/other"]
    # Weights, config and both packs; with the third model config and one text.
    assert two.shared_bytes > other.shared_bytes > 0
    assert two.shared_bytes < one.shared_bytes == use.shared_bytes
    assert one.packed_bytes == two.packed_bytes == 0 < other.packed_bytes
    assert (half.state, half.shared_bytes, half.packed_bytes) == ("pulling", 0, 0)
    assert use.unfinished_bytes == 53_248 + 4096
    assert half.own_bytes > use.unfinished_bytes
    assert by_name["mine"].freed_bytes == by_name["mine"].packed_bytes > 0
    assert use.other_packed_bytes == 0
    young = [*layout.blobs.glob(".*.tmp"), *packed.glob(".*.json.*.part")]
    fresh = sum(x.lstat().st_blocks * 512 for x in young)
    assert len(young) == 2
    own = sum(x.own_bytes + x.packed_bytes for x in use.models)
    assert own + use.shared_bytes + use.left_over_bytes + fresh == use.total_bytes
    assert disk_use(layout, packed).other_packed_bytes == by_name["mine"].packed_bytes


def test_what_is_said_to_be_freed_is_freed(layout: StoreLayout, packed: Path) -> None:
    fill(layout, packed)
    for name in ("org/one", "org/half", "org/two", "org/other"):
        before = disk_bytes(layout.root, packed)
        said = next(x for x in disk_use(layout, packed).models if x.name == name).freed_bytes
        shared = next(x for x in disk_use(layout, packed).models if x.name == name).shared_bytes
        planned = remove(layout, packed, name, dry_run=True)
        assert (planned.shared_bytes, bool(planned.shared_with)) == (shared, bool(shared))
        assert disk_bytes(layout.root, packed) == before
        removed = remove(layout, packed, name)
        assert planned == removed
        assert said == removed.freed_bytes == before - disk_bytes(layout.root, packed)
        with pytest.raises(ModelNotFoundError):
            remove(layout, packed, name)
    assert files_below(layout.root, packed) == set()


def test_packed_weights_go_alone(layout: StoreLayout, packed: Path) -> None:
    fill(layout, packed)
    outside = write_checkpoint(
        layout.root.parent / "models" / "mine", config(), random_tensors(spec_of(), seed=7)
    )
    pack(outside, packed)

    def use(name: str) -> int:
        found = disk_use(layout, packed, [("mine", outside)])
        return next(x.packed_bytes for x in found.models if x.name == name)

    for name, folder in (("org/other", None), ("mine", outside)):
        before, was = disk_bytes(layout.root, packed), use(name)
        planned = remove_packed(layout, packed, name, folder, dry_run=True)
        assert use(name) == was > 0
        assert planned == remove_packed(layout, packed, name, folder)
        assert before - disk_bytes(layout.root, packed) == planned.freed_bytes == was
        assert use(name) == 0
    # What two models share stays, and models themselves do.
    assert remove_packed(layout, packed, "org/one").pieces == ()
    assert len(list(packed.glob("*.safetensors"))) == 2
    assert Verifier(layout).verify(read_manifest(layout.manifest("org/other"))) == ()


def test_who_needs_what_stays_is_said(layout: StoreLayout, packed: Path) -> None:
    fill(layout, packed)
    assert remove(layout, packed, "org/one", dry_run=True).shared_with == ("org/other", "org/two")
    assert remove(layout, packed, "org/half", dry_run=True).shared_with == ()
    remove(layout, packed, "org/two")
    assert remove(layout, packed, "org/one", dry_run=True).shared_with == ("org/other",)


def test_what_another_model_needs_stays(layout: StoreLayout, packed: Path) -> None:
    fill(layout, packed)
    store_model(layout, "org/third", {"b": b"b" * 9000})
    remove(layout, packed, "org/half")
    remove(layout, packed, "org/one")
    for name in ("org/two", "org/third"):
        manifest = read_manifest(layout.manifest(name))
        assert Verifier(layout).verify(manifest) == ()
    packs = sorted(packed.glob("*.safetensors"))
    assert len(packs) == 3
    # Made from the model that is gone, and as good for the one with the same weights.
    assert pack(layout.snapshot("org/two"), packed) in packs
    assert pruned(layout, packed) == []
    assert disk_use(layout, packed).other_packed_bytes == 0
    remove(layout, packed, "org/two")
    assert len(list(packed.glob("*.safetensors"))) == 1


def test_prune_takes_what_is_left_over_and_nothing_else(layout: StoreLayout, packed: Path) -> None:
    fill(layout, packed)
    needed = files_below(layout.root, packed)
    litter(layout, packed)
    before = disk_bytes(layout.root, packed)
    planned = prune(layout, packed, dry_run=True, settled_s=0)
    assert disk_bytes(layout.root, packed) == before
    done = prune(layout, packed, settled_s=0)
    assert planned == done
    assert done.freed_bytes == before - disk_bytes(layout.root, packed)
    kinds = {"blob", "part", "links", "temporary", "pack", "self-test", "lock"}
    assert {x.kind for x in done.pieces} == kinds
    assert files_below(layout.root, packed) == needed
    assert prune(layout, packed, settled_s=0).pieces == ()


def test_young_temporary_files_belong_to_somebody(layout: StoreLayout, packed: Path) -> None:
    fill(layout, packed)
    temporary = layout.blobs / ".x.crc.12.tmp"
    temporary.write_bytes(b"x")
    prune(layout, packed)
    assert temporary.exists()
    os.utime(temporary, (1, 1))
    prune(layout, packed)
    assert not temporary.exists()


def test_files_that_a_fetch_will_name_in_a_moment_stay(layout: StoreLayout, packed: Path) -> None:
    """A small file's hash is known when it is there, and the manifest names it after that."""
    fill(layout, packed)
    pulling = read_manifest(layout.manifest("org/half"))
    unnamed = replace(pulling.files[1], key="git-" + "a" * 40, sha256="")
    write_manifest(layout, replace(pulling, files=(pulling.files[0], unnamed)))
    blob = layout.blob(put_blob(layout, b"just arrived"))
    prune(layout, packed)
    assert blob.exists()
    for path in layout.blobs.iterdir():
        os.utime(path, (1, 1))
    prune(layout, packed)
    assert not blob.exists()


def test_files_of_a_pull_that_has_just_begun_stay(layout: StoreLayout, packed: Path) -> None:
    """It looks at small files through links in a temporary folder, before there is a manifest."""
    fill(layout, packed)
    old, young, linked = (put_blob(layout, x) for x in (b"old", b"young", b"linked"))
    for sha256 in (old, linked):
        for path in (layout.blob(sha256), layout.blob_checks(sha256)):
            os.utime(path, (1, 1))
    with look_folder(layout, "org/new") as looked_at:
        (looked_at / "config.json").symlink_to(f"../../blobs/{linked}")
        os.utime(looked_at, (1, 1), follow_symlinks=False)
        prune(layout, packed)
        assert looked_at.exists()
    assert [layout.blob(x).exists() for x in (old, young, linked)] == [False, True, True]
    prune(layout, packed)
    assert [layout.blob(x).exists() for x in (young, linked)] == [True, False]


def test_parts_and_models_that_another_process_fetches_stay(
    layout: StoreLayout, packed: Path
) -> None:
    fill(layout, packed)
    key = read_manifest(layout.manifest("org/half")).files[0].key
    stale = "d" * 64
    layout.part(stale).write_bytes(b"x")
    code = (
        "import sys, time; from filelock import FileLock\n"
        "held = [FileLock(x) for x in sys.argv[1:]]\n"
        "for x in held: x.acquire()\n"
        "print('held', flush=True); time.sleep(60)\n"
    )
    layout.locks.mkdir(exist_ok=True)
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(layout.lock(key)), str(layout.lock(stale))],
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(StoreError):
            remove(layout, packed, "org/half")
        assert len(prune(layout, packed).kept) == 1
        assert layout.part(stale).exists()
        assert layout.part(key).exists()
    finally:
        holder.kill()
        holder.communicate()
    prune(layout, packed)
    assert not layout.part(stale).exists()
    remove(layout, packed, "org/half")


def test_a_damaged_manifest_protects_every_file(layout: StoreLayout, packed: Path) -> None:
    fill(layout, packed)
    path = layout.manifest("org/two")
    path.write_bytes(path.read_bytes()[:-30])
    orphan = layout.blob(put_blob(layout, b"orphan?"))
    done = prune(layout, packed, settled_s=0)
    assert orphan.exists()
    assert "org/two" in done.kept[0]
    assert {x.name: x.state for x in disk_use(layout, packed).models}["org/two"] == "damaged"
    remove(layout, packed, "org/two")
    prune(layout, packed, settled_s=0)
    assert not orphan.exists()
    assert Verifier(layout).verify(read_manifest(layout.manifest("org/one"))) == ()


def test_packs_of_changed_checkpoints_are_left_over(layout: StoreLayout, packed: Path) -> None:
    folder = write_checkpoint(
        layout.root.parent / "models" / "mine", config(), random_tensors(spec_of())
    )
    first = pack(folder, packed)
    assert pruned(layout, packed) == []
    os.utime(folder / "model.safetensors", (1, 1))
    second = pack(folder, packed)
    assert pruned(layout, packed) == [first]
    shutil.rmtree(folder)
    assert pruned(layout, packed) == [second]


def test_nothing_is_made_where_there_is_no_store(tmp_path: Path) -> None:
    layout = StoreLayout(tmp_path / "none")
    assert disk_use(layout, tmp_path / "packed").total_bytes == 0
    assert prune(layout, tmp_path / "packed").pieces == ()
    with pytest.raises(ModelNotFoundError):
        remove(layout, tmp_path / "packed", "org/one")
    assert list(tmp_path.iterdir()) == []


def test_strange_files_are_left_alone(layout: StoreLayout, packed: Path, tmp_path: Path) -> None:
    fill(layout, packed)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("x")
    strange = [
        layout.blobs / "notes.txt",
        layout.parts / "notes.part",
        layout.manifests / "notes.json.bak",
        layout.snapshots / "two words",
        layout.root / "notes",
    ]
    for path in strange:
        path.write_text("mine")
    link = layout.snapshots / "org--gone"
    link.symlink_to(tmp_path / "precious")
    prune(layout, packed, settled_s=0)
    assert all(x.read_text() == "mine" for x in strange)
    assert not link.is_symlink()
    assert (tmp_path / "precious" / "file").exists()


@pytest.mark.parametrize("seed", range(6))
def test_any_sequence_keeps_every_model_whole(layout: StoreLayout, packed: Path, seed: int) -> None:
    """Models that share files in every way, removed and pruned in any order."""
    rng = random.Random(seed)
    contents = [rng.randbytes(rng.randrange(0, 9000)) for _ in range(6)]
    packed.mkdir()
    alive: set[str] = set()
    for _ in range(30):
        step = rng.choice(("add", "add", "remove", "prune", "orphan"))
        name = f"org/m{rng.randrange(6)}"
        if step == "add":
            chosen = {f"f{x}": contents[x] for x in rng.sample(range(6), rng.randrange(1, 5))}
            store_model(layout, name, chosen)
            alive.add(name)
        elif step == "remove" and name in alive:
            before = disk_bytes(layout.root)
            assert remove(layout, packed, name).freed_bytes == before - disk_bytes(layout.root)
            alive.discard(name)
        elif step == "prune":
            prune(layout, packed, settled_s=0)
        else:
            put_blob(layout, rng.randbytes(5000))
        verifier = Verifier(layout)
        for other in alive:
            assert verifier.verify(read_manifest(layout.manifest(other))) == ()
    prune(layout, packed, settled_s=0)
    named = {file.sha256 for name in alive for file in read_manifest(layout.manifest(name)).files}
    assert {x.name.removesuffix(".crc") for x in layout.blobs.iterdir()} == named
    assert {name_of_slug(x.name) for x in layout.snapshots.iterdir()} == alive


@pytest.mark.parametrize(
    ("how", "most"),
    [
        ("kill,refuse", "20,5"),
        pytest.param("kill,refuse", "200,200", marks=pytest.mark.slow),
    ],
)
def test_disturbed_at_any_point_the_rest_works_and_the_next_run_cleans(
    store_root: Path, how: str, most: str, record_property: Record
) -> None:
    words = (how, "remove,prune", most, str(store_root))
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.disk_kills", *words],
        cwd=REPOSITORY,
        env=qh_environment(store_root),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    record_property("cases", int(done.stdout))
    assert int(done.stdout) >= 40


def test_stored_files_without_a_name_do_not_disturb(layout: StoreLayout, packed: Path) -> None:
    manifest = store_model(layout, "org/imported", {"a": b"x"}, state="pulling", origin="import")
    unnamed = StoredFile("a", 1, "", "")
    write_manifest(layout, replace(manifest, files=(unnamed,)))
    assert [x.state for x in disk_use(layout, packed).models] == ["pulling"]
    remove(layout, packed, "org/imported")
