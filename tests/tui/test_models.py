"""The model picker with real folders: broken ones, other folders, what is remembered."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
from textual.content import Content
from textual.widgets import DataTable, Input, Static

from qh_chat.messages import ModelLoading
from qh_chat.screens.dialogs import TextDialog
from qh_chat.screens.models import ModelsScreen
from qh_chat.settings import Settings
from tests.support.chat_app import ChatPilot, chat_app, real_models
from tests.support.cli import write_tiny_model
from tests.support.fake_engine import FakeEngine, FakeModels, Script


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models: a sound one, one that was cut off, and one that only loading finds broken."""
    folder = tmp_path_factory.mktemp("models")
    sound = write_tiny_model(folder / "sound")
    cut = folder / "cut"
    shutil.copytree(sound, cut)
    weights = cut / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    late = folder / "late"
    shutil.copytree(sound, late)
    (late / "tokenizer.json").write_text("{}")
    return folder


def screen(chat: ChatPilot) -> ModelsScreen:
    found = chat.app.screen
    assert isinstance(found, ModelsScreen)
    return found


async def open_picker(chat: ChatPilot, rows: int) -> None:
    await chat.ready()
    await chat.press("f3")
    await chat.until(lambda: screen(chat).query_one(DataTable).row_count == rows)


def mark_row(chat: ChatPilot, name: str) -> None:
    table = screen(chat).query_one(DataTable)
    names = [str(table.get_row_at(index)[1]) for index in range(table.row_count)]
    table.move_cursor(row=names.index(name))


def problem(chat: ChatPilot) -> str:
    return str(screen(chat).query_one("#problem", Static).content)


def detail(chat: ChatPilot) -> str:
    return str(screen(chat).query_one("#detail", Static).content)


def saved(folder: Path) -> dict[str, Any]:
    path = folder / "settings.toml"
    return tomllib.loads(path.read_text()).get("models", {}) if path.exists() else {}


async def test_a_broken_model_says_why_and_the_one_of_before_answers(
    tmp_path: Path, folder: Path
) -> None:
    async with chat_app(tmp_path, models=real_models(folder)) as chat:
        await open_picker(chat, 4)
        for name, why in (("cut", "model.safetensors"), ("late", "tokenizer.json")):
            mark_row(chat, name)
            await chat.press("enter")
            await chat.until(lambda name=name: name in chat.app.load_failures)
            assert f"{name} was not loaded" in problem(chat)
            assert why in problem(chat)
            assert detail(chat) == str(folder / name)
        # What went wrong belongs to its row.
        mark_row(chat, "sound")
        await chat.until(lambda: detail(chat) == str(folder / "sound"))
        assert problem(chat) == ""
        await chat.press("escape")
        assert not chat.app.chat.query_one("#banner").has_class("-shown")
        await chat.say("Hello.")
        assert chat.views[-1].record.state == "complete"
        assert chat.app.model_name == "qh-toy"
    assert "model" not in saved(tmp_path)


async def test_a_known_damage_is_told_before_loading(tmp_path: Path, folder: Path) -> None:
    async with chat_app(tmp_path, models=real_models(folder)) as chat:
        await open_picker(chat, 4)
        mark_row(chat, "cut")
        await chat.until(lambda: detail(chat) == str(folder / "cut"))
        assert problem(chat).startswith("cannot be loaded: 'model.safetensors': expected ")


async def test_the_chosen_model_is_remembered_and_named_in_older_answers(
    tmp_path: Path, folder: Path
) -> None:
    async with chat_app(tmp_path, models=real_models(folder)) as chat:
        await chat.ready()
        await chat.say("Hello.")
        assert not chat.numbers().startswith("qh-toy")
        await open_picker(chat, 4)
        mark_row(chat, "sound")
        await chat.press("enter")
        await chat.until(lambda: chat.app.model_name == "sound")
        assert chat.app.screen is chat.app.chat
        assert chat.numbers().startswith("qh-toy · ")
    assert saved(tmp_path)["model"] == "sound"
    settings = Settings().with_value("models.model", "sound")
    async with chat_app(tmp_path, models=real_models(folder), settings=settings) as chat:
        await chat.ready()
        assert chat.app.model_name == "sound"
        await open_picker(chat, 4)
        mark_row(chat, "qh-toy")
        await chat.press("enter")
        await chat.until(lambda: chat.app.model_name == "qh-toy")
    assert "model" not in saved(tmp_path)


