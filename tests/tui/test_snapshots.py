"""Pictures of every screen, compared as SVG; one state a picture.

Every state at 80x24; the main ones also at 120x40, by making the window of the same app larger.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from textual.widgets import DataTable, Static

from qh_chat.engine import ModelChoice
from qh_chat.jobs import Job
from qh_chat.screens.dialogs import Choice, ChoiceDialog
from qh_chat.screens.disk import DiskScreen
from qh_chat.settings import Settings
from qh_chat.widgets.job_lines import JobLines
from qh_chat.widgets.status_bar import StatusBar
from qh_runtime.errors import DoesNotFitError
from qh_runtime.session.events import ContextTrimmed
from qh_runtime.store.disk import DiskUse, ModelUse
from tests.support.chat_app import FIXED_STATS, ChatPilot, chat_app
from tests.support.fake_engine import FakeEngine, FakeModels, Script
from tests.support.sample_text import CHISEL, HOSTILE, TABLE, THINKING
from tests.support.snapshots import assert_snapshot

HERE = Path(__file__).parent / "snapshots"
FAILURES = Path(__file__).resolve().parents[2] / "build" / "snapshots"

Step = Callable[[ChatPilot], Awaitable[None]]


async def nothing(chat: ChatPilot) -> None:
    """A first start."""


async def answer(chat: ChatPilot) -> None:
    await chat.say("How do I sharpen a chisel?")


async def table(chat: ChatPilot) -> None:
    await chat.press("ctrl+n")
    await chat.say("And which grits?")


async def selected(chat: ChatPilot) -> None:
    await chat.press("ctrl+r")
    await chat.idle()
    await chat.press("escape", "k")


async def edited(chat: ChatPilot) -> None:
    await chat.press("up")


async def chats(chat: ChatPilot) -> None:
    await chat.press("f2")


async def help_screen(chat: ChatPilot) -> None:
    # Its last line is the path of the settings, which is another one in every run.
    await chat.press("f1")
    chat.app.screen.query_one("#keys-file").display = False


async def options(chat: ChatPilot) -> None:
    await chat.press("f5")


async def settings_screen(chat: ChatPilot) -> None:
    # Its last line is the path of the file, which is another one in every run.
    await chat.press("f6")
    chat.app.screen.query_one("#where").display = False


async def models_screen(chat: ChatPilot) -> None:
    await chat.press("f3")
    table = chat.app.screen.query_one(DataTable)
    await chat.until(lambda: table.row_count == 2)


STATES: dict[str, tuple[tuple[Script, ...], tuple[Step, ...]]] = {
    "start": ((), (nothing,)),
    "answer": ((Script(CHISEL),), (answer,)),
    "table": ((Script(CHISEL), Script(TABLE)), (answer, table)),
    "alternatives": (
        (Script(TABLE), Script(THINKING, trimmed=ContextTrimmed(2, 311))),
        (answer, selected),
    ),
    "edit": ((Script("Start with a flat back."),), (answer, edited)),
    "chats": ((Script(CHISEL), Script(TABLE)), (answer, table, chats)),
    "hostile": ((Script(HOSTILE),), (answer,)),
    "help": ((), (help_screen,)),
    "options": ((), (options,)),
    "settings": ((), (settings_screen,)),
}


LARGE_TOO = frozenset({"start", "answer", "table", "chats", "help", "settings"})


async def check_picture(chat: ChatPilot, name: str, *, large: bool = False) -> None:
    """The screen is as stored, and with a larger window too."""
    await settled(chat)
    await assert_snapshot(chat.app, HERE, f"{name}-80x24", FAILURES)
    if large:
        await chat.pilot.resize_terminal(120, 40)
        await assert_snapshot(chat.app, HERE, f"{name}-120x40", FAILURES)


@pytest.mark.parametrize("state", STATES)
async def test_state(tmp_path: Path, state: str) -> None:
    scripts, steps = STATES[state]
    async with chat_app(tmp_path, *scripts) as chat:
        for step in steps:
            await step(chat)
        await check_picture(chat, state, large=state in LARGE_TOO)


async def test_streaming(tmp_path: Path) -> None:
    script = Script(CHISEL, hold=threading.Semaphore(40))
    async with chat_app(tmp_path, script) as chat:
        await chat.say("How do I sharpen a chisel?", wait=False)
        await chat.until(lambda: chat.texts[-1].endswith("Set the angle to"))
        # The rate is measured, and another one in every run.
        await chat.views[-1].stream(chat.texts[-1], 40, 31.2)
        chat.app._status(tokens_per_s=31.2)
        await check_picture(chat, "streaming", large=True)


async def test_models(tmp_path: Path) -> None:
    error = DoesNotFitError(
        "large: needs 13.5 GB, 6.1 GB of 16.0 GB are free",
        hint="choose a smaller format or context, or load it anyway with --force",
    )
    models = FakeModels(
        {"built-in": FakeEngine([Script("x")], fixed_stats=FIXED_STATS), "large": error}
    )
    async with chat_app(tmp_path, models=models) as chat:
        await chat.ready()
        await models_screen(chat)
        await chat.press("down", "enter")
        await chat.until(lambda: "large" in chat.app.load_failures)
        await check_picture(chat, "models", large=True)


async def test_models_being_fetched(tmp_path: Path) -> None:
    """What moves, what waits for a server, what waits for its turn: numbers of no real run."""
    jobs = (
        Job("org/next", "pull", "waiting", 3, "waits for microsoft/bitnet-b1.58-2B-4T", "",
            9_154, 1_250_000_000),
        Job("microsoft/bitnet-b1.58-2B-4T", "pull", "moving", 1, "", "",
            500_000_000, 1_180_000_000, 12_300_000, 55.3),
        Job("org/looked-at", "pull", "looking", 2, "looks at config.json"),
        Job("org/later", "pull", "asking", 4, "", "", 0, 3_000_000_000),
    )  # fmt: skip
    models = FakeModels({"built-in": FakeEngine([Script("x")], fixed_stats=FIXED_STATS)})
    models.choices = [
        *models.list(),
        ModelChoice("org/half", "/store/snapshots/org--half", "llama", "bf16", 3_000_000_000,
                    "incomplete", "pull", 1_260_000_000),
    ]  # fmt: skip
    async with chat_app(tmp_path, models=models) as chat:
        await chat.ready()
        await models_screen(chat)
        await chat.press("down")
        chat.app.screen.query_one(JobLines).jobs = jobs
        await check_picture(chat, "models-fetching", large=True)
        retry = Job("org/next", "pull", "moving", 3, "again: hub.example: status 503", "",
                    500_000_000, 1_250_000_000)  # fmt: skip
        chat.app.screen.query_one(JobLines).jobs = (retry,)
        await chat.pilot.resize_terminal(80, 24)
        await check_picture(chat, "models-retry")


async def test_card(tmp_path: Path) -> None:
    rows = (
        ("licence", "mit"),
        ("commit", "0123456789ab"),
        ("model", "bitnet, 2,413 million weights, ternary"),
        ("to fetch", "1.18 GB"),
        ("memory", "DOES NOT FIT: needs 9.80 GB of 4.10 GB with 131,072 tokens of context"),
        ("", "would fit: context 4096 (f6)"),
        ("note", HOSTILE.splitlines()[0]),
    )
    choices = (Choice("yes", "fetch 1.18 GB all the same", "f"), Choice("no", "not now", "esc"))
    async with chat_app(tmp_path) as chat:
        text = "It does not fit into the memory of this machine now."
        chat.app.push_screen(ChoiceDialog("org/\x1b[2Jmodel", text, choices, rows))
        await check_picture(chat, "card", large=True)


async def test_disk(tmp_path: Path) -> None:
    use = DiskUse(
        (
            ModelUse("microsoft/bitnet-b1.58-2B-4T-bf16", "ready", 4_830_000_000, 0, 1_180_000_000),
            ModelUse("org/half-of-a-model-with-quite-a-name", "pulling", 1_260_000_000, 9_154, 0),
            ModelUse("built-in", "folder", 0, 0, 1_100_000),
        ),
        9_154, 1_260_000_000, 75_000_000, 12_000_000, 7_350_000_000,
    )  # fmt: skip
    async with chat_app(tmp_path) as chat:
        screen = DiskScreen()
        await chat.app.push_screen(screen)
        total = screen.query_one("#total", Static)
        await chat.until(lambda: "in all" in str(total.content))
        screen.fill(use)
        await check_picture(chat, "disk")


async def test_light(tmp_path: Path) -> None:
    settings = Settings().with_value("look.theme", "qh-light")
    async with chat_app(tmp_path, Script(CHISEL), settings=settings, size=(100, 30)) as chat:
        await answer(chat)
        await settled(chat)
        await assert_snapshot(chat.app, HERE, "light-100x30", FAILURES)


async def test_without_colour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    async with chat_app(tmp_path, Script(TABLE), Script(CHISEL), size=(80, 24)) as chat:
        await answer(chat)
        await selected(chat)
        await check_picture(chat, "no-colour")


async def test_too_small(tmp_path: Path) -> None:
    async with chat_app(tmp_path, size=(50, 12)) as chat:
        await settled(chat)
        await assert_snapshot(chat.app, HERE, "too-small-50x12", FAILURES)


async def settled(chat: ChatPilot) -> None:
    """The count of tokens is the last one."""
    app = chat.app
    if app.engine_info is not None and not app.chat.answering:
        app._status(context_used=None)
        app.chat.count_context(0.01)
        bar = app.chat.query_one(StatusBar)
        await chat.until(lambda: bar.facts.context_used is not None)
