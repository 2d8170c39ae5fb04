"""The model picker: what can be loaded, how far a load is, and why one failed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import ModalScreen
from textual.widgets import DataTable, ProgressBar, Static

from qh_chat.engine import ModelChoice
from qh_chat.inert import inert
from qh_chat.messages import EngineFailed, LoadCancelled, ModelLoading, ModelReady
from qh_chat.widgets.numbers import size_text

if TYPE_CHECKING:
    from qh_chat.app import QhChatApp

__all__ = ["ModelsScreen"]


class ModelsScreen(ModalScreen[None]):
    """Lists models; enter loads one, c stops a load."""

    app: QhChatApp

    CSS_PATH = "models.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,f3", "app.pop_screen", show=False, priority=True),
        Binding("c", "cancel", show=False),
        Binding("r", "refresh", show=False),
        Binding("j", "down", show=False),
        Binding("k", "up", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._choices: list[ModelChoice] = []

    def compose(self) -> ComposeResult:
        with Vertical(id="models"):
            yield DataTable[Text](id="table", cursor_type="row", zebra_stripes=False)
            yield Static("", id="detail", markup=False)
            with Horizontal(id="loading"):
                yield Static("", id="step", markup=False)
                yield ProgressBar(id="bar", show_eta=False)
            yield Static("", id="problem", markup=False)

    def on_mount(self) -> None:
        """Fill the table."""
        box = self.query_one("#models")
        box.border_title = "Models"
        box.border_subtitle = "enter loads · c stops a load · r looks again · esc closes"
        table = self._table
        table.add_column("", key="mark", width=1)
        table.add_column("Name", key="name")
        table.add_column("Format", key="format")
        table.add_column("On disk", key="size")
        table.add_column("Kind", key="kind")
        table.focus()
        self.action_refresh()
        loading = self.app.loading
        if loading is not None:
            self.show_loading(loading)
        if self.app.load_failure is not None:
            self.show_failure(self.app.load_failure)

    @property
    def _table(self) -> DataTable[Text]:
        return self.query_one("#table", DataTable)

    @work(thread=True, exclusive=True)
    def action_refresh(self) -> None:
        """Look for models; reading folders may take a while."""
        choices, problem = self.app.list_models()
        self.app.call_from_thread(self.fill, choices, problem)

    def fill(self, choices: Sequence[ModelChoice], problem: str) -> None:
        """Show the rows, the loaded one marked."""
        if not self.is_mounted:
            return
        self._choices = list(choices)
        table = self._table
        table.clear()
        info = self.app.engine_info
        for choice in choices:
            loaded = info is not None and choice.name == self.app.loaded_name
            dim = "dim" if choice.problem else ""
            table.add_row(
                Text("▸" if loaded else " "),
                Text(inert(choice.name), dim),
                Text(inert(choice.format) or "?", dim),
                Text(f"{size_text(choice.file_bytes):>8}", dim),
                Text(inert(choice.model_type), dim),
            )
        for index, choice in enumerate(choices):
            if choice.name == self.app.loaded_name:
                table.move_cursor(row=index)
        self._show_problem(problem)

    @on(DataTable.RowHighlighted)
    def _highlighted(self, event: DataTable.RowHighlighted) -> None:
        event.stop()
        choice = self._choice(event.cursor_row)
        detail = self.query_one("#detail", Static)
        if choice is None:
            detail.update("")
            return
        lines = [inert(choice.where)]
        if choice.problem:
            lines.append(inert(f"cannot be loaded: {choice.problem}"))
        elif choice.name == self.app.loaded_name and self.app.engine_info is not None:
            info = self.app.engine_info
            lines.append(
                f"loaded: {info.parameters / 1e6:,.0f} M parameters, {info.format}, {info.device} "
                f"({info.isa}, {info.threads} threads), context {info.context_length:,} tokens, "
                f"{size_text(info.planned_bytes)} planned"
            )
        detail.update(inert("\n".join(lines)))

    @on(DataTable.RowSelected)
    def _selected(self, event: DataTable.RowSelected) -> None:
        event.stop()
        choice = self._choice(event.cursor_row)
        if choice is None:
            return
        self._show_problem("")
        self.app.load_model(choice.name)

    def _choice(self, row: int) -> ModelChoice | None:
        return self._choices[row] if 0 <= row < len(self._choices) else None

    def action_cancel(self) -> None:
        """Stop the load."""
        self.app.engine.cancel_load()

    def action_down(self) -> None:
        """Next row."""
        self._table.action_cursor_down()

    def action_up(self) -> None:
        """Previous row."""
        self._table.action_cursor_up()

    def show_loading(self, event: ModelLoading) -> None:
        """Show how far the load is."""
        self.query_one("#loading").add_class("-shown")
        self.query_one("#step", Static).update(inert(f"{event.name}: {event.step}"))
        total = float(event.total) if event.total else None
        self.query_one(ProgressBar).update(total=total, progress=float(event.done))

    def show_ready(self, event: ModelReady) -> None:
        """The load ended well: back to the chat."""
        self.query_one("#loading").remove_class("-shown")
        self.dismiss(None)

    def show_cancelled(self, event: LoadCancelled) -> None:
        """The load was stopped."""
        self.query_one("#loading").remove_class("-shown")
        self._show_problem(f"{event.name} was not loaded: stopped.")

    def show_failure(self, event: EngineFailed) -> None:
        """Say what went wrong, and what to do now."""
        self.query_one("#loading").remove_class("-shown")
        hint = f"\n→ {event.hint}" if event.hint else ""
        bug = f"\n→ a bug; the log has more: {self.app.log_path}" if event.bug else ""
        self._show_problem(f"{event.text}{hint}{bug}")

    def _show_problem(self, text: str) -> None:
        problem = self.query_one("#problem", Static)
        problem.update(inert(text))
        problem.set_class(bool(text), "-shown")
