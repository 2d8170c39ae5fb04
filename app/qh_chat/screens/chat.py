"""The chat screen: list of chats, transcript, message box, status line."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from pathlib import Path
from typing import Any, ClassVar

from textual import events, on
from textual.app import ComposeResult, SuspendNotSupported
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.widgets import Markdown, Static

from qh_chat.actions import bindings_for
from qh_chat.clipboard import copy_text
from qh_chat.history.conversation import Conversation
from qh_chat.history.export import as_json, as_markdown, export_path, write_export
from qh_chat.inert import inert
from qh_chat.messages import (
    ChatChosen,
    ChatDeleteAsked,
    DraftChanged,
    EditLastAsked,
    SearchChanged,
    SiblingAsked,
    Submitted,
)
from qh_chat.offline import network_is_refused
from qh_chat.screens.answering import AnsweringScreen
from qh_chat.screens.dialogs import ConfirmDialog, TextDialog
from qh_chat.screens.options import ChatOptions, ChatOptionsDialog
from qh_chat.widgets.chat_list import ChatList
from qh_chat.widgets.composer import Composer
from qh_chat.widgets.markup import code_blocks, split_thinking
from qh_chat.widgets.message import MessageView
from qh_chat.widgets.status_bar import Facts, StatusBar
from qh_chat.widgets.transcript import Transcript

__all__ = ["ChatScreen"]

WIDE = 100
TINY = (60, 16)
DRAFT_DELAY_S = 0.4

WELCOME = """\
[b $primary]qh-chat[/]

Ask anything below; [b]enter[/] sends. Nothing leaves this machine.

