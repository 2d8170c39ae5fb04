"""Perplexity of a text under a decoder, with a sliding window.

Source: Jelinek et al. 1977; the window with a stride as in Hugging Face's guide "Perplexity of
fixed-length models".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qh_runtime.errors import SessionError
from qh_runtime.evaluation.engines import LogitsEngine
from qh_runtime.evaluation.windows import Sliding, windows

__all__ = ["Perplexity", "log_softmax", "measure_perplexity"]


@dataclass(frozen=True)
class Perplexity:
    """What `measure_perplexity` found.

    Attributes:
        perplexity: exp(nats_per_token).
        nats_per_token: mean negative log likelihood.
        n_tokens: tokens scored.
        context_length, stride: of the windows, see `Sliding`.
    """

    perplexity: float
    nats_per_token: float
    n_tokens: int
    context_length: int
    stride: int


def measure_perplexity(
    engine: LogitsEngine,
    tokens: Sequence[int],
    sliding: Sliding,
) -> Perplexity:
    """The perplexity of a text; every token is scored once (see `windows`).

    Raises:
        SessionError: nothing to score, a bad stride, or logits that are not finite.
    """
    total, count = 0.0, 0
    for window in windows(tokens, sliding):
        done = 0
        for rows in engine.logits(window.tokens, window.first):
            targets = window.targets[done : done + len(rows)]
            total -= float(log_softmax(rows)[np.arange(len(rows)), targets].sum())
            done += len(rows)
        count += done
    mean = total / count
    # A perplexity too large for a float is infinite, not an error: it is what was measured.
    perplexity = math.exp(mean) if mean < 700 else math.inf
    return Perplexity(perplexity, mean, count, sliding.context_length, sliding.stride)


def log_softmax(logits: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Log probabilities over the last axis, in float64.

    Raises:
        SessionError: a logit is NaN or infinite.
    """
    wide = logits.astype(np.float64)
    if not np.isfinite(wide).all():
        raise SessionError(
            "logits: expected finite numbers, found NaN or infinity",
            hint="the weights are damaged, or the format is too small for them",
        )
    shifted = wide - wide.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))
