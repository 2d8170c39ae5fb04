"""The transcript: the messages of the path, newest at the bottom, one of them selected.

Only some of the messages are mounted, at first the last ones, so that a chat of ten thousand turns
costs what a short one does; going up or down mounts more, going far mounts others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from typing import ClassVar

from textual import events, on
from textual.binding import BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widgets import Static

from qh_chat.actions import bindings_for
from qh_chat.history.records import MessageRecord
from qh_chat.messages import MessageWanted, SiblingAsked
from qh_chat.widgets.message import MessageView

__all__ = ["Transcript"]

MOUNTED = 12
"""Messages mounted at first; MORE are added when the top of them is reached."""
MORE = 20
KEYS = "j k move · y copy · e edit · b again · i write"


class Transcript(VerticalScroll, can_focus=True):
    """The messages of one path through a conversation."""

    BINDINGS: ClassVar[list[BindingType]] = [*bindings_for("transcript")]

    def __init__(self) -> None:
        super().__init__(id="transcript")
        self._records: list[MessageRecord] = []
        self._alternatives: Callable[[int], tuple[int, int]] = lambda _: (1, 1)
        # Of the records, those from first up to end are mounted.
        self._first = self._end = 0
        self._model = ""
        self._left_out: Collection[int] = ()
        self._note = ""
        self.selected: MessageView | None = None
        # Two keys, or a key and a click, may ask for two paths: one after the other.
        self._building = asyncio.Lock()

    @property
    def views(self) -> list[MessageView]:
        """The mounted messages, first to last."""
        # Not a query: that would look at every block of every answer, some thousand nodes.
        return [child for child in self.children if isinstance(child, MessageView)]

    def view_of(self, message_id: int) -> MessageView | None:
        """The mounted view of a message."""
        return next((view for view in self.views if view.record.id == message_id), None)

    def set_model(self, model: str) -> None:
        """Name the model that answers now, so that answers of another one say so."""
        self._model = model
        for view in self.views:
            view.set_model(model)

    def set_left_out(self, message_ids: Collection[int]) -> None:
        """Show which messages the model no longer sees."""
        self._left_out = message_ids
        below_is_out = False
        for view in reversed(self.views):
            out = view.record.id in message_ids
            view.set_left_out(out, edge=out and not below_is_out)
            below_is_out = out

    async def show(
        self,
        records: Sequence[MessageRecord],
        alternatives: Callable[[int], tuple[int, int]],
        welcome: Static | None = None,
    ) -> None:
        """Show a path; messages that are on screen already stay as they are."""
        async with self._building:
            await self._build(records, alternatives, welcome)

    async def _build(
        self,
        records: Sequence[MessageRecord],
        alternatives: Callable[[int], tuple[int, int]],
        welcome: Static | None,
    ) -> None:
        self._alternatives = alternatives
        keep = 0
        mounted = self.views
        ids = [view.record.id for view in mounted]
        offset = self._first
        wanted = [record.id for record in records]
        at_end = self._end == len(self._records)
        if mounted and at_end and ids[0] in wanted and wanted.index(ids[0]) == offset:
            rest = wanted[offset:]
            while keep < min(len(ids), len(rest)) and ids[keep] == rest[keep]:
                keep += 1
        if keep == 0:
            self._first = max(0, len(records) - MOUNTED)
        self._records, self._end = list(records), len(records)
        async with self.batch():
            await self.remove_children(Static)
            stale = mounted[keep:]
            if self.selected in stale:
                self.selected = None
            for view in stale:
                await view.remove()
            new = self._records[self._first + keep :]
            self.set_class(not records, "-empty")
            if welcome is not None and not records:
                await self.mount(welcome)
            if new:
                await self.mount_all([self._view(record) for record in new])
            for view in mounted[:keep]:
                view.set_alternatives(alternatives(view.record.id))
            await self._trim()
            await self._mount_edges()
        # An anchored container sets its content at the bottom; the welcome stands in the middle.
        self.anchor(bool(records))
        self.call_after_refresh(self._fill)

    async def _fill(self) -> None:
        """Mount more where those that are there do not reach the top of the window."""
        if not self.is_attached or self.max_scroll_y > 0:
            return
        if await self.load_earlier() or await self.load_later():
            self.call_after_refresh(self._fill)

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """Mount more when the person scrolls to the top or to the bottom."""
        super().watch_scroll_y(old_value, new_value)
        if new_value <= 0 < old_value and self._first:
            self.call_next(self.load_earlier)
        elif new_value >= self.max_scroll_y > old_value and self._end < len(self._records):
            self.call_next(self.load_later)

    async def _mount_edges(self) -> None:
        """The lines that say what is not mounted, and the marks of the messages that are."""
        await self.remove_children(_Edge)
        views, below = self.views, len(self._records) - self._end
        if self._first:
            await self.mount(_Edge(-1, f"▴ {self._first:,} earlier messages"), before=0)
        if below:
            await self.mount(_Edge(1, f"▾ {below:,} later messages"))
        for view in views:
            view.set_class(view is views[-1] and not below, "-last")
        self.set_left_out(self._left_out)

    async def _trim(self) -> None:
        """Unmount the oldest messages of a transcript that grew by many turns."""
        views = self.views
        surplus = len(views) - MOUNTED - MORE
        if surplus <= 0 or self.selected is not None:
            return
        for view in views[: surplus + MORE // 2]:
            await view.remove()
        self._first += surplus + MORE // 2

    async def load_earlier(self) -> bool:
        """Mount earlier messages; False when all are there."""
        async with self._building:
            start = max(0, self._first - MORE)
            records, views = self._records[start : self._first], self.views
            if not records or not views:
                return False
            # Content that does not fill the window is anchored below its top: at a negative offset.
            at_end = self.max_scroll_y == 0 or self.scroll_y >= self.max_scroll_y
            async with self.batch():
                await self.mount_all([self._view(record) for record in records], before=views[0])
                self._first = start
                await self._mount_edges()
        if at_end:
            self.anchor()
        else:
            self.call_after_refresh(self.scroll_to_widget, views[0], animate=False, top=True)
        return True

    async def load_later(self) -> bool:
        """Mount later messages; False when all are there."""
        async with self._building:
            end = min(len(self._records), self._end + MORE)
            records, views = self._records[self._end : end], self.views
            if not records or not views:
                return False
            self.anchor(False)
            async with self.batch():
                await self.mount_all([self._view(record) for record in records], after=views[-1])
                self._end = end
                await self._mount_edges()
        return True

    async def _go_far(self, index: int) -> None:
        """Mount the messages around one instead of those that are there."""
        async with self._building:
            self.select(None)
            count = MOUNTED + MORE
            self._first = max(0, min(index - MOUNTED // 2, len(self._records) - count))
            self._end = min(len(self._records), self._first + count)
            records = self._records[self._first : self._end]
            self.anchor(False)
            async with self.batch():
                await self.remove_children()
                await self.mount_all([self._view(record) for record in records])
                await self._mount_edges()
        self.call_after_refresh(self._fill)

    def _view(self, record: MessageRecord) -> MessageView:
        return MessageView(record, self._alternatives(record.id), self._model)

    def select(self, view: MessageView | None) -> None:
        """Mark one message as the one that keys act on."""
        if self.selected is not None:
            self.selected.remove_class("-selected")
        self.selected = view
        if view is not None:
            view.add_class("-selected")
            self.scroll_to_widget(view, animate=False)

    def set_title(self, title: str, note: str = "") -> None:
        """Show the title of the conversation, and a note at the lower edge."""
        self.border_title = Content(title)
        self._note = note
        self._show_hints(self.has_focus)

    def _show_hints(self, focused: bool) -> None:
        hints = (KEYS if focused and self.views else "", self._note)
        self.border_subtitle = Content(" · ".join(hint for hint in hints if hint))

    def on_focus(self) -> None:
        """Select the last message when there is no selection yet."""
        self._show_hints(True)
        if self.selected is None and self.views:
            self.select(self.views[-1])

    def on_blur(self) -> None:
        """Without the focus no message is selected."""
        self.select(None)
        self._show_hints(False)

    async def action_move(self, step: int) -> None:
        """Select the next or previous message; past the edge of it, scroll or load more."""
        views = self.views
        if not views:
            return
        if self.selected is None:
            self.select(views[-1])
            return
        index = views.index(self.selected) + step
        if (index < 0 and await self.load_earlier()) or (
            index >= len(views) and await self.load_later()
        ):
            views = self.views
            index = views.index(self.selected) + step
        if 0 <= index < len(views):
            self.select(views[index])
        elif step > 0:
            self.anchor()
        else:
            self.scroll_home(animate=False)

    async def action_first(self) -> None:
        """Go to the first message."""
        if self._records:
            await self.go_to(self._records[0].id)

    async def action_last(self) -> None:
        """Go to the last message."""
        if self._records:
            await self.go_to(self._records[-1].id)
            self.anchor()

    async def go_to(self, message_id: int) -> bool:
        """Select a message of the path; False when it is not there."""
        ids = [record.id for record in self._records]
        if message_id not in ids:
            return False
        index = ids.index(message_id)
        # An answer that is being written stays mounted, since nothing else would end its view.
        writes = any(view.live for view in self.views)
        if not writes and not self._first - 2 * MORE <= index < self._end + 2 * MORE:
            await self._go_far(index)
        while index < self._first and await self.load_earlier():
            pass
        while index >= self._end and await self.load_later():
            pass
        self.select(self.view_of(message_id))
        return True

    def action_copy(self) -> None:
        """Ask for a copy of the selected message."""
        self._want("copy")

    def action_copy_code(self, number: int) -> None:
        """Ask for a copy of a code block."""
        self._want("copy code", number)

    def action_edit(self) -> None:
        """Ask to edit the selected message."""
        self._want("edit")

    def action_branch(self) -> None:
        """Ask for another answer to the selected turn."""
        self._want("again")

    def action_search(self) -> None:
        """Ask for the search."""
        self.post_message(MessageWanted("search", None))

    def action_write(self) -> None:
        """Ask for the composer."""
        self.post_message(MessageWanted("write", None))

    def _want(self, what: str, number: int = 0) -> None:
        view = self._target()
        if view is not None:
            self.post_message(MessageWanted(what, view.record.id, number))

    def action_thinking(self) -> None:
        """Fold or unfold the thinking of the selected message."""
        view = self._target()
        if view is not None:
            view.toggle_thinking()

    def action_sibling(self, step: int) -> None:
        """Ask for another alternative of the selected turn."""
        view = self._target()
        if view is not None:
            self.post_message(SiblingAsked(view.record.id, step))

    def _target(self) -> MessageView | None:
        views = self.views
        return self.selected or (views[-1] if views else None)

    @on(MessageView.Selected)
    def _clicked(self, event: MessageView.Selected) -> None:
        event.stop()
        self.focus()
        self.select(event.view)


class _Edge(Static):
    """The line above the first or below the last mounted message."""

    def __init__(self, step: int, text: str) -> None:
        super().__init__(text, classes="edge")
        self._step = step

    async def on_click(self, event: events.Click) -> None:
        """Mount more."""
        event.stop()
        transcript = self.query_ancestor(Transcript)
        await (transcript.load_earlier() if self._step < 0 else transcript.load_later())
