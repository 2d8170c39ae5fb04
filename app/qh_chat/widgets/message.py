"""One message on screen: who, the text (an answer as Markdown), and the line of facts below it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from rich.cells import cell_len
from textual import events, on
from textual.app import ComposeResult, RenderResult
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.css.query import NoMatches
from textual.message import Message
from textual.widget import MountError, Widget
from textual.widgets import Markdown, Static

from qh_chat.history.records import MessageRecord
from qh_chat.inert import inert
from qh_chat.messages import MessageWanted, SiblingAsked
from qh_chat.widgets.code_block import AnswerMarkdown, CodeBlock
from qh_chat.widgets.markup import markdown_parser, split_thinking
from qh_chat.widgets.numbers import answer_numbers, rate_text, tokens_text

__all__ = ["MessageView", "Numbers"]

LONGEST_SHOWN = 12_000
"""Characters of a message of the person that are drawn; the rest is kept and counted."""

LONGEST_MARKDOWN = 60_000
"""Characters of an answer that are drawn as Markdown; a longer one is drawn as plain text."""

REASONS = {
    "cancelled": "stopped",
    "interrupted": "cut off when the app ended",
    "error": "ended by an error",
    "max_tokens": "reached its longest length",
    "context_full": "stopped: the context is full (f5 can change that, ctrl+n starts anew)",
}

LEFT_OUT_EDGE = "▴ no longer in the context: the model does not see what is above"


class _Step(Static):
    """A clickable arrow to another alternative."""

    def __init__(self, step: int) -> None:
        super().__init__("◂" if step < 0 else "▸", classes="step")
        self.step = step

    class Clicked(Message):
        """The arrow was clicked."""

        def __init__(self, step: int) -> None:
            super().__init__()
            self.step = step

    def on_click(self, event: events.Click) -> None:
        event.stop()
        self.post_message(self.Clicked(self.step))


class _Links(Static):
    """What can be done with the message, for the mouse."""

    def show(self, *whats: str) -> None:
        self.update(Content.from_markup(" · ".join(f"[@click=ask('{x}')]{x}[/]" for x in whats)))

    def action_ask(self, what: str) -> None:
        self.post_message(MessageView.LinkClicked(what))


class Numbers(Widget):
    """The longest of several ways to say the numbers that fits, at the right."""

    def __init__(self) -> None:
        super().__init__(classes="numbers")
        self._texts: Sequence[str] = ("",)

    @property
    def text(self) -> str:
        """What is shown."""
        width = self.content_size.width
        fitting = (x for x in self._texts if cell_len(x) <= width)
        return next(fitting, self._texts[-1])

    def show(self, *texts: str) -> None:
        """Say one of these, the longest first."""
        self._texts = [inert(text) for text in texts]
        self.refresh()

    def render(self) -> RenderResult:
        return Content(self.text)


class MessageView(Vertical):
    """A message of the transcript.

    Args:
        record: what is shown.
        alternatives: its position among the alternatives of its turn (from 1), and their number.
        model: the model that answers now; another one that wrote this is named.
    """

    class LinkClicked(Message):
        """One of the links below the message was clicked."""

        def __init__(self, what: str) -> None:
            super().__init__()
            self.what = what

    class Selected(Message):
        """The message was clicked."""

        def __init__(self, view: MessageView) -> None:
            super().__init__()
            self.view = view

    def __init__(
        self, record: MessageRecord, alternatives: tuple[int, int], model: str = ""
    ) -> None:
        super().__init__(classes=f"message {record.role}")
        self.record = record
        self._alternatives = alternatives
        self._model = model
        self._text = record.content
        self._shown = ""
        self._unfolded = False
        self._live = record.state == "streaming"
        self._composed = False
        # A text may come while an earlier one is still being drawn, on another message pump;
        # two overlapping updates of a Markdown widget repeat or lose text.
        self._drawing = asyncio.Lock()

    @property
    def text(self) -> str:
        """The whole text as it is now, also while it streams."""
        return self._text

    def compose(self) -> ComposeResult:
        with Horizontal(classes="row"):
            yield Static("you" if self.record.role == "user" else "qh", classes="who")
            with Vertical(classes="body"):
                if self.record.role == "user":
                    yield Static(_user_text(self._text), markup=False, classes="said")
                else:
                    yield Static("", markup=False, classes="thinking")
                    yield AnswerMarkdown(parser_factory=markdown_parser, open_links=False)
                    yield Static("", markup=False, classes="plain")
                yield Static("", markup=False, classes="mark")
                with Horizontal(classes="facts"):
                    yield _Step(-1)
                    yield Static("", markup=False, classes="which")
                    yield _Step(1)
                    yield _Links("", classes="links")
                    yield Numbers()

    @property
    def live(self) -> bool:
        """Its answer is shown as one that is still being written."""
        return self._live

    async def on_mount(self) -> None:
        """Draw what there is."""
        self._composed = True
        await self._draw()
        self._draw_facts()

    async def stream(self, text: str, tokens: int, tokens_per_s: float) -> None:
        """Show the whole answer as it is so far; also before this is mounted, which draws it."""
        if not self._live:
            return
        await self.catch_up(text)
        if not self._composed:
            return
        texts = [f"{tokens_text(tokens)} token" + ("s" if tokens != 1 else "")]
        if tokens > 1:
            texts = [f"{rate_text(tokens_per_s)} · {texts[0]}", rate_text(tokens_per_s)]
        self._numbers(*texts)

    async def catch_up(self, text: str) -> None:
        """Show the whole answer as it is so far, and leave the numbers as they are."""
        if self._live and text != self._text:
            self._text = text
            if self._composed:
                await self._draw(whole=False)

    def waiting(self, text: str) -> None:
        """Say what is going on before the first token."""
        self._numbers(text)

    def note(self, text: str) -> None:
        """Show a mark beside the numbers."""
        self._mark(text)

    async def finish(self, record: MessageRecord, alternatives: tuple[int, int]) -> None:
        """Show the answer as it was kept."""
        self.record = record
        self._alternatives = alternatives
        self._text = record.content
        self._live = False
        if self._composed:
            await self._draw()
            if self.is_attached:
                self._draw_facts()

    def set_alternatives(self, alternatives: tuple[int, int]) -> None:
        """Show another position among the alternatives."""
        self._alternatives = alternatives
        if self._composed:
            self._draw_facts()

    def set_model(self, model: str) -> None:
        """Another model answers from now on."""
        if model != self._model:
            self._model = model
            if self._composed and not self._live:
                self._draw_facts()

    def set_left_out(self, left_out: bool, edge: bool) -> None:
        """Show that the model no longer sees this; `edge` is the last one of these."""
        self.set_class(left_out, "-left-out")
        self.set_class(edge, "-edge")
        self.border_subtitle = LEFT_OUT_EDGE if edge else ""

    def toggle_thinking(self) -> bool:
        """Fold or unfold the thinking; False when there is none."""
        if not split_thinking(self._text).thinking:
            return False
        self._unfolded = not self._unfolded
        self._draw_thinking()
        return True

    def on_click(self) -> None:
        """Select on click."""
        self.post_message(self.Selected(self))

    @on(_Step.Clicked)
    def _step(self, event: _Step.Clicked) -> None:
        event.stop()
        self.post_message(SiblingAsked(self.record.id, event.step))

    @on(LinkClicked)
    def _link(self, event: LinkClicked) -> None:
        event.stop()
        self.post_message(MessageWanted(event.what, self.record.id))

    @on(CodeBlock.CopyAsked)
    def _copy_code(self, event: CodeBlock.CopyAsked) -> None:
        event.stop()
        blocks = list(self.query(CodeBlock))
        number = blocks.index(event.block) + 1
        self.post_message(MessageWanted("copy code", self.record.id, number))

    async def _draw(self, whole: bool = True) -> None:
        """Bring the screen to what the text is by the time that earlier drawing is done."""
        async with self._drawing:
            if self.record.role == "user":
                return
            try:
                # Streaming may have ended while this waited.
                await (self._draw_whole() if whole or not self._live else self._draw_more())
            except (MountError, NoMatches):
                # Another chat was opened meanwhile, and this is no longer on screen.
                if self.is_attached:
                    raise

    async def _draw_whole(self) -> None:
        """Parse it all once: a streamed fence can stay stale (Textualize/textual#6518)."""
        self._draw_thinking()
        answer = split_thinking(self._text).answer
        self._shown = answer
        markdown, plain = self.query_one(AnswerMarkdown), self.query_one(".plain", Static)
        long = len(answer) > LONGEST_MARKDOWN
        plain.display, markdown.display = long, not long and bool(answer.strip())
        if long:
            plain.update(Content(inert(answer)))
            await markdown.update("")
        else:
            await markdown.update(inert(answer))
            markdown.number_blocks()

    async def _draw_more(self) -> None:
        parts = split_thinking(self._text)
        if parts.thinking or parts.thinking_open:
            self._draw_thinking()
        if len(parts.answer) > LONGEST_MARKDOWN or not parts.answer.startswith(self._shown):
            await self._draw_whole()
            return
        new = parts.answer[len(self._shown) :]
        if not new:
            return
        self._shown = parts.answer
        markdown = self.query_one(Markdown)
        markdown.display = True
        await markdown.append(inert(new))

    def _draw_thinking(self) -> None:
        parts = split_thinking(self._text)
        widget = self.query_one(".thinking", Static)
        widget.display = bool(parts.thinking) or (parts.thinking_open and self._live)
        words = len(parts.thinking.split())
        if parts.thinking_open and self._live:
            title = f"▾ thinking… {words:,} words"
            tail = " ".join(parts.thinking.split()[-24:])
            widget.update(inert(f"{title}\n{tail}" if tail else title))
        elif self._unfolded:
            widget.update(inert(f"▾ thought for {words:,} words (t folds)\n{parts.thinking}"))
        else:
            widget.update(f"▸ thought for {words:,} words (t unfolds)")

    def _draw_facts(self) -> None:
        at, count = self._alternatives
        for step in self.query(_Step):
            step.display = count > 1
            step.set_class(not 1 <= at + step.step <= count, "-end")
        which = self.query_one(".which", Static)
        which.display = count > 1
        which.update(f"{at} of {count}")
        reason = REASONS.get(self.record.reason, "")
        self._mark(" · ".join(part for part in (reason, self.record.note) if part))
        self._draw_links()
        self._draw_numbers()
        facts = self.query_one(".facts")
        facts.set_class(count > 1 or self._is_answer, "-shown")
        self.set_class(self._live, "-live")

    @property
    def _is_answer(self) -> bool:
        return self.record.role == "assistant"

    def _draw_links(self) -> None:
        links = self.query_one(_Links)
        if self._live:
            links.show("stop")
        elif self._is_answer:
            links.show("copy", "again")
        else:
            links.show("copy", "edit")

    def _draw_numbers(self) -> None:
        if self.record.stats is not None:
            other = self.record.model if self.record.model != self._model else ""
            self._numbers(*answer_numbers(self.record.stats, other))
        elif not self._live:
            self._numbers("")

    def _numbers(self, *texts: str) -> None:
        for numbers in self.query(Numbers):
            numbers.show(*texts)

    def _mark(self, text: str) -> None:
        for mark in self.query(".mark").results(Static):
            mark.display = bool(text)
            mark.update(inert(text))


def _user_text(text: str) -> str:
    if len(text) <= LONGEST_SHOWN:
        return inert(text)
    rest = len(text) - LONGEST_SHOWN
    return inert(text[:LONGEST_SHOWN]) + f"\n… {rest:,} more characters (y copies them all)"
