"""Make any text safe to show: nothing in it can move the cursor, change a title or hide itself.

Works by code point and never by pattern. A filter that deletes escape *sequences* can be beaten by
splitting one over two streamed tokens, or by nesting two so that deleting joins them; replacing
each dangerous code point by a visible symbol has no such state, so it is correct on any chunking.
"""

from __future__ import annotations

__all__ = ["inert", "is_inert"]


def _table() -> dict[int, str]:
    table = {code: chr(0x2400 + code) for code in range(0x20) if code not in (0x09, 0x0A)}
    table[0x7F] = "\u2421"
    # C1 controls have no picture of their own; bidi overrides, tags and surrogates neither.
    hidden = [
        *range(0x80, 0xA0),
        *range(0x202A, 0x202F),
        *range(0x2066, 0x206A),
        *range(0xD800, 0xE000),
        *range(0xE0000, 0xE0080),
    ]
    table.update(dict.fromkeys(hidden, "\ufffd"))
    return table


_TABLE = _table()


def inert(text: str) -> str:
    """Return text with every control, override, tag and lone surrogate shown as a symbol.

    C0 except newline and tab becomes its control picture (U+2400 block), DEL becomes U+2421, and
    C1, U+202A-202E, U+2066-2069, U+E0000-E007F and lone surrogates become U+FFFD. Joiners and
    U+200E/U+200F stay, because real scripts need them. The length never changes, and
    inert(a) + inert(b) == inert(a + b).
    """
    return text if text.isascii() and text.isprintable() else text.translate(_TABLE)


def is_inert(text: str) -> bool:
    """Return whether inert(text) == text."""
    return inert(text) == text