[b]f1[/] every key   [b]f2[/] chats   [b]f3[/] models   [b]f5[/] this chat"""


class ChatScreen(AnsweringScreen):
    """The screen that is always there."""

    BINDINGS: ClassVar[list[BindingType]] = [*bindings_for("chat")]
    AUTO_FOCUS = "#composer"

    def __init__(self) -> None:
        super().__init__()
        self._editing: int | None = None
        self._draft_timer: Any = None
        self._search = ""
        self._draft = ""

    def compose(self) -> ComposeResult:
        # Before the first frame, so that nothing jumps.
        self._fold(*self.app.size)
        # A model may be ready before the last chat is open.
        self.conversation = Conversation(self.app.history, None)
        with Horizontal(id="middle"):
            yield ChatList(self.app.clock)
            with Vertical(id="main"):
                yield Transcript()
        yield Static("", id="banner", markup=False)
        yield Composer(self.app.settings.keys)
        yield StatusBar(Facts(offline=network_is_refused()))
        yield Static("qh-chat needs 60 × 16 cells.\nMake the window larger.", id="too-small")

    async def on_mount(self) -> None:
        """Open the last conversation, or begin one."""
        self.composer.cursor_blink = self.app.settings.look.blink
        chats = self.app.history.conversations(1)
        await self.open_chat(chats[0].id if chats else None)
        self.app.check_history()

    def on_resize(self, event: events.Resize) -> None:
        """Fold what does not fit."""
        self._fold(*event.size)

    def _fold(self, width: int, height: int) -> None:
        self.set_class(width >= WIDE, "-wide")
        self.set_class(width < WIDE, "-narrow")
        self.set_class(width < TINY[0] or height < TINY[1], "-tiny")

    # What is shown

    async def show_path(self) -> None:
        """Show the open conversation as it is now."""
        conversation = self.conversation
        welcome = Static(WELCOME, classes="welcome")
        await self.transcript.show(conversation.path(), conversation.alternatives, welcome)
        await self.catch_up()
        if conversation is not self.conversation:
            # Another chat was opened meanwhile, which sets its own title.
            return
        title = " ".join(inert(conversation.title).split())
        self.transcript.border_title = Content(title)
        self.transcript.border_subtitle = (
            Content("own settings") if conversation.has_own_options(self.app.settings) else ""
        )

    def refresh_chats(self) -> None:
        """Show the list of conversations as it is now."""
        found = self.app.history.search(self._search)
        self.query_one(ChatList).show(found, self.conversation.id)

    async def open_chat(self, conversation_id: int | None) -> None:
        """Open a conversation; None begins a new one."""
        self._save_draft()
        run = self._answer
        if (
            run is not None
            and conversation_id is not None
            and (run.conversation.id == conversation_id)
        ):
            self.sync_answer()
            self.conversation = run.conversation
        else:
            record = (
                self.app.history.conversation(conversation_id)
                if conversation_id is not None
                else None
            )
            settings = self.app.settings
            self.conversation = Conversation(
                self.app.history,
                record,
                system_prompt=settings.chat.system_prompt,
                sampling=settings.sampling_params(),
            )
        self._end_edit()
        self._put(self.conversation.draft)
        self.transcript.select(None)
        await self.show_path()
        self.refresh_chats()
        self.count_context(0.05)

    def banner(self, text: str, error: bool = False) -> None:
        """Show a line that stays until it is clicked or escape is pressed; "" hides it."""
        banner = self.query_one("#banner", Static)
        banner.update(inert(text))
        banner.set_class(bool(text), "-shown")
        banner.set_class(error, "-error")

    @on(events.Click, "#banner")
    def _dismiss(self) -> None:
        self.banner("")

    def context_changed(self, tokens: int) -> None:
        """Say before sending when the context is about to overflow."""
        info = self.app.engine_info
        if info is None:
            return
        composer = self.composer
        if tokens < info.context_length:
            if self._editing is None:
                composer.border_title = "Message"
            return
        drop = self.conversation.sampling.context_policy == "drop"
        what = "the oldest turns will be left out" if drop else "the answer will stop early"
        composer.border_title = f"Context full ({tokens:,} of {info.context_length:,}): {what}"

    # Sending

    @on(Submitted)
    async def _submitted(self, event: Submitted) -> None:
        if self.answering:
            self.app.notify("An answer is still being written. esc stops it.", markup=False)
            return
        conversation, model = self.conversation, self.app.model_name
        if self._editing is not None:
            question = conversation.say_instead(self._editing, event.text, model)
        else:
            question = conversation.say(event.text, model)
        self._end_edit()
        self._put("")
        conversation.keep_draft("", model)
        await self.ask(question.id)
        self.refresh_chats()
        self.app.check_history()

    @on(DraftChanged)
    def _draft_changed(self, event: DraftChanged) -> None:
        self._draft = event.text
        if self._draft_timer is not None:
            self._draft_timer.stop()
        self._draft_timer = self.set_timer(DRAFT_DELAY_S, self._save_draft)
        self.count_context()

    def _save_draft(self, quiet: bool = False) -> None:
        # An edit of an earlier message is not the draft of the next one.
        if not hasattr(self, "conversation") or self._editing is not None:
            return
        had_row = self.conversation.id
        self.conversation.keep_draft(self._draft, self.app.model_name)
        if self.conversation.id != had_row and not quiet:
            self.refresh_chats()

    def _put(self, text: str) -> None:
        self.composer.put(text)
        self._draft = text

    def put_away(self) -> None:
        """Keep everything, because the app ends."""
        if hasattr(self, "conversation"):
            self._save_draft(quiet=True)
            self.end_now()

    # Actions

    async def action_stop(self) -> None:
        """Escape: stop the answer, else leave what is open, else go to the transcript."""
        if self.stop_answer():
            return
        if self.query_one("#banner").has_class("-shown"):
            self.banner("")
        elif self._editing is not None:
            self._end_edit()
            self._put(self.conversation.draft)
        elif self.has_class("-chats") and self.has_class("-narrow"):
            self.remove_class("-chats")
            self.composer.focus()
        elif self._search:
            self.query_one("#search").value = ""  # type: ignore[attr-defined]
            self.composer.focus()
        elif isinstance(self.focused, Composer):
            self.transcript.focus()
        else:
            self.composer.focus()

    def action_toggle_chats(self) -> None:
        """Show or hide the list, or go to it."""
        chats = self.query_one(ChatList)
        inside = self.focused is not None and chats in self.focused.ancestors_with_self
        if self.has_class("-narrow"):
            self.toggle_class("-chats")
            shown = self.has_class("-chats")
        else:
            shown = self.has_class("-folded") or not inside
            self.set_class(not shown, "-folded")
        if shown:
            self.refresh_chats()
            chats.focus_rows()
        else:
            self.composer.focus()

    def action_search(self) -> None:
        """Show the list with the cursor in its search box."""
        self.add_class("-chats")
        self.remove_class("-folded")
        self.query_one(ChatList).focus_search()

    async def action_new_chat(self) -> None:
        """Begin a new conversation."""
        await self.open_chat(None)
        self.remove_class("-chats")
        self.composer.focus()

    async def action_regenerate(self) -> None:
        """Answer the last turn once more."""
        if self.conversation.leaf_id is not None:
            await self._answer_again(self.conversation.leaf_id)

    async def _answer_again(self, message_id: int) -> None:
        if self.answering:
            self.app.notify("An answer is still being written. esc stops it.", markup=False)
            return
        question = self.conversation.question_of(message_id)
        if question is not None:
            await self.ask(question)

    def action_editor(self) -> None:
        """Write the message in $EDITOR."""
        editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
        handle, name = tempfile.mkstemp(prefix="qh-chat-", suffix=".md")
        path = Path(name)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(self.composer.text)
            with self.app.suspend():
                subprocess.run([*shlex.split(editor), name], check=True)
            text = path.read_text(encoding="utf-8", errors="replace")
            self.composer.put(inert(text).rstrip("\n"))
        except SuspendNotSupported:
            self.app.notify("This terminal cannot be handed to an editor.", severity="warning")
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            self.app.notify(
                inert(f"{editor}: {error}. Set $EDITOR to an editor that works."),
                title="The editor failed", severity="error", markup=False,
            )  # fmt: skip
        finally:
            path.unlink(missing_ok=True)

    def action_options(self) -> None:
        """Edit the system prompt and the sampling settings of this chat."""
        conversation = self.conversation

        async def keep(options: ChatOptions | None) -> None:
            if options is not None:
                conversation.set_options(options.system_prompt, options.sampling)
                await self.show_path()
                self.count_context(0.05)

        now = ChatOptions(conversation.system_prompt, conversation.sampling)
        self.app.push_screen(ChatOptionsDialog(now), keep)

    def action_rename(self) -> None:
        """Give the open conversation another title."""
        conversation = self.conversation

        async def keep(title: str | None) -> None:
            if title:
                conversation.rename(title)
                await self.show_path()
                self.refresh_chats()

        if conversation.id is not None:
            self.app.push_screen(TextDialog("Title of this chat", conversation.title), keep)

    def action_delete_chat(self) -> None:
        """Delete the open conversation."""
        if self.conversation.id is not None:
            self.post_message(ChatDeleteAsked(self.conversation.id))

    @on(ChatDeleteAsked)
    def _delete_asked(self, event: ChatDeleteAsked) -> None:
        record = self.app.history.conversation(event.conversation_id)
        if record is None:
            return

        async def delete(sure: bool | None) -> None:
            if not sure:
                return
            run = self._answer
            if run is not None and run.conversation.id == record.id:
                self.end_now()
            self.app.history.delete(record.id)
            if self.conversation.id == record.id:
                self._put("")
                self.conversation.forget()
                rest = self.app.history.conversations(1)
                await self.open_chat(rest[0].id if rest else None)
            self.refresh_chats()

        question = f"Delete “{record.title}” with all its messages?"
        self.app.push_screen(ConfirmDialog(question, "delete"), delete)

    def action_export(self, suffix: str) -> None:
        """Write the open conversation to a file."""
        record = self.conversation.record
        if record is None:
            self.app.notify("There is nothing to export yet.", markup=False)
            return
        self.sync_answer()
        text = (
            as_markdown(record, self.conversation.path())
            if suffix == "md"
            else as_json(record, self.conversation.everything())
        )
        path = export_path(self.app.places.exports, record, suffix)
        try:
            write_export(path, text)
        except OSError as error:
            self.app.notify(
                inert(f"{path}: {error.strerror}"), title="Not exported", severity="error",
                markup=False,
            )  # fmt: skip
        else:
            self.app.notify(inert(str(path)), title="Exported", markup=False)

    # The list of chats

    @on(SearchChanged)
    def _searched(self, event: SearchChanged) -> None:
        self._search = event.text
        self.refresh_chats()

    @on(ChatChosen)
    async def _chosen(self, event: ChatChosen) -> None:
        await self.open_chat(event.conversation_id)
        self.remove_class("-chats")
        self.composer.focus()

    # The transcript

    @on(Transcript.Wanted)
    async def _wanted(self, event: Transcript.Wanted) -> None:
        view = event.view
        if event.what == "search":
            self.action_search()
        elif event.what == "write":
            self.composer.focus()
        elif view is None:
            return
        elif event.what == "copy":
            self._copy(split_thinking(view.text).answer, "the message")
        elif event.what == "code":
            self._copy_code(view, event.number)
        elif event.what == "edit":
            self._edit(view.record.id)
        elif event.what == "branch":
            await self._answer_again(view.record.id)

    @on(EditLastAsked)
    def _edit_last(self) -> None:
        if self.conversation.leaf_id is not None:
            self._edit(self.conversation.leaf_id)

    def _edit(self, message_id: int) -> None:
        question = self.conversation.question_of(message_id)
        if question is None:
            return
        self._save_draft()
        self._editing = question
        self.add_class("-editing")
        self.composer.put(self.conversation.message(question).content)
        self.composer.border_title = "Edit: the answers so far stay as a branch"
        self.composer.border_subtitle = "enter sends · esc leaves it as it was"
        self.composer.focus()

    def _end_edit(self) -> None:
        self._editing = None
        self.remove_class("-editing")
        self.composer.border_title = "Message"
        self.composer.border_subtitle = "enter send · ctrl+j newline"

    @on(SiblingAsked)
    async def _sibling(self, event: SiblingAsked) -> None:
        if self.answering:
            self.app.notify("An answer is still being written. esc stops it.", markup=False)
        elif self.conversation.step_alternative(event.message_id, event.step):
            selected = self.transcript.selected is not None
            await self.show_path()
            if selected:
                self._select_turn(event.message_id)
            self.count_context(0.05)

    def _select_turn(self, message_id: int) -> None:
        parent = self.conversation.message(message_id).parent_id
        for view in self.transcript.views:
            if view.record.parent_id == parent:
                self.transcript.select(view)

    def _copy_code(self, view: MessageView, number: int) -> None:
        blocks = code_blocks(split_thinking(view.text).answer)
        if number <= len(blocks):
            self._copy(blocks[number - 1], f"code block {number}")
        else:
            there = f"only {len(blocks)}" if blocks else "none"
            self.app.notify(f"There is no code block {number} here ({there}).", markup=False)

    def _copy(self, text: str, what: str) -> None:
        where = copy_text(text, self.app.copy_to_clipboard, self.app.places.last_copy, os.environ)
        self.app.notify(
            inert(f"Copied {what}, {len(text):,} characters: {where}"), markup=False, timeout=4
        )

    @on(Markdown.LinkClicked)
    def _link(self, event: Markdown.LinkClicked) -> None:
        event.stop()
        address = event.href

        def open_it(sure: bool | None) -> None:
            if sure:
                self.app.open_url(address)

        if address.startswith(("http://", "https://")):
            self.app.push_screen(ConfirmDialog(f"Open {address} in the browser?", "open"), open_it)
        else:
            self.app.notify(inert(f"Only web addresses are opened: {address}"), markup=False)
