"""The help screen: every action of the table, by place."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from qh_chat.actions import ACTIONS, Action, Place, keys_text
from qh_chat.inert import inert

__all__ = ["HelpScreen"]

PLACES: tuple[tuple[Place, str], ...] = (
    ("composer", "Message box"),
    ("chat", "Chat"),
    ("transcript", "Transcript (tab or esc goes there)"),
    ("chats", "List of chats (f2)"),
    ("models", "Models (f3)"),
    ("app", "Everywhere"),
)


def _rows(place: Place, keys: dict[str, str]) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for action in ACTIONS:
        if action.place != place or not _keys(action, keys):
            continue
        if action.id.startswith("copy_code_"):
            if action.id == "copy_code_1":
                rows.append(("1…9", "Copy the n-th code block of the selected message"))
            continue
        rows.append((_keys(action, keys), action.help))
    if place == "composer":
        rows.append(("↑", "In an empty box: edit the last message"))
    if place == "chats":
        rows.insert(0, ("enter", "Open the marked chat"))
    if place == "models":
        rows.insert(0, ("enter", "Load the marked model, or go on fetching it"))
    if place == "app":
        rows.append(("ctrl+p", "Palette: every action by name, and all themes"))
        rows.append(("ctrl+c", "Copy what the mouse selected; twice: leave"))
    return rows


def _keys(action: Action, keys: dict[str, str]) -> str:
    return inert(keys_text(action, keys))


class HelpScreen(ModalScreen[None]):
    """Keys and what they do.

    Args:
        keys: rebound keys by action id. settings_path: where keys can be changed.
        focused: place that has the focus, listed first.
    """

    CSS_PATH = "help.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,f1", "app.pop_screen", show=False, priority=True),
    ]

    def __init__(self, keys: dict[str, str], settings_path: str, focused: Place) -> None:
        super().__init__()
        self._keys = keys
        self._settings_path = settings_path
        self._focused = focused

    def compose(self) -> ComposeResult:
        order = sorted(PLACES, key=lambda item: item[0] != self._focused)
        with Vertical(id="help"), VerticalScroll():
            for place, title in order:
                yield Static(title, classes="heading", markup=False)
                rows = _rows(place, self._keys)
                width = max(len(keys) for keys, _ in rows) + 2
                lines = [
                    Content.assemble(Content.styled(f"{keys:<{width}}", "$text-accent"), help_text)
                    for keys, help_text in rows
                ]
                yield Static(Content("\n").join(lines), classes="rows")
            yield Static("Mouse", classes="heading")
            yield Static(
                "Click a message to select it, ◂ ▸ for alternatives, a chat to open it, and words "
                "such as copy, again or + new to do what they say. Drag to select text, ctrl+c "
                "copies it; with shift (option on a Mac) the terminal itself selects.",
                classes="rows",
            )
            yield Static(
                inert(f"Keys can be changed by name in the [keys] table of {self._settings_path}"),
                id="keys-file", classes="rows", markup=False,
            )  # fmt: skip

    def on_mount(self) -> None:
        """Name the box."""
        box = self.query_one("#help")
        box.border_title = "Help"
        box.border_subtitle = "esc closes"
        self.query_one(VerticalScroll).focus()
