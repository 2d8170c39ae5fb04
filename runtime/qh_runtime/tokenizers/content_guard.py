"""Keeps message text from becoming control tokens while a chat template moves it around.

Every place in a message where a control token could be read gets a marker behind its first
character: one private-use character, drawn at random for each render and absent from all messages,
so nobody can write it in advance. After rendering, the markers say which control tokens came out of
message text (a marker is inside them) and which the template wrote (none is). The markers are
then taken out again; `chat_template` checks that what remains is what an unmarked render gives.

Marked places, for every control token t and without regard to case:
- "pairs": each place where the first two characters of t stand, because any t needs them in a row,
  whatever a template cuts out of the text behind them; "exact": only where t itself stands;
- an end of the text that begins some t: the rest may come from the next text;
- the start of a text that begins with a proper end of t, or is a whole inner part of t: the
  first characters may come from the text before.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["ContentGuard", "Marking", "split_markers"]

# Private-use plane 16: no font, script or vocabulary has a use for it.
_PRIVATE = range(0x100000, 0x10FFFE)
# Fields that templates compare or spell out; they hold fixed words, not text.
_FIXED_FIELDS = frozenset({"role", "type"})
REPLACEMENT = "\ufffd"


Precision = Literal["pairs", "exact"]


@dataclass(frozen=True)
class Marking:
    """How densely to mark. own: in the assistant's messages; edges: the start of texts as well."""

    other: Precision
    own: Precision
    edges: bool = True


class _Tokens:
    """What the places of one set of control tokens are found with."""

    def __init__(self, tokens: Sequence[str]) -> None:
        low = [_lower(token) for token in tokens]
        pairs = sorted({token[:2] for token in low})
        self.pairs = _anywhere(pairs)
        self.exact = _anywhere(sorted(low, key=len, reverse=True))
        self.starts = {token[:length] for token in low for length in range(1, len(token))}
        self.ends = {token[at:] for token in low for at in range(1, len(token))}
        self.all = tuple(low)
        self.longest = max(map(len, low), default=0)

    def find(self, text: str, precision: Precision, edges: bool) -> set[int]:
        pattern = self.pairs if precision == "pairs" else self.exact
        found = {match.start() + 1 for match in pattern.finditer(text)}
        head, tail = _lower(text[: self.longest]), _lower(text[-self.longest :])
        for length in range(1, min(len(tail), self.longest - 1) + 1):
            if tail[-length:] in self.starts:
                found.add(len(text) - length + 1)
        if edges and self._may_continue(text, head):
            found.add(0)
        return found

    def _may_continue(self, text: str, head: str) -> bool:
        """Return whether text could be the rest, or an inner part, of a control token."""
        if not head:
            return False
        if any(head[:length] in self.ends for length in range(1, len(head) + 1)):
            return True
        return len(text) < self.longest and any(head in token for token in self.all)


