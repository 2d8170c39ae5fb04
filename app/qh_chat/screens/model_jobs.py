"""What the model picker does besides loading: pull, import, pause, stop, verify, repair, remove."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from textual import work
from textual.screen import ModalScreen

from qh_chat.engine import ModelChoice
from qh_chat.jobs import Job
from qh_chat.model_words import card_rows, finding_text, removal_text
from qh_chat.offline import require_network
from qh_chat.screens.dialogs import Choice, ChoiceDialog, TextDialog
from qh_chat.screens.disk import DiskScreen
from qh_runtime.errors import QhError
from qh_runtime.units import gigabytes

if TYPE_CHECKING:
    from qh_chat.app import QhChatApp
    from qh_runtime.store.disk import Removal

__all__ = ["ModelJobs"]


class ModelJobs(ModalScreen[None]):
    """The part of the picker that knows what is done with stored models."""

    app: QhChatApp

    def say(self, text: str, problem: bool = True) -> None:
        """Show a sentence below the table."""
        raise NotImplementedError

    def mark(self, name: str) -> None:
        """Move to a model's row as soon as there is one."""
        raise NotImplementedError

    def action_refresh(self) -> None:
        """Look for models again."""
        raise NotImplementedError

    @property
    def marked(self) -> ModelChoice | None:
        """The model that the keys are about."""
        raise NotImplementedError

    # Fetching

    def action_pull(self) -> None:
        """Ask for the name of a model of the hub."""
        try:
            require_network("pull", offline=self.app.shelf.offline)
        except QhError as error:
            self.say(str(error))
            return

        def pull(text: str | None) -> None:
            if not text:
                return
            try:
                name = self.app.shelf.hub_name(text)
            except QhError as error:
                self.say(str(error))
                return
            self.say("")
            self.mark(name)
            self._started(name, self.app.downloads.pull(name, self.app.settings))

        question = "A model of the hub: org/model, org/model@revision, or the address of its page"
        self.app.push_screen(TextDialog(question, "", enter="looks at it", longest=400), pull)

    def action_import(self) -> None:
        """Ask for a folder to copy into the store."""

        def look(text: str | None) -> None:
            if text:
                self._find_name(Path(text).expanduser().absolute())

        question = "A model's folder, or its folder in a hub cache (models--org--name), to copy"
        dialog = TextDialog(question, "", folders=True, enter="looks at it")
        self.app.push_screen(dialog, look)

    @work(thread=True)
    def _find_name(self, folder: Path) -> None:
        """Disks of other machines may take long to answer."""
        try:
            found = self.app.shelf.name_of_folder(folder)
        except QhError as error:
            self.app.call_from_thread(self.say, str(error))
            return
        self.app.call_from_thread(self._named, folder, found)

    def _named(self, folder: Path, name: str) -> None:
        """Ask for a name where the folder's own cannot be that of a model."""
        if name:
            self._import(folder, name)
            return

        def named(text: str | None) -> None:
            if text:
                self._import(folder, text)

        question = "A name for it in the store, such as org/model"
        self.app.push_screen(TextDialog(question, "", enter="takes it"), named)

    def _import(self, folder: Path, name: str) -> None:
        self.mark(name)
        self._started(name, self.app.downloads.copy(folder, name, self.app.settings))

    def _started(self, name: str, started: bool) -> None:
        if not started:
            self.say(f"{name}: something is being done with it already")

    def go_on(self, choice: ModelChoice) -> None:
        """Go on with a fetch that was stopped."""
        if choice.goes_on == "pull" and self.app.shelf.offline:
            self.action_pull()
            return
        self.say("")
        self._started(choice.name, self.app.downloads.go_on(choice.name, self.app.settings))

    def ask_next(self) -> None:
        """Show the card of a job that waits for a word, unless another dialog is open."""
        if self.app.screen is not self:
            return
        for job in self.app.downloads.jobs:
            if job.state == "asking":
                self._show_card(job)
                return

    def action_show_card(self, number: int) -> None:
        """The link of a job."""
        job = self._job(number)
        if job is not None and job.state == "asking":
            self._show_card(job)

    def _show_card(self, job: Job) -> None:
        assert job.preflight is not None
        plan, size = job.preflight.plan, gigabytes(job.preflight.download_bytes)
        verb = "copy" if job.kind == "import" else "fetch"
        all_the_same = "" if plan.fits else " all the same"
        choices = (
            Choice("yes", f"{verb} {size}{all_the_same}", "f" if verb == "fetch" else "y"),
            Choice("no", "not now", "esc"),
        )
        text = "" if plan.fits else "It does not fit into the memory of this machine now."

        def answered(answer: str | None) -> None:
            self.app.downloads.answer(job.name, answer == "yes")

        rows = [(name, _in_settings(value)) for name, value in card_rows(job.preflight, verb)]
        self.app.push_screen(ChoiceDialog(job.name, text, choices, rows), answered)

    # Pause and stop

    def action_pause(self) -> None:
        """Pause the marked fetch, or go on with it."""
        choice = self.marked
        job = self.app.downloads.job(choice.name) if choice is not None else None
        if job is not None:
            self._pause(job)
        elif choice is not None and choice.goes_on:
            self.go_on(choice)

    def action_pause_job(self, number: int) -> None:
        """The link of a job."""
        job = self._job(number)
        if job is not None:
            self._pause(job)

    def _pause(self, job: Job) -> None:
        if job.fetches and job.state in ("moving", "waiting"):
            self.app.downloads.stop(job.name)

    def action_cancel(self) -> None:
        """Stop what runs for the marked model, else the load."""
        choice = self.marked
        job = self.app.downloads.job(choice.name) if choice is not None else None
        if job is not None:
            self._stop(job)
        elif self.app.loading is not None:
            self.app.engine.cancel_load()
        elif choice is not None and choice.goes_on:
            self.action_remove()

    def action_stop_job(self, number: int) -> None:
        """The link of a job."""
        job = self._job(number)
        if job is not None:
            self._stop(job)

    def _stop(self, job: Job) -> None:
        if not job.fetches or job.state not in ("moving", "waiting"):
            self.app.downloads.stop(job.name)
            return
        here = gigabytes(job.done_bytes)
        choices = (
            Choice("keep", "keep them for later", "k"),
            Choice("free", "free them", "f"),
            Choice("on", "go on", "esc"),
        )

        def answered(answer: str | None) -> None:
            if answer in ("keep", "free"):
                self.app.downloads.stop(job.name, free=answer == "free")

        text = f"{here} of {gigabytes(job.total_bytes)} are here so far. What becomes of them?"
        self.app.push_screen(ChoiceDialog(f"Stop {job.name}", text, choices), answered)

    def _job(self, number: int) -> Job | None:
        return next((x for x in self.app.downloads.jobs if x.number == number), None)

    # Verify and repair

    def action_verify(self) -> None:
        """Read every byte of the marked model."""
        choice = self.marked
        if choice is not None:
            self.say("")
            started = self.app.downloads.verify(choice.name, self.app.settings)
            self._started(choice.name, started)

    def offer_repair(self, job: Job) -> None:
        """Say what a check has found, and ask whether it is to be put right."""
        findings = "\n".join(finding_text(job.name, x) for x in job.findings)
        bad = sum(x.bad_bytes for x in job.findings)
        repair = f"repair: get {gigabytes(bad)}" if bad else "repair"

        def answered(answer: str | None) -> None:
            if answer == "repair":
                started = self.app.downloads.repair(job.name, job.findings, self.app.settings)
                self._started(job.name, started)

        choices = (Choice("repair", repair, "r"), Choice("no", "leave it", "esc"))
        self.app.push_screen(ChoiceDialog(f"{job.name} is damaged", findings, choices), answered)

    # Removal

    def action_remove(self) -> None:
        """Say what removing the marked model frees, and ask."""
        if self.marked is not None:
            self.ask_removal(self.marked.name)

    def ask_removal(self, name: str) -> None:
        """Ask whether a model is to be removed."""
        self.say("")
        job = self.app.downloads.job(name)
        if name in (self.app.loaded_name, self.app.loading_name):
            self.say(f"{name} is loaded. Load another model first: mark it and press enter.")
        elif job is not None:
            self.say(f"{name}: something is being done with it. c stops that first.")
        else:
            self._look_what_goes(name)

    @work(thread=True)
    def _look_what_goes(self, name: str) -> None:
        shelf = self.app.shelf
        try:
            shelf.stored(name, self.app.settings, "removed")
            planned = shelf.remove(name, dry_run=True)
            packed = shelf.remove_packed(name, self.app.settings, dry_run=True)
            gain = shelf.source_gain(name, self.app.settings) if packed.pieces else None
        except QhError as error:
            self.app.call_from_thread(self.say, str(error))
            return
        self.app.call_from_thread(self._ask_what_goes, planned, packed, gain)

    def _ask_what_goes(self, planned: Removal, packed: Removal, gain: int | None) -> None:
        name = planned.name
        choices = [Choice("remove", f"remove: {gigabytes(planned.freed_bytes)}", "y")]
        rows = []
        if gain is not None:
            choices.append(Choice("source", "source", "s"))
            rows.append(("only its source", f"{gigabytes(gain)}: the packed form stands for it"))
        if packed.pieces:
            choices.append(Choice("packed", "packed form", "p"))
            size = gigabytes(packed.freed_bytes)
            rows.append(("only its packed form", f"{size}: the next load makes it again"))
        choices.append(Choice("no", "no", "esc"))

        def answered(answer: str | None) -> None:
            if answer == "remove":
                self._remove(name)
            elif answer == "packed":
                self._remove(name, packed=True)
            elif answer == "source":
                self._started(name, self.app.downloads.drop_source(name, self.app.settings))

        text = removal_text(planned) + "."
        self.app.push_screen(ChoiceDialog(f"Remove {name}", text, choices, rows), answered)

    @work(thread=True)
    def _remove(self, name: str, *, packed: bool = False) -> None:
        shelf = self.app.shelf
        try:
            what = partial(shelf.remove_packed, name, self.app.settings)
            removal = what() if packed else shelf.remove(name)
        except QhError as error:
            self.app.call_from_thread(self.say, str(error))
            return
        self.app.call_from_thread(self._removed, removal, packed)

    def _removed(self, removal: Removal, packed: bool) -> None:
        what = f"{removal.name}: its packed form" if packed else removal.name
        if not packed:
            self.app.forget_model(removal.name)
        self.say(f"{what} is removed: {gigabytes(removal.freed_bytes)} freed", False)
        self.action_refresh()

    def action_disk(self) -> None:
        """Show what frees how much."""

        def chosen(name: str | None) -> None:
            if name:
                self.mark(name)
                self.ask_removal(name)
            self.action_refresh()

        self.app.push_screen(DiskScreen(), chosen)


def _in_settings(text: str) -> str:
    """What would fit is said in options of the command line; here it is a setting."""
    if not text.startswith("would fit: "):
        return text
    return text.replace("--context ", "context ").replace("--pack ", "pack ") + " (f6)"
