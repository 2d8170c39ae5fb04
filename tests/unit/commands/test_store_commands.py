"""import, ls, show, verify, du, rm and prune, as a person uses them one after the other."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qh_runtime.errors import IntegrityError
from qh_runtime.store.integrity import check
from qh_runtime.store.layout import StoreLayout
from qh_runtime.store.manifest import Manifest, read_manifest
from tests.support.cli import command, json_lines, qh_environment
from tests.support.hub_stub import HubStub
from tests.support.stored_models import put_blob
from tests.support.terminal import TerminalProgram
from tests.unit.store.published_models import dense

Qh = Callable[..., Any]
ASK = ("--raw", "--temp", "0", "--max-tokens", "8", "--context", "64", "a b c")


@pytest.fixture
def layout(home: Path) -> StoreLayout:
    return StoreLayout(home / "store")


@pytest.fixture
def imported(qh: Qh, tiny_model: Path, layout: StoreLayout) -> Manifest:
    done = qh("import", str(tiny_model), "--name", "org/tiny")
    assert done.code == 0, done.err
    return read_manifest(layout.manifest("org/tiny"))


def weights(manifest: Manifest) -> str:
    return next(x.sha256 for x in manifest.files if x.path == "model.safetensors")


def flip(blob: Path, place: int = 5000) -> None:
    """Damage a file as a careless program does: the time of change tells."""
    blob.chmod(0o644)
    data = bytearray(blob.read_bytes())
    data[place] ^= 1
    blob.write_bytes(data)


def disk_bytes(home: Path) -> int:
    """What the disk gives to store and cache, links included, folders and locks not."""
    total = 0
    for place in (home / "store", home / "cache" / "packed"):
        for top, folders, files in os.walk(place):
            links = [x for x in folders if Path(top, x).is_symlink()]
            total += sum(os.lstat(Path(top, x)).st_blocks * 512 for x in (*files, *links))
    return total


def test_from_a_folder_to_an_answer(qh: Qh, imported: Manifest, tiny_model: Path) -> None:
    direct = qh("run", "-m", str(tiny_model), *ASK)
    for name in ("org/tiny", "tiny"):
        stored = qh("run", "-m", name, *ASK)
        assert (stored.code, stored.out) == (0, direct.out)
    rows = json.loads(qh("ls", "--json").out)["models"]
    (row,) = (x for x in rows if x["name"] == "org/tiny")
    assert (row["origin"], row["state"], row["format"]) == ("store", "ready", "ternary")
    assert "org/tiny" in qh("ls").out


def test_import_shows_its_card_and_events(
    qh: Qh, home: Path, tiny_model: Path, tmp_path: Path
) -> None:
    done = qh("import", str(tiny_model))
    assert done.out.startswith("tiny is ready")
    for word in ("to copy", "not stated", "ternary", "fits"):
        assert word in done.err
    events = json_lines(qh("import", str(tiny_model), "--json", "--name", "b").out.encode())
    kinds = list(dict.fromkeys(x["type"] for x in events))
    assert kinds == ["checked", "transfer", "linked", "finished"]
    assert qh("import", str(tmp_path / "none")).code == 3
    odd = shutil.copytree(tiny_model, tmp_path / "odd \x1b[2J")
    refused = qh("import", str(odd))
    assert refused.code == 3
    assert "\x1b" not in refused.err
    assert "--name" in refused.err


def test_import_asks_a_person(home: Path, tiny_model: Path) -> None:
    environment = qh_environment(home, TERM="xterm")
    program = TerminalProgram(command("import", str(tiny_model)), environment, size=(100, 30))
    try:
        program.wait_for("[y/N]")
        program.send("no\n")
        assert program.wait() == 130
        assert "nothing was copied" in program.text
    finally:
        program.close()
    assert not (home / "store" / "manifests").exists()


def test_show(qh: Qh, imported: Manifest, tiny_model: Path) -> None:
    text = qh("show", "tiny").out
    for word in ("org/tiny", str(tiny_model), "licence", "model.safetensors", "fits into memory"):
        assert word in text
    facts = json.loads(qh("show", "org/tiny", "--json").out)
    assert facts["manifest"]["files"][0]["sha256"]
    assert facts["plan"]["fits"] is True
    assert facts["plan"]["kv_type"] == "f16"
    int8 = json.loads(qh("show", "org/tiny", "--kv", "int8", "--json").out)["plan"]
    assert int8["kv_type"] == "int8"
    assert int8["total_bytes"] < facts["plan"]["total_bytes"]
    # Folders and built-in models, too; what cannot be loaded says why.
    assert json.loads(qh("show", str(tiny_model), "--json").out)["manifest"] is None
    assert qh("show", "no/such").code == 3


def test_damage_is_noticed_by_a_load_and_repaired(
    qh: Qh, imported: Manifest, layout: StoreLayout
) -> None:
    before = qh("run", "-m", "tiny", *ASK).out
    assert qh("verify").out.startswith("org/tiny: sound, 4 files")
    assert qh("verify", "tiny", "--json").code == 0
    flip(layout.blob(weights(imported)))
    refused = qh("run", "-m", "tiny", *ASK)
    assert refused.code == 3
    assert "qh-chat verify org/tiny --repair" in refused.err
    found = qh("verify")
    assert found.code == 3
    assert "org/tiny: model.safetensors: content" in found.out
    events = json_lines(qh("verify", "--json").out.encode())
    (verified,) = (x for x in events if x["type"] == "verified")
    assert (verified["sound"], verified["findings"][0]["problem"]) == (False, "content")
    repaired = qh("verify", "org/tiny", "--repair")
    assert repaired.code == 0, repaired.err
    assert "model.safetensors: repaired" in repaired.out
    assert qh("run", "-m", "tiny", *ASK).out == before
    # Links are put right by the load itself.
    shutil.rmtree(layout.snapshot("org/tiny"))
    assert qh("run", "-m", "tiny", *ASK).out == before


@pytest.mark.parametrize("damage", ["cut", "header", "grown", "gone", "folder"])
@pytest.mark.parametrize("path", ["model.safetensors", "config.json", "tokenizer.json"])
def test_damage_is_told_by_the_names_of_model_and_file(
    qh: Qh, imported: Manifest, layout: StoreLayout, path: str, damage: str
) -> None:
    (file,) = (x for x in imported.files if x.path == path)
    hurt(layout.blob(file.sha256), damage)
    for words in (("run", "-m", "tiny", *ASK), ("show", "tiny")):
        told = "".join(qh(*words)[1:]).splitlines()[-1]
        assert f"org/tiny: {path}: " in told
        assert "qh-chat verify org/tiny --repair" in told
        assert file.sha256 not in told


def hurt(blob: Path, damage: str) -> None:
    data = blob.read_bytes()
    blob.unlink()
    if damage == "folder":
        blob.mkdir()
    elif damage != "gone":
        changed = {"cut": data[:-10], "header": b"\xff" + data[1:], "grown": data + b"x"}
        blob.write_bytes(changed[damage])


def test_repair_from_a_hub(
    qh: Qh, hub: HubStub, layout: StoreLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("org/model", dense())
    assert qh("pull", "org/model").code == 0
    manifest = read_manifest(layout.manifest("org/model"))
    flip(layout.blob(weights(manifest)))
    with pytest.raises(IntegrityError):
        check(layout, manifest)
    hub.asked.clear()
    repaired = qh("verify", "--repair", "--json")
    assert repaired.code == 0, repaired.err
    (done,) = (x for x in json_lines(repaired.out.encode()) if x["type"] == "repaired")
    size = next(x.size for x in manifest.files if x.path == "model.safetensors")
    assert done["repaired"][0]["fetched_bytes"] == size
    assert [x.server for x in hub.asked].count("content") == 1
    check(layout, manifest)
    # What the hub no longer has is said, and the rest goes on.
    flip(layout.blob(weights(manifest)))
    hub.repos.clear()
    failed = qh("verify", "--repair")
    assert failed.code == 3
    assert "not repaired" in failed.err


def test_only_what_is_stored_can_be_verified_or_removed(
    qh: Qh, tiny_model: Path, home: Path
) -> None:
    shutil.copytree(tiny_model, home / "models" / "own")
    for words in (("verify", "own"), ("rm", "own", "--yes"), ("rm", str(tiny_model), "--yes")):
        refused = qh(*words)
        assert refused.code == 3
        assert "folder of your own" in refused.err
    assert qh("verify", "nothing").code == 3
    assert (home / "models" / "own" / "config.json").exists()


def test_du_rm_and_prune_free_what_they_say(
    qh: Qh, home: Path, tiny_model: Path, imported: Manifest, layout: StoreLayout
) -> None:
    assert qh("import", str(tiny_model), "--name", "twin").code == 0
    assert qh("run", "-m", "twin", *ASK).code == 0
    use = json.loads(qh("du", "--json").out)
    assert use["total_bytes"] == disk_bytes(home)
    by_name = {x["name"]: x for x in use["models"]}
    assert by_name["twin"]["shared_bytes"] == by_name["org/tiny"]["shared_bytes"] > 0
    table = qh("du").out
    assert "rm frees" in table
    assert "org/tiny" in table
    # A script has to say yes.
    assert qh("rm", "twin").code == 3
    assert "--yes" in qh("rm", "twin").err
    for name in ("twin", "org/tiny"):
        said = {x["name"]: x for x in json.loads(qh("du", "--json").out)["models"]}
        before = disk_bytes(home)
        planned = json.loads(qh("rm", name, "--dry-run", "--json").out)
        assert disk_bytes(home) == before
        done = json.loads(qh("rm", name, "--yes", "--json").out)
        assert planned == done
        assert said[name]["freed_bytes"] == done["freed_bytes"] == before - disk_bytes(home)
    orphan = put_blob(layout, b"orphan" * 1000)
    # One that has just come may belong to a pull that has just begun.
    assert qh("prune").out == "0 B freed\n"
    for path in (layout.blob(orphan), layout.blob_checks(orphan)):
        os.utime(path, (1, 1))
    before = disk_bytes(home)
    assert "would be freed" in qh("prune", "--dry-run").out
    freed = json.loads(qh("prune", "--json").out)["freed_bytes"]
    assert freed == before - disk_bytes(home) > 0
    assert qh("prune").out == "0 B freed\n"
    assert qh("du").code == 0


def test_rm_asks_a_person(home: Path, imported: Manifest) -> None:
    environment = qh_environment(home, TERM="xterm")
    for answer, code in (("n", 130), ("y", 0)):
        program = TerminalProgram(command("rm", "tiny"), environment, size=(100, 20))
        try:
            program.wait_for("[y/N]")
            assert "org/tiny: frees" in program.text
            program.send(f"{answer}\n")
            assert program.wait() == code
        finally:
            program.close()
    assert not (home / "store" / "manifests" / "org--tiny.json").exists()


@pytest.fixture
def dense_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "dense"
    folder.mkdir()
    for name, content in dense(hidden_size=256, head_dim=64, intermediate_size=512).items():
        (folder / name).write_bytes(content)
    return folder


def test_the_source_goes_and_the_answers_stay(
    qh: Qh, home: Path, layout: StoreLayout, dense_folder: Path
) -> None:
    assert qh("import", str(dense_folder)).code == 0
    refused = qh("rm", "dense", "--source", "--yes")
    assert refused.code == 3
    assert "--pack" in refused.err
    before = qh("run", "-m", "dense", "--pack", "int8", *ASK).out
    assert qh("rm", "dense", "--source").code == 3
    was = disk_bytes(home)
    done = json.loads(qh("rm", "dense", "--source", "--yes", "--json").out)
    assert done["pack_format"] == "int8"
    assert 0 < done["freed_bytes"] <= was - disk_bytes(home) + 40_000
    assert not (layout.snapshot("dense") / "model.safetensors").exists()
    # The pack is part of the model now; the cache may go.
    shutil.rmtree(home / "cache")
    for words in ((), ("--pack", "int8")):
        after = qh("run", "-m", "dense", *words, *ASK)
        assert (after.code, after.out) == (0, before)
    assert qh("verify").out.startswith("dense: sound")
    other = qh("run", "-m", "dense", "--pack", "int4_g32", *ASK)
    assert other.code == 3
    assert f"qh-chat import {dense_folder} --name dense" in other.err
    assert "packed form only" in qh("ls").out
    assert "removed" in qh("show", "dense").out
    # And it comes back.
    assert qh("import", str(dense_folder)).code == 0
    assert qh("run", "-m", "dense", "--pack", "int4_g32", *ASK).code == 0
    assert qh("run", "-m", "dense", "--pack", "int8", *ASK).out == before


def test_a_pulled_source_comes_back_with_a_pull(qh: Qh, hub: HubStub, layout: StoreLayout) -> None:
    hub.add("org/model", dense(hidden_size=256, head_dim=64, intermediate_size=512))
    assert qh("pull", "org/model").code == 0
    assert qh("run", "-m", "org/model", "--pack", "int8", *ASK).code == 0
    assert qh("rm", "org/model", "--source", "--yes").code == 0
    refused = qh("run", "-m", "org/model", "--pack", "int4_g32", *ASK)
    assert "qh-chat pull org/model" in refused.err
    again = qh("pull", "org/model")
    assert (again.code, again.out.startswith("org/model is ready")) == (0, True)
    assert (layout.snapshot("org/model") / "model.safetensors").exists()
    assert qh("run", "-m", "org/model", "--pack", "int4_g32", *ASK).code == 0
    # What stood for it is left over now.
    for path in layout.blobs.iterdir():
        os.utime(path, (1, 1))
    assert json.loads(qh("prune", "--json").out)["freed_bytes"] > 0
    assert qh("verify").code == 0


def test_an_interrupt_of_verify_is_obeyed(
    home: Path, imported: Manifest, layout: StoreLayout
) -> None:
    """A file that is never read to its end: a disk image of zeros in place of a blob's size."""
    blob = layout.blob(weights(imported))
    size = 1 << 36
    blob.chmod(0o644)
    with blob.open("r+b") as file:
        file.truncate(size)
    path = layout.manifest("org/tiny")
    facts = json.loads(path.read_text())
    next(x for x in facts["files"] if x["path"] == "model.safetensors")["size"] = size
    path.write_text(json.dumps(facts))
    process = subprocess.Popen(
        command("verify", "--json"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=qh_environment(home),
    )
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line)["path"] == "model.safetensors":
            break
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (130, b"")
    assert json.loads(rest.splitlines()[-1])["type"] == "stopped"


def test_packed_weights_go_alone_also_those_of_a_folder(
    qh: Qh, home: Path, imported: Manifest, tiny_model: Path
) -> None:
    shutil.copytree(tiny_model, home / "models" / "own")
    packed = home / "cache" / "packed"
    for name in ("org/tiny", "own"):
        assert qh("run", "-m", name, "--pack", "int8", *ASK).code == 0
    for name in ("org/tiny", "own"):
        before = disk_bytes(home)
        said = qh("rm", name, "--packed", "--dry-run").out
        assert said.startswith(f"{name}: its packed form would be removed: ")
        done = qh("rm", name, "--packed", "--json", "--yes")
        assert done.code == 0, done.err
        assert json.loads(done.out)["freed_bytes"] == before - disk_bytes(home) > 0
        assert qh("run", "-m", name, *ASK).code == 0
    assert not list(packed.glob("*-int8.safetensors"))
