"""Moves the weights of a running decoder from their mapped file into large pages.

A first token comes sooner from a mapped file, the others from large pages: so the copy is made
beside an answer, and the decoder moves between two tokens. It computes the same bits. A session of
few tokens would not get back what the copy takes, and makes none.
"""

from __future__ import annotations

import logging
import threading
from typing import Protocol

from qh_kernels.decoder import DecoderWeights
from qh_runtime.packing.large_pages import in_large_pages, read_every_token
from qh_runtime.packing.released_pages import release_pages

__all__ = ["WeightMover"]

_log = logging.getLogger(__name__)

# Tokens before the copy begins: at 3 to 15 % a token, a copy is paid back after about as many more.
_FIRST_TOKENS = 64


class _Movable(Protocol):
    def move_weights(self, weights: DecoderWeights) -> None: ...


class _StoppedError(Exception):
    """The copy is not wanted any more."""


class WeightMover:
    """Copies weights on a thread of its own, and hands them to the decoder on the caller's.

    Args:
        decoder: computes with `weights` now.
    """

    def __init__(self, decoder: _Movable, weights: DecoderWeights) -> None:
        self._decoder = decoder
        self._mapped: DecoderWeights | None = weights
        self._copied: DecoderWeights | None = None
        self._tokens = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def between_tokens(self) -> None:
        """Begin to copy after some tokens; move the decoder once the copy is there."""
        mapped, copied = self._mapped, self._copied
        self._tokens += 1
        if mapped is None or self._tokens < _FIRST_TOKENS:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._copy, name="large pages", daemon=True)
            self._thread.start()
        elif copied is not None:
            self._decoder.move_weights(copied)
            for matrix in read_every_token(mapped):
                release_pages(matrix.data)
            self._mapped = self._copied = None

    def stop(self) -> None:
        """End a copy that is being made; returns when its thread is gone."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._mapped = self._copied = None

    def _copy(self) -> None:
        mapped = self._mapped
        assert mapped is not None
        try:
            self._copied = in_large_pages(mapped, 1, self._look)
        except _StoppedError:
            pass
        except MemoryError as error:
            # Slower is all it is: the mapped weights stay.
            _log.warning("weights stay in the small pages of their file: %s", error)

    def _look(self, done: int, total: int) -> None:
        if self._stop.is_set():
            raise _StoppedError
