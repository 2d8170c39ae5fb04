"""The model picker: what can be loaded, how far a load or a fetch is, and why one failed."""

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
from textual.widgets import DataTable, ProgressBar, Static

from qh_chat.actions import bindings_for
from qh_chat.engine import ModelChoice
from qh_chat.inert import inert
from qh_chat.jobs import Job
from qh_chat.messages import LoadCancelled, ModelLoading
from qh_chat.screens.dialogs import TextDialog
from qh_chat.screens.model_jobs import ModelJobs
from qh_chat.widgets.job_lines import JobLines, state_text
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

WIDE = 100
"""Columns of a window that has room for what models are, and for every key."""

KEYS = (
    "[@click=screen.load]enter loads[/] · [@click=screen.pull]p pull[/] · "
    "[@click=screen.import]i import[/] · [@click=screen.verify]v verify[/] · "
    "[@click=screen.remove]x remove[/] · [@click=screen.disk]u disk[/] · "
)
KEYS_END = "[@click=screen.close]esc[/]"
KEYS_WIDE = f"{KEYS}[@click=screen.open]o folder[/] · {KEYS_END}"
KEYS_LOADING = "[@click=screen.cancel]c stops the load[/] · [@click=screen.close]esc closes[/]"


class ModelsScreen(ModelJobs):
    """Lists models; enter loads one."""

    app: QhChatApp

    CSS_PATH = "models.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,f3", "close", show=False, priority=True),
        *bindings_for("models"),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._choices: list[ModelChoice] = []
        # A row to move to as soon as it is there, and the one whose sentence is shown.
        self._wanted, self._shown = "", ""
        self._detail = ""
        self._step: tuple[str, str] = ("", "")
        self._step_began, self._step_done = 0.0, 0

    def compose(self) -> ComposeResult:
        with Vertical(id="models"):
            yield DataTable[Text](id="table", cursor_type="row", zebra_stripes=False)
            yield Static("", id="detail", markup=False)
            yield JobLines()
            yield Static("", id="problem", markup=False)
            with Vertical(id="loading"):
                yield Static("", id="step", markup=False)
                yield ProgressBar(id="bar", show_eta=False, show_percentage=False)

    def on_mount(self) -> None:
        """Fill the table."""
        box = self.query_one("#models")
        box.border_title = "Models"
        self._make_columns()
        self._table.focus()
        self.action_refresh()
        self.show_jobs()
        self._show_loading(self.app.loading is not None)
        if self.app.loading is not None:
            self.show_loading(self.app.loading)

    def _make_columns(self) -> None:
        table = self._table
        table.clear(columns=True)
        table.add_column("", key="mark", width=1)
        table.add_column("Name", key="name")
        table.add_column("Format", key="format")
        table.add_column("On disk", key="size")
        if self._is_wide:
            table.add_column("Kind", key="kind")
        table.add_column("State", key="state")

    @property
    def _table(self) -> DataTable[Text]:
        return self.query_one("#table", DataTable)

    def action_refresh(self) -> None:
        """Look for models."""
        self._list()

    @work(thread=True, exclusive=True, group="list")
    def _list(self) -> None:
        """Reading folders may take a while."""
        choices, problem = self.app.list_models()
        self.app.call_from_thread(self.fill, choices, problem)

    def fill(self, choices: Sequence[ModelChoice], problem: str = "") -> None:
        """Show the rows, the loaded one marked."""
        if not self.is_mounted:
            return
        table, marked = self._table, self.marked
        self._choices = [*choices, *self._loaded_elsewhere(choices)]
        self._choices += self._only_begun(self._choices)
        table.clear()
        for choice in self._choices:
            dim = "dim" if choice.problem and not choice.goes_on else ""
            here = choice.done_bytes if choice.goes_on else choice.file_bytes
            kind = [Text(inert(choice.model_type), dim)] if self._is_wide else []
            table.add_row(
                Text("▸" if self._is_loaded(choice) else " "),
                Text(inert(choice.name), dim),
                Text(inert(choice.format) or "?", dim),
                Text(f"{size_text(here) if here else '':>8}", dim),
                *kind,
                self._state(choice),
                key=choice.name,
            )
        self._move_to(self._wanted or (marked.name if marked else self.app.loaded_name or ""))
        marked = self.marked
        if self._shown and marked is not None:
            # What was said last is read until the person moves on.
            self._shown = marked.name
        self._show_detail()
        if problem:
            self.say(problem)

    @property
    def _is_wide(self) -> bool:
        return self.app.size.width >= WIDE

    def on_resize(self) -> None:
        """The columns are others in a wide window."""
        if ("kind" in self._table.columns) != self._is_wide:
            if self.marked is not None:
                self._wanted = self.marked.name
            self._make_columns()
            self.fill([x for x in self._choices if x.where])
        self._show_loading(self.app.loading is not None)

    def _move_to(self, name: str) -> None:
        for index, choice in enumerate(self._choices):
            if choice.name == name:
                self._table.move_cursor(row=index)
                self._wanted = ""

    def _state(self, choice: ModelChoice) -> Text:
        """What the table says about a model at the end of its row."""
        job = self.app.downloads.job(choice.name)
        if job is not None:
            return Text(state_text(job))
        if choice.goes_on:
            share = 100 * choice.done_bytes // max(1, choice.file_bytes)
            return Text(f"paused {min(99, share)} %")
        if choice.problem:
            return Text("damaged", "dim")
        return Text("loaded" if self._is_loaded(choice) else "ready")

    def _only_begun(self, choices: Sequence[ModelChoice]) -> list[ModelChoice]:
        """Models of jobs that the store does not know of yet."""
        known = {x.name for x in choices}
        jobs = (x for x in self.app.downloads.jobs if x.name not in known)
        return [ModelChoice(x.name, "", "", "", x.total_bytes) for x in jobs]

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

    def _show_detail(self, *, again: bool = False) -> None:
        """Say where the marked model is, and what is known about it or went wrong with it.

        Args:
            again: say what went wrong also if the mark has not moved.
        """
        choice = self.marked
        if choice is None:
            return
        lines = [choice.where]
        failure = self.app.load_failures.get(choice.name)
        problem = f"cannot be loaded: {choice.problem}" if choice.problem else ""
        if choice.goes_on:
            here = f"{size_text(choice.done_bytes)} of {size_text(choice.file_bytes)} are here"
            if self.app.downloads.job(choice.name) is None:
                lines.append(f"{here}; enter goes on, x frees them")
            problem = ""
        info = self.app.engine_info
        if self._is_loaded(choice) and info is not None:
            lines.append(
                f"loaded: {info.parameters / 1e6:,.0f} M parameters, {info.format}, {info.device} "
                f"({info.isa}, {info.threads} threads), context {info.context_length:,} tokens, "
                f"{size_text(info.planned_bytes)} planned"
            )
            lines += info.notes
        text = inert("\n".join(lines))
        if text != self._detail:
            self._detail = text
            self.query_one("#detail", Static).update(text)
        if choice.name == self._shown and not again:
            return
        self._shown = choice.name
        ended = self.app.ended_jobs.get(choice.name)
        if ended is not None and not failure:
            self._say_end(ended)
        else:
            self.say(failure or problem)

    def _say_end(self, job: Job) -> None:
        self.say(_end_text(job), job.state in ("failed", "damaged"))

    @on(DataTable.RowSelected)
    def _selected(self, event: DataTable.RowSelected) -> None:
        event.stop()
        self.action_load()

    def action_load(self) -> None:
        """Load the marked model, or go on with what it waits for."""
        choice = self.marked
        if choice is None:
            return
        job = self.app.downloads.job(choice.name)
        if job is not None and job.state == "asking":
            self.action_show_card(job.number)
        elif job is not None and job.kind in ("pull", "import"):
            self.say(f"{choice.name} is not all here yet", False)
        elif choice.goes_on:
            self.go_on(choice)
        elif choice.where:
            self.say("")
            self.app.choose_model(choice.name)

    def _choice(self, row: int) -> ModelChoice | None:
        return self._choices[row] if 0 <= row < len(self._choices) else None

    @property
    def marked(self) -> ModelChoice | None:
        """The model of the row with the cursor."""
        return self._choice(self._table.cursor_row)

    def mark(self, name: str) -> None:
        """Move to a model's row, now or when it comes."""
        self._wanted = name
        self._move_to(name)

    def action_open(self) -> None:
        """Ask for a folder that is a model or holds models."""

        def look(text: str | None) -> None:
            if text:
                self.say(f"looks into {text} …", problem=False)
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
            self.say(found)
        elif found:
            self.fill(found)
            here = (i for i, x in enumerate(self._choices) if Path(x.where).parent == folder)
            self._table.move_cursor(row=next(here, 0))
        else:
            self.say("")
            self.app.choose_model(str(folder))

    def action_close(self) -> None:
        """Back to the chat."""
        self.dismiss(None)

    def on_screen_resume(self) -> None:
        """A dialog was closed, or this screen was opened."""
        self.call_after_refresh(self.ask_next)

    def show_job(self, job: Job, ended: bool) -> None:
        """Show how far a job is, or how it ended."""
        self.show_jobs()
        choice = next((x for x in self._choices if x.name == job.name), None)
        # The store knows a model from the first byte on.
        if ended or choice is None or (job.state == "moving" and not choice.where):
            self.action_refresh()
        else:
            self._table.update_cell(job.name, "state", self._state(choice), update_width=True)
        self._show_detail()
        if ended:
            self._say_end(job)
            if job.state == "damaged" and self.app.screen is self:
                self.offer_repair(job)
        self.ask_next()

    def show_jobs(self) -> None:
        """Draw the running jobs."""
        self.query_one(JobLines).jobs = self.app.downloads.jobs

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
        self.say(f"{event.name} was not loaded: stopped.")

    def show_failure(self, name: str) -> None:
        """Say what went wrong, and what to do now."""
        self._show_loading(False)
        marked = self.marked
        if marked is not None and marked.name == name:
            self._show_detail(again=True)
        else:
            self.say(self.app.load_failures.get(name, ""))

    def _show_loading(self, shown: bool) -> None:
        self.query_one("#loading").set_class(shown, "-shown")
        keys = KEYS_WIDE if self._is_wide else f"{KEYS}{KEYS_END}"
        self.query_one("#models").border_subtitle = KEYS_LOADING if shown else keys

    def say(self, text: str, problem: bool = True) -> None:
        """Show a sentence below the table."""
        shown = self.query_one("#problem", Static)
        shown.update(inert(text))
        shown.set_class(bool(text), "-shown")
        shown.set_class(problem, "-error")


def _end_text(job: Job) -> str:
    """How a job ended, in a sentence."""
    if job.state == "failed":
        return job.failure
    if job.state == "damaged":
        return f"{job.name} is damaged; v reads it again and offers to repair it"
    return job.text
