"""What a session yields while it answers: plain frozen dataclasses, in the order they happen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from qh_runtime.options import SamplingParams

__all__ = [
    "ContextTrimmed",
    "Done",
    "Engine",
    "EngineInfo",
    "Event",
    "GenerationStats",
    "Message",
    "PromptProgress",
    "StopReason",
    "Token",
]

StopReason = Literal["end", "stop_string", "max_tokens", "context_full", "cancelled"]


@dataclass(frozen=True)
class Message:
    """One turn. role is "system", "user" or "assistant"."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class ContextTrimmed:
    """The oldest turns were left out of the prompt so that it fits; never silent."""

    dropped_turns: int
    dropped_tokens: int


@dataclass(frozen=True)
class PromptProgress:
    """The prompt is being read. reused_tokens came from the KV cache of the turn before."""

    done_tokens: int
    total_tokens: int
    reused_tokens: int


@dataclass(frozen=True)
class Token:
    """One generated token. text is what became displayable with it, and may be empty.

    The token that ends an answer is one too; its text is what had been held back (a possible stop
    string, half a character). id -1 is no token: it carries the same when a cancellation ends it.
    """

    id: int
    text: str


@dataclass(frozen=True)
class GenerationStats:
    """Numbers of one answer. Seconds are wall clock.

    first_token_s runs from the call of generate to the first token; tokens_per_s is
    (tokens - 1) / decode_s, and 0 for fewer than two tokens.
    """

    prompt_tokens: int
    reused_tokens: int
    tokens: int
    prefill_s: float
    decode_s: float
    first_token_s: float
    tokens_per_s: float
    prefill_tokens_per_s: float
    context_used: int
    context_length: int
    seed: int


@dataclass(frozen=True)
class Done:
    """The answer ended; the last event of every generate call that did not raise."""

    reason: StopReason
    stats: GenerationStats


Event = ContextTrimmed | PromptProgress | Token | Done


@dataclass(frozen=True)
class EngineInfo:
    """What is loaded, for status lines and logs.

    Attributes:
        name: model name as the person knows it. format: e.g. "ternary", "int4_g32", "bf16".
        device: "CPU" or a GPU name. isa: instruction set that runs, e.g. "avx512vnni".
        planned_bytes: total of the plan the model was loaded from.
        notes: what the person should know about this load, one sentence each.
    """

    name: str
    model_type: str
    parameters: int
    format: str
    device: str
    isa: str
    threads: int
    context_length: int
    planned_bytes: int
    notes: tuple[str, ...] = ()


class Engine(Protocol):
    """What the app drives: native now, torch and llama.cpp later, a scripted one in tests."""

    @property
    def info(self) -> EngineInfo: ...

    def generate(self, messages: Sequence[Message], params: SamplingParams) -> Iterator[Event]:
        """Answer the conversation; ends with Done, or raises a QhError."""
        ...

    def complete(self, prompt: str, params: SamplingParams) -> Iterator[Event]:
        """Continue a raw text, no chat template."""
        ...

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Tokens the conversation takes in the context, by the model's own tokenizer."""
        ...

    def cancel(self) -> None:
        """Make a running generate end with Done("cancelled") within one token; any thread."""
        ...

    def close(self) -> None:
        """Free the weights and the KV cache."""
        ...
