"""Greedy text of transformers and of the C++ decoder, and the rule by which they are compared."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tests.support.native_model import NativeModel

__all__ = ["N_TOKENS", "assert_same_text", "native_text", "oracle_text"]

# Length of the texts that are compared.
N_TOKENS = 64


def oracle_text(model: Any, prompt: list[int]) -> tuple[list[int], NDArray[np.float32]]:
    """(ids, logits (N_TOKENS, vocab_size)) of transformers, from its own KV cache."""
    rows: list[NDArray[np.float32]] = []
    ids: list[int] = []
    past, step = None, torch.tensor([prompt])
    with torch.no_grad():
        for _ in range(N_TOKENS):
            out = model(step, past_key_values=past, use_cache=True)
            past = out.past_key_values
            rows.append(out.logits[0, -1].float().numpy())
            ids.append(int(rows[-1].argmax()))
            step = torch.tensor([[ids[-1]]])
    return ids, np.stack(rows)


def native_text(model: NativeModel, prompt: list[int], **options: Any) -> list[int]:
    """The ids of the C++ decoder, token by token."""
    ids: list[int] = []
    with model.decoder(**options) as decoder:
        decoder.prefill(prompt)
        while True:
            ids.append(int(decoder.logits().argmax()))
            if len(ids) == N_TOKENS:
                return ids
            decoder.prefill([ids[-1]])


def assert_same_text(
    found: list[int],
    expected: list[int],
    logits: NDArray[np.float32],
    bound: float,
    label: str,
) -> None:
    """The ids are equal up to a step whose two likeliest tokens are closer than the bound.

    Prints how far they are equal.
    """
    for step, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        if ours != theirs:
            second, first = np.sort(logits[step])[-2:]
            assert first - second < bound, (
                f"{label}: step {step}: token {ours}, transformers has {theirs}; its two likeliest "
                f"differ by {first - second:.6f}, bound {bound}"
            )
            print(f"{label}: equal for {step} tokens, then a margin of {first - second:.2e}")
            return
    print(f"{label}: equal for {len(expected)} tokens")
