"""Answers as Markdown whose code blocks say their language and number and are copied by a click."""

from __future__ import annotations

from typing import ClassVar

from markdown_it.token import Token
from textual.app import ComposeResult
from textual.content import Content
from textual.message import Message
from textual.widgets import Label, Markdown, Static
from textual.widgets.markdown import MarkdownBlock, MarkdownFence

from qh_chat.inert import inert

__all__ = ["AnswerMarkdown", "CodeBlock"]

LONGEST_LANGUAGE = 20


class _Head(Static):
    """The line above the code."""

    def action_copy(self) -> None:
        self.post_message(CodeBlock.CopyAsked(self.query_ancestor(CodeBlock)))


class CodeBlock(MarkdownFence):
    """A block of code below a line with its language and the way to copy it."""

    class CopyAsked(Message):
        """The copy link of a block was clicked."""

        def __init__(self, block: CodeBlock) -> None:
            super().__init__()
            self.block = block

    def __init__(self, markdown: Markdown, token: Token, code: str) -> None:
        super().__init__(markdown, token, code)
        self._number = 0

    def compose(self) -> ComposeResult:
        yield _Head(self._head(), classes="code-head")
        yield Label(self._highlighted_code, id="code-content", expand=True)

    def set_number(self, number: int) -> None:
        """Show the number whose key copies this block."""
        if number != self._number:
            self._number = number
            for head in self.query(_Head):
                head.update(self._head())

    def _head(self) -> Content:
        language = inert(self.lexer.split(maxsplit=1)[0] if self.lexer.strip() else "")
        key = f" ({self._number})" if 1 <= self._number <= 9 else ""
        link = Content.from_markup(f"[@click=copy]copy{key}[/]")
        return Content.assemble(f"{language[:LONGEST_LANGUAGE]}  " if language else "", link)


class AnswerMarkdown(Markdown):
    """Markdown with our own code blocks."""

    BLOCKS: ClassVar[dict[str, type[MarkdownBlock]]] = {  # type: ignore[misc]
        **Markdown.BLOCKS,
        "fence": CodeBlock,
        "code_block": CodeBlock,
    }

    def number_blocks(self) -> None:
        """Number the code blocks from 1 in the order of the text."""
        for number, block in enumerate(self.query(CodeBlock), 1):
            block.set_number(number)
