"""The Textual app: what all screens share (settings, history, engine), its begin and its end."""

from __future__ import annotations

import asyncio
import difflib
import logging
import os
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import ClassVar

import psutil  # type: ignore[import-untyped]
from rich.text import Text
from textual import on
from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.command import Provider
from textual.message import Message
from textual.screen import Screen

from qh_chat.actions import Place, action_ids, bindings_for
from qh_chat.clipboard import copy_text
from qh_chat.downloads import Downloads
from qh_chat.engine import EngineThread, ModelChoice, ModelSource
from qh_chat.history.store import HistoryStore
from qh_chat.inert import inert
from qh_chat.jobs import Job
from qh_chat.messages import EngineFailed, JobChanged, LoadCancelled, ModelLoading, ModelReady
from qh_chat.palette import ActionProvider
from qh_chat.places import Places
from qh_chat.screens.chat import ChatScreen
from qh_chat.screens.help import HelpScreen
from qh_chat.screens.models import ModelsScreen
from qh_chat.screens.settings import SettingsScreen
from qh_chat.settings import Settings, SettingsError, Value
from qh_chat.settings_file import save_values
from qh_chat.shelf import Shelf
from qh_chat.terminal_keys import teach_alt_enter
from qh_chat.themes import DARK, LIGHT
from qh_chat.widgets.composer import Composer
from qh_chat.widgets.job_lines import jobs_text
from qh_chat.widgets.status_bar import StatusBar
from qh_chat.widgets.transcript import Transcript
from qh_runtime.errors import QhError
from qh_runtime.session.events import EngineInfo

__all__ = ["QhChatApp"]

log = logging.getLogger(__name__)

MEMORY_S = 2.0
"""How often the memory figure of the status line is read anew."""


