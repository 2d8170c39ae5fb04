"""One conversation as a tree in memory, every change of which goes to the history first.

Messages with the same parent are alternatives of one turn; the path shown runs from a root to the
leaf, and walking alternatives moves the leaf.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from qh_chat.history.records import ConversationRecord, MessageRecord, Role
from qh_chat.history.store import HistoryStore
from qh_chat.settings import Settings
from qh_runtime.options import SamplingParams
from qh_runtime.session.events import GenerationStats
from qh_runtime.session.events import Message as Turn

__all__ = ["Conversation", "title_of"]

TITLE_LENGTH = 60
PARTIAL_REASONS = frozenset({"cancelled", "interrupted", "error"})


def title_of(text: str) -> str:
    """A title from the first message: its first line that says something, cut at a word."""
    bare = (line.strip(" #*`>-\t") for line in text.splitlines())
    line = " ".join(next((line for line in bare if line), "").split())
    if len(line) <= TITLE_LENGTH:
        return line or "New chat"
    cut = line[:TITLE_LENGTH].rsplit(" ", 1)[0]
    return cut + "…"


class Conversation:
    """A conversation that is open on screen.

    Args:
        store: where it is kept.
        record: its row; None is a new one, which gets a row with its first message or draft.
        system_prompt: of a new conversation. sampling: of a new conversation.
    """

    def __init__(
        self,
        store: HistoryStore,
        record: ConversationRecord | None,
        *,
        system_prompt: str = "",
        sampling: SamplingParams | None = None,
    ) -> None:
        self._store = store
        self.record = record
        self.system_prompt = system_prompt if record is None else record.system_prompt
        default = sampling if sampling is not None else SamplingParams()
        self.sampling = default if record is None else record.sampling
        self._messages: dict[int, MessageRecord] = {}
        self._children: dict[int | None, list[int]] = {None: []}
        self.leaf_id: int | None = None
        if record is not None:
            for message in store.messages(record.id):
                self._insert(message)
            known = record.leaf_id in self._messages
            self.leaf_id = record.leaf_id if known else self._deepest(None)

    @property
    def id(self) -> int | None:
        """Its id in the history; None before it has one."""
        return self.record.id if self.record is not None else None

    @property
    def title(self) -> str:
        """Its title; a new one has a stand-in."""
        return self.record.title if self.record is not None else "New chat"

    @property
    def draft(self) -> str:
        """What was typed and not sent."""
        return self.record.draft if self.record is not None else ""

    def message(self, message_id: int) -> MessageRecord:
        """One message. Raises KeyError."""
        return self._messages[message_id]

    def has(self, message_id: int) -> bool:
        """A message belongs to this conversation."""
        return message_id in self._messages

    def path(self) -> list[MessageRecord]:
        """The messages shown, first to last."""
        found: list[MessageRecord] = []
        at = self.leaf_id
        while at is not None:
            message = self._messages[at]
            found.append(message)
            at = message.parent_id
        return found[::-1]

    def alternatives(self, message_id: int) -> tuple[int, int]:
        """Position (from 1) of a message among the alternatives of its turn, and their number."""
        siblings = self._children[self._messages[message_id].parent_id]
        return siblings.index(message_id) + 1, len(siblings)

    def turns(self, until: int | None) -> list[Turn]:
        """What the engine is asked: the system prompt, then the path down to a message."""
        found: list[Turn] = []
        at = until
        while at is not None:
            message = self._messages[at]
            if message.content:
                found.append(Turn(message.role, message.content))
            at = message.parent_id
        if self.system_prompt.strip():
            found.append(Turn("system", self.system_prompt))
        return found[::-1]

    def oldest(self, until: int | None, count: int) -> frozenset[int]:
        """The first `count` messages of what `turns` gives, the system prompt not among them."""
        found: list[int] = []
        at = until
        while at is not None:
            message = self._messages[at]
            if message.content:
                found.append(at)
            at = message.parent_id
        return frozenset(found[::-1][:count])

    def find(self, text: str) -> int | None:
        """The first message that contains the text, whatever its case; first of the path shown."""
        wanted = text.casefold()
        on_path = self.path()
        for message in (*on_path, *self.everything()):
            if wanted in message.content.casefold():
                return message.id
        return None

    def show_branch(self, message_id: int) -> None:
        """Show a branch that runs through a message."""
        self._show(self._deepest(message_id))

    def say(self, text: str, model: str) -> MessageRecord:
        """Add what the person said at the end of the path."""
        return self._add(self.leaf_id, "user", text, model)

    def say_instead(self, message_id: int, text: str, model: str) -> MessageRecord:
        """Add an alternative beside a message of the person, and go on from it."""
        return self._add(self._messages[message_id].parent_id, "user", text, model)

    def begin_answer(self, parent_id: int, model: str) -> MessageRecord:
        """Add an empty answer below a message of the person; earlier ones become alternatives."""
        record = self._ensure(model)
        message = self._store.add(
            record.id, parent_id, "assistant", "", state="streaming", model=model
        )
        self._insert(message)
        self.leaf_id = message.id
        return message

    def remember(self, message_id: int, content: str) -> None:
        """Hold a streaming answer as it is so far, in memory."""
        self._messages[message_id] = replace(self._messages[message_id], content=content)

    def flush(self, message_id: int, content: str) -> None:
        """Write a streaming answer as it is so far; on any thread, nothing once it has ended."""
        self._store.flush_partial(message_id, content)

    def end_answer(
        self,
        message_id: int,
        content: str,
        reason: str,
        stats: GenerationStats | None = None,
        note: str = "",
    ) -> MessageRecord:
        """Keep an answer as it ended."""
        partial = reason in PARTIAL_REASONS
        self._store.finish(message_id, content, reason, partial=partial, stats=stats, note=note)
        message = replace(
            self._messages[message_id],
            content=content,
            state="partial" if partial else "complete",
            reason=reason,
            note=note,
            stats=stats,
        )
        self._messages[message_id] = message
        return message

    def step_alternative(self, message_id: int, step: int) -> bool:
        """Show the alternative before or after a message; False when there is none."""
        siblings = self._children[self._messages[message_id].parent_id]
        at = siblings.index(message_id) + step
        if not 0 <= at < len(siblings):
            return False
        self._show(self._deepest(siblings[at]))
        return True

    def question_of(self, message_id: int) -> int | None:
        """The nearest message of the person at or above a message."""
        at: int | None = message_id
        while at is not None and self._messages[at].role != "user":
            at = self._messages[at].parent_id
        return at

    def keep_draft(self, text: str, model: str) -> None:
        """Keep what is typed; a conversation of nothing but an empty draft is not kept."""
        if not text.strip() and not self._messages:
            if self.record is not None:
                self._store.delete(self.record.id)
                self.record = None
            return
        record = self._ensure(model)
        if record.draft != text:
            self._store.set_draft(record.id, text)
            self.record = replace(record, draft=text)

    @staticmethod
    def draft_turn(text: str) -> Turn:
        """What is typed, as the turn that it would become."""
        return Turn("user", text)

    def set_options(self, system_prompt: str, sampling: SamplingParams) -> None:
        """Change the system prompt and the sampling settings from the next answer on."""
        self.system_prompt = system_prompt
        self.sampling = sampling
        if self.record is not None:
            self._store.set_options(self.record.id, system_prompt, sampling)

    def has_own_options(self, settings: Settings) -> bool:
        """Its system prompt or sampling differ from what new chats get."""
        usual = (settings.chat.system_prompt, settings.sampling_params())
        return (self.system_prompt, self.sampling) != usual

    def forget(self) -> None:
        """It was deleted: nothing of it is written any more."""
        self.record = None
        self._messages.clear()
        self._children = {None: []}
        self.leaf_id = None

    def rename(self, title: str) -> None:
        """Change the title."""
        if self.record is not None:
            self._store.rename(self.record.id, title)
            self.record = replace(self.record, title=title)

    def _ensure(self, model: str) -> ConversationRecord:
        if self.record is None:
            self.record = self._store.create("New chat", model, self.system_prompt, self.sampling)
        return self.record

    def _add(self, parent_id: int | None, role: Role, text: str, model: str) -> MessageRecord:
        record = self._ensure(model)
        message = self._store.add(record.id, parent_id, role, text, model=model)
        if role == "user" and parent_id is None and record.title == "New chat":
            self.rename(title_of(text))
        self._insert(message)
        self.leaf_id = message.id
        return message

    def _insert(self, message: MessageRecord) -> None:
        parent = message.parent_id if message.parent_id in self._messages else None
        if parent != message.parent_id:
            message = replace(message, parent_id=parent)
        self._messages[message.id] = message
        self._children.setdefault(parent, []).append(message.id)
        self._children.setdefault(message.id, [])

    def _deepest(self, message_id: int | None) -> int | None:
        """The newest leaf below a message."""
        at = message_id
        while self._children[at]:
            at = self._children[at][-1]
        return at

    def everything(self) -> Sequence[MessageRecord]:
        """All messages of all branches, oldest first."""
        return [self._messages[key] for key in sorted(self._messages)]

    def _show(self, leaf_id: int | None) -> None:
        self.leaf_id = leaf_id
        if self.record is not None:
            self._store.set_leaf(self.record.id, leaf_id)
