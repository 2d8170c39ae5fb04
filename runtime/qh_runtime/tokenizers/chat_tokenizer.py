"""The tokenizer of a chat model: text to ids where message text can never become a control token.

The `tokenizers` library cuts every added token out of any text it is given, so "<|im_end|>" typed
by a person would end their turn. Here control tokens come only from places that a chat template
wrote: the text is encoded whole (so merges across the border of template and message, and with them
all ids, equal those of the reference implementation), and where a control token came out of a place
that was not the template's, the text is cut inside that token and the pieces are encoded apart,
which leaves its letters and takes away its power.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NoReturn, TypeVar

from tokenizers import Tokenizer

from qh_runtime.errors import TokenizerError
from qh_runtime.tokenizers.detokenizer import (
    ByteDetokenizer,
    ByteRules,
    Detokenizer,
    WindowDetokenizer,
    decode_all,
)

__all__ = ["ChatTokenizer", "Prompt", "convert_panic"]

MAX_TEXT_BYTES = 4 << 20
# The library holds the GIL in `encode` (seconds for a long text, in which no signal is handled and
# no screen drawn) and not in `encode_batch`, which starts a pool of threads.
_LONG_TEXT = 1 << 15
_SURROGATES = re.compile("[\ud800-\udfff]")
T = TypeVar("T")


@dataclass(frozen=True)
class Prompt:
    """A prompt and where its control tokens may not be.

    Attributes:
        text: the whole prompt.
        breaks: ascending character offsets into text; no control token may reach across one. They
            stand inside everything in message text that could be read as a control token.
    """

    text: str
    breaks: tuple[int, ...] = ()


def convert_panic(call: Callable[[], T], what: str) -> T:
    """Return call(), with every failure of the native library as a TokenizerError.

    A Rust panic arrives as PanicException, which is a BaseException: `except Exception` misses it.

    Raises:
        TokenizerError: the library refused or panicked. Facts: what, cause.
    """
    try:
        return call()
    except TokenizerError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        _raise(what, error)


def _raise(what: str, error: BaseException) -> NoReturn:
    raise TokenizerError(
        f"tokenizer.json: {what} failed: {str(error)[:300]}",
        hint="the file is damaged or for another version of the tokenizers library",
        what=what,
        cause=f"{type(error).__name__}: {error}"[:300],
    ) from error


class ChatTokenizer:
    """Text to ids and back, with control tokens under control.

    Made by `qh_runtime.tokenizers.from_hf.load_tokenizer`. Safe to use from several threads.

    Args:
        tokenizer: the loaded library object, without truncation or padding.
        rules: how tokens become bytes, or None to decode in a window.
        special_tokens: role ("bos_token", "eos_token", ...) -> token string.
        eos_ids: ids that end an answer.
        add_bos: whether raw text starts with the bos token.
        prefix_space: whether the tokenizer adds a space before the first word.
        control_ids: token id -> token string of everything that message text must not produce.
        unknown_id: what the model gives for characters outside its vocabulary, or None. Text may
            produce it that way, but not by its name.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        rules: ByteRules | None,
        special_tokens: dict[str, str],
        eos_ids: frozenset[int],
        add_bos: bool,
        prefix_space: bool,
        control_ids: dict[int, str],
        unknown_id: int | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._rules = rules
        self.special_tokens = dict(special_tokens)
        self.eos_ids = eos_ids
        self.add_bos = add_bos
        self._prefix_space = prefix_space
        self._control = dict(control_ids)
        self._unknown_id = unknown_id
        self._hidden = {
            token_id
            for token_id, token in tokenizer.get_added_tokens_decoder().items()
            if token.special
        } | eos_ids
        vocab = tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocab.values()) + 1
        bos = self.special_tokens.get("bos_token")
        self.bos_id: int | None = None if bos is None else vocab.get(bos)

    @property
    def control_ids(self) -> frozenset[int]:
        """Ids that message text never produces."""
        return frozenset(self._control)

    @property
    def control_tokens(self) -> tuple[str, ...]:
        """The strings of the control tokens, longest first."""
        return tuple(sorted(set(self._control.values()), key=len, reverse=True))

    @property
    def strict_tokens(self) -> tuple[str, ...]:
        """Control tokens that are special or end answers: not even a model's own text has them."""
        return tuple(self._control[token_id] for token_id in self._hidden & self._control.keys())

    def encode_text(self, text: str, allow_special: bool = False) -> list[int]:
        """Return the ids of a text; no bos is added.

        Args:
            text: at most 4 MiB of UTF-8; lone surrogates are read as U+FFFD.
            allow_special: whether control tokens in the text count as such. Only for text that a
                template or a developer wrote, never for text that a person or a model wrote.

        Raises:
            TokenizerError: too long, or the library failed.
        """
        text = self._checked(text)
        if allow_special:
            return self._encode(text)[0]
        return self._encode_guarded(text, None, first=True)

    def encode_prompt(self, prompt: Prompt) -> list[int]:
        """Return the ids of a rendered prompt; control tokens only where no break is inside them.

        Raises:
            TokenizerError: too long, or the library failed.
        """
        if _SURROGATES.search(prompt.text):
            prompt = Prompt(_SURROGATES.sub("\ufffd", prompt.text), prompt.breaks)
        text = self._checked(prompt.text)
        return self._encode_guarded(text, prompt.breaks, first=True)

    def encode_raw(self, text: str) -> list[int]:
        """Return the ids of a raw text to continue: bos where the model wants it, then the text.

        An empty text is the bos token alone, so that there is something to continue from.
        """
        ids = self.encode_text(text)
        if self.bos_id is not None and (self.add_bos or not ids):
            return [self.bos_id, *ids]
        return ids

    def decode(self, ids: Iterable[int], *, continuation: bool = False) -> str:
        """Return the text of ids, special tokens left out, broken bytes as U+FFFD."""
        return decode_all(self.detokenizer(continuation=continuation), ids)

    def detokenizer(self, *, continuation: bool = False) -> Detokenizer:
        """Return a fresh streaming detokenizer.

        Args:
            continuation: the ids go on from a text, so a first space is kept.
        """
        if self._rules is not None:
            return ByteDetokenizer(self._rules, self._shown_token, continuation=continuation)
        return WindowDetokenizer(self._decode_shown)

    def token_bytes(self, token_id: int) -> bytes:
        """Return the raw bytes a token stands for in the middle of a text; b"" if there is none."""
        token = self.token(token_id)
        if token is None:
            return b""
        if self._rules is None:
            return self._decode_shown([token_id]).encode("utf-8", "surrogatepass")
        return self._rules.token_bytes(token)

    def token(self, token_id: int) -> str | None:
        """Return the token string as the vocabulary spells it, or None for an unknown id."""
        if not 0 <= token_id < self.vocab_size:
            return None
        return convert_panic(lambda: self._tokenizer.id_to_token(token_id), "id_to_token")

    def token_id(self, token: str) -> int | None:
        """Return the id of a token string, or None."""
        return convert_panic(lambda: self._tokenizer.token_to_id(token), "token_to_id")

    def _shown_token(self, token_id: int) -> str | None:
        return None if token_id in self._hidden else self.token(token_id)

    def _decode_shown(self, ids: list[int]) -> str:
        shown = [i for i in ids if i not in self._hidden and 0 <= i < self.vocab_size]
        return convert_panic(
            lambda: self._tokenizer.decode(shown, skip_special_tokens=False), "decode"
        )

    def _checked(self, text: str) -> str:
        text = _SURROGATES.sub("\ufffd", text)
        size = len(text) if text.isascii() else len(text.encode())
        if size > MAX_TEXT_BYTES:
            raise TokenizerError(
                f"text: expected at most {MAX_TEXT_BYTES} bytes, found {size} bytes",
                hint="shorten the text",
                expected=MAX_TEXT_BYTES,
                found=size,
            )
        return text

    def _encode(self, text: str) -> tuple[list[int], Any]:
        def call() -> Any:
            if len(text) < _LONG_TEXT:
                return self._tokenizer.encode(text, add_special_tokens=False)
            return self._tokenizer.encode_batch([text], add_special_tokens=False)[0]

        encoding = convert_panic(call, "encode")
        return encoding.ids, encoding

    def _encode_guarded(self, text: str, breaks: Sequence[int] | None, *, first: bool) -> list[int]:
        """Return ids; control tokens only where allowed.

        Args:
            text: a whole text, or what follows a cut (first=False: no prefix space is added).
            breaks: offsets that no control token may reach across; None forbids them everywhere.
        """
        out: list[int] = []
        # (text, breaks, first), a stack instead of recursion: a text may hold many cuts.
        stack: list[tuple[str, Sequence[int] | None, bool]] = [(text, breaks, first)]
        while stack:
            piece, inside, at_start = stack.pop()
            if not piece:
                continue
            ids, spans = self._encode_piece(piece, at_start)
            cuts = self._cuts(piece, ids, spans, inside)
            if not cuts:
                out += ids
                continue
            edges = [0, *cuts, len(piece)]
            parts = []
            for start, end in pairwise(edges):
                own = None
                if inside is not None:
                    low, high = bisect_right(inside, start), bisect_left(inside, end)
                    own = [offset - start for offset in inside[low:high]]
                parts.append((piece[start:end], own, at_start and start == 0))
            stack.extend(reversed(parts))
        return out

    def _encode_piece(
        self, piece: str, at_start: bool
    ) -> tuple[list[int], Callable[[], list[tuple[int, int]]]]:
        """Return ids and a way to get their character spans, without a prefix space after a cut."""
        if at_start or not self._prefix_space:
            ids, encoding = self._encode(piece)
            return ids, lambda: encoding.offsets
        # Behind a newline the tokenizer is in the middle of a text and adds no space of its own.
        # Source: the same idea is in transformers 5.23, chat_template_utils.
        newline = self._encode("\n")[0]
        ids, encoding = self._encode("\n" + piece)
        if ids[: len(newline)] != newline:
            ids, encoding = self._encode(piece)
            return ids, lambda: encoding.offsets
        return ids[len(newline) :], lambda: [
            (max(0, start - 1), max(0, end - 1)) for start, end in encoding.offsets[len(newline) :]
        ]

    def _cuts(
        self,
        piece: str,
        ids: list[int],
        spans: Callable[[], list[tuple[int, int]]],
        inside: Sequence[int] | None,
    ) -> list[int]:
        """Return where to cut so that forbidden control tokens fall apart; empty if none is."""
        if self._control.keys().isdisjoint(ids):
            return []
        cuts: set[int] = set()
        for token_id, (start, end) in zip(ids, spans(), strict=True):
            content = self._control.get(token_id)
            if content is None:
                continue
            at = piece.find(content, start, end)
            if at < 0 and token_id == self._unknown_id:
                continue
            start, end = (at, at + len(content)) if at >= 0 else (start, end)
            if inside is None:
                if end - start < 2:
                    raise TokenizerError(
                        f"text: the character {piece[start:end]!r} is itself a control token",
                        hint="leave this character out",
                        token_id=token_id,
                    )
                cuts.add(start + 1)
                continue
            low, high = bisect_right(inside, start), bisect_left(inside, end)
            cuts.update(inside[low:high])
        return sorted(cuts)
