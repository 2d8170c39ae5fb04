"""How far the predictions of one decoder are from those of another, token by token.

The currency of packing quality: Kullback-Leibler divergence to the unpacked model.
Source: Kullback and Leibler 1951, equation 2.4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qh_runtime.evaluation.engines import LogitsEngine
from qh_runtime.evaluation.perplexity import log_softmax
from qh_runtime.evaluation.windows import Sliding, windows

__all__ = ["Divergence", "kl_divergence", "measure_divergence"]


@dataclass(frozen=True)
class Divergence:
    """What `measure_divergence` found; divergences in nats per token.

    Attributes:
        mean, p99, largest: of the divergence from the base decoder, over tokens.
        top1_agreement: share of positions where both find the same likeliest token.
        n_tokens: positions compared.
    """

    mean: float
    p99: float
    largest: float
    top1_agreement: float
    n_tokens: int


def measure_divergence(
    base: LogitsEngine,
    other: LogitsEngine,
    tokens: Sequence[int],
    sliding: Sliding,
) -> Divergence:
    """The divergence of `other` from `base` at every position that `perplexity` would score.

    Raises:
        SessionError: nothing to compare, a bad stride, or logits that are not finite.
    """
    divergences: list[NDArray[np.float64]] = []
    agreements = 0
    for window in windows(tokens, sliding):
        chunks = (engine.logits(window.tokens, window.first) for engine in (base, other))
        for expected, found in zip(*chunks, strict=True):
            divergences.append(kl_divergence(log_softmax(expected), log_softmax(found)))
            agreements += int((expected.argmax(axis=-1) == found.argmax(axis=-1)).sum())
    values = np.concatenate(divergences)
    return Divergence(
        mean=float(values.mean()),
        p99=float(np.percentile(values, 99)),
        largest=float(values.max()),
        top1_agreement=agreements / len(values),
        n_tokens=len(values),
    )


def kl_divergence(expected: NDArray[np.float64], found: NDArray[np.float64]) -> NDArray[np.float64]:
    """sum p * (log p - log q) over the last axis, from log probabilities; at least 0, in nats."""
    divergence = (np.exp(expected) * (expected - found)).sum(axis=-1)
    # Rounding may leave a value of about -1e-16 where both are equal.
    return np.asarray(np.maximum(divergence, 0.0))
