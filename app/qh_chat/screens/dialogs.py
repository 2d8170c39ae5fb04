"""Two small dialogs: a question with yes and no, and one line of text."""

from __future__ import annotations

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import ModalScreen
from textual.widgets import Button, Input, Static

from qh_chat.inert import inert

__all__ = ["ConfirmDialog", "TextDialog"]


class ConfirmDialog(ModalScreen[bool]):
    """Asks before something that cannot be undone, or that leaves the terminal.

    Args:
        question: what is asked. yes: label of the button that does it.
    """

    CSS_PATH = "dialogs.tcss"
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


class TextDialog(ModalScreen[str | None]):
    """Asks for one line.

    Args:
        title: what is asked for. value: what is there already.
    """

    CSS_PATH = "dialogs.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "leave", show=False)]

    def __init__(self, title: str, value: str) -> None:
        super().__init__()
        self._title = title
        self._value = value

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog"):
            yield Static(self._title, markup=False, classes="question")
            yield Input(inert(self._value), compact=True, max_length=200)
            yield Static("enter keeps it · esc leaves it", classes="hint")

    def action_leave(self) -> None:
        """End without a text."""
        self.dismiss(None)

    @on(Input.Submitted)
    def _submitted(self, event: Input.Submitted) -> None:
        event.stop()
        self.dismiss(inert(event.value.strip()) or None)
