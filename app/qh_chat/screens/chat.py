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
from textual.widgets import Markdown, Static

from qh_chat.actions import bindings_for
from qh_chat.history.conversation import Conversation
from qh_chat.inert import inert
from qh_chat.messages import (
    ContextCounted,
    DraftChanged,
    EditLastAsked,
    MessageWanted,
    SiblingAsked,
    Submitted,
)
from qh_chat.offline import network_is_refused
from qh_chat.screens.dialogs import ConfirmDialog
from qh_chat.screens.listing import ListingScreen
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


class ChatScreen(ListingScreen):
    """The screen that is always there."""

    BINDINGS: ClassVar[list[BindingType]] = [*bindings_for("chat")]
    AUTO_FOCUS = "#composer"

    def __init__(self) -> None:
        super().__init__()
        self._editing: int | None = None
        self._draft_timer: Any = None
        self._draft = ""
        self._counted: ContextCounted | None = None

    def compose(self) -> ComposeResult:
        # Before the first frame, so that nothing jumps.
        self._fold(*self.app.size)
        # A model may be ready before the last chat is open.
        self.conversation = Conversation(self.app.history, None)
        with Horizontal(id="middle"):
            chats = ChatList(self.app.clock)
            chats.display = self.chats_shown
            yield chats
            with Vertical(id="main"):
                yield Transcript()
        yield Static("", id="banner", markup=False)
        yield Composer(self.app.settings.keys)
        yield StatusBar(Facts(offline=network_is_refused()))
        yield Static("qh-chat needs 60 × 16 cells.\nMake the window larger.", id="too-small")

    async def on_mount(self) -> None:
        """Open the last conversation, or begin one."""
        self.composer.cursor_blink = self.app.settings.look.blink
        self.model_changed()
        chats = self.app.history.conversations(1)
        await self.open_chat(chats[0].id if chats else None)
        self.app.check_history()

    def on_resize(self, event: events.Resize) -> None:
        """Fold what does not fit."""
        self._fold(*event.size)

    def _fold(self, width: int, height: int) -> None:
        self._wide = width >= WIDE
        self.show_panes()
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
        self.show_title()

    def show_title(self) -> None:
        """Show the title of the open conversation."""
        title = " ".join(inert(self.conversation.title).split())
        own = self.conversation.has_own_options(self.app.settings)
        self.transcript.set_title(title, "own settings (f5)" if own else "")

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
        self.context_changed(None)
        self._put(self.conversation.draft)
        self.transcript.select(None)
        await self.show_path()
        self.refresh_chats()
        self.count_context(0.05)

    def model_changed(self) -> None:
        """Another model answers from now on; also before all of this screen is there."""
        for transcript in self.query(Transcript):
            transcript.set_model(self.app.model_name)

    def banner(self, text: str, error: bool = False) -> None:
        """Show a line that stays until it is clicked or escape is pressed; "" hides it."""
        banner = self.query_one("#banner", Static)
        banner.update(inert(text))
        banner.set_class(bool(text), "-shown")
        banner.set_class(error, "-error")

    @on(events.Click, "#banner")
    def _dismiss(self) -> None:
        self.banner("")

    def context_changed(self, counted: ContextCounted | None) -> None:
        """Say before sending what does not fit any more."""
        self._counted = counted
        left_out = counted.left_out if counted is not None else 0
        for transcript in self.query(Transcript):
            transcript.set_left_out(self.conversation.oldest(self.asked_from(), left_out))
        self._label_composer()

    def answering_changed(self) -> None:
        """Say how an answer is stopped while there is one."""
        self._label_composer()

    def _label_composer(self) -> None:
        composer, counted, info = self.composer, self._counted, self.app.engine_info
        title = "Message"
        if counted is not None and info is not None and not counted.fits:
            title = self._too_long(counted, info.context_length)
        elif self._editing is not None:
            title = "Edit: the answers so far stay as a branch"
        elif counted is not None and counted.left_out:
            messages = "message" if counted.left_out == 1 else f"{counted.left_out:,} messages"
            tokens = f"{counted.left_out_tokens:,} tokens"
            title = f"Context full: the oldest {messages} ({tokens}) will be left out"
        composer.border_title = title
        if self.answering:
            composer.border_subtitle = "esc stops the answer"
        elif self._editing is not None:
            composer.border_subtitle = "enter sends · esc leaves it as it was"
        else:
            composer.border_subtitle = "enter send · ctrl+j newline"

    def _too_long(self, counted: ContextCounted, length: int) -> str:
        tokens = f"{counted.tokens:,} of {length:,} tokens"
        if self.conversation.sampling.context_policy == "stop":
            return f"Context full: {tokens}, no room for an answer"
        return f"Too long: {tokens} for the message and the system prompt"

    # Sending

    def asked_from(self) -> int | None:
        """The message that what is written now follows."""
        if self._editing is not None:
            return self.conversation.message(self._editing).parent_id
        return self.conversation.leaf_id

    @on(Submitted)
    async def _submitted(self, event: Submitted) -> None:
        if self._busy() or self._refused(event.text):
            return
        conversation, model = self.conversation, self.app.model_name
        if self._editing is not None:
            question = conversation.say_instead(self._editing, event.text, model)
            # What was typed before the edit began is still to be sent.
            self._end_edit()
            self._put(conversation.draft)
        else:
            question = conversation.say(event.text, model)
            self._put("")
            conversation.keep_draft("", model)
        await self.ask(question.id)
        self.refresh_chats()
        self.app.check_history()

    def _busy(self) -> bool:
        run = self._answer
        if run is None:
            return False
        here = run.conversation is self.conversation
        where = "" if here else f" in “{run.conversation.title}”"
        self.app.notify(
            inert(f"An answer is still being written{where}. esc stops it."), markup=False
        )
        return True

    def _refused(self, text: str) -> bool:
        """Say that there can be no answer to this, if that was counted; it stays in the box."""
        counted, info = self._counted, self.app.engine_info
        if counted is None or counted.fits or info is None or text.strip() != self.counted_draft:
            return False
        stop = self.conversation.sampling.context_policy == "stop"
        way = (
            "Start a new chat (ctrl+n), or let this one leave out its oldest messages (f5)."
            if stop
            else "Shorten it, or take a model with a longer context (f3)."
        )
        self.app.notify(
            f"{self._too_long(counted, info.context_length)}. {way}", title="Not sent",
            severity="warning", markup=False, timeout=8,
        )  # fmt: skip
        return True

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
        elif self.leave_list():
            return
        elif isinstance(self.focused, Composer):
            self.transcript.focus()
        else:
            self.composer.focus()

    async def action_regenerate(self) -> None:
        """Answer the last turn once more."""
        if self.conversation.leaf_id is not None:
            await self._answer_again(self.conversation.leaf_id)

    async def _answer_again(self, message_id: int) -> None:
        if self._busy():
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

        def keep(options: ChatOptions | None) -> None:
            if options is not None:
                conversation.set_options(options.system_prompt, options.sampling)
                self.show_title()
                self.count_context(0.05)

        now = ChatOptions(conversation.system_prompt, conversation.sampling)
        self.app.push_screen(ChatOptionsDialog(now), keep)

    # The transcript

    @on(MessageWanted)
    async def _wanted(self, event: MessageWanted) -> None:
        if event.what == "search":
            self.action_search()
            return
        if event.what == "write":
            self.composer.focus()
            return
        if event.what == "stop":
            self.stop_answer()
            return
        view = None if event.message_id is None else self.transcript.view_of(event.message_id)
        if view is None:
            return
        if event.what == "copy":
            self.app.copy("the message", split_thinking(view.text).answer)
        elif event.what == "copy code":
            self._copy_code(view, event.number)
        elif event.what == "edit":
            self._edit(view.record.id)
        elif event.what == "again":
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
        self._label_composer()
        self.composer.focus()

    def _end_edit(self) -> None:
        self._editing = None
        self.remove_class("-editing")
        self._label_composer()

    def discard_draft(self) -> None:
        """Empty the message box, because its conversation is deleted."""
        self._put("")

    @on(SiblingAsked)
    async def _sibling(self, event: SiblingAsked) -> None:
        if not self._busy() and self.conversation.step_alternative(event.message_id, event.step):
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
            self.app.copy(f"code block {number}", blocks[number - 1])
        else:
            there = f"only {len(blocks)}" if blocks else "none"
            self.app.notify(f"There is no code block {number} here ({there}).", markup=False)

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
