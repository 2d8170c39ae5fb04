"""The fixed sentence as tokens of any vocabulary, and what its logits say."""

from __future__ import annotations

import math

import numpy as np
import pytest

from qh_runtime.errors import CheckpointError, TokenizerError
from qh_runtime.first_load.prompt import SENTENCE, Prompt, notes_on_logits, prompt_of

VOCAB = 1000
IDS = (1, 20, 300, 4, 50, 600)


class _Tokenizer:
    def __init__(self, ids: list[int] | None) -> None:
        self.ids = ids

    def encode_raw(self, text: str) -> list[int]:
        assert text == SENTENCE
        if self.ids is None:
            raise TokenizerError("tokenizer.json: encode failed")
        return self.ids


def test_the_sentence_is_taken_where_it_can_be() -> None:
    assert prompt_of(_Tokenizer(list(IDS)), VOCAB, 64) == Prompt(IDS, is_text=True)
    assert prompt_of(_Tokenizer(list(IDS)), VOCAB, 3) == Prompt(IDS[:3], is_text=True)
    assert len(prompt_of(_Tokenizer(list(range(40))), VOCAB, 64).tokens) == 16


@pytest.mark.parametrize("ids", [None, [], [5, VOCAB], [VOCAB + 3]])
@pytest.mark.parametrize("vocab_size", [1, 2, 7, VOCAB])
@pytest.mark.parametrize("context_length", [1, 2, 64])
def test_ids_from_all_over_take_its_place(
    ids: list[int] | None, vocab_size: int, context_length: int
) -> None:
    prompt = prompt_of(_Tokenizer(ids), vocab_size, context_length)
    assert not prompt.is_text
    assert 1 <= len(prompt.tokens) <= context_length
    assert all(0 <= x < vocab_size for x in prompt.tokens)
    if context_length > 1 and vocab_size > 1:
        assert (prompt.tokens[0], prompt.tokens[-1]) == (0, vocab_size - 1)


def _logits(sure_of: tuple[int, ...], height: float) -> np.ndarray:
    logits = np.random.default_rng(0).standard_normal((len(IDS), VOCAB)).astype(np.float32)
    for row, token in zip(logits, sure_of, strict=False):
        row[token] += height
    return logits


def test_a_model_that_expects_the_sentence_has_no_note() -> None:
    assert notes_on_logits(_logits(IDS[1:], 8), Prompt(IDS, is_text=True)) == ()
    # As little as one nat better than guessing is no reason to worry anybody.
    assert notes_on_logits(_logits(IDS[1:], 2), Prompt(IDS, is_text=True)) == ()


def test_a_model_that_is_sure_of_something_else_has_one() -> None:
    logits = _logits((7, 8, 9, 10, 11), 12)
    (note,) = notes_on_logits(logits, Prompt(IDS, is_text=True))
    assert f"{math.log(VOCAB):.1f} by chance" in note
    # Ids that are no text predict nothing, and four predictions are the least to speak of.
    assert notes_on_logits(logits, Prompt(IDS, is_text=False)) == ()
    assert notes_on_logits(logits[:4], Prompt(IDS[:4], is_text=True)) == ()


def test_random_logits_of_small_weights_have_none() -> None:
    logits = 0.1 * np.random.default_rng(3).standard_normal((len(IDS), VOCAB))
    assert notes_on_logits(logits.astype(np.float32), Prompt(IDS, is_text=True)) == ()


def test_logits_without_differences_to_speak_of_have_a_note() -> None:
    logits = 1e-3 * np.random.default_rng(3).standard_normal((len(IDS), VOCAB))
    (note,) = notes_on_logits(logits.astype(np.float32) + 50, Prompt(IDS, is_text=True))
    assert "equally likely" in note


@pytest.mark.parametrize("value", [0.0, -3.0, 1e30])
def test_logits_without_any_are_refused(value: float) -> None:
    logits = np.full((2, VOCAB), value, np.float32)
    with pytest.raises(CheckpointError) as caught:
        notes_on_logits(logits, Prompt((1, 2), is_text=True))
    assert caught.value.facts["rule"] == "logits"


def test_a_vocabulary_of_one_token_has_nothing_to_say() -> None:
    assert notes_on_logits(np.zeros((2, 1), np.float32), Prompt((0, 0), is_text=False)) == ()
