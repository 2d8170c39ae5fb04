"""The app on a scripted engine or on real models, with a fixed clock, and waiting for what a test
expects to see.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from textual.pilot import Pilot
from textual.widgets import Static

from qh_chat.app import QhChatApp
from qh_chat.commands.chat import StoreModels
from qh_chat.engine import ModelSource
from qh_chat.loading import Models
from qh_chat.paths import app_paths
from qh_chat.places import Places
from qh_chat.settings import Settings
from qh_chat.shelf import Shelf
from qh_chat.widgets.message import MessageView, Numbers
from qh_chat.widgets.status_bar import Facts, StatusBar
from qh_runtime.session.events import GenerationStats
from tests.support.fake_engine import FakeEngine, FakeModels, Script

__all__ = ["FIXED_STATS", "NOW", "ChatPilot", "chat_app", "real_models"]

LIMIT_S = 60.0
"""How long a test waits for what must come; only a failure takes that long."""

NOW = 1_800_000_000.0

FIXED_STATS = GenerationStats(
    prompt_tokens=0,
    reused_tokens=0,
    tokens=0,
    prefill_s=0.4,
    decode_s=2.9,
    first_token_s=0.42,
    tokens_per_s=31.2,
    prefill_tokens_per_s=120.0,
    context_used=0,
    context_length=4096,
    seed=7,
)


class ChatPilot:
    """Drives the app as a person does, and waits instead of sleeping.

    Attributes:
        app: the app. pilot: Textual's own driver.
    """

    def __init__(self, app: QhChatApp, pilot: Pilot[int]) -> None:
        self.app = app
        self.pilot = pilot

    @property
    def views(self) -> list[MessageView]:
        """The messages on screen."""
        return self.app.chat.transcript.views

    @property
    def texts(self) -> list[str]:
        """What the messages on screen hold."""
        return [view.text for view in self.views]

    def numbers(self, index: int = -1) -> str:
        """The numbers below a message."""
        return self.views[index].query_one(".numbers", Numbers).text

    def mark(self, index: int = -1) -> str:
        """What is said about a message beside its numbers."""
        return str(self.views[index].query_one(".mark", Static).content)

    async def until(self, check: Callable[[], bool], *, pause: bool = True) -> None:
        """Wait until something holds.

        Args:
            pause: then let the app handle what it has got; not from within the app itself.

        Raises:
            AssertionError: it does not within LIMIT_S, or the app has ended.
        """
        end = time.monotonic() + LIMIT_S
        while not check():
            if self.app.return_code is not None:
                raise AssertionError(f"the app has ended with {self.app.return_code}")
            if time.monotonic() > end:
                raise AssertionError(f"not true after {LIMIT_S} s; on screen: {self.texts}")
            await asyncio.sleep(0.01)
        if pause:
            await self.pilot.pause()

    @property
    def title(self) -> str:
        """What is said above the message box."""
        return str(self.app.chat.composer.border_title)

    @property
    def facts(self) -> Facts:
        """What the status line is made of."""
        return self.app.chat.query_one(StatusBar).facts

    async def counted(self) -> None:
        """Wait until the tokens of what is on screen and in the box are counted."""
        chat = self.app.chat
        chat.context_changed(None)
        self.app._status(context_used=None)
        chat.count_context(0.01)
        await self.until(lambda: self.facts.context_used is not None)

    async def ready(self) -> None:
        """Wait for the model."""
        await self.until(lambda: self.app.engine_info is not None)

    async def idle(self) -> None:
        """Wait for the end of the running answer."""
        await self.until(lambda: not self.app.chat.answering)

    async def say(self, text: str, *, wait: bool = True) -> None:
        """Send a message, and wait for the whole answer."""
        self.app.chat.composer.put(text)
        self.app.chat.composer.focus()
        await self.pilot.press("enter")
        await self.until(lambda: self.app.chat.composer.text == "")
        if wait:
            await self.idle()

    async def press(self, *keys: str) -> None:
        """Press keys."""
        await self.pilot.press(*keys)
        await self.pilot.pause()


def real_models(*folders: Path) -> StoreModels:
    """The built-in model, and those in these folders."""
    return StoreModels(Models(app_paths(os.environ), tuple(str(folder) for folder in folders)))


@asynccontextmanager
async def chat_app(
    folder: Path,
    *scripts: Script,
    models: ModelSource | None = None,
    settings: Settings | None = None,
    size: tuple[int, int] = (80, 24),
    clock: Callable[[], float] = lambda: NOW,
    model: str | None = None,
    shelf: Shelf | None = None,
) -> AsyncIterator[ChatPilot]:
    """The app, with its model loaded.

    Args:
        folder: where it keeps its files. scripts: answers of the model, in order.
        models: another source of models. settings: default settings otherwise.
        model: loaded at the start, as by -m. shelf: the store; an empty one otherwise.
    """
    engine = FakeEngine(scripts or (Script("Hello there."),), fixed_stats=FIXED_STATS)
    settings = (settings or Settings()).with_value("look.blink", False)
    app = QhChatApp(
        settings,
        Places.below(folder, folder, folder),
        models or FakeModels({"built-in": engine}),
        shelf or Shelf(app_paths({"QH_HOME": str(folder)}), {}),
        model=model,
        clock=clock,
        measure_memory=False,
    )
    app.animation_level = "none"
    async with app.run_test(size=size) as pilot:
        chat = ChatPilot(app, pilot)
        await chat.until(lambda: bool(app.chat.transcript.border_title))
        if models is None:
            await chat.ready()
        yield chat