async def test_a_chat_of_a_model_that_is_gone_goes_on(tmp_path: Path, folder: Path) -> None:
    settings = Settings().with_value("models.model", "sound")
    settings = settings.with_value("sampling.max_tokens", 4)
    async with chat_app(tmp_path, models=real_models(folder), settings=settings) as chat:
        await chat.ready()
        await chat.say("Hello.")
        answer = chat.texts[-1]
    async with chat_app(tmp_path, models=real_models(), settings=settings) as chat:
        await chat.ready()
        assert chat.app.model_name == "qh-toy"
        banner = str(chat.app.chat.query_one("#banner", Static).content)
        assert "sound was not loaded: model 'sound'" in banner
        assert "Until then qh-toy answers." in banner
        await chat.until(lambda: len(chat.views) == 2)
        assert chat.texts == ["Hello.", answer]
        assert chat.numbers().startswith("sound · ")
        await chat.say("And now?")
        assert chat.views[-1].record.model == "qh-toy"
        assert not chat.numbers().startswith("qh-toy")


async def test_a_model_named_on_the_command_line_is_not_replaced(tmp_path: Path) -> None:
    async with chat_app(tmp_path, models=real_models(), model="gone") as chat:
        await chat.until(lambda: "gone" in chat.app.load_failures)
        await chat.until(lambda: chat.app.loading is None)
        assert chat.app.engine_info is None
        banner = str(chat.app.chat.query_one("#banner", Static).content)
        assert banner.startswith("gone was not loaded: ")
        await chat.say("Hello.")
        assert "No model is loaded.; f3 picks one" in chat.mark()


async def name_folder(chat: ChatPilot, path: Path | str) -> None:
    await chat.press("o")
    await chat.until(lambda: isinstance(chat.app.screen, TextDialog))
    chat.app.screen.query_one(Input).value = str(path)
    await chat.press("enter")
    await chat.until(lambda: not isinstance(chat.app.screen, TextDialog))


async def test_another_folder_of_models_is_searched_from_now_on(
    tmp_path: Path, folder: Path
) -> None:
    async with chat_app(tmp_path, models=real_models()) as chat:
        await open_picker(chat, 1)
        await name_folder(chat, folder)
        await chat.until(lambda: screen(chat).query_one(DataTable).row_count == 4)
        await chat.until(lambda: saved(tmp_path).get("folders") == [str(folder)])
        assert detail(chat).startswith(str(folder))


async def test_another_folder_that_is_a_model_is_loaded_and_remembered(
    tmp_path: Path, folder: Path
) -> None:
    async with chat_app(tmp_path, models=real_models()) as chat:
        await open_picker(chat, 1)
        await name_folder(chat, folder / "sound")
        await chat.until(lambda: chat.app.model_name == "sound")
        await open_picker(chat, 2)
        await chat.until(lambda: detail(chat).startswith(str(folder / "sound")))
        assert "loaded: " in detail(chat)
    assert saved(tmp_path) == {"model": str(folder / "sound")}


@pytest.mark.parametrize("what", ["absent", "file", "empty"])
async def test_another_folder_without_a_model_is_refused(tmp_path: Path, what: str) -> None:
    path = tmp_path / "other"
    if what == "file":
        path.write_text("x")
    elif what == "empty":
        (path / "below").mkdir(parents=True)
    async with chat_app(tmp_path, models=real_models()) as chat:
        await open_picker(chat, 1)
        await name_folder(chat, path)
        await chat.until(lambda: problem(chat).startswith(f"{path}: "))
        found = "expected config.json" if what == "empty" else "no such folder"
        assert found in problem(chat)
        assert screen(chat).query_one(DataTable).row_count == 1
    assert saved(tmp_path) == {}


async def test_names_of_folders_are_completed(tmp_path: Path, folder: Path) -> None:
    async with chat_app(tmp_path, models=real_models()) as chat:
        await open_picker(chat, 1)
        await chat.press("o")
        await chat.until(lambda: isinstance(chat.app.screen, TextDialog))
        field = chat.app.screen.query_one(Input)
        field.value = str(folder / "so")
        field.cursor_position = len(field.value)
        await chat.until(lambda: field._suggestion != "")
        await chat.press("right")
        assert field.value == f"{folder}/sound/"


async def test_how_far_a_load_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("qh_chat.screens.models.monotonic", lambda: now[0])
    models = FakeModels({"built-in": FakeEngine([Script("x")])})
    async with chat_app(tmp_path, models=models) as chat:
        await chat.ready()
        await chat.press("f3")
        show = screen(chat).show_loading
        step = screen(chat).query_one("#step", Static)
        show(ModelLoading("big", "pack", 0, 95_000_000))
        assert str(step.content) == "big packs the weights: 0 B of 95.0 MB"
        now[0] += 1.5
        show(ModelLoading("big", "pack", 45_000_000, 95_000_000))
        assert str(step.content) == (
            "big packs the weights: 45.0 MB of 95.0 MB · 30.0 MB/s · 1.7 s left"
        )
        show(ModelLoading("big", "decoder", 0, 0))
        assert str(step.content) == "big makes room for the context"
        keys = screen(chat).query_one("#models").border_subtitle
        assert str(Content.from_markup(keys or "")) == "c stops the load · esc closes"
