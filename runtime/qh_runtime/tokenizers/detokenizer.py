"""Streaming detokenization: text appears as soon as it is whole characters, and never before.

Most vocabularies are bytes in disguise (byte-level BPE, or pieces with <0xNN> fallback tokens), so
a token is first turned into raw bytes and the bytes run through an incremental UTF-8 decoder: what
is incomplete waits inside it, what can never become a character is one U+FFFD per maximal broken
part.
Vocabularies with other decoders (WordPiece and the like) are decoded in a sliding window.

Deviation: for *invalid* byte runs the `tokenizers` ByteFallback decoder writes one U+FFFD per byte
of the whole run, also for characters in it that were complete. That would take back text already
shown; here complete characters stay. On valid UTF-8 both agree.
Source: the Unicode Standard 15, section 3.9, "U+FFFD substitution of maximal subparts".
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable
from typing import Any, Protocol

__all__ = ["ByteDetokenizer", "ByteRules", "Detokenizer", "WindowDetokenizer", "byte_rules"]

REPLACEMENT = "\ufffd"
# A window that stays undecided longer than this is shown as it is: one UTF-8 character has at most
# four bytes, so four tokens that still end in U+FFFD will not become one.
_MAX_HELD_TOKENS = 4


class Detokenizer(Protocol):
    """Turns token ids into displayable text, one id at a time."""

    def push(self, token_id: int) -> str:
        """Return the text that became displayable with this token (may be empty)."""
        ...

    def flush(self) -> str:
        """Return what is still held back, broken bytes as U+FFFD; the stream has ended."""
        ...


def _byte_alphabet() -> dict[str, int]:
    """Return the printable stand-in character -> byte table of byte-level BPE (256 entries).

    Source: Radford et al. 2019, byte-level BPE: printable Latin-1 stands for itself, the other 68
    bytes are moved to U+0100 and up in order.
    """
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in own}
    moved = (byte for byte in range(256) if chr(byte) not in table)
    table.update({chr(0x100 + i): byte for i, byte in enumerate(list(moved))})
    return table


BYTE_ALPHABET = _byte_alphabet()


class ByteRules:
    """How one vocabulary's token strings become bytes; made by `byte_rules`.

    Attributes:
        byte_level: tokens are spelled in the byte alphabet.
        replacements: (pattern, text) pairs applied to each token string, in order.
        byte_fallback: tokens "<0xNN>" are single bytes.
        strip_start: how many leading `strip_char` the whole text loses.
        first_drops: a character removed everywhere in the first token (Metaspace), or None.
    """

    def __init__(
        self,
        *,
        byte_level: bool = False,
        replacements: tuple[tuple[str, str], ...] = (),
        byte_fallback: bool = False,
        strip_start: int = 0,
        strip_char: str = " ",
        first_drops: str | None = None,
    ) -> None:
        self.byte_level = byte_level
        self.replacements = replacements
        self.byte_fallback = byte_fallback
        self.strip_start = strip_start
        self.strip_char = strip_char
        self.first_drops = first_drops

    def token_bytes(self, token: str, *, first: bool = False) -> bytes:
        """Return the raw bytes of a token string; `first` applies the rule for the first token."""
        if self.byte_level:
            try:
                return bytes(BYTE_ALPHABET[char] for char in token)
            except KeyError:  # an added token outside the alphabet stands for its own text
                return token.encode("utf-8", "surrogatepass")
        if first and self.first_drops is not None:
            token = token.replace(self.first_drops, "")
        for pattern, text in self.replacements:
            token = token.replace(pattern, text)
        if self.byte_fallback and len(token) == 6 and token.startswith("<0x") and token[5] == ">":
            try:
                return bytes([int(token[3:5], 16)])
            except ValueError:
                pass  # "<0xZZ>" is an ordinary piece
        return token.encode("utf-8", "surrogatepass")


def _plain_step(step: dict[str, Any]) -> tuple[str, Any] | None:
    """Return (kind, value) of a decoder step that works per token, or None for any other."""
    kind = step.get("type")
    if kind == "Replace":
        pattern = step.get("pattern")
        text = pattern.get("String") if isinstance(pattern, dict) else None
        content = step.get("content")
        if isinstance(text, str) and text and isinstance(content, str):
            return "replace", (text, content)
        return None
    if kind in ("ByteFallback", "Fuse", "Strip"):
        return str(kind), step
    return None


def byte_rules(decoder: object) -> ByteRules | None:
    """Return the byte rules of a tokenizer.json "decoder", or None where bytes do not describe it.

    Args:
        decoder: the parsed "decoder" value.
    """
    if not isinstance(decoder, dict):
        return None
    kind = decoder.get("type")
    if kind == "ByteLevel":
        return ByteRules(byte_level=True)
    if kind == "Metaspace":
        mark = decoder.get("replacement", "\u2581")
        if not isinstance(mark, str) or len(mark) != 1:
            return None
        scheme = decoder.get("prepend_scheme")
        if scheme is None:
            scheme = "always" if decoder.get("add_prefix_space", True) else "never"
        return ByteRules(
            replacements=((mark, " "),), first_drops=None if scheme == "never" else mark
        )
    if kind != "Sequence":
        return None
    steps = decoder.get("decoders")
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        return None
    if len(steps) == 1:
        return byte_rules(steps[0])
    return _sequence_rules(steps)


def _sequence_rules(steps: list[dict[str, Any]]) -> ByteRules | None:
    """Return the rules of Replace* ByteFallback? Fuse? Strip(start)?, the SentencePiece family."""
    replacements: list[tuple[str, str]] = []
    fallback = fused = False
    strip, strip_char = 0, " "
    for raw in steps:
        step = _plain_step(raw)
        if step is None:
            return None
        name, value = step
        if name == "replace" and not fallback and not fused:
            replacements.append(value)
        elif name == "ByteFallback" and not fallback and not fused:
            fallback = True
        elif name == "Fuse" and not fused:
            fused = True
        elif name == "Strip" and fused and strip == 0 and value.get("stop", 0) == 0:
            strip, strip_char = value.get("start", 0), value.get("content", " ")
            if not isinstance(strip, int) or not isinstance(strip_char, str):
                return None
        else:
            return None
    if not fused:
        return None
    return ByteRules(
        replacements=tuple(replacements),
        byte_fallback=fallback,
        strip_start=strip,
        strip_char=strip_char,
    )


class ByteDetokenizer:
    """Streams a vocabulary that `ByteRules` describes.

    Args:
        rules: how tokens become bytes.
        token: token id -> token string, or None for ids that show nothing (special or unknown).
        continuation: the text goes on from a prompt, so no leading space is dropped.
    """

    def __init__(
        self,
        rules: ByteRules,
        token: Callable[[int], str | None],
        *,
        continuation: bool = False,
    ) -> None:
        self._rules = rules
        self._token = token
        self._first = not continuation
        self._to_strip = 0 if continuation else rules.strip_start
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """See `Detokenizer.push`."""
        token = self._token(token_id)
        if token is None:
            return ""
        data = self._rules.token_bytes(token, first=self._first)
        self._first = False
        return self._strip(self._utf8.decode(data))

    def flush(self) -> str:
        """See `Detokenizer.flush`."""
        return self._strip(self._utf8.decode(b"", final=True))

    def _strip(self, text: str) -> str:
        while self._to_strip and text:
            if not text.startswith(self._rules.strip_char):
                self._to_strip = 0
                break
            text = text[len(self._rules.strip_char) :]
            self._to_strip -= 1
        return text


class WindowDetokenizer:
    """Streams any vocabulary by decoding a window of ids and showing what it grew by.

    Two decodes per token over a short window: the difference between "the shown ids" and "the shown
    ids and the new ones" is the new text, and it waits while it ends in U+FFFD.

    Args:
        decode: ids -> text, special tokens left out.
    """

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._shown = 0  # ids before this index are fully shown
        self._shown_text = ""

    def push(self, token_id: int) -> str:
        """See `Detokenizer.push`."""
        self._ids.append(token_id)
        held = len(self._ids) - self._shown
        text = self._decode(self._ids)
        if text.endswith(REPLACEMENT) and held < _MAX_HELD_TOKENS:
            return ""
        return self._show(text)

    def flush(self) -> str:
        """See `Detokenizer.flush`."""
        return self._show(self._decode(self._ids)) if self._ids else ""

    def _show(self, text: str) -> str:
        if not text.startswith(self._shown_text):
            return ""  # the decoder would rewrite what is shown; wait for the rest
        new = text[len(self._shown_text) :]
        # The window keeps the last shown ids, because spaces and joins depend on the neighbour.
        self._ids = self._ids[self._shown :]
        self._shown = len(self._ids)
        self._shown_text = self._decode(self._ids) if self._ids else ""
        return new


def decode_all(detokenizer: Detokenizer, ids: Iterable[int]) -> str:
    """Return the text of all ids through a fresh detokenizer."""
    parts = [detokenizer.push(token_id) for token_id in ids]
    parts.append(detokenizer.flush())
    return "".join(parts)
