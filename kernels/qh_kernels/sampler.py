"""Draws tokens from logits, in C++.

Order: penalties, temperature, top-k, top-p, min-p, each on what the one before left over and
renormalised (the order of Hugging Face transformers). Candidates rank by logit, equal logits by id,
lowest first; that rank decides what top-k and top-p keep.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qh_kernels.decoder_model import MAX_CONTEXT, MAX_VOCAB, check_range, mismatch
from qh_kernels.errors import KernelError

__all__ = ["Sampler", "sample_error"]

_NOT_A_NUMBER = -3


class Sampler:
    """A deterministic stream of draws: the same seed and logits give the same tokens.

    Args:
        vocab_size: number of logits.
        temperature: divides the logits; 0 takes the highest logit, lowest id among equals.
        top_k: keep the k likeliest; 0 keeps all.
        top_p: keep the smallest set of the likeliest with at least this probability; 1 keeps all.
        min_p: drop what is less likely than min_p times the likeliest; 0 keeps all.
        repetition_penalty: divides positive, multiplies negative logits of seen tokens; 1 is off.
            Source: Keskar et al. 2019 (CTRL), section 4.1; the negative case as everybody does.
        presence_penalty: subtracted once from the logit of each seen token; 0 is off.
        frequency_penalty: subtracted for each time a token was seen; 0 is off.
        penalty_window: how many of the last observed tokens count as seen.
        seed: any integer; its low 64 bits start the generator (xoshiro256**).
        allowed_vocab: ids from here on are never drawn (a padded vocabulary); None allows all.

    Raises:
        KernelError: a value is out of range. Facts: object, expected, found.
    """

    def __init__(
        self,
        vocab_size: int,
        *,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        penalty_window: int = 256,
        seed: int = 0,
        allowed_vocab: int | None = None,
    ) -> None:
        from qh_kernels import _native

        check_range("vocab_size", vocab_size, 1, MAX_VOCAB)
        allowed = vocab_size if allowed_vocab is None else allowed_vocab
        check_range("allowed_vocab", allowed, 1, vocab_size)
        check_range("top_k", top_k, 0, 1 << 62)
        check_range("penalty_window", penalty_window, 0, MAX_CONTEXT)
        # A temperature that float64 rounds to nothing would divide by zero.
        _check_number("temperature", temperature, 0.0, 1e6)
        _check_number("top_p", top_p, 0.0, 1.0)
        _check_number("min_p", min_p, 0.0, 1.0)
        _check_number("repetition_penalty", repetition_penalty, 1e-3, 1e3)
        _check_number("presence_penalty", presence_penalty, -1e3, 1e3)
        _check_number("frequency_penalty", frequency_penalty, -1e3, 1e3)
        if 0.0 < temperature < 1e-6:
            raise mismatch("temperature", "0 or at least 1e-6", temperature, "use 0 for greedy")
        self._vocab_size = int(vocab_size)
        self.native = _native.Sampler(
            vocab_size=int(vocab_size),
            allowed_vocab=int(allowed),
            temperature=float(temperature),
            top_k=int(top_k),
            top_p=float(top_p),
            min_p=float(min_p),
            repetition_penalty=float(repetition_penalty),
            presence_penalty=float(presence_penalty),
            frequency_penalty=float(frequency_penalty),
            penalty_window=int(penalty_window),
            seed=int(seed) & 0xFFFF_FFFF_FFFF_FFFF,
        )

    @property
    def vocab_size(self) -> int:
        """Number of logits."""
        return self._vocab_size

    def observe(self, tokens: Sequence[int] | NDArray[np.integer[Any]]) -> None:
        """Makes tokens count as seen by the penalties, oldest first.

        Raises:
            KernelError: an id is outside the vocabulary.
        """
        ids = np.asarray(tokens, dtype=np.int64)
        if ids.ndim != 1:
            raise mismatch("tokens", "one axis", ids.shape)
        if len(ids) and (ids.min() < 0 or ids.max() >= self._vocab_size):
            found = int(ids.min() if ids.min() < 0 else ids.max())
            raise mismatch("tokens", f"ids in 0..{self._vocab_size - 1}", found)
        self.native.observe(np.ascontiguousarray(ids, dtype=np.int32))

    def sample(self, logits: NDArray[np.float32]) -> int:
        """Draws one token and observes it.

        Args:
            logits: (vocab_size,); -inf means impossible.

        Raises:
            KernelError: wrong size; a logit is NaN or +inf; every allowed logit is -inf.
        """
        values = np.ascontiguousarray(logits, dtype=np.float32)
        if values.shape != (self._vocab_size,):
            raise mismatch("logits shape", (self._vocab_size,), values.shape)
        token = self.native.sample(values)
        if token < 0:
            raise sample_error(token)
        return token


def sample_error(code: int, **facts: Any) -> KernelError:
    """The error of a negative result of the native sampler."""
    found = "NaN or +infinity" if code == _NOT_A_NUMBER else "only -infinity"
    return KernelError(
        f"logits: expected at least one finite value and no NaN, found {found}",
        hint="check the model file; a damaged model cannot be sampled from",
        object="logits",
        expected="finite values",
        found=found,
        **facts,
    )


def _check_number(name: str, value: float, low: float, high: float) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        raise mismatch(name, f"a number in {low}..{high}", value)
