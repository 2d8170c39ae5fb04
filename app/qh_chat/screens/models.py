"""The model picker: what can be loaded, how far a load is, and why one failed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import DataTable, ProgressBar, Static

from qh_chat.actions import bindings_for
from qh_chat.engine import ModelChoice
from qh_chat.inert import inert
from qh_chat.messages import LoadCancelled, ModelLoading
from qh_chat.screens.dialogs import TextDialog
from qh_chat.widgets.numbers import progress_text, size_text

if TYPE_CHECKING:
    from qh_chat.app import QhChatApp

__all__ = ["ModelsScreen"]

STEPS = {
    "waiting": "waits for the answer that is being written",
    "plan": "adds up the memory it needs",
    "tokenizer": "reads the tokenizer",
    "pack": "packs the weights",
    "decoder": "makes room for the context",
    "ready": "is ready",
}
"""What the steps of the loader are called; other ones are shown as they are."""

KEYS = "enter loads · o other folder · r looks again · esc closes"
KEYS_LOADING = "c stops the load · esc closes"


class ModelsScreen(ModalScreen[None]):
    """Lists models; enter loads one."""

    app: QhChatApp

    CSS_PATH = "models.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,f3", "app.pop_screen", show=False, priority=True),
        *bindings_for("models"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._choices: list[ModelChoice] = []
        self._step: tuple[str, str] = ("", "")
        self._step_began, self._step_done = 0.0, 0

    def compose(self) -> ComposeResult:
        with Vertical(id="models"):
            yield DataTable[Text](id="table", cursor_type="row", zebra_stripes=False)
            yield Static("", id="detail", markup=False)
            yield Static("", id="problem", markup=False)
            with Vertical(id="loading"):
                yield Static("", id="step", markup=False)
                yield ProgressBar(id="bar", show_eta=False, show_percentage=False)

    def on_mount(self) -> None:
        """Fill the table."""
        box = self.query_one("#models")
        box.border_title = "Models"
        table = self._table
        table.add_column("", key="mark", width=1)
        table.add_column("Name", key="name")
        table.add_column("Format", key="format")
        table.add_column("On disk", key="size")
        table.add_column("Kind", key="kind")
        table.focus()
        self.action_refresh()
        self._show_loading(self.app.loading is not None)
        if self.app.loading is not None:
            self.show_loading(self.app.loading)

    @property
    def _table(self) -> DataTable[Text]:
        return self.query_one("#table", DataTable)

    @work(thread=True, exclusive=True)
    def action_refresh(self) -> None:
        """Look for models; reading folders may take a while."""
        choices, problem = self.app.list_models()
        self.app.call_from_thread(self.fill, choices, problem)

    def fill(self, choices: Sequence[ModelChoice], problem: str = "") -> None:
        """Show the rows, the loaded one marked."""
        if not self.is_mounted:
            return
        table, marked = self._table, self._marked
        self._choices = [*choices, *self._loaded_elsewhere(choices)]
        table.clear()
        for choice in self._choices:
            dim = "dim" if choice.problem else ""
            table.add_row(
                Text("▸" if self._is_loaded(choice) else " "),
                Text(inert(choice.name), dim),
                Text("damaged" if choice.problem else inert(choice.format) or "?", dim),
                Text(f"{size_text(choice.file_bytes) if choice.file_bytes else '':>8}", dim),
                Text(inert(choice.model_type), dim),
            )
        wanted = marked.name if marked is not None else self.app.loaded_name
        for index, choice in enumerate(self._choices):
            if choice.name == wanted:
                table.move_cursor(row=index)
        self._show_detail()
        if problem:
            self._say(problem)

    def _is_loaded(self, choice: ModelChoice) -> bool:
        return self.app.engine_info is not None and choice.name == self.app.loaded_name

    def _loaded_elsewhere(self, choices: Sequence[ModelChoice]) -> list[ModelChoice]:
        """The loaded model, where it is from a folder that is not searched."""
        name, info = self.app.loaded_name, self.app.engine_info
        if info is None or not name or any(choice.name == name for choice in choices):
            return []
        return [ModelChoice(name, name, info.model_type, info.format, 0)]

    @on(DataTable.RowHighlighted)
    def _highlighted(self, event: DataTable.RowHighlighted) -> None:
        event.stop()
        self._show_detail()

    def _show_detail(self) -> None:
        """Say where the marked model is, and what is known about it or went wrong with it."""
        choice = self._marked
        if choice is None:
            return
        lines = [choice.where]
        failure = self.app.load_failures.get(choice.name)
        problem = f"cannot be loaded: {choice.problem}" if choice.problem else ""
        info = self.app.engine_info
        if self._is_loaded(choice) and info is not None:
            lines.append(
                f"loaded: {info.parameters / 1e6:,.0f} M parameters, {info.format}, {info.device} "
                f"({info.isa}, {info.threads} threads), context {info.context_length:,} tokens, "
                f"{size_text(info.planned_bytes)} planned"
            )
            lines += info.notes
        self.query_one("#detail", Static).update(inert("\n".join(lines)))
        self._say(failure or problem)

    @on(DataTable.RowSelected)
    def _selected(self, event: DataTable.RowSelected) -> None:
        event.stop()
        choice = self._choice(event.cursor_row)
        if choice is not None:
            self._say("")
            self.app.choose_model(choice.name)

    def _choice(self, row: int) -> ModelChoice | None:
        return self._choices[row] if 0 <= row < len(self._choices) else None

    @property
    def _marked(self) -> ModelChoice | None:
        return self._choice(self._table.cursor_row)

    def action_open(self) -> None:
        """Ask for a folder that is a model or holds models."""

        def look(text: str | None) -> None:
            if text:
                self._say(f"looks into {text} …", problem=False)
                self._look_into(Path(text).expanduser().absolute())

        question = "A model's folder (with its config.json), or a folder that holds such folders"
        self.app.push_screen(TextDialog(question, "", folders=True), look)

    @work(thread=True, exclusive=True)
    def _look_into(self, folder: Path) -> None:
        found = self.app.look_into(folder)
        self.app.call_from_thread(self._looked, folder, found)

    def _looked(self, folder: Path, found: Sequence[ModelChoice] | str) -> None:
        if not self.is_mounted:
            return
        if isinstance(found, str):
            self._say(found)
        elif found:
            self.fill(found)
            here = (i for i, x in enumerate(self._choices) if Path(x.where).parent == folder)
            self._table.move_cursor(row=next(here, 0))
        else:
            self._say("")
            self.app.choose_model(str(folder))

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
        self._show_loading(True)
        now = monotonic()
        if self._step != (event.name, event.step):
            self._step = (event.name, event.step)
            self._step_began, self._step_done = now, event.done
        text = f"{event.name} {STEPS.get(event.step, event.step)}"
        if event.total:
            since = (event.done - self._step_done, now - self._step_began)
            text += f": {progress_text(event.done, event.total, *since)}"
        self.query_one("#step", Static).update(inert(text))
        total = float(event.total) if event.total else None
        self.query_one(ProgressBar).update(total=total, progress=float(event.done))

    def show_ready(self) -> None:
        """The load ended well: back to the chat."""
        self.dismiss(None)

    def show_cancelled(self, event: LoadCancelled) -> None:
        """The load was stopped."""
        self._show_loading(False)
        self._say(f"{event.name} was not loaded: stopped.")

    def show_failure(self, name: str) -> None:
        """Say what went wrong, and what to do now."""
        self._show_loading(False)
        marked = self._marked
        if marked is not None and marked.name == name:
            self._show_detail()
        else:
            self._say(self.app.load_failures.get(name, ""))

    def _show_loading(self, shown: bool) -> None:
        self.query_one("#loading").set_class(shown, "-shown")
        self.query_one("#models").border_subtitle = KEYS_LOADING if shown else KEYS

    def _say(self, text: str, problem: bool = True) -> None:
        shown = self.query_one("#problem", Static)
        shown.update(inert(text))
        shown.set_class(bool(text), "-shown")
        shown.set_class(problem, "-error")
