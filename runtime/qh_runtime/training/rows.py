"""Training rows in memory and the order in which they are used."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: In the late phase one row of prose in so many is kept.
LATE_PROSE_STRIDE = 4


def late_dialogue_share(share: float) -> float:
    """Return the share of dialogue rows in the late phase, given the share before it."""
    return share / (share + (1 - share) / LATE_PROSE_STRIDE)


@dataclass(frozen=True)
class Rows:
    """Rows of tokens (uint16) and weights (uint8), both (n, window_tokens + 1), and their order."""

    tokens: NDArray[np.uint16]
    weights: NDArray[np.uint8]
    order: NDArray[np.int64]

    @classmethod
    def read(cls, path: Path) -> Rows:
        """Read a file of `build_corpus`; without a stored order, rows come as they stand."""
        with np.load(path) as data:
            tokens, weights = data["tokens"], data["weights"]
            order = data["order"] if "order" in data else np.arange(len(tokens))
        return cls(tokens, weights, order)

    def late(self) -> Rows:
        """Return the same rows in the order of the late phase: from the end, with little prose.

        What is learned last is remembered best, and the model is there to chat (Hu et al. 2024,
        "MiniCPM", section 5, mixes its best data into the decay for the same reason). Reading from
        the end keeps the late rows new as long as the phases do not meet.
        """
        backwards = self.order[::-1]
        # Running text has weight everywhere; a conversation never learns its first token.
        prose = np.flatnonzero(self.weights[backwards].all(axis=1))
        kept = np.ones(len(backwards), dtype=np.bool_)
        kept[prose] = False
        kept[prose[::LATE_PROSE_STRIDE]] = True
        return replace(self, order=backwards[kept])

    def batch(self, index: int, size: int) -> tuple[Tensor, Tensor]:
        """Return batch `index` as tokens int64 and weights uint8, both (size, window_tokens + 1).

        The order wraps around at its end.
        """
        chosen = self.order[np.arange(index * size, (index + 1) * size) % len(self.order)]
        tokens = torch.from_numpy(self.tokens[chosen].astype(np.int64))
        return tokens, torch.from_numpy(self.weights[chosen])
