"""One layer of the C++ decoder against the NumPy reference, on the weights as they lie in memory.

A decoder of that layer alone is made on the same weights, instruction set and options, and run on a
few tokens. Then the layer is gone through operation by operation with the same kernels: each result
must be what the reference computes from the same input, within the rounding of float32 (matrix
products on sampled rows), the activation codes must be those that the decoder recorded, and in the
end its logits those that follow from them. So a wrong result has the name of its operation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from qh_kernels import cpu
from qh_kernels import decoder as native
from qh_kernels.cpu import QuantizedTokens
from qh_kernels.decoder import DecoderWeights, KvType, LayerWeights, Matrix, TraceRecord
from qh_kernels.kv_cache import KvHead
from qh_runtime import formats
from qh_runtime.architectures import DecoderSpec, LayerSpec, LinearSpec, decoder_shape
from qh_runtime.architectures.rope import inverse_frequencies
from qh_runtime.first_load.closeness import (
    FLOAT32_ROUNDING,
    UNDERFLOW,
    attention_of_head,
    product,
    require_close,
    wrong,
)
from qh_runtime.first_load.sampling import rows_of_tiles, sampled_rows
from qh_runtime.formats.base import TILE_ROWS
from qh_runtime.reference import ops
from qh_runtime.reference.ops import QuantizedActivations
from qh_runtime.reference.two_step_head import two_step_logits

__all__ = ["Arithmetic", "check_layer", "decoder_of_layers", "layers_to_check"]

F32 = NDArray[np.float32]
_Form = Literal["token", "group", "none"]


@dataclass(frozen=True)
class Arithmetic:
    """How a decoder computes; the words are those of `Decoder`."""

    isa: str
    exact: bool
    kv_type: KvType
    threads: int


@dataclass(frozen=True)
class _Inputs:
    """What linear layers read: floats (n_tokens, in_features), and their codes by form."""

    floats: F32
    codes: dict[_Form, QuantizedTokens]


def layers_to_check(weights: DecoderWeights) -> tuple[int, ...]:
    """The first layer, and the first of each weight format that the ones before it do not have."""
    seen: set[str] = set()
    chosen: list[int] = []
    for index, layer in enumerate(weights.layers):
        held = {x.format for x in vars(layer).values() if isinstance(x, Matrix)}
        if not chosen or not held <= seen:
            chosen.append(index)
            seen |= held
    return tuple(chosen)


def decoder_of_layers(
    spec: DecoderSpec,
    weights: DecoderWeights,
    layers: slice,
    how: Arithmetic,
    n_tokens: int,
    *,
    trace: bool = False,
) -> native.Decoder:
    """A decoder of some layers between the model's own embedding and head."""
    shape = decoder_shape(spec)
    return native.Decoder(
        replace(shape, layers=shape.layers[layers]),
        replace(weights, layers=weights.layers[layers]),
        context_length=n_tokens,
        threads=how.threads,
        kv_type=how.kv_type,
        exact=how.exact,
        batch_tokens=n_tokens,
        isa=how.isa,
        trace=trace,
    )


def check_layer(
    spec: DecoderSpec,
    weights: DecoderWeights,
    index: int,
    tokens: Sequence[int],
    how: Arithmetic,
) -> None:
    """Return normally if this layer, fed with the embedding of the tokens, computes what it should.

    Head and scan of the head are followed one by one, and then both together.

    Raises:
        WrongResultError: a result differs from the reference.
        FormatError: a matrix holds bytes that its format never writes.
        KernelError: a value is not finite, or memory or threads are refused.
    """
    scan = None if how.exact else weights.head_scan
    alone = replace(weights, head_scan=None)
    logits, trace = _logits_of_layer(spec, alone, index, tokens, how)
    with np.errstate(all="ignore"):
        chain = _Chain(spec, spec.layers[index], alone, weights.layers[index], how, trace)
        last = chain.run(tokens)
        chain.check_head(last, logits)
        if scan is None:
            return
        few = replace(alone, head=scan)
        scanned, trace = _logits_of_layer(spec, few, index, tokens, how)
        replace(chain, model=few, trace=trace).check_head(last, scanned)
        found, _ = _logits_of_layer(spec, weights, index, tokens, how)
        dense = formats.get(weights.head.format).family == "dense"
        expected = two_step_logits(scanned, logits, 1 if dense else TILE_ROWS)
        require_close(f"scan of {spec.head.name}", how.isa, found, expected, 0.0)


