"""Import: folders, sticks and real hub caches become models of the store; nothing else is read."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qh_runtime.errors import CheckpointError, IntegrityError, QhError, StoreError
from qh_runtime.hardware.profile import HardwareProfile
from qh_runtime.loader import plan_model
from qh_runtime.options import LoadOptions
from qh_runtime.store.disk import prune
from qh_runtime.store.import_folder import ImportRequest, import_folder
from qh_runtime.store.import_place import find_place, list_place
from qh_runtime.store.integrity import Verifier
from qh_runtime.store.layout import StoreLayout
from qh_runtime.store.manifest import Manifest, read_manifest
from qh_runtime.store.preflight import Preflight
from qh_runtime.store.pull import Checked, Finished, PullEvent, Transfer
from qh_runtime.store.store import ModelStore
from qh_runtime.store.transfer import StopSignal
from tests.support.cli import REPOSITORY, qh_environment, write_tiny_model
from tests.support.figures import Record
from tests.support.hub_stub import HubStub
from tests.unit.store.hostile_names import NAMES

Importer = Callable[..., Manifest | None]


@pytest.fixture(scope="session")
def master(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound model; tests copy it."""
    folder = write_tiny_model(tmp_path_factory.mktemp("master") / "tiny")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\ntags: [x]\n---\n# tiny\n")
    (folder / "LICENSE").write_text("terms")
    (folder / "modeling_tiny.py").write_text("raise SystemExit('ran')")
    (folder / "pytorch_model.bin").write_bytes(b"\x80pickle")
    return folder


@pytest.fixture
def folder(master: Path, tmp_path: Path) -> Path:
    return shutil.copytree(master, tmp_path / "stick" / "tiny")


@pytest.fixture
def layout(store_root: Path) -> StoreLayout:
    return StoreLayout(store_root / "store")


@pytest.fixture
def bring(layout: StoreLayout, profile: HardwareProfile) -> Importer:
    def run(path: Path, name: str = "", **options: Any) -> Manifest | None:
        return import_folder(ImportRequest(path, name), layout, profile, **options)

    return run


TAKEN = {
    "config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors", "LICENSE",
}  # fmt: skip


