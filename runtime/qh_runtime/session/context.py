"""Fits a conversation into the context: which turns stay, how many tokens that leaves out."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from qh_runtime.errors import ContextLengthError, SessionError, TemplateError
from qh_runtime.options import ContextPolicy
from qh_runtime.session.events import Message
from qh_runtime.tokenizers.chat_template import ChatTemplate
from qh_runtime.tokenizers.chat_tokenizer import ChatTokenizer

__all__ = ["FittedPrompt", "PromptBuilder"]

# Room that "drop" keeps free for the answer when nobody says how long it may get: a few paragraphs,
# and never more than a quarter of a small context.
_ANSWER_TOKENS = 256
# Renders are kept for a moment: a screen counts tokens of the same conversation that is then asked.
_KEPT_PROMPTS = 8


@dataclass(frozen=True)
class FittedPrompt:
    """The ids of a prompt, and what was left out of it. fits: there is room for an answer."""

    ids: list[int]
    dropped_turns: int = 0
    dropped_tokens: int = 0
    fits: bool = True


class PromptBuilder:
    """Makes prompts of conversations for one model.

    Args:
        tokenizer: the model's tokenizer.
        template: the model's chat template.
        context_length: tokens of the KV cache.
    """

    def __init__(
        self, tokenizer: ChatTokenizer, template: ChatTemplate, context_length: int
    ) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._context_length = context_length
        self._kept: OrderedDict[tuple[Message, ...], list[int]] = OrderedDict()

    def ids(self, messages: Sequence[Message]) -> list[int]:
        """Return the prompt ids of a conversation, the start of the answer included.

        Raises:
            TemplateError: the template failed or refused.
            TokenizerError: the text is too long or the tokenizer failed.
        """
        key = tuple(messages)
        known = self._kept.pop(key, None)
        if known is None:
            prompt = self._template.render(
                [{"role": message.role, "content": message.content} for message in messages]
            )
            known = self._tokenizer.encode_prompt(prompt)
        self._kept[key] = known
        while len(self._kept) > _KEPT_PROMPTS:
            self._kept.popitem(last=False)
        return known

    def fit(
        self, messages: Sequence[Message], policy: ContextPolicy, max_tokens: int | None
    ) -> FittedPrompt:
        """Return the prompt of a conversation, shortened as the policy says.

        "drop" leaves out whole exchanges from the oldest on (a user message and what answers it),
        never the system messages at the start nor the last user message, until the prompt leaves
        room for an answer: max_tokens or 256 tokens, at most a quarter of the context. "stop"
        leaves out nothing; a prompt without room has fits=False.

        Raises:
            SessionError: no messages.
            ContextLengthError: with "drop", what must stay does not fit. Facts: prompt_tokens,
                context_length.
            TemplateError, TokenizerError: as `ids`, and for a template that writes nothing.
        """
        if not messages:
            raise SessionError(
                "conversation: expected at least one message, found none",
                hint="write a message first",
                expected="at least one message",
                found=0,
            )
        ids = self.ids(messages)
        if not ids:
            raise TemplateError(
                f"{self._template.name}: expected a prompt of at least one token, found an empty "
                "text",
                hint="correct the template, or use --raw to continue text without it",
                template=self._template.name,
                reason="empty",
            )
        room = self._context_length - 1  # at least one token of an answer
        if policy == "stop":
            return FittedPrompt(ids, fits=len(ids) <= room)
        reserve = min(max_tokens or _ANSWER_TOKENS, self._context_length // 4)
        wanted = self._context_length - reserve
        if len(ids) <= min(room, wanted):
            return FittedPrompt(ids)
        head = 0
        while head < len(messages) and messages[head].role == "system":
            head += 1
        starts = [i for i, m in enumerate(messages) if m.role == "user" and i > head]
        best, dropped = ids, 0
        low, high = 0, len(starts)  # the first start whose prompt has the room that is wanted
        while low < high:
            middle = (low + high) // 2
            shorter = self.ids([*messages[:head], *messages[starts[middle] :]])
            if len(shorter) <= min(room, wanted):
                best, dropped = shorter, starts[middle] - head
                high = middle
            else:
                low = middle + 1
        if not dropped and starts:
            best, dropped = self.ids([*messages[:head], *messages[starts[-1] :]]), starts[-1] - head
        if len(best) > room:
            raise ContextLengthError(
                f"prompt: expected at most {room} tokens, found {len(best)} tokens "
                f"(context of {self._context_length}) in the last message and the system prompt",
                hint="shorten the message, or load the model with a longer context",
                prompt_tokens=len(best),
                context_length=self._context_length,
            )
        return FittedPrompt(best, dropped, len(ids) - len(best))
