"""The store: names, folders, near names, and listings that survive whatever lies around."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qh_runtime.checkpoints.shard_index import INDEX
from qh_runtime.errors import CheckpointError, ModelNotFoundError
from qh_runtime.hardware.profile import HardwareProfile
from qh_runtime.loader import plan_model
from qh_runtime.options import LoadOptions
from qh_runtime.store.layout import StoreLayout
from qh_runtime.store.store import ModelStore
from tests.support.cli import qh_environment, write_tiny_model
from tests.support.stored_models import folder_files, store_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound model; tests copy it."""
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "tiny")


@pytest.fixture
def store(tmp_path: Path, tiny: Path) -> ModelStore:
    for place in ("builtin/pebble", "models/other", "more/other", "more/third"):
        shutil.copytree(tiny, tmp_path / place)
    return ModelStore(tmp_path / "builtin", [tmp_path / "models", tmp_path / "more"])


def test_every_name_once_built_in_first(store: ModelStore, tmp_path: Path) -> None:
    entries = store.list()
    assert [(x.name, x.origin) for x in entries] == [
        ("pebble", "built-in"),
        ("other", "folder"),
        ("third", "folder"),
    ]
    assert entries[1].folder == tmp_path / "models" / "other"
    assert store.default_name() == "pebble"


def test_an_entry_says_what_headers_tell(store: ModelStore) -> None:
    entry = store.resolve("pebble")
    assert (entry.model_type, entry.format, entry.problem) == ("bitnet", "ternary", None)
    # Embedding, two blocks of four weights a byte, fourteen scales, and norms, all else in bf16.
    assert entry.file_bytes == 400 * 64 * 2 + 2 * 9216 + 14 * 2 + 2 * (64 + 2 * (3 * 64 + 128))


