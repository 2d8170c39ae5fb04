"""The model picker of an app whose store and hub are real, driven by keys."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from textual.widgets import DataTable, Input, Static

from qh_chat.jobs import Job
from qh_chat.paths import app_paths
from qh_chat.screens.dialogs import ChoiceDialog, TextDialog
from qh_chat.screens.models import ModelsScreen
from qh_chat.settings import Settings
from qh_chat.shelf import Shelf
from qh_runtime.store.layout import StoreLayout
from tests.support.chat_app import ChatPilot, chat_app, real_models

__all__ = ["ModelPilot", "model_app"]


class ModelPilot:
    """Drives the picker, and says what is on it.

    Attributes:
        chat: the app below it. layout: the store.
    """

    def __init__(self, chat: ChatPilot, layout: StoreLayout) -> None:
        self.chat, self.layout = chat, layout
        self.app = chat.app
        self.until, self.press = chat.until, chat.press

    async def open(self) -> None:
        """Open the picker and wait for its rows."""
        await self.chat.ready()
        await self.press("f3")
        await self.until(lambda: self.table.row_count > 0)

    @property
    def screen(self) -> ModelsScreen:
        """The picker, also below a dialog."""
        return next(x for x in self.app.screen_stack if isinstance(x, ModelsScreen))

    @property
    def table(self) -> DataTable[object]:
        """Its table."""
        return self.screen.query_one("#table", DataTable)

    @property
    def states(self) -> dict[str, str]:
        """What the table says of each model."""
        rows = (self.table.get_row_at(x) for x in range(self.table.row_count))
        return {str(row[1]): str(row[-1]) for row in rows}

    def mark(self, name: str) -> None:
        """Move to a row."""
        self.table.move_cursor(row=list(self.states).index(name))

    @property
    def said(self) -> str:
        """What stands below the table."""
        return str(self.screen.query_one("#problem", Static).content)

    @property
    def detail(self) -> str:
        """What is known of the marked model."""
        return str(self.screen.query_one("#detail", Static).content)

    @property
    def dialog(self) -> ChoiceDialog | None:
        """The open question."""
        top = self.app.screen
        return top if isinstance(top, ChoiceDialog) else None

    @property
    def asked(self) -> str:
        """What the open question says, title and labels included."""
        dialog = self.dialog
        assert dialog is not None
        rows = [f"{name} {value}" for name, value in dialog._rows]
        labels = [choice.label for choice in dialog._choices]
        return "\n".join([dialog._title, dialog._text, *rows, *labels])

    async def type(self, text: str) -> None:
        """Fill the open line of text."""
        await self.until(lambda: isinstance(self.app.screen, TextDialog))
        self.app.screen.query_one(Input).value = text
        await self.press("enter")

    async def pull(self, name: str, *, agree: bool = True) -> None:
        """Ask for a model of the hub, wait for its card, and say yes."""
        await self.press("p")
        await self.type(name)
        await self.until(lambda: self.dialog is not None)
        if agree:
            await self.press("f")

    def job(self, name: str) -> Job | None:
        """What runs for a model."""
        return self.app.downloads.job(name)

    async def moved(self, name: str, least_bytes: int) -> None:
        """Wait until a fetch has brought so much."""
        await self.until(lambda: (job := self.job(name)) is not None
                         and job.state == "moving" and job.done_bytes >= least_bytes)  # fmt: skip

    async def ended(self, name: str) -> Job:
        """Wait for the end of a job, and return how it ended."""
        await self.until(lambda: name in self.app.ended_jobs and self.job(name) is None)
        await self.until(lambda: name not in self.states or self.states[name] != "stopping")
        return self.app.ended_jobs[name]


@asynccontextmanager
async def model_app(
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    offline: bool = False,
    size: tuple[int, int] = (80, 24),
    **settings: object,
) -> AsyncIterator[ModelPilot]:
    """The app on the built-in model and a store below `home`, with the picker open.

    Args:
        settings: of the section "models".
    """
    monkeypatch.setenv("QH_HOME", str(home))
    chosen = Settings().with_value("sampling.max_tokens", 4)
    for name, value in settings.items():
        chosen = chosen.with_value(f"models.{name}", value)  # type: ignore[arg-type]
    shelf = Shelf(app_paths(os.environ), dict(os.environ), offline)
    async with chat_app(
        home, models=real_models(), settings=chosen, shelf=shelf, size=size
    ) as chat:
        pilot = ModelPilot(chat, shelf.layout)
        await pilot.open()
        yield pilot
