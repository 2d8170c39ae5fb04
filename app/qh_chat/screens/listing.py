"""The part of the chat screen that keeps the chats: list, search, titles, deleting, exporting."""

from __future__ import annotations

from textual import on

from qh_chat.history.export import as_json, as_markdown, export_path, write_export
from qh_chat.inert import inert
from qh_chat.messages import (
    ChatChosen,
    ChatDeleteAsked,
    ChatRenameAsked,
    NewChatAsked,
    SearchChanged,
)
from qh_chat.screens.answering import AnsweringScreen
from qh_chat.screens.dialogs import ConfirmDialog, TextDialog
from qh_chat.widgets.chat_list import ChatList

__all__ = ["ListingScreen"]


class ListingScreen(AnsweringScreen):
    """Conversations as a whole; what is inside the open one is the chat screen's affair."""

    def __init__(self) -> None:
        super().__init__()
        self._search = ""
        self._wide = False
        # In a wide window the list is there unless folded; in a narrow one it takes the place of
        # the transcript while it is open.
        self._folded = self._open = False

    @property
    def chats(self) -> ChatList:
        """The list of conversations."""
        return self.query_one(ChatList)

    @property
    def chats_shown(self) -> bool:
        """The list is on screen."""
        return not self._folded if self._wide else self._open

    def show_list(self, shown: bool) -> None:
        """Show or hide the list."""
        if self._wide:
            self._folded = not shown
        else:
            self._open = shown
        self.show_panes()

    def close_list(self) -> None:
        """Give the window back to the transcript where the list took it."""
        if not self._wide:
            self.show_list(False)

    def show_panes(self) -> None:
        """Bring list and transcript to what they are to be.

        Not by classes: a style sheet is applied a moment later, and until then what is typed
        would go elsewhere, since nothing hidden takes the focus.
        """
        for chats in self.query(ChatList):
            chats.display = self.chats_shown
            chats.set_class(not self._wide, "-alone")
        for main in self.query("#main"):
            main.display = self._wide or not self._open

    def refresh_chats(self) -> None:
        """Show the list of conversations as it is now."""
        self.chats.show(self.app.history.search(self._search), self.conversation.id)

    async def open_chat(self, conversation_id: int | None) -> None:
        """Open a conversation; None begins a new one."""
        raise NotImplementedError

    def show_title(self) -> None:
        """Show the title of the open conversation as it is now."""
        raise NotImplementedError

    def discard_draft(self) -> None:
        """Empty the message box, because its conversation is deleted."""
        raise NotImplementedError

    def action_toggle_chats(self) -> None:
        """Show or hide the list, or go to it."""
        inside = self.focused is not None and self.chats in self.focused.ancestors_with_self
        # A list that is beside the transcript is gone to first, and hidden from within.
        shown = not self.chats_shown or (self._wide and not inside)
        self.show_list(shown)
        if shown:
            self.refresh_chats()
            self.chats.focus_rows()
        else:
            self.composer.focus()

    def action_search(self) -> None:
        """Show the list with the cursor in its search box."""
        self.show_list(True)
        self.chats.focus_search()

    def leave_list(self) -> bool:
        """Escape: out of the search and out of the list; False when there is nothing to leave."""
        if not self.chats_shown:
            return False
        if self._search:
            self.chats.clear_search()
        elif not self._wide:
            self.show_list(False)
        else:
            return False
        self.composer.focus()
        return True

    async def action_new_chat(self) -> None:
        """Begin a new conversation."""
        await self.open_chat(None)
        self.close_list()
        self.composer.focus()

    @on(NewChatAsked)
    async def _new_chat_asked(self) -> None:
        await self.action_new_chat()

    @on(SearchChanged)
    def _searched(self, event: SearchChanged) -> None:
        self._search = event.text
        self.refresh_chats()

    @on(ChatChosen)
    async def _chosen(self, event: ChatChosen) -> None:
        await self.open_chat(event.conversation_id)
        self.close_list()
        found = self.conversation.find(event.find) if event.find else None
        if found is None:
            self.composer.focus()
            return
        if all(message.id != found for message in self.conversation.path()):
            self.conversation.show_branch(found)
            await self.show_path()
        self.transcript.focus()
        await self.transcript.go_to(found)

    def action_rename(self) -> None:
        """Give the marked or else the open conversation another title."""
        wanted = self.chats.marked_id or self.conversation.id
        if wanted is not None:
            self.post_message(ChatRenameAsked(wanted))

    @on(ChatRenameAsked)
    def _rename_asked(self, event: ChatRenameAsked) -> None:
        record = self.app.history.conversation(event.conversation_id)
        if record is None:
            return

        def keep(title: str | None) -> None:
            if not title:
                return
            if self.conversation.id == record.id:
                self.conversation.rename(title)
                self.show_title()
            else:
                self.app.history.rename(record.id, title)
            self.refresh_chats()

        self.app.push_screen(TextDialog("Title of this chat", record.title), keep)

    def action_delete_chat(self) -> None:
        """Delete the marked or else the open conversation."""
        wanted = self.chats.marked_id or self.conversation.id
        if wanted is not None:
            self.post_message(ChatDeleteAsked(wanted))

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
                self.answering_changed()
            self.app.history.delete(record.id)
            if self.conversation.id == record.id:
                self.discard_draft()
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
