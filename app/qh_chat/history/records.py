"""Rows of the history as frozen dataclasses, and how their parts are written as JSON text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from qh_runtime.options import SamplingParams
from qh_runtime.session.events import GenerationStats

__all__ = [
    "ChatSummary",
    "ConversationRecord",
    "MessageRecord",
    "MessageState",
    "Role",
    "sampling_from_json",
    "sampling_to_json",
    "stats_from_json",
    "stats_to_json",
]

Role = Literal["user", "assistant"]
MessageState = Literal["complete", "partial", "streaming"]


@dataclass(frozen=True)
class ChatSummary:
    """One row of the list of conversations. `excerpt` is set by a search that hit a message."""

    id: int
    title: str
    updated_at: float
    excerpt: str = ""


@dataclass(frozen=True)
class ConversationRecord:
    """One conversation without its messages; times are seconds since 1970."""

    id: int
    title: str
    created_at: float
    updated_at: float
    model: str
    system_prompt: str
    sampling: SamplingParams
    draft: str
    leaf_id: int | None


@dataclass(frozen=True)
class MessageRecord:
    """One message.

    Attributes:
        parent_id: the message it answers or follows; None for the first turn.
        state: "partial" for an answer that was stopped or cut off.
        reason: why an answer ended ("end", "cancelled", "interrupted", "error", ...), else "".
        note: what the person was told about it (a trimmed context, an error), else "".
        stats: numbers of an answer, None where it has none.
    """

    id: int
    conversation_id: int
    parent_id: int | None
    role: Role
    content: str
    state: MessageState
    reason: str
    note: str
    model: str
    created_at: float
    stats: GenerationStats | None


def sampling_to_json(sampling: SamplingParams) -> str:
    """Text that `sampling_from_json` reads back."""
    return json.dumps(asdict(sampling))


def sampling_from_json(text: str, default: SamplingParams) -> SamplingParams:
    """Settings from text; a field that is missing or of the wrong kind keeps its default."""
    found = _object(text)
    known = {field.name for field in fields(SamplingParams)}
    values: dict[str, Any] = {}
    for name, value in found.items():
        if name not in known:
            continue
        before = getattr(default, name)
        if name == "stop" and isinstance(value, list):
            values[name] = tuple(str(item) for item in value)
        elif name in ("seed", "max_tokens"):
            if value is None or _is_int(value):
                values[name] = value
        elif name == "context_policy":
            if value in ("stop", "drop"):
                values[name] = value
        elif isinstance(before, float):
            if isinstance(value, int | float) and not isinstance(value, bool):
                values[name] = float(value)
        elif _is_int(value):
            values[name] = value
    return SamplingParams(**{**_shallow(default), **values})


def stats_to_json(stats: GenerationStats | None) -> str:
    """Text that `stats_from_json` reads back; "" for None."""
    return "" if stats is None else json.dumps(asdict(stats))


def stats_from_json(text: str) -> GenerationStats | None:
    """Statistics from text; None when a field is missing or not a number."""
    found = _object(text)
    names = [field.name for field in fields(GenerationStats)]
    if any(not isinstance(found.get(name), int | float) for name in names):
        return None
    return GenerationStats(**{name: found[name] for name in names})


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _shallow(sampling: SamplingParams) -> dict[str, Any]:
    return {field.name: getattr(sampling, field.name) for field in fields(sampling)}


def _object(text: str) -> Mapping[str, Any]:
    try:
        value = json.loads(text) if text else {}
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
