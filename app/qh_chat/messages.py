"""Every message that crosses a widget boundary: small documented classes, nothing else.

Messages of the engine carry `answer_id`, the history id of the answer they belong to, so that a
late one can never land in another conversation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from textual.message import Message

from qh_runtime.session.events import EngineInfo, GenerationStats, StopReason

if TYPE_CHECKING:
    from qh_chat.jobs import Job

__all__ = [
    "AnswerDone",
    "AnswerPrompt",
    "AnswerText",
    "AnswerTrimmed",
    "ChatChosen",
    "ChatDeleteAsked",
    "ChatRenameAsked",
    "ContextCounted",
    "Doing",
    "DraftChanged",
    "EditLastAsked",
    "EngineFailed",
    "JobChanged",
    "LoadCancelled",
    "MessageWanted",
    "ModelLoading",
    "ModelReady",
    "NewChatAsked",
    "SearchChanged",
    "SiblingAsked",
    "Submitted",
]


Doing = Literal["load", "answer", "count"]
"""What the engine thread was doing when something failed."""


class ModelLoading(Message):
    """A model is being loaded; done and total have the same unit, total 0 when unknown."""

    def __init__(self, name: str, step: str, done: int, total: int) -> None:
        super().__init__()
        self.name = name
        self.step = step
        self.done = done
        self.total = total


class ModelReady(Message):
    """A model answers from now on."""

    def __init__(self, info: EngineInfo) -> None:
        super().__init__()
        self.info = info


class LoadCancelled(Message):
    """The person stopped a load; the model of before, if any, is still there."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name


class EngineFailed(Message):
    """Work of the engine thread raised.

    Attributes:
        doing: what failed.
        text: one line for a person. hint: the next step, when there is one.
        answer_id: the answer that ends with this, for `doing == "answer"`.
        bug: not a QhError: the traceback is in the log.
    """

    def __init__(
        self,
        doing: Doing,
        text: str,
        hint: str | None,
        answer_id: int | None = None,
        bug: bool = False,
    ) -> None:
        super().__init__()
        self.doing = doing
        self.text = text
        self.hint = hint
        self.answer_id = answer_id
        self.bug = bug


class JobChanged(Message):
    """Long work on a stored model began, went on or ended."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.job = job


class AnswerPrompt(Message):
    """The prompt is being read: tokens done, in all, and taken over from the turn before."""

    def __init__(self, answer_id: int, done: int, total: int, reused: int) -> None:
        super().__init__()
        self.answer_id = answer_id
        self.done = done
        self.total = total
        self.reused = reused


class AnswerTrimmed(Message):
    """The oldest messages were left out of the prompt so that it fits."""

    def __init__(self, answer_id: int, left_out: int, tokens: int) -> None:
        super().__init__()
        self.answer_id = answer_id
        self.left_out = left_out
        self.tokens = tokens


class AnswerText(Message):
    """Some tokens arrived: their text, how many in this answer so far, and their rate."""

    def __init__(self, answer_id: int, text: str, tokens: int, tokens_per_s: float) -> None:
        super().__init__()
        self.answer_id = answer_id
        self.text = text
        self.tokens = tokens
        self.tokens_per_s = tokens_per_s


class AnswerDone(Message):
    """The answer ended; stats are None when it was stopped before it began."""

    def __init__(self, answer_id: int, reason: StopReason, stats: GenerationStats | None) -> None:
        super().__init__()
        self.answer_id = answer_id
        self.reason = reason
        self.stats = stats


class ContextCounted(Message):
    """What the conversation and the draft take of the context, by the model's tokenizer.

    Attributes:
        tokens: all of it; where there can be no answer, what must stay of it.
        left_out: messages that the next answer leaves out from the oldest on, and their tokens.
        fits: there is an answer to this at all.
    """

    def __init__(
        self,
        request: int,
        tokens: int,
        left_out: int = 0,
        left_out_tokens: int = 0,
        fits: bool = True,
    ) -> None:
        super().__init__()
        self.request = request
        self.tokens = tokens
        self.left_out = left_out
        self.left_out_tokens = left_out_tokens
        self.fits = fits


class Submitted(Message):
    """The person sent the text of the composer."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text


class DraftChanged(Message):
    """The text of the composer changed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text


class EditLastAsked(Message):
    """Up was pressed in an empty composer."""


class ChatChosen(Message):
    """A conversation was picked in the list; `find` is the search text that led there."""

    def __init__(self, conversation_id: int, find: str = "") -> None:
        super().__init__()
        self.conversation_id = conversation_id
        self.find = find


class ChatDeleteAsked(Message):
    """A conversation is to be deleted, once the person has said yes."""

    def __init__(self, conversation_id: int) -> None:
        super().__init__()
        self.conversation_id = conversation_id


class ChatRenameAsked(Message):
    """A conversation is to get another title."""

    def __init__(self, conversation_id: int) -> None:
        super().__init__()
        self.conversation_id = conversation_id


class NewChatAsked(Message):
    """A new conversation is wanted."""


class MessageWanted(Message):
    """Something is to be done with a message.

    Attributes:
        what: "copy", "copy code", "edit", "again", "stop", "search" or "write".
        message_id: of the message, None where it takes none.
        number: of the code block, from 1.
    """

    def __init__(self, what: str, message_id: int | None, number: int = 0) -> None:
        super().__init__()
        self.what = what
        self.message_id = message_id
        self.number = number


class SearchChanged(Message):
    """The search text over the conversations changed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text


class SiblingAsked(Message):
    """Another alternative of a turn is wanted: step -1 or +1 from this message."""

    def __init__(self, message_id: int, step: int) -> None:
        super().__init__()
        self.message_id = message_id
        self.step = step
