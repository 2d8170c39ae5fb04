"""LogitsEngine: logits of a piece of text from an empty KV cache, by any decoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from qh_kernels.decoder import Decoder
from qh_runtime.reference.decoder import ReferenceDecoder

__all__ = ["CHUNK_TOKENS", "LogitsEngine", "NativeEngine", "ReferenceEngine"]

Rows = NDArray[np.floating[Any]]

# Rows of logits held at once: 64 of a vocabulary of 128,256 are 31 MiB in float32.
CHUNK_TOKENS = 64


class LogitsEngine(Protocol):
    """Anything that gives logits."""

    def logits(self, tokens: Sequence[int], first: int) -> Iterator[Rows]:
        """Rows `first` and later of the logits of tokens that begin a text.

        Row i, (vocab_size,), predicts token i + 1. Rows come in chunks of CHUNK_TOKENS, the last
        one shorter.
        """


class ReferenceEngine:
    """The NumPy reference decoder as a LogitsEngine."""

    def __init__(self, decoder: ReferenceDecoder) -> None:
        self._decoder = decoder

    def logits(self, tokens: Sequence[int], first: int) -> Iterator[Rows]:
        """See LogitsEngine."""
        self._decoder.reset()
        if first:
            self._decoder.forward(tokens[:first])
        for begin in range(first, len(tokens), CHUNK_TOKENS):
            yield self._decoder.forward(tokens[begin : begin + CHUNK_TOKENS])


class NativeEngine:
    """The C++ decoder as a LogitsEngine; its context has to hold the longest piece."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder

    def logits(self, tokens: Sequence[int], first: int) -> Iterator[Rows]:
        """See LogitsEngine."""
        self._decoder.truncate(0)
        if first:
            self._decoder.prefill(tokens[:first])
        for begin in range(first, len(tokens), CHUNK_TOKENS):
            yield self._decoder.forward(tokens[begin : begin + CHUNK_TOKENS])
