"""The part of the chat screen that runs an answer: from the question to the last token on disk.

There is at most one running answer. It belongs to its conversation, not to what is on screen:
another chat may be opened meanwhile, and the answer still ends where it began.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from textual import events, on
from textual.screen import Screen

from qh_chat.history.conversation import Conversation
from qh_chat.history.records import MessageRecord
from qh_chat.inert import inert
from qh_chat.messages import (
    AnswerDone,
    AnswerPrompt,
    AnswerText,
    AnswerTrimmed,
    ContextCounted,
    EngineFailed,
)
from qh_chat.widgets.composer import Composer
from qh_chat.widgets.message import MessageView
from qh_chat.widgets.numbers import tokens_text
from qh_chat.widgets.status_bar import StatusBar
from qh_chat.widgets.transcript import Transcript

if TYPE_CHECKING:
    from qh_chat.app import QhChatApp

__all__ = ["AnsweringScreen"]

log = logging.getLogger(__name__)

FLUSH_S = 1.0
COUNT_DELAY_S = 0.25


@dataclass
class _Run:
    """A running answer."""

    conversation: Conversation
    answer_id: int
    pieces: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    flushed: int = 0
    prompt_tokens: int = 0
    stopping: bool = False

    @property
    def text(self) -> str:
        if len(self.pieces) > 1:
            self.pieces = ["".join(self.pieces)]
        return self.pieces[0] if self.pieces else ""


class AnsweringScreen(Screen[None]):
    """Answers, and the numbers of the status line that follow from them."""

    app: QhChatApp

    def __init__(self) -> None:
        super().__init__()
        self.conversation: Conversation
        self._answer: _Run | None = None
        self.count_request = 0
        """Number of the last count of tokens that was asked for."""
        self.counted_draft = ""
        """What was in the message box when these were counted."""
        self._count_timer: Any = None

    @property
    def transcript(self) -> Transcript:
        """The messages on screen."""
        return self.query_one(Transcript)

    @property
    def composer(self) -> Composer:
        """The box where a message is written."""
        return self.query_one(Composer)

    @property
    def answering(self) -> bool:
        """An answer is being written."""
        return self._answer is not None

    @property
    def answer_text(self) -> str:
        """What has come of the running answer; "" when there is none."""
        return self._answer.text if self._answer is not None else ""

    @on(events.Mount)
    def _start_flushing(self) -> None:
        """Keep the partial answer on disk while it grows."""
        self.set_interval(FLUSH_S, self._flush)

    async def ask(self, question_id: int) -> None:
        """Begin an answer to a message of the person."""
        conversation = self.conversation
        model = self.app.model_name
        record = conversation.begin_answer(question_id, model)
        self._answer = _Run(conversation, record.id)
        self.answering_changed()
        await self.show_path()
        view = self.transcript.view_of(record.id)
        if view is not None:
            loading = self.app.loading_name
            waits = self.app.engine_info is None and loading is not None
            view.waiting(f"waits for {loading} to load" if waits else "reads…")
        self.app.engine.generate(record.id, conversation.turns(question_id), conversation.sampling)

    def stop_answer(self) -> bool:
        """Stop the running answer; False when there is none."""
        run = self._answer
        if run is None:
            return False
        run.stopping = True
        self.app.engine.stop(run.answer_id)
        return True

    async def show_path(self) -> None:
        """Show the open conversation as it is now."""
        raise NotImplementedError

    def refresh_chats(self) -> None:
        """Show the list of conversations as it is now."""
        raise NotImplementedError

    def sync_answer(self) -> None:
        """Make the conversation's own record of the running answer hold all its text."""
        run = self._answer
        if run is not None:
            run.conversation.remember(run.answer_id, run.text)

    async def catch_up(self) -> None:
        """Bring answers that were drawn from an older record to what they are by now.

        Keys are handled beside the messages of the engine: while a transcript is being built,
        more of the answer may come, or its end.
        """
        run, conversation = self._answer, self.conversation
        for view in self.transcript.views:
            if not view.live:
                continue
            if run is not None and run.answer_id == view.record.id:
                await view.catch_up(run.text)
            elif conversation.has(view.record.id):
                record = conversation.message(view.record.id)
                await view.finish(record, conversation.alternatives(record.id))

    def end_now(self) -> None:
        """Keep the partial answer because the app ends."""
        run, self._answer = self._answer, None
        if run is not None:
            self.app.engine.stop(run.answer_id)
            run.conversation.end_answer(
                run.answer_id, run.text, "interrupted", note=" · ".join(run.notes)
            )

    def count_context(self, delay_s: float = COUNT_DELAY_S) -> None:
        """Ask for the tokens of the conversation and the draft, once typing pauses."""
        if self._count_timer is not None:
            self._count_timer.stop()
        self._count_timer = self.set_timer(delay_s, self._count)

    def _count(self) -> None:
        if self.app.engine_info is None or self._answer is not None:
            return
        self.count_request += 1
        turns = self.conversation.turns(self.asked_from())
        self.counted_draft = self.composer.text.strip()
        if self.counted_draft:
            turns = [*turns, self.conversation.draft_turn(self.counted_draft)]
        if not turns:
            self._status(context_used=0, left_out=0)
            self.context_changed(None)
            return
        self.app.engine.count(self.count_request, turns, self.conversation.sampling)

    def _status(self, **facts: object) -> None:
        bar = self.query_one(StatusBar)
        bar.facts = bar.facts.changed(**facts)

    def asked_from(self) -> int | None:
        """The message that what is written now follows."""
        raise NotImplementedError

    def context_changed(self, counted: ContextCounted | None) -> None:
        """The conversation and the draft take this of the context; None is nothing, or unknown."""

    def answering_changed(self) -> None:
        """An answer has begun or ended."""

    @on(ContextCounted)
    def _counted_now(self, event: ContextCounted) -> None:
        if event.request == self.count_request and self._answer is None:
            used = event.tokens - event.left_out_tokens
            self._status(context_used=used, left_out=event.left_out)
            self.context_changed(event)

    def _flush(self) -> None:
        run = self._answer
        if run is None or not run.pieces:
            return
        text = run.text
        if len(text) != run.flushed:
            run.flushed = len(text)
            conversation, answer_id = run.conversation, run.answer_id
            conversation.remember(answer_id, text)
            self.run_worker(lambda: conversation.flush(answer_id, text), thread=True, group="flush")

    def _view(self, answer_id: int) -> MessageView | None:
        return self.transcript.view_of(answer_id)

    def _mine(self, answer_id: int | None) -> _Run | None:
        run = self._answer
        return run if run is not None and run.answer_id == answer_id else None

    @on(AnswerPrompt)
    def _prompt(self, event: AnswerPrompt) -> None:
        run = self._mine(event.answer_id)
        if run is None:
            return
        run.prompt_tokens = event.total
        self._status(context_used=event.total)
        view = self._view(event.answer_id)
        if view is not None:
            share = f" of {tokens_text(event.total)}" if event.total else ""
            reused = f", {tokens_text(event.reused)} known already" if event.reused else ""
            view.waiting(f"reads {tokens_text(event.done)}{share} tokens{reused}")

    @on(AnswerTrimmed)
    def _trimmed(self, event: AnswerTrimmed) -> None:
        run = self._mine(event.answer_id)
        if run is None:
            return
        oldest = f"{event.left_out:,} messages" if event.left_out != 1 else "message"
        run.notes.append(f"left out the oldest {oldest} ({tokens_text(event.tokens)} tokens)")
        self._status(left_out=event.left_out)
        if run.conversation is self.conversation:
            self.transcript.set_left_out(run.conversation.oldest(run.answer_id, event.left_out))
        view = self._view(event.answer_id)
        if view is not None:
            view.note(" · ".join(run.notes))

    @on(AnswerText)
    async def _text(self, event: AnswerText) -> None:
        run = self._mine(event.answer_id)
        if run is None:
            return
        run.pieces.append(event.text)
        self._status(context_used=run.prompt_tokens + event.tokens)
        if event.tokens > 1:
            self._status(tokens_per_s=event.tokens_per_s)
        view = self._view(event.answer_id)
        if view is not None:
            await view.stream(run.text, event.tokens, event.tokens_per_s)

    @on(AnswerDone)
    async def _done(self, event: AnswerDone) -> None:
        run = self._mine(event.answer_id)
        if run is None:
            return
        self._answer = None
        record = run.conversation.end_answer(
            run.answer_id, run.text, event.reason, event.stats, " · ".join(run.notes)
        )
        if event.stats is not None:
            self._status(
                context_used=event.stats.context_used,
                tokens_per_s=event.stats.tokens_per_s or None,
                first_token_s=event.stats.first_token_s if event.stats.tokens else None,
            )
        await self._show_end(record, run)

    @on(EngineFailed)
    async def _failed(self, event: EngineFailed) -> None:
        if event.doing == "load":
            return
        event.stop()
        run = self._mine(event.answer_id)
        text = event.text if event.hint is None else f"{event.text}; {event.hint}"
        if event.bug:
            text += f" (a bug; the log has more: {self.app.log_path})"
        if run is None:
            log.warning("failure without an answer: %s", text)
            return
        self._answer = None
        record = run.conversation.end_answer(
            run.answer_id, run.text, "error", note=" · ".join([*run.notes, text])
        )
        if self._view(record.id) is None:
            title = f"No answer in “{run.conversation.title}”"
            self.app.notify(
                inert(text), title=inert(title), severity="error", markup=False, timeout=12
            )
        await self._show_end(record, run)

    async def _show_end(self, record: MessageRecord, run: _Run) -> None:
        self.answering_changed()
        view = self._view(record.id)
        if view is not None:
            await view.finish(record, run.conversation.alternatives(record.id))
        self.refresh_chats()
        self.app.check_history()
        self.count_context(0.05)