def _logits_of_layer(
    spec: DecoderSpec,
    weights: DecoderWeights,
    index: int,
    tokens: Sequence[int],
    how: Arithmetic,
) -> tuple[F32, dict[tuple[str, bool], TraceRecord]]:
    """Logits (vocab_size,) of the last token through one layer, and the codes of all of them."""
    n_tokens = len(tokens)
    decoder = decoder_of_layers(spec, weights, slice(index, index + 1), how, n_tokens, trace=True)
    with decoder:
        decoder.prefill(tokens)
        logits = decoder.logits()
        trace = {(x.name, x.per_token): x for x in decoder.trace()}
        # A prompt is read in batches and an answer token by token: the bits must be the same.
        decoder.truncate(n_tokens - 1)
        decoder.prefill(tokens[-1:])
        require_close(f"layer {index} token by token", how.isa, decoder.logits(), logits, 0.0)
    return logits, trace


@dataclass(frozen=True)
class _Chain:
    """The operations of one layer in their order; every method checks what it returns."""

    spec: DecoderSpec
    layer: LayerSpec
    model: DecoderWeights
    weights: LayerWeights
    how: Arithmetic
    trace: dict[tuple[str, bool], TraceRecord]

    def run(self, tokens: Sequence[int]) -> F32:
        """Follow the tokens to what the head multiplies for the last one, (1, hidden_size)."""
        spec, layer, w = self.spec, self.layer, self.weights
        hidden = self._embedding(tokens)
        normed = self._norm(layer.attention_norm, hidden, w.attention_norm)
        x = self._prepare("q", normed, "q", "k", "v")
        q = self._linear(layer.q, w.q, w.q_bias, x)
        k = self._linear(layer.k, w.k, w.k_bias, x)
        v = self._linear(layer.v, w.v, w.v_bias, x)
        attended = self._attention(self._heads(layer.q_norm, q, w.q_norm, "q"), k, v)
        if w.attention_sub_norm is not None:
            name = str(layer.attention_sub_norm)
            attended = self._norm(name, attended, w.attention_sub_norm)
        x = self._prepare("o", attended, "o")
        hidden = hidden + self._linear(layer.o, w.o, w.o_bias, x)
        x = self._prepare("gate", self._norm(layer.mlp_norm, hidden, w.mlp_norm), "gate", "up")
        gate = self._linear(layer.gate, w.gate, w.gate_bias, x)
        up = self._linear(layer.up, w.up, w.up_bias, x)
        inner = self._gated(gate, up)
        if w.mlp_sub_norm is not None:
            inner = self._norm(str(layer.mlp_sub_norm), inner, w.mlp_sub_norm)
        x = self._prepare("down", inner, "down")
        hidden = hidden + self._linear(layer.down, w.down, w.down_bias, x)
        return self._norm(spec.final_norm, hidden[-1:], self.model.final_norm)

    def check_head(self, last: F32, logits: F32) -> None:
        """Follow the last token to its logits."""
        x = self._prepare("head", last)
        self._check_rows(self.spec.head.name, self.model.head, x, logits[None, :])

    def _close(
        self, what: str, found: NDArray[Any], expected: NDArray[Any], bound: NDArray[Any] | float
    ) -> None:
        require_close(what, self.how.isa, found, expected, bound)

    def _embedding(self, tokens: Sequence[int]) -> F32:
        matrix, name = self.model.embedding, self.spec.embedding
        rows = [cpu.unpack_row(matrix, int(token), isa=self.how.isa) for token in tokens]
        for token, row in zip(tokens, rows, strict=True):
            tile = np.array([token // TILE_ROWS])
            numbers, values = rows_of_tiles(matrix, tile, exact=True)
            expected = values.values[np.flatnonzero(numbers == token)[0]]
            # One product of a scale and a code, or a half float as it is.
            self._close(name, row, expected, FLOAT32_ROUNDING * np.abs(expected))
        return np.stack(rows)

    def _norm(self, name: str, x: F32, weight: F32) -> F32:
        eps, isa = self.spec.rms_norm_eps, self.how.isa
        rows = x.reshape(-1, weight.shape[0])
        found = np.stack([cpu.rms_norm(row, weight, eps, isa=isa) for row in rows])
        expected = ops.rms_norm(rows.astype(np.float64), weight, eps)
        # 32 sums of squares side by side; the root halves their error; four operations follow.
        roundings = rows.shape[1] / 64 + 10
        self._close(name, found, expected, roundings * FLOAT32_ROUNDING * np.abs(expected))
        return found.reshape(x.shape)

    def _prepare(self, place: str, x: F32, *readers: str) -> _Inputs:
        """The input of some linear layers of the block, or of the head where none is named."""
        matrices = [getattr(self.weights, name) for name in readers] or [self.model.head]
        codes: dict[_Form, QuantizedTokens] = {}
        for form in {self._form(matrix) for matrix in matrices}:
            if form != "none":
                codes[form] = self._codes(place, x, form)
        return _Inputs(x, codes)

    def _form(self, matrix: Matrix) -> _Form:
        family = formats.get(matrix.format).family
        if family == "ternary":
            return "token"
        return "none" if family == "dense" or self.how.exact else "group"

    def _codes(self, place: str, x: F32, form: _Form) -> QuantizedTokens:
        """The codes that the decoder recorded, which must be those of x."""
        what = f"activation codes of {place}"
        per_token = form == "token"
        quantize = cpu.quantize_token if per_token else cpu.quantize_groups
        own = quantize(x, isa=self.how.isa)
        n_tokens, cols = x.shape
        wide = x.astype(np.float64)
        reference = ops.quantize_token(wide) if per_token else ops.quantize_groups(wide)
        groups = reference.scales.shape[1]
        scales: F32 = own.scales[:, :groups]
        # Two divisions; a power of two less than what would move a code by a step.
        self._close(what, scales, reference.scales, 4 * FLOAT32_ROUNDING * reference.scales)
        spread = np.repeat(scales.astype(np.float64), reference.group_size, axis=1)[:, :cols]
        self._close(what, own.codes[:, :cols] * spread, wide, spread * (0.5 + 2.0**-12))
        record = self.trace.get((place, per_token))
        if record is None or record.codes.shape != (n_tokens, cols):
            found = None if record is None else record.codes.shape
            raise wrong(f"trace of {place}", self.how.isa, (n_tokens, cols), found, 0.0)
        # The same kernels on the same bits; only an angle of the rotation may differ by a rounding,
        # which turns a code next to a tie by one step. Where scales are that of nothing, codes of
        # subnormal numbers are: the decoder has flushed those.
        self._close(what, record.scales, scales, 2.0**-12 * np.abs(scales))
        steps = np.abs(record.codes.astype(np.int16) - own.codes[:, :cols])
        steps[spread < UNDERFLOW] = 0
        flipped = int(np.count_nonzero(steps))
        if int(steps.max()) > 1 or flipped > 1 + steps.size // 200:
            raise wrong(what, self.how.isa, "the decoder's codes", f"{flipped} others", 1.0)
        return _padded(record.codes, record.scales, own)

    def _linear(self, linear: LinearSpec, matrix: Matrix, bias: F32 | None, x: _Inputs) -> F32:
        form, isa = self._form(matrix), self.how.isa
        if form == "none":
            dense = formats.get(matrix.format).family == "dense"
            floats = x.floats if dense else cpu.pad_activations(x.floats)
            y = cpu.linear_f32(matrix, floats, isa=isa)
        else:
            y = cpu.linear_quantized(matrix, x.codes[form], isa=isa)
        self._check_rows(linear.name, matrix, x, y)
        return y if bias is None else y + bias

    def _check_rows(self, name: str, matrix: Matrix, x: _Inputs, y: F32) -> None:
        form = self._form(matrix)
        inputs: F32 | QuantizedActivations = x.floats
        if form != "none":
            size = matrix.cols if form == "token" else cpu.ACTIVATION_GROUP
            groups = -(-matrix.cols // size)
            held = x.codes[form]
            inputs = QuantizedActivations(
                held.codes[:, : matrix.cols], held.scales[:, :groups], size
            )
        for rows, values in sampled_rows(matrix, exact=self.how.exact):
            expected, bound = product(values, inputs)
            self._close(name, y[:, rows], expected, bound)

    def _heads(self, name: str | None, x: F32, weight: F32 | None, what: str) -> F32:
        """Heads (n_tokens, n_heads, head_dim), normed where the model does, and rotated."""
        spec, n_tokens = self.spec, len(x)
        heads = x.reshape(n_tokens, -1, spec.head_dim)
        if weight is not None:
            heads = self._norm(str(name), heads, weight)
        frequencies = inverse_frequencies(spec.rope, spec.head_dim)
        cos, sin = ops.rope_tables(frequencies, 0, n_tokens, np.dtype(np.float32))
        wide, wide_cos, wide_sin = (a.astype(np.float64) for a in (heads, cos, sin))
        expected = ops.apply_rope(wide, wide_cos, wide_sin)
        half = spec.head_dim // 2
        lower, upper = np.abs(wide[..., :half]), np.abs(wide[..., half:])
        c, t = np.abs(wide_cos)[:, None, :], np.abs(wide_sin)[:, None, :]
        magnitude = np.concatenate([lower * c + upper * t, upper * c + lower * t], axis=-1)
        found = np.ascontiguousarray(heads).copy()
        for token in range(n_tokens):
            cpu.rope(found[token], cos[token], sin[token], isa=self.how.isa)
        self._close(f"rotation of {what}", found, expected, 4 * FLOAT32_ROUNDING * magnitude)
        return found

    def _attention(self, q: F32, k: F32, v: F32) -> F32:
        """(n_tokens, num_attention_heads * head_dim), over keys and values as they are cached."""
        spec, layer, isa = self.spec, self.layer, self.how.isa
        n_tokens = len(q)
        shape = (n_tokens, spec.num_key_value_heads, spec.head_dim)
        rotated = self._heads(layer.k_norm, k, self.weights.k_norm, "k")
        caches = self._stored(rotated, v.reshape(shape))
        scale = 1.0 / float(np.sqrt(spec.head_dim))
        window = layer.sliding_window
        group = spec.num_attention_heads // spec.num_key_value_heads
        found = np.empty_like(q)
        expected, bound = np.empty(q.shape), np.empty(q.shape)
        for token in range(n_tokens):
            first = max(0, token - window + 1) if window else 0
            for kv_head, cache in enumerate(caches):
                heads = slice(kv_head * group, (kv_head + 1) * group)
                mine = np.ascontiguousarray(q[token, heads])
                found[token, heads] = cpu.attention(
                    mine, cache, first=first, last=token, scale=scale, isa=isa
                )
                expected[token, heads], bound[token, heads] = attention_of_head(
                    mine.astype(np.float64), cache, first, token, scale
                )
        self._close("attention", found, expected, bound)
        return found.reshape(n_tokens, -1)

    def _stored(self, keys: F32, values: F32) -> list[KvHead]:
        """The cache of every head, after keys and values (n_tokens, n_kv_heads, head_dim)."""
        n_tokens, heads, head_dim = keys.shape
        caches = [KvHead.empty(self._kv_type, head_dim, n_tokens) for _ in range(heads)]
        for token in range(n_tokens):
            for head, cache in enumerate(caches):
                rows = (np.ascontiguousarray(x[token, head]) for x in (keys, values))
                cpu.store_kv(cache, token, *rows, isa=self.how.isa)
        for what, given in (("keys", keys), ("values", values)):
            read = [cache.keys() if what == "keys" else cache.values() for cache in caches]
            kept = np.stack([x[:n_tokens] for x in read], axis=1)
            self._close(f"stored {what}", kept, given, self._rounding(given))
        return caches

    def _rounding(self, x: F32) -> NDArray[Any]:
        """How far from x what the cache keeps of it may be."""
        wide = np.abs(x.astype(np.float64))
        if self._kv_type == "int8":
            largest = wide.max(axis=-1, keepdims=True)
            return np.broadcast_to(largest * (1 / 254 + 2.0**-22), x.shape)
        if self._kv_type == "f16":
            # Rounded to 11 bits; below the smallest normal half, to a multiple of 2**-24.
            return 2.0**-11 * wide + 2.0**-25
        return np.zeros(x.shape)

    @property
    def _kv_type(self) -> KvType:
        return "f32" if self.how.exact else self.how.kv_type

    def _gated(self, gate: F32, up: F32) -> F32:
        activation = self.spec.activation
        rows = [
            cpu.gated(activation, g, u, isa=self.how.isa) for g, u in zip(gate, up, strict=True)
        ]
        found = np.stack(rows)
        expected = ops.gated(activation, gate.astype(np.float64), up.astype(np.float64))
        # e^x within 4 roundings, then three operations.
        bound = 8 * FLOAT32_ROUNDING * np.abs(expected) + UNDERFLOW * np.abs(up)
        self._close(f"{activation} of gate", found, expected, bound)
        return found


def _padded(codes: NDArray[np.int8], scales: F32, like: QuantizedTokens) -> QuantizedTokens:
    """Recorded codes as kernels read them: zeros up to the padding, and sums."""
    padded = np.zeros_like(like.codes)
    padded[:, : codes.shape[1]] = codes
    spread = np.zeros_like(like.scales)
    spread[:, : scales.shape[1]] = scales
    sums = cpu.code_sums(padded, per_token=spread.shape[1] == 1)
    return QuantizedTokens(padded, spread, sums)