def state_of(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Everything that writing to a folder would change."""
    return {
        str(x.relative_to(folder)): (
            x.lstat().st_mtime_ns,
            x.lstat().st_mode,
            x.read_bytes() if x.is_file() else b"",
        )
        for x in [folder, *folder.rglob("*")]
    }


def sound(layout: StoreLayout, name: str) -> Manifest:
    manifest = read_manifest(layout.manifest(name))
    assert manifest.state == "ready"
    assert Verifier(layout).verify(manifest) == ()
    return manifest


def nothing_arrived(layout: StoreLayout) -> None:
    left = [x for x in layout.root.rglob("*") if x.is_file() or x.is_symlink()]
    assert [x for x in left if x.suffix != ".lock"] == []


def test_a_folder(layout: StoreLayout, folder: Path, bring: Importer, profile: Any) -> None:
    before = state_of(folder)
    events: list[PullEvent] = []
    manifest = bring(folder, on_event=events.append)
    assert manifest == sound(layout, "tiny")
    assert {x.path for x in manifest.files} == TAKEN
    assert (manifest.origin, manifest.endpoint) == ("import", str(folder))
    assert (manifest.license, manifest.model_type) == ("apache-2.0", "bitnet")
    assert (manifest.format, manifest.packed_bytes > 0) == ("ternary", True)
    assert state_of(folder) == before
    for name in TAKEN:
        assert (layout.snapshot("tiny") / name).read_bytes() == (folder / name).read_bytes()
    entry = ModelStore(None, [], layout).resolve("tiny")
    assert entry.problem is None
    assert plan_model(entry, LoadOptions(), profile).plan.fits
    kinds = [type(x) for x in events]
    assert kinds[0] is Checked
    assert kinds[-1] is Finished
    moves = [x for x in events if isinstance(x, Transfer)]
    assert moves[-1].done_bytes == moves[-1].total_bytes == manifest.total_bytes
    assert [x.done_bytes for x in moves] == sorted(x.done_bytes for x in moves)
    assert not list(layout.parts.iterdir())


def test_it_may_be_on_a_stick_with_other_things(
    layout: StoreLayout, folder: Path, bring: Importer
) -> None:
    stick = folder.parent
    (stick / "photos").mkdir()
    (stick / "letter.txt").write_text("x")
    assert bring(stick) is not None
    sound(layout, "tiny")
    shutil.copytree(folder, stick / "other")
    with pytest.raises(StoreError) as caught:
        bring(stick)
    assert caught.value.facts["found"] == (str(stick / "other"), str(folder))


def test_names(layout: StoreLayout, folder: Path, bring: Importer) -> None:
    assert bring(folder, "mine/own") is not None
    sound(layout, "mine/own")
    odd = folder.rename(folder.parent / "two words")
    with pytest.raises(StoreError, match="--name"):
        bring(odd)
    for name in ("../x", "a/b/c", "a--b", "con/..", "x\n"):
        with pytest.raises(StoreError):
            bring(odd, name)
    # A name that another model has is not taken from it; the same folder again is an update.
    with pytest.raises(StoreError) as caught:
        bring(odd, "mine/own")
    assert caught.value.facts["rule"] == "name"
    assert bring(odd, "other") is not None
    (odd / "LICENSE").write_text("new terms")
    assert bring(odd, "other") is not None
    sound(layout, "other")
    assert (layout.snapshot("other") / "LICENSE").read_text() == "new terms"


def real_cache(hub: HubStub, files: dict[str, bytes], cache: Path, **options: Any) -> Path:
    """A cache as the hub's own library makes it."""
    from huggingface_hub import snapshot_download

    hub.add("org/tiny", files)
    done = snapshot_download("org/tiny", cache_dir=cache, endpoint=hub.endpoint, **options)
    return Path(str(done)).parent.parent


@pytest.fixture
def cache(hub: HubStub, master: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    files = {x.name: x.read_bytes() for x in master.iterdir()}
    return real_cache(hub, files, tmp_path / "hub")


def test_a_real_hub_cache(layout: StoreLayout, hub: HubStub, cache: Path, bring: Importer) -> None:
    assert cache.name == "models--org--tiny"
    before, asked = state_of(cache), len(hub.asked)
    commit = hub.repos["org/tiny"].branches["main"]
    manifest = bring(cache)
    assert manifest == sound(layout, "org/tiny")
    assert (manifest.repo, manifest.commit, manifest.origin) == ("org/tiny", commit, "import")
    assert {x.path for x in manifest.files} == TAKEN
    # Large files are known by the names of their blobs.
    weights = next(x for x in manifest.files if x.path == "model.safetensors")
    assert weights.key == weights.sha256
    assert (cache / "blobs" / weights.sha256).is_file()
    assert state_of(cache) == before
    assert len(hub.asked) == asked
    # The folder of the commit is the same place.
    assert find_place(cache / "snapshots" / commit).name == "org/tiny"
    assert find_place(cache.parent).folder == cache / "snapshots" / commit


def test_a_cache_with_several_commits(
    layout: StoreLayout, hub: HubStub, cache: Path, bring: Importer
) -> None:
    from huggingface_hub import snapshot_download

    repo = hub.repos["org/tiny"]
    first = repo.branches["main"]
    second = repo.push({**repo.commits[first], "LICENSE": b"newer"})
    snapshot_download("org/tiny", cache_dir=cache.parent, endpoint=hub.endpoint)
    manifest = bring(cache)
    assert manifest is not None
    assert manifest.commit == second
    assert find_place(cache / "snapshots" / first).commit == first
    (cache / "refs" / "main").unlink()
    with pytest.raises(StoreError) as caught:
        bring(cache, "other")
    assert len(caught.value.facts["found"]) == 2


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "LICENSE"])
def test_a_cache_whose_blob_is_damaged(
    layout: StoreLayout, cache: Path, bring: Importer, name: str
) -> None:
    (snapshot,) = (cache / "snapshots").iterdir()
    blob = (snapshot / name).resolve()
    data = bytearray(blob.read_bytes())
    if name == "model.safetensors":
        data[-2] ^= 1
    else:
        # Still what the tokenizer's reader takes.
        data += b"\n"
    blob.write_bytes(data)
    with pytest.raises(IntegrityError) as caught:
        bring(cache)
    assert caught.value.facts["path"] == str(blob)
    assert caught.value.facts["expected"] == blob.name
    assert read_manifest(layout.manifest("org/tiny")).state == "pulling"


