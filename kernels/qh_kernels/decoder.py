"""The C++ decoder: a whole token step (embedding to sampled token) without Python in it.

Weights arrive as checked NumPy arrays in the layouts of `qh_runtime.formats`; the decoder keeps
references to them and copies none of the matrices, so mapped files stay mapped.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qh_kernels.decoder_model import (
    F32,
    LINEARS,
    MAX_BATCH,
    MAX_CONTEXT,
    MAX_THREADS,
    RESCORED_ROWS,
    DecoderShape,
    DecoderWeights,
    LayerShape,
    LayerWeights,
    Matrix,
    check_model,
    check_range,
    check_shape,
    mismatch,
    weights_bytes,
)
from qh_kernels.errors import KernelError
from qh_kernels.kv_cache import KV_TYPES, KvType
from qh_kernels.sampler import Sampler, sample_error

if TYPE_CHECKING:
    from qh_kernels import _native

__all__ = [
    "DEFAULT_BATCH_TOKENS",
    "RESCORED_ROWS",
    "Decoder",
    "DecoderShape",
    "DecoderWeights",
    "KvType",
    "LayerShape",
    "LayerWeights",
    "Matrix",
    "TraceRecord",
    "decoder_bytes",
]

Tokens = Sequence[int] | NDArray[np.integer[Any]]

DEFAULT_BATCH_TOKENS = 64

# Status codes of the native layer.
_OK, _CANCELLED, _NON_FINITE = 0, 1, 2
_NEXT_CANCELLED, _NEXT_NON_FINITE = -1, -2


def decoder_bytes(
    shape: DecoderShape,
    context_length: int,
    threads: int,
    kv_type: KvType = "f16",
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
) -> dict[str, int]:
    """What a Decoder of this shape allocates beside the weights, in bytes, without making one.

    Returns:
        {"kv_cache": bytes, "scratch": bytes}; the scratch holds activations of one batch, logits,
        attention scores of each thread and the rope tables. Exactly `Decoder.allocated_bytes`.

    Raises:
        KernelError: a size is out of range. Facts: object, expected, found.
    """
    from qh_kernels import _native

    check_shape(shape)
    _check_options(context_length, threads, kv_type, batch_tokens)
    kv_cache, scratch = _native.decoder_bytes(
        shape.sizes, context_length, threads, kv_type, min(batch_tokens, context_length)
    )
    return {"kv_cache": kv_cache, "scratch": scratch}


@dataclass(frozen=True)
class TraceRecord:
    """The int8 codes that linear layers read, of every token of the last pass.

    Attributes:
        layer: index of the block; the number of blocks for the head.
        name: the first linear layer that reads them: "q" (also k, v), "o", "gate" (also up),
            "down" or "head".
        per_token: one scale per token (ternary); else one per 32 inputs.
        codes: int8 (n_tokens, in_features).
        scales: float32 (n_tokens, 1) or (n_tokens, ceil(in_features / 32)); input = code * scale.
    """

    layer: int
    name: str
    per_token: bool
    codes: NDArray[np.int8]
    scales: F32


class Decoder:
    """Runs token ids to logits over a KV cache.

    Prefill equals token-by-token decode bit for bit, whatever the batch size and the number of
    threads. All memory is allocated here; a page becomes resident when it is first used. Not for
    concurrent use, except `cancel`, `clear_cancel` and `position`: a second thread gets an error.

    Args:
        shape: the numbers of the decoder.
        weights: checked against the shape; referenced, never copied.
        context_length: positions of the KV cache, at least 1.
        threads: computing threads, the caller's among them.
        kv_type: how keys and values are stored, see `qh_kernels.kv_cache`; `exact` makes it
            "f32".
        exact: float32 activations for every format but ternary, whose int8 activations are the
            model's own arithmetic.
        batch_tokens: tokens of a prefill that are computed together.
        isa: instruction set by name; None takes QH_FORCE_ISA or the best one.
        trace: keep the activation codes of the last pass for `trace()`; slow, for oracles.

    Raises:
        KernelError: something does not fit together, or memory or threads are refused. Facts:
            object, expected, found.
    """

    def __init__(
        self,
        shape: DecoderShape,
        weights: DecoderWeights,
        *,
        context_length: int,
        threads: int,
        kv_type: KvType = "f16",
        exact: bool = False,
        batch_tokens: int = DEFAULT_BATCH_TOKENS,
        isa: str | None = None,
        trace: bool = False,
    ) -> None:
        from qh_kernels import _native
        from qh_kernels import isa as instruction_sets

        check_model(shape, weights)
        _check_options(context_length, threads, kv_type, batch_tokens)
        self._shape = shape
        self._formats = _formats(weights)
        self._weights_bytes = weights_bytes(weights)
        self._context_length = context_length
        self._batch_tokens = min(batch_tokens, context_length)
        self._trace = trace
        self._busy = threading.Lock()
        name = instruction_sets.best() if isa is None else instruction_sets.require(isa)
        try:
            self._native: _native.Decoder | None = _native.Decoder(
                isa=name,
                sizes=shape.sizes,
                rms_norm_eps=shape.rms_norm_eps,
                activation=shape.activation,
                inv_freq=shape.inv_freq,
                **_arrays(shape, weights),
                context_length=context_length,
                threads=threads,
                kv_type="f32" if exact else kv_type,
                exact=exact,
                batch_tokens=self._batch_tokens,
                trace=trace,
            )
        except (MemoryError, RuntimeError) as error:
            needed = decoder_bytes(
                shape, context_length, threads, "f32" if exact else kv_type, batch_tokens
            )
            raise mismatch(
                "decoder memory and threads",
                f"{sum(needed.values())} bytes and {threads} threads",
                str(error) or type(error).__name__,
                "use a shorter context or fewer threads",
            ) from error
        self._isa = name
        self._threads = threads
        kv_cache, scratch = self._native.bytes()
        self._allocated = {"kv_cache": kv_cache, "scratch": scratch}

    @property
    def isa(self) -> str:
        """The instruction set that runs."""
        return self._isa

    @property
    def threads(self) -> int:
        """Computing threads, the caller's among them."""
        return self._threads

    @property
    def position(self) -> int:
        """Tokens in the KV cache; any thread may ask. 0 when closed."""
        native = self._native
        return 0 if native is None else native.position

    @property
    def pending(self) -> int | None:
        """The token that was sampled last and is not in the KV cache yet."""
        pending = self._open().pending
        return None if pending < 0 else pending

    @property
    def context_length(self) -> int:
        """Positions of the KV cache."""
        return self._context_length

    @property
    def batch_tokens(self) -> int:
        """Most tokens of a prefill that are computed together."""
        return self._batch_tokens

    @property
    def vocab_size(self) -> int:
        """Rows of the head."""
        return self._shape.vocab_size

    @property
    def allocated_bytes(self) -> dict[str, int]:
        """{"kv_cache": bytes, "scratch": bytes}, as `decoder_bytes` says."""
        return dict(self._allocated)

    @property
    def weights_bytes(self) -> int:
        """Bytes of all weights, a tied matrix counted once."""
        return self._weights_bytes

    def move_weights(self, weights: DecoderWeights) -> None:
        """Goes on with the same weights at another place in memory; nothing computed is lost.

        Raises:
            KernelError: they are of other sizes or formats. That their values are the same is the
                caller's promise.
        """
        check_model(self._shape, weights)
        if _formats(weights) != self._formats:
            raise mismatch("weights", "those of the decoder", "other formats")
        with self._use() as native:
            native.move_weights(**_arrays(self._shape, weights))

    def prefill(self, tokens: Tokens) -> bool:
        """Appends at least one token to the KV cache; False when cancelled.

        After True, `logits` are those of the last token; the head is multiplied when they are first
        asked for. After False, `position` is the end of the last complete batch.

        Raises:
            KernelError: a token outside the vocabulary, no room in the context, a pending token, or
                a NaN or infinite value in the computation (fact: position).
        """
        with self._use() as native:
            return self._done(native, native.prefill(self._checked_tokens(native, tokens)))

    def forward(self, tokens: Tokens) -> F32:
        """Appends tokens like `prefill` and returns their logits, float32 (n_tokens, vocab_size).

        Raises:
            KernelError: as `prefill`, and when cancelled (fact: cancelled).
        """
        with self._use() as native:
            checked = self._checked_tokens(native, tokens)
            logits = np.empty((len(checked), self.vocab_size), dtype=np.float32)
            if not self._done(native, native.forward(checked, logits)):
                raise KernelError("decoder: the forward pass was cancelled", cancelled=True)
            return logits

    def logits(self) -> F32:
        """A copy of the logits after the last token, float32 (vocab_size,).

        Raises:
            KernelError: nothing was computed since the decoder was made or truncated, or a logit is
                NaN or infinite (fact: position).
        """
        with self._use() as native:
            self._require_last(native)
            self._done(native, native.require_logits())
            return native.logits()

    def next_token(self, sampler: Sampler) -> int:
        """Draws the next token and returns it, or -1 when cancelled, which changes nothing.

        The token drawn is pending: it enters the KV cache in the next call, so that no forward pass
        is wasted on the last token of an answer.

        Raises:
            KernelError: nothing to draw from, the pending token has no room in the context (facts:
                position, context_length), the sampler is for another vocabulary, or a value is NaN
                or infinite (fact: position).
        """
        if sampler.vocab_size != self.vocab_size:
            raise mismatch("sampler vocab_size", self.vocab_size, sampler.vocab_size)
        with self._use() as native:
            if native.pending < 0:
                self._require_last(native)
            else:
                self._require_room(native, 1)
            token = native.next_token(sampler.native)
            if token == _NEXT_NON_FINITE:
                raise self._non_finite(native)
            if token < _NEXT_NON_FINITE:
                raise sample_error(token, position=native.position)
            return token

    def commit_pending(self) -> bool:
        """Runs the pending token into the KV cache, if there is one; False when cancelled.

        Raises:
            KernelError: as `next_token`.
        """
        with self._use() as native:
            if native.pending >= 0:
                self._require_room(native, 1)
            return self._done(native, native.commit_pending())

    def truncate(self, position: int) -> None:
        """Forgets every token from `position` on, the pending token, and the logits.

        Raises:
            KernelError: position is not in 0..position now.
        """
        with self._use() as native:
            check_range("position", position, 0, native.position)
            native.truncate(position)

    def trace(self) -> list[TraceRecord]:
        """The activation codes of the last pass, in the order of computation.

        Raises:
            KernelError: the decoder was made without trace.
        """
        if not self._trace:
            raise mismatch("decoder trace", "a decoder made with trace=True", "trace=False")
        with self._use() as native:
            batches: dict[tuple[int, str, bool], list[tuple[NDArray[np.int8], F32]]] = {}
            for layer, name, per_token, codes, scales in native.trace():
                batches.setdefault((layer, name, per_token), []).append((codes, scales))
        return [
            TraceRecord(
                *key,
                codes=np.concatenate([codes for codes, _ in parts]),
                scales=np.concatenate([scales for _, scales in parts]),
            )
            for key, parts in batches.items()
        ]

    def cancel(self) -> None:
        """Ends a running call within one step, and every later one, until `clear_cancel`.

        Any thread may call it; it does nothing on a closed decoder.
        """
        native = self._native
        if native is not None:
            native.cancel()

    def clear_cancel(self) -> None:
        """Lets calls run again after `cancel`."""
        native = self._native
        if native is not None:
            native.clear_cancel()

    def close(self) -> None:
        """Cancels a running call, waits for it, and frees the memory; the weights are let go."""
        self.cancel()
        with self._busy:
            self._native = None

    def __enter__(self) -> Decoder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _open(self) -> _native.Decoder:
        native = self._native
        if native is None:
            raise mismatch("decoder", "an open decoder", "a closed one", "load the model again")
        return native

    @contextmanager
    def _use(self) -> Iterator[_native.Decoder]:
        if not self._busy.acquire(blocking=False):
            raise mismatch(
                "decoder", "one call at a time", "a second thread", "make one decoder per thread"
            )
        try:
            yield self._open()
        finally:
            self._busy.release()

    def _checked_tokens(self, native: _native.Decoder, tokens: Tokens) -> NDArray[np.int32]:
        if native.pending >= 0:
            raise mismatch(
                "decoder",
                "no pending token before a prefill",
                f"token {native.pending}",
                "call commit_pending or truncate first",
            )
        ids = np.asarray(tokens)
        if ids.ndim != 1 or len(ids) == 0 or not np.issubdtype(ids.dtype, np.integer):
            raise mismatch("tokens", "one axis of at least one integer", f"{ids.dtype} {ids.shape}")
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= self.vocab_size:
            raise mismatch("tokens", f"ids in 0..{self.vocab_size - 1}", low if low < 0 else high)
        self._require_room(native, len(ids))
        return np.ascontiguousarray(ids, dtype=np.int32)

    def _require_room(self, native: _native.Decoder, n_tokens: int) -> None:
        if native.position + n_tokens > self._context_length:
            raise KernelError(
                f"decoder: expected at most {self._context_length} tokens of context, found "
                f"{native.position} and {n_tokens} more",
                hint="shorten the conversation or load with a longer context",
                object="context",
                expected=self._context_length,
                found=native.position + n_tokens,
                position=native.position,
                context_length=self._context_length,
                tokens=n_tokens,
            )

    def _require_last(self, native: _native.Decoder) -> None:
        if not native.has_last:
            raise mismatch("decoder", "logits of a token", "none", "prefill at least one token")

    def _done(self, native: _native.Decoder, status: int) -> bool:
        if status == _NON_FINITE:
            raise self._non_finite(native)
        return status == _OK

    def _non_finite(self, native: _native.Decoder) -> KernelError:
        position = native.non_finite_position
        return KernelError(
            f"decoder: expected finite values, found NaN, infinity or a key beyond float16 at "
            f"position {position}",
            hint="check the model file; a damaged or overflowing model cannot be run",
            object="decoder",
            expected="finite values",
            found="NaN or infinity",
            position=position,
        )


