"""Small dialogs: a question with yes and no, one of several ways to go on, one line of text."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text
from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.suggester import Suggester
from textual.widgets import Button, Input, Static

from qh_chat.inert import inert

__all__ = ["Choice", "ChoiceDialog", "ConfirmDialog", "TextDialog"]


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


@dataclass(frozen=True)
class Choice:
    """One way to go on: what the dialog ends with, the words on its button, and its key."""

    id: str
    label: str
    key: str


class ChoiceDialog(ModalScreen[str]):
    """Says what there is to know, and ends with the id of the way that was chosen.

    Args:
        title: on the border. text: sentences above. rows: names and values below them.
        choices: the last one changes nothing; it has the focus, and esc means it.
    """

    CSS_PATH = "dialogs.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "app.focus_previous", show=False),
        Binding("right", "app.focus_next", show=False),
    ]

    def __init__(
        self,
        title: str,
        text: str,
        choices: Sequence[Choice],
        rows: Sequence[tuple[str, str]] = (),
    ) -> None:
        super().__init__()
        self._title, self._text, self._rows = title, text, tuple(rows)
        self._choices = tuple(choices)

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog -wide"):
            with VerticalScroll(can_focus=False, classes="content"):
                if self._text:
                    yield Static(inert(self._text), markup=False, classes="question")
                if self._rows:
                    yield Static(self._table(), classes="question")
            with Horizontal(classes="buttons"):
                for choice in self._choices:
                    yield Button(f"{choice.label} ({choice.key})", id=choice.id, compact=True)

    def _table(self) -> RenderableType:
        table = Table.grid(padding=(0, 2, 0, 0))
        for name, value in self._rows:
            table.add_row(Text(inert(name), "dim"), Text(inert(value)))
        return table

    def on_mount(self) -> None:
        """Name the box, and mark what changes nothing."""
        self.query_one(".dialog").border_title = Content(inert(self._title))
        self.query_one(f"#{self._choices[-1].id}").focus()

    def on_key(self, event: events.Key) -> None:
        """End with the choice of a key."""
        for choice in self._choices:
            if event.key == {"esc": "escape"}.get(choice.key, choice.key):
                event.stop()
                self.dismiss(choice.id)
                return

    @on(Button.Pressed)
    def _pressed(self, event: Button.Pressed) -> None:
        event.stop()
        self.dismiss(event.button.id or self._choices[-1].id)


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
        enter: what the enter key does with it. longest: in characters.
    """

    CSS_PATH = "dialogs.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "leave", show=False)]

    def __init__(
        self, title: str, value: str, *, folders: bool = False, enter: str = "", longest: int = 200
    ) -> None:
        super().__init__()
        self._enter = enter or ("opens it" if folders else "keeps it")
        self._longest = 4096 if folders else longest
        self._title = title
        self._value = value
        self._folders = folders

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog"):
            yield Static(self._title, markup=False, classes="question")
            yield Input(
                inert(self._value),
                compact=True,
                max_length=self._longest,
                suggester=FolderSuggester() if self._folders else None,
            )
            keys = "→ completes · " if self._folders else ""
            yield Static(f"{keys}enter {self._enter} · esc leaves it", classes="hint")

    def action_leave(self) -> None:
        """End without a text."""
        self.dismiss(None)

    @on(Input.Submitted)
    def _submitted(self, event: Input.Submitted) -> None:
        event.stop()
        self.dismiss(inert(event.value.strip()) or None)
