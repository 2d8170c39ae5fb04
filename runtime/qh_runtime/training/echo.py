"""Rows that teach copying: random tokens, then the same tokens again.

A story is told well only if names are carried along, and the part of a model that does this (an
induction head) forms late in a short training on natural text. Where every second token can be
known by looking back, and by nothing else, it forms sooner.

Source: Olsson et al. 2022, "In-context Learning and Induction Heads", which uses repeated random
tokens to measure this ability; here they are trained on.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from qh_runtime.training.vocabulary import SPECIAL_TOKENS

_SHORTEST, _LONGEST = 3, 64


def echo_rows(step: int, count: int, vocab_size: int, length: int) -> tuple[Tensor, Tensor]:
    """Return tokens int64 and weights uint8 (count, length); equal steps give equal rows.

    Only echoes have weight, and of them not the first token, which nothing announces.
    """
    generator = np.random.default_rng((7, step))
    tokens = np.zeros((count, length + 2 * _LONGEST), dtype=np.int64)
    weights = np.zeros_like(tokens, dtype=np.uint8)
    for row in range(count):
        at = 1
        while at < length:
            size = int(generator.integers(_SHORTEST, _LONGEST + 1))
            part = generator.integers(len(SPECIAL_TOKENS), vocab_size, size)
            tokens[row, at : at + size] = part
            tokens[row, at + size : at + 2 * size] = part
            weights[row, at + size + 1 : at + 2 * size] = 1
            at += 2 * size
    return torch.from_numpy(tokens[:, :length]), torch.from_numpy(weights[:, :length])
