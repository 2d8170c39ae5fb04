"""The list of conversations with its search box; a pick goes up as ChatChosen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from qh_chat.actions import bindings_for
from qh_chat.history.records import ChatSummary
from qh_chat.inert import inert
from qh_chat.messages import (
    ChatChosen,
    ChatDeleteAsked,
    ChatRenameAsked,
    NewChatAsked,
    SearchChanged,
)
from qh_chat.widgets.numbers import day_name

__all__ = ["ChatList"]


class _Chats(OptionList):
    """The rows."""

    BINDINGS: ClassVar[list[BindingType]] = [*bindings_for("chats")]

    @property
    def marked_id(self) -> int | None:
        """The conversation under the cursor."""
        index = self.highlighted
        option = self.get_option_at_index(index) if index is not None else None
        return int(option.id) if option is not None and option.id is not None else None

    def action_find(self) -> None:
        self.query_ancestor(ChatList).query_one(Input).focus()

    def action_delete(self) -> None:
        if self.marked_id is not None:
            self.post_message(ChatDeleteAsked(self.marked_id))

    def action_rename(self) -> None:
        if self.marked_id is not None:
            self.post_message(ChatRenameAsked(self.marked_id))


class _Links(Static):
    """What can be done with chats, for the mouse."""

    MARKUP = "[@click=new]+ new[/]  [@click=rename]rename[/]  [@click=delete]delete[/]"

    def __init__(self) -> None:
        super().__init__(self.MARKUP, id="chat-links")

    def action_new(self) -> None:
        self.post_message(NewChatAsked())

    async def action_rename(self) -> None:
        await self.run_action("screen.rename")

    async def action_delete(self) -> None:
        await self.run_action("screen.delete_chat")


class _Search(Input):
    """The search box; down goes to the rows."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("down", "rows", show=False)]

    def action_rows(self) -> None:
        self.query_ancestor(ChatList).query_one(OptionList).focus()


class ChatList(Vertical):
    """Conversations by day, the open one marked.

    Args:
        clock: seconds since 1970.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(id="chats")
        self._clock = clock
        self.border_title = "Chats"

    def compose(self) -> ComposeResult:
        yield _Search(placeholder="/ search", id="search", compact=True)
        yield _Chats(id="chat-rows", markup=False, compact=True)
        yield _Links()

    def show(self, chats: Sequence[ChatSummary], open_id: int | None) -> None:
        """Show these conversations."""
        rows = self.query_one(OptionList)
        highlighted = rows.highlighted_option
        before = highlighted.id if highlighted is not None else None
        now = self._clock()
        options: list[Option] = []
        day = ""
        for chat in chats:
            name = day_name(chat.updated_at, now)
            if name != day:
                day = name
                options.append(Option(Content.styled(f" {name}", "$foreground 50%"), disabled=True))
            mark = "▸ " if chat.id == open_id else "  "
            title = " ".join(inert(chat.title).split())
            content = Content(f"{mark}{title}")
            if chat.id == open_id:
                content = content.stylize("bold")
            if chat.excerpt:
                excerpt = inert(chat.excerpt).replace("\n", " ")
                content = Content.assemble(
                    content, "\n", Content.styled(f"  {excerpt}", "$foreground 60%")
                )
            options.append(Option(content, id=str(chat.id)))
        rows.set_options(options)
        # While a person is in the list their place is kept, else the open chat is marked.
        keep = rows.has_focus and before is not None and self._has(options, before)
        wanted = before if keep and before is not None else str(open_id)
        if self._has(options, wanted):
            rows.highlighted = rows.get_option_index(wanted)
        self.border_subtitle = f"{len(chats)}" if chats else "none"

    @staticmethod
    def _has(options: Sequence[Option], wanted: str) -> bool:
        return any(option.id == wanted for option in options)

    @property
    def search_text(self) -> str:
        """What is searched for."""
        return self.query_one(Input).value

    @property
    def marked_id(self) -> int | None:
        """The conversation under the cursor while the rows have the focus."""
        rows = self.query_one(_Chats)
        return rows.marked_id if rows.has_focus else None

    def clear_search(self) -> None:
        """Search for nothing."""
        self.query_one(Input).value = ""

    def focus_search(self) -> None:
        """Set the cursor into the search box."""
        self.query_one(Input).focus()

    def focus_rows(self) -> None:
        """Set the cursor on the rows."""
        self.query_one(OptionList).focus()

    @on(Input.Changed)
    def _changed(self, event: Input.Changed) -> None:
        event.stop()
        self.post_message(SearchChanged(event.value))

    @on(Input.Submitted)
    def _submitted(self, event: Input.Submitted) -> None:
        event.stop()
        self.focus_rows()

    @on(OptionList.OptionSelected)
    def _selected(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        if event.option.id is not None:
            self.post_message(ChatChosen(int(event.option.id), self.search_text))