def _check_options(context_length: int, threads: int, kv_type: str, batch_tokens: int) -> None:
    check_range("context_length", context_length, 1, MAX_CONTEXT)
    check_range("threads", threads, 1, MAX_THREADS)
    check_range("batch_tokens", batch_tokens, 1, MAX_BATCH)
    if kv_type not in KV_TYPES:
        raise mismatch("kv_type", " or ".join(KV_TYPES), kv_type)


def _formats(weights: DecoderWeights) -> list[str | None]:
    tables = (weights.embedding, weights.head, weights.head_scan)
    names = [None if matrix is None else matrix.format for matrix in tables]
    return [*names, *(getattr(x, name).format for x in weights.layers for name in LINEARS)]


def _arrays(shape: DecoderShape, weights: DecoderWeights) -> dict[str, Any]:
    """The weights as the native layer takes them."""
    scan = weights.head_scan
    return {
        "embedding": _linear(weights.embedding, None),
        "head": _linear(weights.head, None),
        "head_scan": None if scan is None else _linear(scan, None),
        "final_norm": weights.final_norm,
        "layers": [
            _layer(layer, numbers.sliding_window)
            for layer, numbers in zip(weights.layers, shape.layers, strict=True)
        ],
    }


def _linear(matrix: Matrix, bias: F32 | None) -> _native.LinearParts:
    return (matrix.data, int(matrix.rows), int(matrix.cols), matrix.format, bias)


def _layer(layer: LayerWeights, sliding_window: int) -> _native.LayerParts:
    return (
        _linear(layer.q, layer.q_bias),
        _linear(layer.k, layer.k_bias),
        _linear(layer.v, layer.v_bias),
        _linear(layer.o, layer.o_bias),
        _linear(layer.gate, layer.gate_bias),
        _linear(layer.up, layer.up_bias),
        _linear(layer.down, layer.down_bias),
        layer.attention_norm,
        layer.mlp_norm,
        layer.q_norm,
        layer.k_norm,
        layer.attention_sub_norm,
        layer.mlp_sub_norm,
        sliding_window,
    )