def test_a_folder_by_path(
    store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_tiny_model(tmp_path / "elsewhere" / "mine")
    for text in (str(folder), f"{folder}/"):
        entry = store.resolve(text)
        assert (entry.name, entry.origin, entry.problem) == ("mine", "folder", None)
    monkeypatch.chdir(folder)
    assert store.resolve(".").name == "mine"
    monkeypatch.chdir(folder.parent)
    assert store.resolve("mine").folder.resolve() == folder
    monkeypatch.setenv("HOME", str(folder.parent))
    assert store.resolve("~/mine").origin == "folder"


def test_a_name_wins_over_a_folder_of_the_same_name(
    store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny_model(tmp_path / "here" / "pebble")
    monkeypatch.chdir(tmp_path / "here")
    assert store.resolve("pebble").origin == "built-in"
    assert store.resolve("./pebble").origin == "folder"


def test_near_names_are_offered(store: ModelStore) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        store.resolve("peble")
    assert caught.value.facts["near"] == ("pebble",)
    assert caught.value.facts["known"] == ("pebble", "other", "third")


@pytest.mark.parametrize(
    "name", ["", "no-such", "\0", "\x1b[31m", "a" * 10_000, "../../x", "~nobody-here/x", "\ud800"]
)
def test_what_is_not_there(store: ModelStore, name: str) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        store.resolve(name)
    assert caught.value.facts["name"] == name
    assert caught.value.hint
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_hub_names_get_their_own_next_step(store: ModelStore) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        store.resolve("org/repo-1.5B")
    assert caught.value.facts["hub_name"] is True
    assert caught.value.hint is not None
    assert "qh-chat pull org/repo-1.5B" in caught.value.hint


@pytest.mark.parametrize("name", ["a/b/c", "./a", "/a/b", "~/x", "a", "a/../b", "a/b--c", "a/"])
def test_other_names_are_not_offered_from_the_hub(store: ModelStore, name: str) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        store.resolve(name)
    assert caught.value.facts["hub_name"] is False
    assert "pull" not in (caught.value.hint or "")


def test_no_builtin_model() -> None:
    store = ModelStore(None, [Path("/nonexistent")])
    assert store.list() == ()
    with pytest.raises(ModelNotFoundError):
        store.default_name()


def test_broken_folders_are_listed_with_their_reason(tmp_path: Path) -> None:
    good = write_tiny_model(tmp_path / "good")
    weights = (good / "model.safetensors").read_bytes()
    broken = {
        "truncated": ("model.safetensors", weights[:-10]),
        "no-json": ("config.json", b"{"),
        "not-object": ("config.json", b"[]"),
        "deep": ("config.json", b'{"a":' * 1000),
        "huge-header": ("model.safetensors", (1 << 62).to_bytes(8, "little")),
        "empty": ("model.safetensors", b""),
    }
    for name, (file, data) in broken.items():
        write_tiny_model(tmp_path / name)
        (tmp_path / name / file).write_bytes(data)
    write_tiny_model(tmp_path / "no-config")
    (tmp_path / "no-config" / "config.json").unlink()
    (tmp_path / "only-config").mkdir()
    (tmp_path / "only-config" / "config.json").write_text('{"model_type": "llama"}')
    found = {x.name: x for x in ModelStore(None, [tmp_path]).list()}
    assert set(found) == {"good", "no-config", "only-config", *broken}
    assert found["good"].problem is None
    for name, entry in found.items():
        assert (entry.problem is None) == (name == "good"), name
    # What could be read is shown beside the reason.
    assert found["truncated"].model_type == "bitnet"


def test_hostile_words_of_a_config_are_shown_harmlessly(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "\x1b]0;owned\x07" + "x" * 500
    config["quantization_config"]["quant_method"] = "\u202egnol"
    (folder / "config.json").write_text(json.dumps(config))
    entry = ModelStore(None, [tmp_path]).resolve("m")
    assert entry.model_type.isprintable()
    assert len(entry.model_type) <= 40
    assert entry.format == "?gnol"


def test_folder_names_that_would_move_the_cursor(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "a\x1b[2Jb")
    (entry,) = ModelStore(None, [tmp_path]).list()
    assert entry.name.isprintable()
    assert ModelStore(None, [tmp_path]).resolve(entry.name).problem is None


def test_what_is_no_model_is_not_listed(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "config.json").write_text("{}")
    (tmp_path / "file.safetensors").write_bytes(b"x")
    assert (
        ModelStore(None, [tmp_path, tmp_path / "absent", tmp_path / "file.safetensors"]).list()
        == ()
    )


def test_a_fifo_in_place_of_a_config_does_not_hang(tmp_path: Path) -> None:
    folder = tmp_path / "pipe"
    folder.mkdir()
    os.mkfifo(folder / "config.json")
    (entry,) = ModelStore(None, [tmp_path]).list()
    assert entry.problem is not None


@pytest.fixture
def pulled(tmp_path: Path, tiny: Path) -> ModelStore:
    for place in ("builtin/pebble", "models/other"):
        shutil.copytree(tiny, tmp_path / place)
    layout = StoreLayout(tmp_path / "store")
    files = folder_files(tmp_path / "models" / "other")
    store_model(layout, "org/model", files, license="mit")
    store_model(layout, "one/twin", files)
    store_model(layout, "two/twin", files)
    store_model(layout, "org/other", files)
    store_model(layout, "org/model@v2:small", files)
    return ModelStore(tmp_path / "builtin", [tmp_path / "models"], layout)


def test_pulled_models_are_listed_from_their_manifests(pulled: ModelStore) -> None:
    assert [(x.name, x.origin) for x in pulled.list()] == [
        ("pebble", "built-in"),
        ("one/twin", "store"),
        ("org/model", "store"),
        ("org/model@v2:small", "store"),
        ("org/other", "store"),
        ("two/twin", "store"),
        ("other", "folder"),
    ]
    entry = pulled.resolve("org/model")
    assert (entry.model_type, entry.format, entry.problem) == ("bitnet", "ternary", None)
    assert entry.manifest is not None
    assert entry.manifest.license == "mit"
    assert entry.file_bytes == entry.done_bytes == entry.manifest.total_bytes
    assert (entry.folder / "config.json").is_file()


def test_no_other_file_of_a_pulled_model_is_opened(pulled: ModelStore) -> None:
    assert pulled.layout is not None
    for blob in pulled.layout.blobs.iterdir():
        blob.unlink()
    assert all(x.problem is None for x in pulled.list())


def test_the_last_part_of_a_name_where_it_is_the_only_one(pulled: ModelStore) -> None:
    assert pulled.resolve("model").name == "org/model"
    assert pulled.resolve("model@v2:small").name == "org/model@v2:small"
    # The whole name of another model goes first.
    assert pulled.resolve("other").origin == "folder"
    with pytest.raises(ModelNotFoundError) as caught:
        pulled.resolve("twin")
    assert caught.value.facts["near"] == ("one/twin", "two/twin")


def test_a_pulled_model_wins_over_a_folder_of_its_name(
    pulled: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny_model(tmp_path / "here" / "org" / "model")
    monkeypatch.chdir(tmp_path / "here")
    assert pulled.resolve("org/model").origin == "store"
    assert pulled.resolve("./org/model").origin == "folder"


def test_an_unfinished_pull_says_how_far_it_is(pulled: ModelStore, tmp_path: Path) -> None:
    assert pulled.layout is not None
    layout = pulled.layout
    manifest = store_model(layout, "org/half", {"a": b"x" * 70_000, "b": b"y" * 30_000})
    store_model(layout, "org/half", {"a": b"x" * 70_000, "b": b"y" * 30_000}, state="pulling")
    layout.blob(manifest.files[0].sha256).unlink()
    entry = pulled.resolve("org/half")
    assert (entry.done_bytes, entry.file_bytes) == (30_000, 100_000)
    assert entry.problem is not None
    assert "qh-chat pull" in entry.problem
    layout.parts.mkdir()
    part = layout.part(manifest.files[0].key)
    part.write_bytes(b"x" * 40_960)
    with part.open("r+b") as file:
        file.truncate(70_000)
    assert pulled.resolve("org/half").done_bytes == 30_000 + 40_960


def test_damaged_manifests_are_listed_with_their_reason(pulled: ModelStore) -> None:
    assert pulled.layout is not None
    path = pulled.layout.manifest("org/model")
    path.write_bytes(path.read_bytes()[:-20])
    (pulled.layout.manifests / "no model!.json").write_text("{}")
    (pulled.layout.manifests / ".org--x.json.1234.tmp").write_text("{}")
    found = {x.name: x for x in pulled.list()}
    assert len(found) == 7
    assert found["org/model"].problem is not None
    assert found["org/other"].problem is None


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"model_type": "evil"}, "model_type"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"quantization_config": {"quant_method": "gptq"}}, "gptq"),
    ],
)
def test_what_cannot_be_run_is_listed_with_the_reason(
    store: ModelStore, tmp_path: Path, changes: dict[str, object], key: str
) -> None:
    """Before somebody picks it and waits."""
    path = tmp_path / "models" / "other" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    (entry,) = [x for x in store.list() if x.name == "other"]
    assert entry.problem is not None
    assert key in entry.problem
    assert isinstance(entry.error, CheckpointError)
    assert str(entry.error) == entry.problem


