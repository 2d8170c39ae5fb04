"""A fixed sentence through the whole model: what its logits say about the weights.

A trained model expects the words of plain English far better than a guess: 2.7 to 4.4 nats a token
for models of 4 to 7 million weights over 4096 tokens, where guessing costs 8.3. Weights with wrong
scales, swapped bytes or shuffled rows cost more than guessing (9 to 29 in the same models), because
such a model is sure of the wrong thing. But so may a model of another language or none, so this is
told and not refused. One thing is refused: logits that are all the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from qh_runtime.errors import CheckpointError, TokenizerError

__all__ = ["SENTENCE", "Prompt", "notes_on_logits", "prompt_of"]

SENTENCE = "Once upon a time there was a little girl."
# A character-level tokenizer makes more of the sentence than is needed.
_MOST_TOKENS = 16
# Fewer predictions than this say too little to speak of.
_FEWEST_SCORED = 4
# Logits that say nothing: an entropy this close to that of guessing, in nats.
_UNIFORM_NATS = 1e-3
# Random weights of small size end a little above guessing; what is worth a word is farther off.
_WORSE_NATS = 0.25


class TextEncoder(Protocol):
    """The part of a ChatTokenizer that is needed here."""

    def encode_raw(self, text: str) -> list[int]:
        """Ids of a text, bos in front where the model wants it."""
        ...


@dataclass(frozen=True)
class Prompt:
    """Token ids inside the vocabulary, at least one; is_text: they are the sentence."""

    tokens: tuple[int, ...]
    is_text: bool


def prompt_of(tokenizer: TextEncoder, vocab_size: int, context_length: int) -> Prompt:
    """The sentence in this model's tokens, as far as the context goes.

    Where the tokenizer fails on it, or gives ids that the model does not have, ids from all over
    the vocabulary take its place: what is wrong with a tokenizer is said when it is used.
    """
    most = min(_MOST_TOKENS, context_length)
    try:
        ids = tokenizer.encode_raw(SENTENCE)
    except TokenizerError:
        ids = []
    if ids and max(ids) < vocab_size:
        return Prompt(tuple(ids[:most]), is_text=True)
    spread = np.linspace(0, vocab_size - 1, min(8, most)).astype(int)
    return Prompt(tuple(int(x) for x in spread), is_text=False)


def notes_on_logits(logits: NDArray[np.float32], prompt: Prompt) -> tuple[str, ...]:
    """What a person should know about finite logits (n_tokens, vocab_size) of the prompt.

    Raises:
        CheckpointError: every token has the same logit. Facts: rule, found.
    """
    vocab_size = logits.shape[1]
    if vocab_size == 1:
        return ()
    guessing = math.log(vocab_size)
    last = logits[-1]
    if float(last.min()) == float(last.max()):
        raise CheckpointError(
            f"logits: expected values that differ from token to token, found {last[0]:g} for all "
            f"{vocab_size}",
            hint="its weights are damaged or empty; fetch them again",
            rule="logits",
            found=float(last[0]),
        )
    scores = _log_softmax(last)
    entropy = -float(np.sum(np.exp(scores) * scores))
    if entropy > guessing - _UNIFORM_NATS:
        return (
            "the model finds all tokens about equally likely: it is untrained, or its weights are "
            "damaged",
        )
    # Row by row: all of them in float64 would be the largest thing that the check holds.
    pairs = zip(logits, prompt.tokens[1:], strict=False)
    costs = [-float(_log_softmax(row)[token]) for row, token in pairs]
    if prompt.is_text and len(costs) >= _FEWEST_SCORED:
        mean = sum(costs) / len(costs)
        if mean > guessing + _WORSE_NATS:
            return (
                f"the model predicts a plain English sentence worse than guessing ({mean:.1f} nats "
                f"a token, {guessing:.1f} by chance): its weights may be damaged, or it is "
                "untrained or made for something else",
            )
    return ()


def _log_softmax(row: NDArray[np.float32]) -> NDArray[Any]:
    shifted = row.astype(np.float64) - float(row.max())
    return np.asarray(shifted - math.log(float(np.exp(shifted).sum())))
