"""The small phrase language of the text files beside this module, and the tables they hold.

A phrase is plain text with two devices: `(a|b|)` chooses one alternative, which may be empty and
may nest, and `{slot}` is filled from the caller's slots. Everything random comes from the caller's
generator, so equal seeds give equal texts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources
from random import Random

_ARTICLE = re.compile(r"\b([Aa]) (?=[aeiouAEIOU]|honest)(?!uni|use|one\b|eu|a |and |or )")
_SENTENCE = re.compile(r"(^|[.!?] +|[.!?]\" +(?=[A-Z])|\n)(?!qh-)([a-z])")


def read_phrases(name: str) -> str:
    """Return the text of one phrase file of this package."""
    return resources.files(__package__).joinpath("phrases", name).read_text(encoding="utf-8")


def choose(text: str, rng: Random) -> str:
    """Return `text` with every `(a|b)` replaced by one of its alternatives, innermost last."""
    out: list[str] = []
    position = 0
    while True:
        start = text.find("(", position)
        if start < 0:
            out.append(text[position:])
            return "".join(out)
        depth, parts, begin, end = 1, [], start + 1, start + 1
        while depth:
            if end >= len(text):
                raise ValueError(f"phrase has an unclosed parenthesis: {text!r}")
            character = text[end]
            if character == "(":
                depth += 1
            elif character == ")":
                depth -= 1
            if depth == 0 or (depth == 1 and character == "|"):
                parts.append(text[begin:end])
                begin = end + 1
            end += 1
        out.append(text[position:start])
        out.append(choose(rng.choice(parts), rng))
        position = end


def fill(text: str, rng: Random, slots: Mapping[str, str] | None = None) -> str:
    """Return the phrase with alternatives chosen and slots filled; a slot not given is drawn
    from the word tables.
    """
    text = choose(text, rng)
    if "{" not in text:
        return text

    def value(match: re.Match[str]) -> str:
        name = match[1]
        if slots is not None and name in slots:
            return slots[name]
        return rng.choice(words()[name])

    return re.sub(r"\{(\w+)\}", value, text)


def polish(text: str) -> str:
    """Return `text` with `a` turned to `an` before vowels, sentences capitalized and double
    spaces removed.
    """
    text = re.sub(r" {2,}", " ", text).strip()
    text = _ARTICLE.sub(r"\1n ", text)
    return _SENTENCE.sub(lambda match: match[1] + match[2].upper(), text)


def with_article(noun: str) -> str:
    """Return the noun with `a` or `an`."""
    return polish(f"the a {noun}")[4:]


@lru_cache(maxsize=1)
def words() -> dict[str, list[str]]:
    """Return the word tables of words.txt by name."""
    tables: dict[str, list[str]] = {}
    current = ""
    for line in read_phrases("words.txt").splitlines():
        if not line or line.startswith("#"):
            continue
        if not line.startswith(" "):
            current, line = (part.strip() for part in line.split("=", 1))
        tables.setdefault(current, []).extend(w.strip() for w in line.split(",") if w.strip())
    return tables


def blocks(name: str) -> Iterator[tuple[str, list[str]]]:
    """Yield (title, lines) for each `# title` block of a phrase file; the file's first line is
    its description.
    """
    title, lines = "", list[str]()
    for line in read_phrases(name).splitlines()[1:]:
        if line.startswith("# "):
            if title:
                yield title, lines
            title, lines = line[2:].strip(), []
        elif line.strip() and title:
            lines.append(line.strip())
    yield title, lines


@dataclass
class Exchange:
    """One topic of small talk: any of the user lines may meet any of the replies."""

    name: str
    weight: int
    users: list[str] = field(default_factory=list)
    replies: list[str] = field(default_factory=list)


@lru_cache(maxsize=8)
def exchanges(name: str) -> list[Exchange]:
    """Return the exchanges of one phrase file (`> user`, `< reply`; the weight follows the name
    and is 1 at least).
    """
    found = []
    for title, lines in blocks(name):
        parts = title.split()
        exchange = Exchange(parts[0], int(parts[1]) if len(parts) > 1 else 1)
        for line in lines:
            (exchange.users if line[0] == ">" else exchange.replies).append(line[1:].strip())
        found.append(exchange)
    return found


@lru_cache(maxsize=1)
def facts() -> dict[str, list[tuple[str, str]]]:
    """Return the pair tables of facts.txt by name."""
    tables: dict[str, list[tuple[str, str]]] = {}
    for title, lines in blocks("facts.txt"):
        pairs = [pair.split("=", 1) for line in lines for pair in line.split(";") if pair.strip()]
        tables[title] = [(left.strip(), right.strip()) for left, right in pairs]
    return tables