def test_progress_starts_again_where_it_stopped(
    layout: StoreLayout, folder: Path, bring: Importer
) -> None:
    stop = StopSignal()

    def stop_at_weights(event: PullEvent) -> None:
        if isinstance(event, Transfer) and event.file.path == "model.safetensors":
            stop.stop()

    # Weights of a few MiB, so that there is something to go on from.
    write_tiny_model(folder, hidden_size=512, intermediate_size=2048, num_hidden_layers=3)
    assert bring(folder, on_event=stop_at_weights, stop=stop) is None
    (entry,) = ModelStore(None, [], layout).list()
    assert entry.problem is not None
    assert "qh-chat import" in entry.problem
    # What arrived is named by the manifest and so belongs to somebody.
    prune(layout, folder / "none")
    assert len(list(layout.parts.glob("*.part"))) == 1
    assert bring(folder) is not None
    sound(layout, "tiny")


def test_not_confirmed_is_not_copied(layout: StoreLayout, folder: Path, bring: Importer) -> None:
    seen: list[Preflight] = []

    def no(preflight: Preflight) -> bool:
        seen.append(preflight)
        return False

    assert bring(folder, confirm=no) is None
    assert seen[0].download_bytes == seen[0].total_bytes > 0
    assert seen[0].plan.fits
    assert "not needed" in " ".join(seen[0].notes)
    nothing_arrived(layout)


@pytest.mark.parametrize(
    ("file", "word"),
    [("x.gguf", "GGUF"), ("x.bin", "run code"), ("x.py", "never run"), ("x.PT", "run code"),
     ("model.safetensors", "config.json"), ("x.txt", "file"), ("gone", "nothing")],
)  # fmt: skip
def test_files_are_no_models(tmp_path: Path, bring: Importer, file: str, word: str) -> None:
    if file != "gone":
        (tmp_path / file).write_bytes(b"x")
    with pytest.raises(StoreError, match=word):
        bring(tmp_path / file)


def test_folders_of_other_files_say_why_these_are_not_taken(
    tmp_path: Path, bring: Importer
) -> None:
    for name, word in (("notes.txt", "none"), ("x.pth", "run code"), ("a.gguf", "GGUF")):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(StoreError, match=word):
            bring(tmp_path)


def test_a_way_through_other_folders_is_straightened(
    layout: StoreLayout, folder: Path, bring: Importer
) -> None:
    manifest = bring(folder / ".." / folder.name)
    assert manifest is not None
    assert manifest.endpoint == str(folder)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"model.safetensors": None}, "pickle"),
        ({"model.safetensors": None, "pytorch_model.bin": None, "x.gguf": b"GGUF"}, "gguf"),
        ({"tokenizer.json": None}, "missing file"),
        ({"tokenizer.json": b"x" * (65 << 20)}, "size"),
    ],
)
def test_folders_that_hold_something_else(
    layout: StoreLayout, folder: Path, bring: Importer, change: Any, rule: str
) -> None:
    for name, content in change.items():
        (folder / name).unlink(missing_ok=True)
        if content is not None:
            (folder / name).write_bytes(content)
    with pytest.raises(StoreError) as caught:
        bring(folder)
    assert caught.value.facts["rule"] == rule
    nothing_arrived(layout)


def test_what_the_loader_would_refuse_is_refused_before_it_is_copied(
    layout: StoreLayout, folder: Path, bring: Importer
) -> None:
    config = json.loads((folder / "config.json").read_text())
    for changes in (
        {"model_type": "unknown"},
        {"hidden_size": 128},
        {"num_hidden_layers": 1},
        {"quantization_config": {"quant_method": "gptq"}},
    ):
        (folder / "config.json").write_text(json.dumps({**config, **changes}))
        with pytest.raises(QhError):
            bring(folder)
    (folder / "config.json").write_text(json.dumps(config))
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-1])
    with pytest.raises(CheckpointError):
        bring(folder)
    (folder / "model.safetensors").write_bytes(whole)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(QhError):
        bring(folder)
    nothing_arrived(layout)


def test_no_room_is_said_with_the_sums(
    layout: StoreLayout, folder: Path, profile: HardwareProfile
) -> None:
    with pytest.raises(StoreError) as caught:
        import_folder(ImportRequest(folder, quota_bytes=1000), layout, profile)
    assert caught.value.facts["rule"] == "quota"
    nothing_arrived(layout)


SECRET = b"secret of somebody else"


def outside_of(folder: Path) -> Path:
    place = folder.parent.parent / "outside"
    place.mkdir(exist_ok=True)
    (place / "secret").write_bytes(SECRET)
    return place


