"""How an answer is read: inert Markdown, the parts a model thought, and its code blocks.

Markdown is parsed after the text was made inert, but the parser itself decodes entities such as
`&#x202e;`; a last rule therefore makes every text token inert again. Raw HTML stays visible as
text, and a link shows the address it really has.
"""

from __future__ import annotations

from dataclasses import dataclass

from markdown_it import MarkdownIt
from markdown_it.rules_core import StateCore
from markdown_it.token import Token

from qh_chat.inert import inert

__all__ = ["Parts", "code_blocks", "markdown_parser", "split_thinking"]

OPEN, CLOSE = "<think>", "</think>"


@dataclass(frozen=True)
class Parts:
    """An answer in two parts; `thinking_open` while the model still thinks."""

    thinking: str
    answer: str
    thinking_open: bool


def split_thinking(text: str) -> Parts:
    """Separate what stands between <think> and </think> at the start of an answer."""
    start = text.lstrip()
    if not start.startswith(OPEN):
        # A beginning such as "<thi" may still become the mark.
        if start and OPEN.startswith(start):
            return Parts("", "", True)
        return Parts("", text, False)
    body, found, rest = start[len(OPEN) :].partition(CLOSE)
    return Parts(body.strip(), rest.lstrip("\n"), not found)


def code_blocks(text: str) -> list[str]:
    """The code of each fenced or indented block, in order, as it would be copied."""
    tokens = markdown_parser().parse(text)
    return [token.content for token in tokens if token.type in ("fence", "code_block")]


def markdown_parser() -> MarkdownIt:
    """A parser whose tokens hold inert text only, with tables and strikethrough."""
    parser = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
    parser.core.ruler.push("qh_inert", _make_inert)
    return parser


def _make_inert(state: StateCore) -> None:
    for token in state.tokens:
        token.content = inert(token.content)
        if token.children:
            token.children = _inline(token.children)


def _inline(children: list[Token]) -> list[Token]:
    found: list[Token] = []
    address, shown = "", ""
    for child in children:
        child.content = inert(child.content)
        found.append(child)
        if child.type == "link_open":
            address, shown = str(child.attrs.get("href", "")), ""
            child.attrs["href"] = inert(address)
        elif child.type == "image":
            child.attrs["src"] = inert(str(child.attrs.get("src", "")))
        elif child.type == "link_close":
            if address and shown.strip() != address:
                note = Token("text", "", 0)
                note.content = f" ‹{inert(address)}›"
                found.append(note)
            address = ""
        elif address:
            shown += child.content
    return found