class ContentGuard:
    """Finds the dangerous places in message text for one vocabulary.

    Args:
        control_tokens: strings of the control tokens.
        special_tokens: the part of them that not even a model's own earlier answer may contain;
            the others ("<think>") it wrote itself, and templates look for them by name.
    """

    def __init__(self, control_tokens: Iterable[str], special_tokens: Iterable[str] = ()) -> None:
        tokens = [token for token in dict.fromkeys(control_tokens) if token]
        self._single = re.compile(
            "|".join(re.escape(token) for token in tokens if len(token) == 1) or "(?!)"
        )
        tokens = [token for token in tokens if len(token) > 1]
        special = set(special_tokens)
        self._all = _Tokens(tokens)
        self._strict = _Tokens([token for token in tokens if token in special])
        self._own = tuple(token for token in tokens if token not in special)

    def has_risk(self, value: Any) -> bool:
        """Return whether any text in a message, tool or document has a place to mark."""
        return any(
            self._single.search(text) or self.places(text) for text, _ in _texts(value, False)
        )

    def places(
        self,
        text: str,
        *,
        own: bool = False,
        precision: Precision = "pairs",
        edges: bool = True,
    ) -> list[int]:
        """Return the ascending offsets at which a marker belongs.

        Args:
            text: message text.
            own: the text is the model's own, so tokens that are not special are left alone.
            precision: see the module.
            edges: whether the start of the text is looked at as well.
        """
        if not own:
            return sorted(self._all.find(text, precision, edges))
        found = self._strict.find(text, precision, edges)
        for token in self._own:
            for match in re.finditer(re.escape(token), text):
                found.discard(match.start() + 1)
        return sorted(found)

    def marker(self, *values: Any) -> str:
        """Return a private-use character that occurs in none of the texts."""
        used = {char for value in values for text, _ in _texts(value, True) for char in text}
        while True:
            char = chr(secrets.choice(_PRIVATE))
            if char not in used:
                return char

    def mark(self, value: Any, marker: str, marking: Marking) -> Any:
        """Return a copy of messages, tools or documents with markers in all texts."""

        def change(text: str, own: bool) -> str:
            precision = marking.own if own else marking.other
            places = self.places(text, own=own, precision=precision, edges=marking.edges)
            return _insert(text, places, marker)

        return _map_texts(value, change, False)

    def escape(self, value: Any) -> Any:
        """Return a copy in which a space breaks every dangerous place; the last resort."""

        def change(text: str, own: bool) -> str:
            return _insert(text, self.places(text, own=own, precision="exact"), " ")

        return _map_texts(value, change, False)

    def clean(self, value: Any) -> Any:
        """Return a copy without what no marker can break.

        Control tokens of one character become U+FFFD, and keys of objects (names of tool
        parameters) get a space into every dangerous place.
        """

        def change(text: str, own: bool) -> str:
            return self._single.sub(REPLACEMENT, text)

        return _map_texts(self._clean_keys(value), change, False)

    def _clean_keys(self, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {
                _insert(str(key), self.places(str(key), edges=False), " "): self._clean_keys(item)
                for key, item in value.items()
            }
        if isinstance(value, list | tuple):
            return [self._clean_keys(item) for item in value]
        return value


def _lower(text: str) -> str:
    """Return text in lower case, as long as it was (one letter of Turkish grows)."""
    low = text.lower()
    return low if len(low) == len(text) else "".join(c.lower()[:1] for c in text)


def _anywhere(texts: Sequence[str]) -> re.Pattern[str]:
    """Return a pattern that matches, without consuming, wherever one of the texts stands."""
    if not texts:
        return re.compile("(?!)")
    return re.compile(f"(?={'|'.join(map(re.escape, texts))})", re.IGNORECASE)


def _insert(text: str, places: Sequence[int], piece: str) -> str:
    if not places:
        return text
    parts: list[str] = []
    last = 0
    for place in places:
        parts += (text[last:place], piece)
        last = place
    parts.append(text[last:])
    return "".join(parts)


def _texts(value: Any, fixed: bool) -> Iterable[tuple[str, bool]]:
    """Yield (text, is the model's own) of every string; fixed fields too if asked."""
    found: list[tuple[str, bool]] = []

    def note(text: str, own: bool) -> str:
        found.append((text, own))
        return text

    _map_texts(value, note, fixed)
    return found


def _map_texts(
    value: Any, change: Callable[[str, bool], str], fixed: bool, own: bool = False
) -> Any:
    if isinstance(value, str):
        return change(value, own)
    if isinstance(value, Mapping):
        own = own or value.get("role") == "assistant"
        return {
            key: item
            if key in _FIXED_FIELDS and isinstance(item, str) and not fixed
            else _map_texts(item, change, fixed, own)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_map_texts(item, change, fixed, own) for item in value]
    return value


def split_markers(text: str, marker: str) -> tuple[str, tuple[int, ...]]:
    """Return the text without markers and the ascending offsets where they stood."""
    if marker not in text:
        return text, ()
    parts = text.split(marker)
    offsets: list[int] = []
    at = 0
    for part in parts[:-1]:
        at += len(part)
        offsets.append(at)
    return "".join(parts), tuple(dict.fromkeys(offsets))
