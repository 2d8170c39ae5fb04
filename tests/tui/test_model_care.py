"""Verify, repair, remove and what frees how much, in the picker, on a real store and hub."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from textual.widgets import Button, DataTable, Static

from qh_chat.paths import app_paths
from qh_chat.screens.disk import DiskScreen
from qh_chat.settings import Settings
from qh_chat.shelf import Shelf
from qh_runtime.store.disk import disk_use
from qh_runtime.store.layout import StoreLayout
from qh_runtime.store.manifest import read_manifest
from qh_runtime.store.preflight import Preflight
from qh_runtime.store.pull import PullEvent
from qh_runtime.store.transfer import StopSignal
from tests.support.hub_stub import HubStub
from tests.support.model_screen import ModelPilot, model_app
from tests.unit.store.published_models import dense, ternary

NAME = "org/model"


def pulled(home: Path, monkeypatch: pytest.MonkeyPatch, *names: str) -> StoreLayout:
    """Models of the hub, in the store."""
    monkeypatch.setenv("QH_HOME", str(home))
    shelf = Shelf(app_paths(os.environ), dict(os.environ))

    def silent(event: PullEvent) -> None:
        """Nobody looks."""

    def agree(preflight: Preflight) -> bool:
        return True

    for name in names:
        assert shelf.pull(name, Settings(), StopSignal(), silent, agree) is not None
    return shelf.layout


def damage(layout: StoreLayout, name: str = NAME) -> None:
    """Change a bit of the weights."""
    manifest = read_manifest(layout.manifest(name))
    blob = layout.blob(next(x.sha256 for x in manifest.files if x.path == "model.safetensors"))
    blob.chmod(0o644)
    data = bytearray(blob.read_bytes())
    data[5000] ^= 1
    blob.write_bytes(data)


async def ask_removal(models: ModelPilot, name: str) -> str:
    """Press the key, and return the question."""
    models.mark(name)
    await models.press("x")
    await models.until(lambda: models.dialog is not None)
    return models.asked


async def test_damage_is_found_said_and_repaired(
    tmp_path: Path, hub: HubStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(NAME, dense())
    damage(pulled(tmp_path, monkeypatch, NAME))
    async with model_app(tmp_path, monkeypatch) as models:
        models.mark(NAME)
        await models.press("v")
        assert (await models.ended(NAME)).state == "damaged"
        await models.until(lambda: models.dialog is not None)
        assert "model.safetensors: content: SHA-256: expected" in models.asked
        # Left as it is, it is still said.
        await models.press("escape")
        assert "is damaged" in models.said
        await models.press("v")
        await models.until(lambda: models.dialog is not None)
        hub.asked.clear()
        await models.press("r")
        assert (await models.ended(NAME)).state == "done"
        assert [x.server for x in hub.asked].count("content") == 1
        assert "model.safetensors: repaired" in models.said
        await models.press("v")
        assert (await models.ended(NAME)).text.startswith(f"{NAME}: sound, 4 files")
        await models.until(lambda: "sound" in models.said)


async def test_offline_a_repair_is_refused_and_the_damage_stays_said(
    tmp_path: Path, hub: HubStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(NAME, dense())
    damage(pulled(tmp_path, monkeypatch, NAME))
    async with model_app(tmp_path, monkeypatch, offline=True) as models:
        models.mark(NAME)
        await models.press("v")
        await models.until(lambda: models.dialog is not None)
        await models.press("r")
        await models.until(lambda: "--offline refuses" in models.said)


async def test_only_what_is_stored_is_verified_or_removed(
    tmp_path: Path, hub: HubStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "models" / "own"
    own.mkdir(parents=True)
    for name, content in ternary().items():
        (own / name).write_bytes(content)
    async with model_app(tmp_path, monkeypatch) as models:
        await models.until(lambda: "own" in models.states)
        for key in ("v", "x"):
            models.mark("own")
            await models.press(key)
            await models.until(lambda: "is a folder of your own" in models.said)
            models.mark("qh-toy")
            await models.until(lambda: models.said == "")
        await models.press("v")
        await models.until(lambda: "is built in" in models.said)
    assert (own / "config.json").exists()


async def test_the_loaded_model_is_not_removed_and_a_removed_one_is_forgotten(
    tmp_path: Path, hub: HubStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(NAME, ternary())
    pulled(tmp_path, monkeypatch, NAME)
    async with model_app(tmp_path, monkeypatch) as models:
        models.mark(NAME)
        await models.press("enter")
        await models.until(lambda: models.app.loaded_name == NAME)
        await models.open()
        assert models.states[NAME] == "loaded"
        await models.press("x")
        await models.until(lambda: "is loaded. Load another model first" in models.said)
        models.mark("qh-toy")
        await models.press("enter")
        await models.until(lambda: models.app.loaded_name == "qh-toy")
        models.app.change_setting("models.model", NAME)
        await models.open()
        await ask_removal(models, NAME)
        await models.press("y")
        await models.until(lambda: NAME not in models.states)
        assert "is removed" in models.said
        assert models.app.settings.models.model is None


async def test_a_removal_says_what_stays_and_keeps_it(
    tmp_path: Path, hub: HubStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(NAME, dense())
    hub.add("org/twin", {**dense(), "generation_config.json": b"{}"})
    layout = pulled(tmp_path, monkeypatch, NAME, "org/twin")
    packed = tmp_path / "cache" / "packed"
    async with model_app(tmp_path, monkeypatch) as models:
        asked = await ask_removal(models, NAME)
        assert "stay, which org/twin needs too" in asked
        await models.press("escape")
        assert layout.manifest(NAME).exists()
        before = disk_use(layout, packed)
        freed = next(x for x in before.models if x.name == NAME).freed_bytes
        await ask_removal(models, NAME)
        await models.press("y")
        await models.until(lambda: NAME not in models.states)
        assert before.total_bytes - disk_use(layout, packed).total_bytes == freed
        models.mark("org/twin")
        await models.press("v")
        assert (await models.ended("org/twin")).state == "done"


async def test_the_source_or_the_packed_form_of_a_model_can_go_alone(
    tmp_path: Path, hub: HubStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(NAME, dense(hidden_size=256, head_dim=64, intermediate_size=512))
    pulled(tmp_path, monkeypatch, NAME)
    async with model_app(tmp_path, monkeypatch, pack="int8") as models:
        models.mark(NAME)
        await models.press("enter")
        await models.until(lambda: models.app.loaded_name == NAME)
        models.app.choose_model("qh-toy")
        await models.until(lambda: models.app.loaded_name == "qh-toy")
        await models.open()
        asked = await ask_removal(models, NAME)
        assert "only its source" in asked
        assert "only its packed form" in asked
        await models.press("p")
        await models.until(lambda: f"{NAME}: its packed form is removed" in models.said)
        use = disk_use(models.layout, tmp_path / "cache" / "packed").models
        assert next(x.packed_bytes for x in use if x.name == NAME) == 0
        assert "only its" not in await ask_removal(models, NAME)
        await models.press("escape", "enter")
        await models.until(lambda: models.app.loaded_name == NAME)
        models.app.choose_model("qh-toy")
        await models.until(lambda: models.app.loaded_name == "qh-toy")
        await models.open()
        await ask_removal(models, NAME)
        await models.press("s")
        job = await models.ended(NAME)
        assert (job.state, "int8 form stands for it" in job.text) == ("done", True)
        models.mark(NAME)
        await models.press("enter")
        await models.until(lambda: models.app.loaded_name == NAME)


async def test_what_frees_how_much(
    tmp_path: Path, hub: HubStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(NAME, dense())
    layout = pulled(tmp_path, monkeypatch, NAME)
    orphan = layout.parts / f"{'d' * 64}.part"
    orphan.parent.mkdir(exist_ok=True)
    orphan.write_bytes(b"x" * 300_000)
    async with model_app(tmp_path, monkeypatch) as models:

        def rows() -> list[str]:
            top = models.app.screen
            if not isinstance(top, DiskScreen):
                return []
            table = top.query_one(DataTable)
            return [str(table.get_row_at(x)[0]) for x in range(table.row_count)]

        await models.press("u")
        await models.until(lambda: len(rows()) > 1)
        assert rows()[0] == NAME
        left = next(x for x in rows() if x.startswith("left over"))
        disk = models.app.screen
        assert "in all" in str(disk.query_one("#total", Static).content)
        disk.query_one(DataTable).move_cursor(row=rows().index(left))
        await models.press("enter")
        await models.until(lambda: models.dialog is not None)
        assert "unfinished files that nobody goes on with" in models.asked
        await models.press("y")
        await models.until(lambda: left not in rows() and NAME in rows())
        assert not orphan.exists()
        disk.query_one(DataTable).move_cursor(row=0)
        await models.press("enter")
        await models.until(lambda: models.dialog is not None)
        assert f"Remove {NAME}" in models.asked
        await models.press("y")
        await models.until(lambda: NAME not in models.states)


async def test_by_mouse(tmp_path: Path, hub: HubStub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(NAME, ternary(hidden_size=1024, intermediate_size=4096, num_hidden_layers=8))
    async with model_app(tmp_path, monkeypatch, download_limit_mb_s=4.0) as models:

        async def click(text: str) -> None:
            """Click the words on screen."""
            lines = [
                "".join(segment.text for segment in strip)
                for strip in models.app.screen._compositor.render_strips()
            ]
            y = next(index for index, line in enumerate(lines) if text in line)
            await models.chat.pilot.click(offset=(lines[y].index(text) + 1, y))
            await models.chat.pilot.pause()

        await click("p pull")
        await models.type(NAME)
        await models.until(lambda: models.dialog is not None)
        await models.chat.pilot.click(models.app.screen.query_one("#yes", Button))
        await models.moved(NAME, 1 << 20)
        await click("pause (space)")
        assert (await models.ended(NAME)).state == "stopped"
        await models.until(lambda: models.states[NAME].startswith("paused "))
        await click("enter loads")
        await models.moved(NAME, 1 << 20)
        await click("stop (c)")
        await models.until(lambda: models.dialog is not None)
        await models.chat.pilot.click(models.app.screen.query_one("#free", Button))
        await models.until(lambda: NAME not in models.states)
        await click("esc")
        assert models.app.screen is models.app.chat
