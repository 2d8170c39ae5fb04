"""What frees how much: every model with what it takes, and what is left over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import DataTable, Static

from qh_chat.inert import inert
from qh_chat.model_words import left_over_lines
from qh_chat.screens.dialogs import Choice, ChoiceDialog
from qh_runtime.errors import QhError
from qh_runtime.units import gigabytes

if TYPE_CHECKING:
    from qh_chat.app import QhChatApp
    from qh_runtime.store.disk import DiskUse, Pruning, Removal

__all__ = ["DiskScreen"]

LEFT_OVER = "left over"
WIDE = 100
"""Columns of a window that has room for what models share, too."""

_STATES = {"pulling": "paused", "damaged": "damaged"}


class DiskScreen(ModalScreen[str | None]):
    """The sums of `du`; ends with the name of a model that is to be removed."""

    app: QhChatApp

    CSS_PATH = "disk.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,u", "leave", show=False),
        Binding("j", "down", show=False),
        Binding("k", "up", show=False),
        Binding("x,delete", "free", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._rows: list[str] = []
        self._sizes: list[str] = []
        # Names of models outside the store, of which only the packed form can be freed.
        self._folders: set[str] = set()

    def compose(self) -> ComposeResult:
        with Vertical(id="disk"):
            yield DataTable[Text](id="sums", cursor_type="row")
            yield Static("adds up …", id="total", markup=False)

    def on_mount(self) -> None:
        """Add up."""
        box = self.query_one("#disk")
        box.border_title = "What frees how much"
        box.border_subtitle = "enter frees, after a question · esc closes"
        table = self._table
        table.add_column("Model", key="Model")
        self._sizes = ["own", "shared", "packed", "frees"]
        if self.app.size.width < WIDE:
            self._sizes.remove("shared")
        for name in self._sizes:
            table.add_column(Text(f"{name:>8}"), key=name, width=8)
        table.focus()
        self._add_up()

    @property
    def _table(self) -> DataTable[Text]:
        return self.query_one("#sums", DataTable)

    @work(thread=True, exclusive=True)
    def _add_up(self) -> None:
        try:
            use = self.app.shelf.use(self.app.settings)
        except QhError as error:
            self.app.call_from_thread(self._say, str(error))
            return
        self.app.call_from_thread(self.fill, use)

    def fill(self, use: DiskUse) -> None:
        """Show the sums, the largest gain first."""
        if not self.is_mounted:
            return
        table = self._table
        table.clear()
        self._rows, self._folders = [], set()
        for x in sorted(use.models, key=lambda x: (x.state == "folder", -x.freed_bytes)):
            if x.state == "folder" and not x.packed_bytes:
                continue
            state = f" ({_STATES[x.state]})" if x.state in _STATES else ""
            sizes = {"own": x.own_bytes, "shared": x.shared_bytes, "packed": x.packed_bytes}
            self._add(x.name, state, {**sizes, "frees": x.freed_bytes})
            self._rows.append(x.name)
            if x.state == "folder":
                self._folders.add(x.name)
        if use.left_over_bytes:
            self._add("left over, which no model needs", "", {"frees": use.left_over_bytes})
            self._rows.append(LEFT_OVER)
        parts = [f"{gigabytes(use.total_bytes)} in all"]
        if use.shared_bytes:
            parts.append(f"{gigabytes(use.shared_bytes)} of it shared")
        if use.unfinished_bytes:
            parts.append(f"{gigabytes(use.unfinished_bytes)} of fetches that go on later")
        if use.other_packed_bytes:
            parts.append(f"{gigabytes(use.other_packed_bytes)} packed from folders elsewhere")
        self._say(" · ".join(parts))

    def _add(self, name: str, state: str, sizes: Mapping[str, int]) -> None:
        """A row; a long name loses its end, so that no number is out of sight."""
        room = self._table.size.width - 10 * len(self._sizes) - 2 - len(state)
        shown = Text(inert(name))
        shown.truncate(max(8, room), overflow="ellipsis")
        found = (sizes.get(x, 0) for x in self._sizes)
        numbers = (Text(f"{gigabytes(x) if x else '-':>8}") for x in found)
        self._table.add_row(shown.append(state), *numbers)

    def _say(self, text: str) -> None:
        if self.is_mounted:
            self.query_one("#total", Static).update(inert(text))

    @on(DataTable.RowSelected)
    def _selected(self, event: DataTable.RowSelected) -> None:
        event.stop()
        self.action_free()

    def action_free(self) -> None:
        """Free what is marked, after a question."""
        row = self._table.cursor_row
        name = self._rows[row] if 0 <= row < len(self._rows) else ""
        if name == LEFT_OVER:
            self._look_what_goes()
        elif name in self._folders:
            self._look_what_is_packed(name)
        elif name:
            self.dismiss(name)

    @work(thread=True)
    def _look_what_is_packed(self, name: str) -> None:
        try:
            planned = self.app.shelf.remove_packed(name, self.app.settings, dry_run=True)
        except QhError as error:
            self.app.call_from_thread(self._say, str(error))
            return
        self.app.call_from_thread(self._ask_packed, planned)

    def _ask_packed(self, planned: Removal) -> None:
        if planned.name in (self.app.loaded_name, self.app.loading_name):
            self._say(f"{planned.name} is loaded. Load another model first.")
            return
        size = gigabytes(planned.freed_bytes)
        choices = (Choice("free", f"free {size}", "y"), Choice("no", "no", "esc"))

        def answered(answer: str | None) -> None:
            if answer == "free":
                self._remove_packed(planned.name)

        text = "Its own files stay. The next load makes the packed form again."
        title = f"The packed form of {planned.name}"
        self.app.push_screen(ChoiceDialog(title, text, choices), answered)

    @work(thread=True)
    def _remove_packed(self, name: str) -> None:
        try:
            self.app.shelf.remove_packed(name, self.app.settings)
        except QhError as error:
            self.app.call_from_thread(self._say, str(error))
            return
        self.app.call_from_thread(self._add_up)

    @work(thread=True)
    def _look_what_goes(self) -> None:
        try:
            planned = self.app.shelf.prune(dry_run=True)
        except QhError as error:
            self.app.call_from_thread(self._say, str(error))
            return
        self.app.call_from_thread(self._ask, planned)

    def _ask(self, planned: Pruning) -> None:
        choices = (
            Choice("free", f"free {gigabytes(planned.freed_bytes)}", "y"),
            Choice("no", "no", "esc"),
        )

        def answered(answer: str | None) -> None:
            if answer == "free":
                self._prune()

        text = "\n".join(left_over_lines(planned)) or "Nothing is old enough to be sure of."
        self.app.push_screen(ChoiceDialog("What no model needs", text, choices), answered)

    @work(thread=True)
    def _prune(self) -> None:
        try:
            self.app.shelf.prune()
        except QhError as error:
            self.app.call_from_thread(self._say, str(error))
            return
        self.app.call_from_thread(self._add_up)

    def action_down(self) -> None:
        """Next row."""
        self._table.action_cursor_down()

    def action_up(self) -> None:
        """Previous row."""
        self._table.action_cursor_up()

    def action_leave(self) -> None:
        """Close."""
        self.dismiss(None)
