"""Books without their licence, dialogues that depend on their index alone, windows without gaps."""

from __future__ import annotations

import hashlib
from pathlib import Path
from random import Random

import numpy as np
import pytest

pytest.importorskip("tokenizers")

from qh_runtime.errors import QhError
from qh_runtime.training.books import paragraphs, read_book, read_books, strip_licence
from qh_runtime.training.corpus import continuations, pack, prose_windows
from qh_runtime.training.dialogue import HELD_OUT_START, conversation
from qh_runtime.training.grammar import choose, fill, polish
from qh_runtime.training.messages import Message
from qh_runtime.training.rows import Rows
from qh_runtime.training.stories import Topic, make_story, renamed
from qh_runtime.training.vocabulary import (
    EOS_ID,
    SPECIAL_TOKENS,
    encode_chats,
    train_vocabulary,
)

#: SHA-256 of the first 40 conversations. It changes when a phrase or a drawing order changes, and
#: then the shipped weights no longer belong to the generator: train anew, or undo the change.
FIRST_CONVERSATIONS = "48d7a68932c16c91e60793347822213c9b3adb5813c9a578d72885efa4a14ce5"

BOOK = """The Project Gutenberg EBook of A Test

Title: A Test

*** START OF THIS PROJECT GUTENBERG EBOOK A TEST ***

Produced by Somebody

CHAPTER I

It was a _cold_ day,
and the fox said: \u201cI am here.\u201d

[Illustration: a fox]

She said no more.

End of the Project Gutenberg EBook of A Test

*** END OF THIS PROJECT GUTENBERG EBOOK A TEST ***
Licence text.
"""


def test_header_licence_headings_and_notes_are_gone() -> None:
    assert paragraphs(strip_licence(BOOK)) == [
        'It was a cold day, and the fox said: "I am here."',
        "She said no more.",
    ]


def test_an_old_file_has_its_small_print_in_front() -> None:
    old = (
        "Title: B\n\n*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.1*END*\n\nOnce there was.\n"
        "\n\nEnd of The Project Gutenberg Etext of B\n"
    )
    assert paragraphs(strip_licence(old)) == ["Once there was."]


def test_a_book_keeps_its_end_for_evaluation(tmp_path: Path) -> None:
    path = tmp_path / "a-test_12.txt"
    path.write_text("\n\n".join(f"This is paragraph number {i} here." for i in range(1000)))
    book = read_book(path)
    assert (book.number, book.name) == (12, "a-test")
    assert book.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert len(book.training) + len(book.held_out) == 1000
    assert 15 <= len(book.held_out) <= 20


def test_a_folder_without_books_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes_about.txt").write_text("not a book")
    with pytest.raises(QhError) as refused:
        read_books(tmp_path)
    assert refused.value.facts == {"folder": str(tmp_path)}


def test_the_generator_is_the_one_the_weights_were_trained_on() -> None:
    digest = hashlib.sha256()
    for index in range(40):
        for message in conversation(index):
            digest.update(f"{message.role}:{message.content}\n".encode())
    assert digest.hexdigest() == FIRST_CONVERSATIONS


def test_conversations_alternate_and_hold_no_special_tokens_or_open_slots() -> None:
    for index in [*range(1500), *range(HELD_OUT_START, HELD_OUT_START + 300)]:
        messages = conversation(index, ["The old man looked at the sea and said nothing."])
        turns = [m.role for m in messages if m.role != "system"]
        assert turns == ["user", "assistant"] * (len(turns) // 2)
        for message in messages:
            assert message.content.strip()
            assert not any(token in message.content for token in SPECIAL_TOKENS)
            assert not any(character in message.content for character in "{}|")


def test_phrases_choose_and_fill() -> None:
    rng = Random(1)
    assert {choose("(a|b(c|d)|)", rng) for _ in range(60)} == {"a", "bc", "bd", ""}
    assert fill("{x} and {y}", rng, {"x": "1", "y": "2"}) == "1 and 2"
    assert polish("a owl saw  a unicorn. it was a honest owl.") == (
        "An owl saw a unicorn. It was an honest owl."
    )
    with pytest.raises(ValueError, match="parenthesis"):
        choose("(a|b", rng)


def test_a_story_holds_its_topic_and_survives_a_new_name() -> None:
    for seed in range(60):
        story = make_story(Random(seed), Topic(hero_kind="fox", thing="lamp", hero_name="Anna"))
        assert "fox" in story.text
        assert "lamp" in story.text
        other = renamed(story, "Greta")
        assert "Anna" not in other.text
        assert other.text.replace("Greta", "Anna") == story.text


def test_only_the_assistant_is_learned() -> None:
    chat = [Message("system", "Be kind."), Message("user", "Hi"), Message("assistant", "Hello!")]
    tokenizer = train_vocabulary(["Be kind. Hi Hello!"] * 3, 300)
    ((ids, weights),) = encode_chats(tokenizer, [chat])
    assert len(ids) == len(weights)
    assert ids[0] == 0
    assert tokenizer.decode([i for i, w in zip(ids, weights, strict=True) if w]) == "Hello!"
    assert [i for i, w in zip(ids, weights, strict=True) if w][-1] == EOS_ID


def test_packing_keeps_conversations_whole() -> None:
    rows = [([0, *[n + 5] * n, 1], [0, *[1] * n, 1]) for n in (3, 9, 4, 40, 6, 2)]
    tokens, weights = pack(rows, 15, pool=4)
    assert tokens.shape == weights.shape == (3, 16)
    joined = [row.tolist() for row in tokens]
    for ids, _ in rows:
        found = any(
            ids == row[i : i + len(ids)] for row in joined for i in range(len(row) - len(ids) + 1)
        )
        assert found == (len(ids) <= 16)
    assert int(weights.sum()) == sum(sum(w) for _, w in rows if len(w) <= 16)


def test_prose_windows_open_with_the_first_token() -> None:
    tokenizer = train_vocabulary(["a fox ran far away"], 280)
    tokens, weights = prose_windows(tokenizer, [["a fox ran far away"] * 30], 16)
    assert tokens.shape[1] == 17
    assert set(tokens[:, 0].tolist()) == {0}
    assert weights.all()


def test_continuations_are_the_next_words_of_the_book(tmp_path: Path) -> None:
    path = tmp_path / "a-test_12.txt"
    path.write_text(
        "\n\n".join(f"This is line {i} of it. It goes on. So it is." for i in range(99))
    )
    book = read_book(path)
    for user, reply in continuations([book], 20, seed=1):
        shown = user.content.split(": ", 1)[-1].split("? ")[-1]
        whole = " ".join(book.training)
        assert f"{shown} {reply.content}" in whole


def test_the_late_order_has_less_prose_and_other_rows() -> None:
    weights = np.ones((100, 5), dtype=np.uint8)
    weights[:60, 0] = 0
    order = np.random.default_rng(1).permutation(100)
    rows = Rows(np.zeros((100, 5), dtype=np.uint16), weights, order)
    late = rows.late()
    assert len(late.order) == 60 + 10
    assert set(late.order[:30].tolist()).isdisjoint(order[:30].tolist())
