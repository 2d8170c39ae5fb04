"""The box where a message is written: enter sends, ctrl+j makes a line, a paste never sends."""

from __future__ import annotations

from collections.abc import Mapping

from textual import events
from textual.widgets import TextArea

from qh_chat.actions import keys_of
from qh_chat.inert import inert
from qh_chat.messages import DraftChanged, EditLastAsked, Submitted

__all__ = ["Composer"]

LONGEST_PASTE = 1_000_000


class Composer(TextArea):
    """A text area that grows with its text up to eight lines.

    Args:
        keys: rebound keys by action id.
    """

    def __init__(self, keys: Mapping[str, str] | None = None) -> None:
        super().__init__(
            id="composer",
            soft_wrap=True,
            show_line_numbers=False,
            tab_behavior="focus",
            highlight_cursor_line=False,
            placeholder="Ask anything",
        )
        self._send_keys = keys_of("send", keys or {})
        self._newline_keys = keys_of("newline", keys or {})
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
        self.replace("\n", *self.selection, maintain_selection_offset=False)

    def action_cursor_up(self, select: bool = False) -> None:
        """Move up, or ask for the last message when there is nothing to move in."""
        if not self.text and not select:
            self.post_message(EditLastAsked())
        else:
            super().action_cursor_up(select)

    async def _on_key(self, event: events.Key) -> None:
        # Not bindings: those run after the key has bubbled, when the next keys of a fast typist
        # or a script are already in the text.
        if event.key in self._send_keys:
            event.prevent_default()
            event.stop()
            self.action_send()
        elif event.key in self._newline_keys:
            event.prevent_default()
            event.stop()
            self.action_newline()

    async def _on_paste(self, event: events.Paste) -> None:
        # What is pasted may come from anywhere and is drawn as it is typed: made inert at once.
        # Textual calls the handler of the base class after this one, with the same event.
        event.text = inert(event.text.replace("\r\n", "\n").replace("\r", "\n"))[:LONGEST_PASTE]

    def on_text_area_changed(self, event: TextArea.Changed) -> None:
        """Pass the draft on."""
        event.stop()
        self.post_message(DraftChanged(self.text))
