"""Chat messages, and how people type them: sloppy case, little punctuation, typing errors."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

#: First words after which a message is a question.
_ASKING = frozenset(
    "what who where how why can could do does is are which when will would".split(" ")  # noqa: SIM905
)


@dataclass(frozen=True)
class Message:
    """One message; `role` is system, user or assistant."""

    role: str
    content: str


def _typo(word: str, rng: Random) -> str:
    at = rng.randrange(1, len(word) - 1)
    kind = rng.randrange(3)
    if kind == 0:
        return word[:at] + word[at + 1 :]
    if kind == 1:
        return word[:at] + word[at] + word[at:]
    return word[: at - 1] + word[at] + word[at - 1] + word[at + 1 :]


def as_typed(text: str, rng: Random, protected: Sequence[str] = ()) -> str:
    """Return the message as somebody might type it: sloppy case and punctuation, now and then a
    typing error.

    Words in `protected` (names and topics that a good answer repeats) stay spelled right.
    """
    text = re.sub(r" {2,}", " ", text).strip()
    if rng.random() < 0.5 and text:
        text = text[0].upper() + text[1:]
        asks = text.split(" ")[0].lower() in _ASKING
        if text[-1].isalnum():
            text += "?" if asks else rng.choice((".", "", "!"))
    else:
        text = text.lower() if rng.random() < 0.5 else text
        if text and text[-1].isalnum() and rng.random() < 0.2:
            text += rng.choice((".", "?", "!", "..."))
    if rng.random() < 0.12:
        kept = {word for phrase in protected for word in phrase.lower().split()}
        spots = [m for m in re.finditer(r"[a-z]{4,}", text) if m[0] not in kept]
        if spots:
            spot = rng.choice(spots)
            text = text[: spot.start()] + _typo(spot[0], rng) + text[spot.end() :]
    return text