def test_listing_loads_no_numpy(pulled: ModelStore, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from qh_runtime.store.layout import StoreLayout\n"
        "from qh_runtime.store.store import ModelStore\n"
        "top = Path(sys.argv[1])\n"
        "store = ModelStore(top / 'builtin', [top / 'models'], StoreLayout(top / 'store'))\n"
        "assert all(x.problem is None for x in store.list())\n"
        "print(*sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env=qh_environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert not set(done.stdout.split()) & {"numpy", "filelock", "huggingface_hub", "psutil"}


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", INDEX])
def test_files_of_a_stored_model_are_named_as_in_the_model(
    store_root: Path, profile: HardwareProfile, file: str
) -> None:
    """Not by the hashes that their links lead to."""
    layout = StoreLayout(store_root)
    sound = write_tiny_model(store_root / "tiny")
    files = {x.name: x.read_bytes() for x in sound.iterdir()} | {file: b"\xff" * 20}
    if file == INDEX:
        files["model-1.safetensors"] = files.pop("model.safetensors")
    manifest = store_model(layout, "org/model", files)
    entry = ModelStore(None, [], layout).resolve("org/model")
    with pytest.raises(CheckpointError) as caught:
        plan_model(entry, LoadOptions(), profile)
    assert "org/model: " in str(caught.value)
    assert file in str(caught.value)
    assert not any(x.sha256 in str(caught.value) for x in manifest.files)
    assert Path(caught.value.facts["path"]) == layout.snapshot("org/model") / file