def hostile_links(folder: Path, name: str) -> list[Callable[[Path], None]]:
    """Ways to make a file of a folder lead out of it, or nowhere."""
    outside = outside_of(folder)

    def chain(link: Path) -> None:
        (folder / "hop").symlink_to(outside)
        link.symlink_to("hop/secret")

    def loop(link: Path) -> None:
        link.symlink_to("back")
        (folder / "back").symlink_to(link.name)

    def into_a_copy(link: Path) -> None:
        # A name that begins like the folder's own.
        twin = folder.parent / f"{folder.name}-twin"
        twin.mkdir(exist_ok=True)
        (twin / "secret").write_bytes(SECRET)
        link.symlink_to(twin / "secret")

    return [
        lambda link: link.symlink_to(outside / "secret"),
        lambda link: link.symlink_to("../../outside/secret"),
        lambda link: link.symlink_to("/etc/passwd"),
        lambda link: link.symlink_to("/dev/zero"),
        lambda link: link.symlink_to("/proc/self/environ"),
        lambda link: link.symlink_to(".."),
        lambda link: link.symlink_to("nowhere"),
        chain,
        loop,
        into_a_copy,
        os.mkfifo,
        lambda link: link.mkdir(),
    ]


@pytest.mark.parametrize("number", range(12))
@pytest.mark.parametrize(
    "name",
    [
        *("config.json", "model.safetensors", "LICENSE", "README.md"),
        *(
            pytest.param(x, marks=pytest.mark.slow)
            for x in ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
        ),
        pytest.param("chat_template.jinja", marks=pytest.mark.slow),
    ],
)
def test_links_out_of_the_folder(
    layout: StoreLayout, folder: Path, bring: Importer, name: str, number: int
) -> None:
    """96 attempts: refused, or taken without that file; no byte of what it leads to arrives."""
    (folder / name).unlink(missing_ok=True)
    hostile_links(folder, name)[number](folder / name)
    refused, manifest = "", None
    try:
        manifest = bring(folder)
    except QhError as error:
        refused = str(error)
    if manifest is None:
        assert refused.isprintable()
        assert name not in ("LICENSE", "README.md")
    else:
        assert name not in {x.path for x in manifest.files}
    copied = b"".join(x.read_bytes() for x in layout.root.rglob("*") if x.is_file())
    assert SECRET not in copied
    assert b"root:" not in copied


def test_hostile_names_are_not_taken(
    layout: StoreLayout, folder: Path, bring: Importer, tmp_path: Path
) -> None:
    for name in NAMES:
        text = name if isinstance(name, str) else repr(name)
        if not text or "/" in text or "\0" in text or text in (".", ".."):
            continue
        try:
            (folder / text).write_bytes(b"x")
        except (OSError, ValueError, UnicodeEncodeError):
            continue
    os.mkfifo(folder / "LICENSE.txt")
    listing = list_place(find_place(folder))
    assert all(x.path.isascii() for x in listing.files)
    manifest = bring(folder)
    assert manifest is not None
    assert {x.path for x in manifest.files} == TAKEN
    outside = {x.name for x in tmp_path.iterdir()}
    assert outside == {"stick"}


def test_a_cache_may_link_into_its_own_blobs_alone(
    layout: StoreLayout, cache: Path, bring: Importer, tmp_path: Path
) -> None:
    (snapshot,) = (cache / "snapshots").iterdir()
    other = tmp_path / "hub" / "models--org--private" / "blobs"
    other.mkdir(parents=True)
    secret = hashlib.sha256(SECRET).hexdigest()
    (other / secret).write_bytes(SECRET)
    (snapshot / "LICENSE").unlink()
    (snapshot / "LICENSE").symlink_to(f"../../../models--org--private/blobs/{secret}")
    manifest = bring(cache)
    assert manifest is not None
    assert {x.path for x in manifest.files} == TAKEN - {"LICENSE"}


@pytest.mark.parametrize(
    ("how", "most"),
    [
        ("kill,refuse", "20,5"),
        pytest.param("kill,refuse", "200,200", marks=pytest.mark.slow),
    ],
)
def test_disturbed_at_any_point_it_goes_on(
    folder: Path, store_root: Path, how: str, most: str, record_property: Record
) -> None:
    words = (how, most, str(store_root), str(folder))
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.import_kills", *words],
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