class QhChatApp(App[int]):
    """qh-chat on the terminal.

    Args:
        settings: as they apply now. places: the files it uses.
        models: where models come from. shelf: the store that they are pulled into.
        model: loaded at the start; None takes the settings' or the source's default.
        clock: seconds since 1970.
        measure_memory: show the memory of the process; off where screens are compared.
    """

    TITLE = "qh-chat"
    COMMANDS: ClassVar[set[type[Provider] | Callable[[], type[Provider]]]] = App.COMMANDS | {
        ActionProvider
    }
    BINDINGS: ClassVar[list[BindingType]] = [
        *bindings_for("app"),
        Binding("ctrl+c", "interrupt", show=False, system=True),
    ]
    # Textual does not read the style sheet of a default screen by itself.
    CSS_PATH = "screens/chat.tcss"
    ENABLE_COMMAND_PALETTE = True

    def __init__(
        self,
        settings: Settings,
        places: Places,
        models: ModelSource,
        shelf: Shelf,
        *,
        model: str | None = None,
        clock: Callable[[], float] = time.time,
        measure_memory: bool = True,
    ) -> None:
        super().__init__()
        teach_alt_enter()
        self.settings = settings
        self.places = places
        self.models = models
        self.shelf = shelf
        self.clock = clock
        self.history = HistoryStore(places.history, clock)
        self.engine_info: EngineInfo | None = None
        self.loaded_name: str | None = None
        self.loading: ModelLoading | None = None
        self.load_failures: dict[str, str] = {}
        """Why models were not loaded, by the name that was asked for."""
        self.ended_jobs: dict[str, Job] = {}
        """How the last job of a model ended, by its name."""
        self._start_model = model
        self._chosen_model: str | None = None
        self._measure_memory = measure_memory
        self._ended = False
        self._interrupted_at = -10.0
        self.chat = ChatScreen()
        self.engine = EngineThread(models, self._from_engine)
        self.downloads = Downloads(shelf, self.post_message)
        # ctrl+q belongs to the terminal's flow control; f10 and ctrl+c twice leave.
        self._bindings.key_to_bindings.pop("ctrl+q", None)

    @property
    def model_name(self) -> str:
        """Name of the model that answers, or will."""
        if self.engine_info is not None:
            return self.engine_info.name
        return self.loading_name or ""

    @property
    def loading_name(self) -> str | None:
        """Name of the model that is being loaded."""
        return self.loading.name if self.loading is not None else None

    @property
    def log_path(self) -> Path:
        """The log file."""
        return self.places.log

    def get_default_screen(self) -> Screen[None]:
        """The chat is below everything."""
        return self.chat

    def on_mount(self) -> None:
        """Set the look, begin to load, and listen to signals."""
        self.register_theme(DARK)
        self.register_theme(LIGHT)
        wanted = self.settings.look.theme
        if wanted in self.available_themes:
            self.theme = wanted
        else:
            self.theme = DARK.name
            self.notify(
                inert(f"There is no theme {wanted!r}; qh-dark is used."), severity="warning",
                markup=False,
            )  # fmt: skip
        self._set_keys()
        self._catch_signals()
        self._load(self._start_model or self.settings.models.model or self._default_model())
        if self._measure_memory:
            self.set_interval(MEMORY_S, self._read_memory)

    def _set_keys(self) -> None:
        """Rebind what [keys] names; a name that is not there is told with its nearest."""
        known = action_ids()
        for name in self.settings.keys:
            if name not in known:
                near = difflib.get_close_matches(name, sorted(known), n=1)
                meant = f" Did you mean {near[0]!r}?" if near else ""
                self.notify(
                    inert(f"[keys] of {self.places.settings}: no action is named {name!r}.{meant}"),
                    severity="warning",
                    markup=False,
                    timeout=12,
                )
        self.set_keymap({k: v for k, v in self.settings.keys.items() if k in known})

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        """Of Textual's own palette entries only the themes; the rest is in the action table."""
        yield SystemCommand("Theme", "All colour themes", self.action_change_theme)

    def _from_engine(self, message: Message) -> None:
        """Hand a message of the engine thread to the app (loads) or the chat (answers)."""
        answer = isinstance(message, EngineFailed) and message.doing != "load"
        own = isinstance(message, ModelLoading | ModelReady | LoadCancelled | EngineFailed)
        target = self if own and not answer else self.chat
        target.post_message(message)

    # Models

    def _default_model(self) -> str:
        try:
            return self.models.default
        except QhError as error:
            log.error("no default model: %s", error)
            return ""

    def choose_model(self, name: str) -> None:
        """Load a model that the person picked, and start with it from now on if that works."""
        self._chosen_model = name
        self._load(name)

    def _load(self, name: str) -> None:
        """Load a model in the background, after the running answer if there is one."""
        self.load_failures.pop(name, None)
        self.engine.load(name, self.settings.load_options())

    def list_models(self) -> tuple[Sequence[ModelChoice], str]:
        """Models that can be chosen, and what went wrong; called on a worker thread."""
        try:
            return self.models.list(), ""
        except QhError as error:
            return [], str(error)

    def look_into(self, folder: Path) -> Sequence[ModelChoice] | str:
        """What a folder is for the model picker; called on a worker thread.

        Returns:
            Nothing for a model itself; all models now that a folder of models is searched too;
            else what is wrong with it.
        """
        try:
            if not folder.is_dir():
                return f"{folder}: there is no such folder"
            if (folder / "config.json").exists() or next(folder.glob("*.safetensors"), None):
                return []
        except OSError as error:
            return f"{folder}: {error.strerror}"
        before = self.settings.models.folders
        self.models.search([*before, str(folder)])
        choices, problem = self.list_models()
        if not any(Path(choice.where).parent == folder for choice in choices):
            self.models.search(before)
            return problem or (
                f"{folder}: expected config.json and model.safetensors in it or in the folders "
                "below it, found neither"
            )
        if str(folder) not in before:
            self.call_from_thread(self._search_folders, (*before, str(folder)))
        return choices

    def _search_folders(self, folders: tuple[str, ...]) -> None:
        try:
            self.change_setting("models.folders", folders)
        except SettingsError as error:
            self.notify(inert(str(error)), severity="warning", markup=False)

    @on(ModelLoading)
    def _model_loading(self, event: ModelLoading) -> None:
        self.loading = event
        share = f" {100 * event.done // event.total} %" if event.total else ""
        self._status(loading=f"loading {event.name}{share}", failed=False)
        if isinstance(self.screen, ModelsScreen):
            self.screen.show_loading(event)

    @on(ModelReady)
    def _model_ready(self, event: ModelReady) -> None:
        self.loaded_name = self.loading_name
        self.loading = None
        self.engine_info = event.info
        self._status(
            info=event.info, loading="", failed=False, context_used=None, left_out=0,
            tokens_per_s=None, first_token_s=None,
        )  # fmt: skip
        if self.loaded_name is not None and self.loaded_name == self._chosen_model:
            self.chat.banner("")
            self._remember(self.loaded_name)
        for note in event.info.notes:
            self.notify(inert(note), title=inert(event.info.name), markup=False, timeout=10)
        self.chat.model_changed()
        self.chat.count_context(0.05)
        if isinstance(self.screen, ModelsScreen):
            self.screen.show_ready()

    def _remember(self, name: str) -> None:
        """Begin with this model the next time."""
        wanted = None if name == self._default_model() else name
        try:
            if self.settings.models.model != wanted:
                self.change_setting("models.model", wanted)
        except SettingsError as error:
            self.notify(inert(str(error)), severity="warning", markup=False)

    @on(LoadCancelled)
    def _load_cancelled(self, event: LoadCancelled) -> None:
        if self.loading_name == event.name:
            self.loading = None
            self._status(loading="", failed=self.engine_info is None)
        if isinstance(self.screen, ModelsScreen):
            self.screen.show_cancelled(event)

    @on(EngineFailed)
    def _load_failed(self, event: EngineFailed) -> None:
        name, self.loading = self.loading_name or "", None
        self._status(loading="", failed=True)
        hint = event.hint or ("f3 picks another model" if not event.bug else None)
        log_line = f" (a bug; the log has more: {self.log_path})" if event.bug else ""
        text = f"{name} was not loaded: {event.text}{log_line}" + (f" → {hint}" if hint else "")
        self.load_failures[name] = text
        if isinstance(self.screen, ModelsScreen) and self.engine_info is not None:
            self.screen.show_failure(name)
            return
        # What was remembered may be gone by now; the built-in model is always there.
        instead = self._default_model()
        if self.engine_info is None and name == self.settings.models.model != instead:
            text += f". Until then {instead} answers."
            self._load(instead)
        self.chat.banner(text, error=True)
        if isinstance(self.screen, ModelsScreen):
            self.screen.show_failure(name)

    # Long work on stored models

    @property
    def _picker(self) -> ModelsScreen | None:
        return next((x for x in self.screen_stack if isinstance(x, ModelsScreen)), None)

    @on(JobChanged)
    def _job_changed(self, event: JobChanged) -> None:
        job, picker = event.job, self._picker
        self._status(jobs=jobs_text(self.downloads.jobs))
        if job.ended:
            self.ended_jobs[job.name] = job
        else:
            self.ended_jobs.pop(job.name, None)
        if picker is not None:
            picker.show_job(job, job.ended)
        else:
            self._tell(job)

    def _tell(self, job: Job) -> None:
        """Say to somebody who is in a chat what became of a job."""
        if job.state == "asking":
            self.notify(inert(f"f3 shows what fetching {job.name} means."), markup=False)
        elif job.state == "done":
            then = "; f3 loads it" if job.fetches else ""
            self.notify(inert(f"{job.text}{then}"), markup=False, timeout=10)
        elif job.state == "damaged":
            text = f"{job.name} is damaged; f3, then v, offers to repair it."
            self.notify(inert(text), severity="error", markup=False, timeout=20)
        elif job.state == "failed":
            self.notify(inert(job.failure), severity="error", markup=False, timeout=20)

    def forget_model(self, name: str) -> None:
        """A model was removed: the next start does not ask for it."""
        self.load_failures.pop(name, None)
        self.ended_jobs.pop(name, None)
        if self.settings.models.model == name:
            try:
                self.change_setting("models.model", None)
            except SettingsError as error:
                self.notify(inert(str(error)), severity="warning", markup=False)

    # Settings and status

    def change_setting(self, key: str, value: Value) -> None:
        """Apply and save one setting. Raises SettingsError; then the value holds until the end."""
        self.settings = self.settings.with_value(key, value)
        if key == "look.theme" and self.settings.look.theme in self.available_themes:
            self.theme = self.settings.look.theme
        if key == "look.blink":
            self.chat.composer.cursor_blink = self.settings.look.blink
        if key == "models.folders":
            self.models.search(self.settings.models.folders)
        save_values(self.places.settings, {key: value})

    def check_history(self) -> None:
        """Tell the person when the history has something to say."""
        notice = self.history.take_notice()
        if notice is not None:
            self.chat.banner(notice, error=not self.history.saved)
        self._status(history="" if self.history.saved else "not saved")

    def _status(self, **facts: object) -> None:
        bar = self.chat.query_one(StatusBar)
        bar.facts = bar.facts.changed(**facts)

    def _read_memory(self) -> None:
        self._status(rss_bytes=psutil.Process().memory_info().rss)

    # Actions

    def action_help(self) -> None:
        """Show every key."""
        focused = self.focused
        place: Place = "chat"
        if isinstance(focused, Composer):
            place = "composer"
        elif isinstance(focused, Transcript):
            place = "transcript"
        self._open(HelpScreen(dict(self.settings.keys), str(self.places.settings), place))

    def action_models(self) -> None:
        """Show the model picker."""
        self._open(ModelsScreen())

    def action_pull(self) -> None:
        """Ask for a model of the hub."""
        picker = ModelsScreen()
        self._open(picker)
        if self.screen is picker:
            picker.call_after_refresh(picker.action_pull)

    def action_settings(self) -> None:
        """Show the settings."""
        self._open(SettingsScreen())

    def _open(self, screen: Screen[None]) -> None:
        # One dialog at a time: a function key in a dialog does not stack a second one.
        if self.screen is self.chat:
            self.push_screen(screen)

    def action_toggle_dark(self) -> None:
        """Change between the light and the dark theme."""
        self.theme = LIGHT.name if self.current_theme.dark else DARK.name

    def action_interrupt(self) -> None:
        """ctrl+c: copy a selection, else stop the answer, else leave when pressed twice."""
        selected = self.screen.get_selected_text()
        if selected:
            self.copy_to_clipboard(selected)
            return
        if self.chat.stop_answer():
            return
        now = time.monotonic()
        if now - self._interrupted_at < 2.0:
            self.exit(0)
            return
        self._interrupted_at = now
        self.notify("Press ctrl+c again to leave, f1 for help.", timeout=2, markup=False)

    def copy_to_clipboard(self, text: str) -> None:
        """Copy what is selected, wherever that is."""
        self.copy("the selection", text)
        # The next ctrl+c is about something else: an answer that runs, or leaving.
        self.screen.clear_selection()

    def copy(self, what: str, text: str) -> None:
        """Copy to where the person can paste it, and say where that is."""
        osc52 = super().copy_to_clipboard
        where = copy_text(text, osc52, self.places.last_copy, os.environ)
        self.notify(
            inert(f"Copied {what}, {len(text):,} characters: {where}"), markup=False, timeout=4
        )

    async def action_quit(self) -> None:
        """Leave; everything is kept."""
        self.exit(0)

    # The end

    def _catch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for name in ("SIGTERM", "SIGHUP", "SIGINT"):
            number = getattr(signal, name, None)
            if number is None:
                continue
            try:
                loop.add_signal_handler(number, self._signalled, number)
            except (NotImplementedError, RuntimeError, ValueError):
                log.info("%s cannot be caught here", name)

    def _signalled(self, number: int) -> None:
        log.info("signal %d: leaving", number)
        self.put_away()
        self.exit(128 + number)

    def _fatal_error(self) -> None:
        """End because of a bug: the traceback goes to the log, and not with every local variable,
        which are the person's own texts, to the terminal.
        """
        error = self._exception
        log.error("the app ends because of a bug", exc_info=error)
        what = type(error).__name__ + (f": {error}" if str(error) else "")
        self.panic(
            Text(
                inert(
                    f"qh-chat ended because of a bug: {what}\n"
                    f"What was written so far is kept. The log has the details: {self.log_path}"
                )
            )
        )

    def put_away(self) -> None:
        """Keep drafts and partial answers, and free the engine; again is harmless."""
        if self._ended:
            return
        self._ended = True
        self.chat.put_away()
        if not self.downloads.close():
            log.warning("a fetch did not end in time; what arrived is kept")
        if not self.engine.close():
            log.warning("the engine did not end in time")
        self.history.close()

    def on_unmount(self) -> None:
        """The app ends: nothing may be lost."""
        self.put_away()
