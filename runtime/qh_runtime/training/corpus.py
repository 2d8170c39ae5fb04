"""Training windows: books and dialogues as fixed rows of token ids, packed so that hardly a
token is wasted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from qh_runtime.training.books import Book
from qh_runtime.training.dialogue import HELD_OUT_START, conversation
from qh_runtime.training.messages import Message
from qh_runtime.training.vocabulary import BOS_ID, EOS_ID, encode_chats

Windows = tuple[NDArray[np.uint16], NDArray[np.uint8]]

_ASKS = (
    "Continue: ",
    "continue: ",
    "continue this text: ",
    "Continue this text: ",
    "Go on: ",
    "What comes next? ",
    "write the next sentences: ",
)


@dataclass(frozen=True)
class CorpusPlan:
    """How many conversations and windows the corpus has; the defaults are those of the built-in
    model.
    """

    window_tokens: int = 512
    conversations: int = 150_000
    continuations: int = 16_000
    dialogue_share: float = 0.6
    held_out_conversations: int = 2_000
    seed: int = 20


def sentences(books: Iterable[Book]) -> list[str]:
    """Return the shorter sentences of the training parts, for the messages that nobody
    understands.
    """
    found = (s for book in books for p in book.training[::7] for s in re.split(r"(?<=[.!?]) ", p))
    return [s for s in found if 20 <= len(s) <= 120 and s[0].isalpha()]


def continuations(books: Sequence[Book], count: int, seed: int) -> Iterator[list[Message]]:
    """Yield tasks to go on with a text: the user shows the start of a paragraph or a whole one."""
    rng = Random(seed)
    weights = [len(book.training) for book in books]
    for _ in range(count):
        (book,) = rng.choices(books, weights)
        at = rng.randrange(len(book.training) - 1)
        first, second = book.training[at], book.training[at + 1]
        parts = re.split(r"(?<=[.!?]) ", first)
        if len(parts) > 2 and rng.random() < 0.6:
            cut = rng.randint(1, len(parts) - 1)
            first, second = " ".join(parts[:cut]), " ".join(parts[cut:])
        first, second = _last_words(first, 300), _first_sentences(second, 500)
        yield [Message("user", rng.choice(_ASKS) + first), Message("assistant", second)]


def _last_words(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[-limit:].partition(" ")[2]


def _first_sentences(text: str, limit: int) -> str:
    while len(text) > limit:
        shorter = text[:limit].rsplit(". ", 1)
        if len(shorter) == 1:
            return text[:limit].rsplit(" ", 1)[0]
        text = shorter[0] + "."
    return text


def pack(
    rows: Iterable[tuple[list[int], list[int]]], window_tokens: int, pool: int = 256
) -> Windows:
    """Return conversations packed into rows (n, window_tokens + 1), each filled from a pool by best
    fit.

    One token more than a window, since the targets are the inputs moved by one. Conversations
    longer than a row are left out, for their end would be missing.
    """
    length = window_tokens + 1
    ids: list[list[int]] = []
    weights: list[list[int]] = []
    waiting: list[tuple[list[int], list[int]]] = []
    source = iter(rows)
    while True:
        for row in source:
            if len(row[0]) <= length:
                waiting.append(row)
            if len(waiting) >= pool:
                break
        if not waiting:
            break
        # The oldest goes first, so that a long one cannot wait for ever.
        line, mask = (list(part) for part in waiting.pop(0))
        while True:
            room = length - len(line)
            fits = [i for i, row in enumerate(waiting) if len(row[0]) <= room]
            if not fits:
                break
            chosen = waiting.pop(max(fits, key=lambda i: len(waiting[i][0])))
            line += chosen[0]
            mask += chosen[1]
        ids.append(line + [EOS_ID] * (length - len(line)))
        weights.append(mask + [0] * (length - len(mask)))
    return np.array(ids, dtype=np.uint16).reshape(-1, length), np.array(
        weights, dtype=np.uint8
    ).reshape(-1, length)


def prose_windows(
    tokenizer: Tokenizer, texts: Iterable[Sequence[str]], window_tokens: int
) -> Windows:
    """Return running text as rows (n, window_tokens + 1), each opened by <s>; paragraphs are
    parted by a blank line.
    """
    rows: list[NDArray[np.uint16]] = []
    for paragraphs in texts:
        encoded = tokenizer.encode_batch([p + "\n\n" for p in paragraphs], add_special_tokens=False)
        ids = np.fromiter((i for e in encoded for i in e.ids), dtype=np.uint16)
        count = len(ids) // window_tokens
        body = ids[: count * window_tokens].reshape(count, window_tokens)
        rows.append(np.concatenate((np.full((count, 1), BOS_ID, dtype=np.uint16), body), axis=1))
    tokens = np.concatenate(rows) if rows else np.zeros((0, window_tokens + 1), dtype=np.uint16)
    return tokens, np.ones_like(tokens, dtype=np.uint8)


def dialogue_windows(
    tokenizer: Tokenizer,
    indices: range,
    prose: Sequence[str],
    window_tokens: int,
    extra: Iterable[list[Message]] = (),
) -> Windows:
    """Return conversations of `indices`, shuffled with `extra` ones, as packed rows."""
    chats = [*extra, *(conversation(i, prose) for i in indices)]
    Random(len(chats)).shuffle(chats)
    return pack(encode_chats(tokenizer, chats), window_tokens)


def build_corpus(
    folder: Path, tokenizer: Tokenizer, books: Sequence[Book], plan: CorpusPlan
) -> None:
    """Write train.npz, held_books.npz and held_dialogue.npz (tokens uint16, weights uint8,
    order) into `folder`.
    """
    prose = sentences(books)
    window = plan.window_tokens
    talk = dialogue_windows(
        tokenizer,
        range(plan.conversations),
        prose,
        window,
        continuations(books, plan.continuations, plan.seed),
    )
    text = prose_windows(tokenizer, (book.training for book in books), window)
    # The smaller part is repeated until the shares are right; every row of the larger one is used
    # once.
    wanted = round(len(talk[0]) * (1 - plan.dialogue_share) / plan.dialogue_share)
    generator = np.random.default_rng(plan.seed)
    repeats = [
        generator.permutation(len(text[0])) for _ in range(-(-wanted // max(1, len(text[0]))))
    ]
    chosen = (
        np.concatenate(repeats)[:wanted] + len(talk[0]) if wanted else np.zeros(0, dtype=np.int64)
    )
    order = generator.permutation(np.concatenate((np.arange(len(talk[0])), chosen)))
    np.savez(
        folder / "train.npz",
        tokens=np.concatenate((talk[0], text[0])),
        weights=np.concatenate((talk[1], text[1])),
        order=order.astype(np.int64),
    )
    held = range(HELD_OUT_START, HELD_OUT_START + plan.held_out_conversations)
    for name, rows in (
        ("held_books", prose_windows(tokenizer, (book.held_out for book in books), window)),
        ("held_dialogue", dialogue_windows(tokenizer, held, [], window)),
    ):
        np.savez(folder / f"{name}.npz", tokens=rows[0], weights=rows[1])
