"""LogitsEngine: logits of a piece of text from an empty KV cache, by any decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from qh_kernels.decoder import Decoder
from qh_runtime.reference.decoder import ReferenceDecoder

__all__ = ["LogitsEngine", "NativeEngine", "ReferenceEngine"]


class LogitsEngine(Protocol):
    """Anything that gives logits."""

    def logits(self, tokens: Sequence[int]) -> NDArray[np.floating[Any]]:
        """Logits (n_tokens, vocab_size) of tokens that begin a text."""


class ReferenceEngine:
    """The NumPy reference decoder as a LogitsEngine."""

    def __init__(self, decoder: ReferenceDecoder) -> None:
        self._decoder = decoder

    def logits(self, tokens: Sequence[int]) -> NDArray[np.floating[Any]]:
        """See LogitsEngine."""
        self._decoder.reset()
        return self._decoder.forward(tokens)


class NativeEngine:
    """The C++ decoder as a LogitsEngine; its context has to hold the longest piece."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder

    def logits(self, tokens: Sequence[int]) -> NDArray[np.floating[Any]]:
        """See LogitsEngine."""
        self._decoder.truncate(0)
        return self._decoder.forward(tokens)
