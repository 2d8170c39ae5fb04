"""The box where a message is written: enter sends, ctrl+j makes a line, a paste never sends."""

from __future__ import annotations

from typing import ClassVar

from textual import events
from textual.binding import BindingType
from textual.widgets import TextArea

from qh_chat.actions import bindings_for
from qh_chat.inert import inert
from qh_chat.messages import DraftChanged, EditLastAsked, Submitted

__all__ = ["Composer"]

LONGEST_PASTE = 1_000_000


class Composer(TextArea):
    """A text area that grows with its text up to eight lines."""

    BINDINGS: ClassVar[list[BindingType]] = [*bindings_for("composer")]

    def __init__(self) -> None:
        super().__init__(
            id="composer",
            soft_wrap=True,
            show_line_numbers=False,
            tab_behavior="focus",
            highlight_cursor_line=False,
            placeholder="Ask anything",
        )
        self.border_title = "Message"
        self.border_subtitle = "enter send · ctrl+j newline"

    def put(self, text: str) -> None:
        """Replace the text and set the cursor at its end."""
        self.load_text(text)
        self.move_cursor(self.document.end)

    def action_send(self) -> None:
        """Send the text unless there is none."""
        if self.text.strip():
            self.post_message(Submitted(self.text))

    def action_newline(self) -> None:
        """Insert a line break at the cursor."""
        self.insert("\n")

    def action_cursor_up(self, select: bool = False) -> None:
        """Move up, or ask for the last message when there is nothing to move in."""
        if not self.text and not select:
            self.post_message(EditLastAsked())
        else:
            super().action_cursor_up(select)

    async def _on_key(self, event: events.Key) -> None:
        # The text area takes enter as text before bindings are asked.
        if event.key == "enter":
            event.prevent_default()
            event.stop()
            self.action_send()
            return
        await super()._on_key(event)

    async def _on_paste(self, event: events.Paste) -> None:
        # What is pasted may come from anywhere and is drawn as it is typed: made inert at once.
        event.text = inert(event.text.replace("\r\n", "\n").replace("\r", "\n"))[:LONGEST_PASTE]
        await super()._on_paste(event)

    def on_text_area_changed(self, event: TextArea.Changed) -> None:
        """Pass the draft on."""
        event.stop()
        self.post_message(DraftChanged(self.text))
