"""Cuts a long text into overlapping windows in which every token is scored exactly once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from qh_runtime.errors import SessionError

__all__ = ["Sliding", "Window", "windows"]


@dataclass(frozen=True)
class Sliding:
    """How a text is cut.

    Attributes:
        context_length: tokens that a window holds, its prefix and last target included.
        stride: tokens between the starts of windows.
        prefix: tokens before every window, such as the bos token; never scored.
    """

    context_length: int
    stride: int
    prefix: tuple[int, ...] = ()


@dataclass(frozen=True)
class Window:
    """A piece of a text.

    Attributes:
        tokens: what the decoder sees; prefix first. The last target is not among them.
        targets: ids that are scored.
        first: row of the logits that predicts targets[0]; later targets follow.
    """

    tokens: list[int]
    targets: list[int]
    first: int


def windows(tokens: Sequence[int], sliding: Sliding) -> Iterator[Window]:
    """Windows of at most context_length tokens that begin `stride` tokens apart.

    The first window scores all its tokens that have a predecessor, each later one the `stride`
    tokens (fewer at the end) that no earlier one scored, after all the context that fits. The very
    first token of the text is scored only if there is a prefix.

    Raises:
        SessionError: a stride that leaves a token without any context, or nothing to score.
            Facts: expected, found.
    """
    prefix, stride = sliding.prefix, sliding.stride
    room = sliding.context_length - len(prefix)
    longest = room if prefix else room - 1
    if not 1 <= stride <= longest:
        raise SessionError(
            f"stride: expected 1..{longest} tokens, found {stride}",
            hint="choose a stride shorter than the context",
            expected=(1, longest),
            found=stride,
        )
    if len(tokens) + bool(prefix) < 2:
        raise SessionError(
            f"text: expected at least 2 tokens, found {len(tokens)}",
            hint="give a longer text",
            expected=2,
            found=len(tokens),
        )
    scored = 0 if prefix else 1
    begin = 0
    while scored < len(tokens):
        end = min(begin + room, len(tokens))
        # Row i of the logits predicts token i + 1 of what the decoder sees.
        yield Window(
            tokens=[*prefix, *tokens[begin : end - 1]],
            targets=list(tokens[scored:end]),
            first=len(prefix) + scored - begin - 1,
        )
        scored = end
        begin += stride
