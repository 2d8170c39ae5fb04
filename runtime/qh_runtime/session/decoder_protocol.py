"""What a session needs from a decoder: tokens in, tokens out, a KV cache that can be cut short."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from qh_kernels.sampler import Sampler

__all__ = ["SessionDecoder"]


class SessionDecoder(Protocol):
    """The part of `qh_kernels.decoder.Decoder` that a session uses.

    All calls but `cancel`, `clear_cancel` and `position` come from one thread at a time.
    """

    @property
    def position(self) -> int:
        """Tokens in the KV cache."""
        ...

    @property
    def context_length(self) -> int:
        """Most tokens the KV cache holds."""
        ...

    @property
    def vocab_size(self) -> int:
        """Rows of the head, padding included."""
        ...

    def prefill(self, tokens: NDArray[np.int32]) -> bool:
        """Append tokens, int32 (n,), n >= 1; False when cancelled, `position` tells how far."""
        ...

    def logits(self) -> NDArray[np.float32]:
        """A copy of the logits after the last token, float32 (vocab_size,), all finite."""
        ...

    def next_token(self, sampler: Sampler) -> int:
        """Draw the next token, -1 when cancelled; it enters the cache in the next call."""
        ...

    def truncate(self, position: int) -> None:
        """Forget everything from position on, and a token drawn but not yet in the cache."""
        ...

    def cancel(self) -> None:
        """End a running call within one step, and every later one, until `clear_cancel`."""
        ...

    def clear_cancel(self) -> None:
        """Let calls run again."""
        ...

    def close(self) -> None:
        """Free the memory."""
        ...
