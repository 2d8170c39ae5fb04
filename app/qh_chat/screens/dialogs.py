"""Two small dialogs: a question with yes and no, and one line of text."""

from __future__ import annotations

import asyncio
import itertools
import os
from pathlib import Path
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import ModalScreen
from textual.suggester import Suggester
from textual.widgets import Button, Input, Static

from qh_chat.inert import inert

__all__ = ["ConfirmDialog", "TextDialog"]


class ConfirmDialog(ModalScreen[bool]):
    """Asks before something that cannot be undone, or that leaves the terminal.

    Args:
        question: what is asked. yes: label of the button that does it.
    """

    CSS_PATH = "dialogs.tcss"
    AUTO_FOCUS = "#no"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,n", "answer(False)", show=False),
        Binding("y", "answer(True)", show=False),
        Binding("left", "app.focus_previous", show=False),
        Binding("right", "app.focus_next", show=False),
    ]

    def __init__(self, question: str, yes: str) -> None:
        super().__init__()
        self._question = question
        self._yes = yes

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog"):
            yield Static(inert(self._question), markup=False, classes="question")
            with Horizontal(classes="buttons"):
                yield Button(f"{self._yes} (y)", id="yes", compact=True)
                yield Button("no (esc)", id="no", compact=True)

    def action_answer(self, sure: bool) -> None:
        """End with an answer."""
        self.dismiss(sure)

    @on(Button.Pressed)
    def _pressed(self, event: Button.Pressed) -> None:
        event.stop()
        self.dismiss(event.button.id == "yes")


class FolderSuggester(Suggester):
    """Completes the name of a folder."""

    LOOKED_AT = 2000

    def __init__(self) -> None:
        super().__init__(use_cache=False, case_sensitive=True)

    async def get_suggestion(self, value: str) -> str | None:
        """The value up to the end of the first folder whose name begins so."""
        return await asyncio.to_thread(self._complete, value) if value else None

    def _complete(self, value: str) -> str | None:
        parent, slash, begun = value.rpartition(os.sep)
        if not begun:
            return None
        try:
            with os.scandir(Path(parent + slash or ".").expanduser()) as entries:
                names = sorted(
                    entry.name
                    for entry in itertools.islice(entries, self.LOOKED_AT)
                    if entry.name.startswith(begun) and entry.name.isprintable() and entry.is_dir()
                )
        except (OSError, RuntimeError, ValueError):
            return None
        return f"{parent}{slash}{names[0]}{os.sep}" if names else None


class TextDialog(ModalScreen[str | None]):
    """Asks for one line.

    Args:
        title: what is asked for. value: what is there already.
        folders: it is a folder; names of folders are completed as they are typed.
    """

    CSS_PATH = "dialogs.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "leave", show=False)]

    def __init__(self, title: str, value: str, *, folders: bool = False) -> None:
        super().__init__()
        self._title = title
        self._value = value
        self._folders = folders

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog"):
            yield Static(self._title, markup=False, classes="question")
            yield Input(
                inert(self._value),
                compact=True,
                max_length=4096 if self._folders else 200,
                suggester=FolderSuggester() if self._folders else None,
            )
            keys = "→ completes · enter opens it" if self._folders else "enter keeps it"
            yield Static(f"{keys} · esc leaves it", classes="hint")

    def action_leave(self) -> None:
        """End without a text."""
        self.dismiss(None)

    @on(Input.Submitted)
    def _submitted(self, event: Input.Submitted) -> None:
        event.stop()
        self.dismiss(inert(event.value.strip()) or None)
