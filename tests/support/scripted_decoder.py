"""A decoder that says what a test wrote down, and is as strict about its calls as the real one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from qh_kernels.errors import KernelError
from qh_kernels.sampler import Sampler

__all__ = ["ScriptedDecoder"]


class ScriptedDecoder:
    """Follows `SessionDecoder`; the tokens it draws come from a script.

    Args:
        vocab_size: ids it takes and gives.
        context_length: tokens its cache holds.
        token_s: seconds that reading one prompt token takes.
    """

    def __init__(self, vocab_size: int, context_length: int = 256, token_s: float = 0.0) -> None:
        self.vocab_size = vocab_size
        self.context_length = context_length
        self.token_s = token_s
        self.script: list[int] = []
        self.cache: list[int] = []
        self.pending: int | None = None
        self.has_logits = False
        self.cancelled = False
        self.closed = False
        self.fail_in: str | None = None
        self.last_logits = np.arange(vocab_size, dtype=np.float32)
        self.prefills: list[list[int]] = []
        self.on_token: Callable[[int], None] = lambda drawn: None
        self.drawn = 0

    @property
    def position(self) -> int:
        """Tokens in the cache."""
        return len(self.cache)

    def prefill(self, tokens: NDArray[np.int32]) -> bool:
        """Append tokens, one by one, until cancelled."""
        assert not self.closed
        assert self.pending is None, "a pending token must be truncated or committed first"
        assert tokens.dtype == np.int32
        assert tokens.ndim == 1
        assert len(tokens) > 0
        assert self.position + len(tokens) <= self.context_length
        if self.fail_in == "prefill":
            raise KernelError("decoder: NaN", position=self.position)
        self.prefills.append(tokens.tolist())
        for token in tokens.tolist():
            if self.cancelled:
                return False
            assert 0 <= token < self.vocab_size
            if self.token_s:
                time.sleep(self.token_s)
            self.cache.append(token)
        self.has_logits = True
        return True

    def next_token(self, sampler: Sampler) -> int:
        """Commit the pending token and give the next of the script."""
        assert not self.closed
        assert sampler.vocab_size == self.vocab_size
        if self.cancelled:
            return -1
        if self.fail_in == "next_token":
            raise KernelError("decoder: NaN", position=self.position)
        if self.pending is not None:
            assert self.position < self.context_length, "no room for the pending token"
            self.cache.append(self.pending)
        else:
            assert self.has_logits
        self.on_token(self.drawn)
        self.drawn += 1
        self.pending = self.script.pop(0)
        return self.pending

    def logits(self) -> NDArray[np.float32]:
        """A copy of what the test set."""
        assert not self.closed
        assert self.has_logits
        return self.last_logits.copy()

    def truncate(self, position: int) -> None:
        """Forget from position on."""
        assert 0 <= position <= self.position
        del self.cache[position:]
        self.pending = None
        self.has_logits = False

    def cancel(self) -> None:
        """End calls."""
        self.cancelled = True

    def clear_cancel(self) -> None:
        """Allow calls."""
        self.cancelled = False

    def close(self) -> None:
        """Refuse everything from here on."""
        self.closed = True

    def say(self, ids: Sequence[int]) -> None:
        """Replace what the next answers consist of."""
        self.script = list(ids)
