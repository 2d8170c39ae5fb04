"""ReferenceDecoder: a DecoderSpec executed in NumPy, the oracle that the C++ decoder is held to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qh_runtime.architectures.base import DecoderSpec, LayerSpec, LinearSpec
from qh_runtime.architectures.rope import inverse_frequencies
from qh_runtime.errors import SessionError
from qh_runtime.reference import ops
from qh_runtime.reference.ops import Floats, QuantizedActivations
from qh_runtime.reference.weights import DenseMatrix, Matrix, ReferenceWeights

__all__ = ["ActivationHook", "ReferenceDecoder", "Tape", "record", "replay"]

# Called with the module path of a linear layer and the codes of its input; what it returns is used.
ActivationHook = Callable[[str, QuantizedActivations], QuantizedActivations]
Tape = list[tuple[str, QuantizedActivations]]


class ReferenceDecoder:
    """A decoder with a KV cache that grows.

    Args:
        spec: what to compute.
        weights: with what; every matrix says how its input is quantized.
        dtype: float32, or float64 to have a result with almost no rounding of its own.
        kv_dtype: type that keys and values are rounded to in the cache; None keeps dtype. int8 has
            a scale for each head and token.
        hook: sees, and may replace, the activation codes of every quantized linear layer.
    """

    def __init__(
        self,
        spec: DecoderSpec,
        weights: ReferenceWeights,
        *,
        dtype: type[np.floating[Any]] = np.float32,
        kv_dtype: type[np.floating[Any] | np.int8] | None = None,
        hook: ActivationHook | None = None,
    ) -> None:
        self.spec = spec
        self._weights = weights
        self._dtype = np.dtype(dtype)
        self._kv_dtype = np.dtype(kv_dtype if kv_dtype is not None else dtype)
        self._hook = hook
        self._inv_freq = inverse_frequencies(spec.rope, spec.head_dim)
        self.reset()

    def reset(self) -> None:
        """Empties the KV cache."""
        empty = np.zeros((0, self.spec.num_key_value_heads, self.spec.head_dim), self._dtype)
        self._keys = [empty for _ in self.spec.layers]
        self._values = [empty for _ in self.spec.layers]

    @property
    def n_positions(self) -> int:
        """Tokens in the KV cache."""
        return len(self._keys[0])

    def forward(self, tokens: Sequence[int] | NDArray[np.integer[Any]]) -> Floats:
        """Logits (n_tokens, vocab_size) of tokens that follow those in the cache.

        Raises:
            SessionError: no tokens, or an id outside the vocabulary. Facts: expected, found.
        """
        ids = np.asarray(tokens, dtype=np.int64)
        if ids.ndim != 1 or len(ids) == 0 or ids.min() < 0 or ids.max() >= self.spec.vocab_size:
            raise SessionError(
                f"tokens: expected ids 0..{self.spec.vocab_size - 1}, found {ids.tolist()[:8]}",
                expected=self.spec.vocab_size,
                found=ids.tolist(),
            )
        spec = self.spec
        shape = (spec.vocab_size, spec.hidden_size)
        embedding = self._weights.matrix(spec.embedding, shape)
        x: Floats = embedding.values[ids].astype(self._dtype)
        cos, sin = ops.rope_tables(self._inv_freq, self.n_positions, len(ids), self._dtype)
        for index, layer in enumerate(spec.layers):
            x = x + self._attention(index, layer, self._norm(x, layer.attention_norm), cos, sin)
            x = x + self._mlp(layer, self._norm(x, layer.mlp_norm))
        return self._linear(spec.head, self._norm(x, spec.final_norm))

    def step(self, token: int) -> Floats:
        """Logits (vocab_size,) after one more token."""
        return np.asarray(self.forward([token])[0])

    def _attention(
        self, index: int, layer: LayerSpec, x: Floats, cos: Floats, sin: Floats
    ) -> Floats:
        head_dim, n_tokens = self.spec.head_dim, len(x)
        q = self._linear(layer.q, x).reshape(n_tokens, -1, head_dim)
        k = self._linear(layer.k, x).reshape(n_tokens, -1, head_dim)
        v = self._linear(layer.v, x).reshape(n_tokens, -1, head_dim)
        if layer.q_norm is not None:
            q = self._norm(q, layer.q_norm)
        if layer.k_norm is not None:
            k = self._norm(k, layer.k_norm)
        q, k = ops.apply_rope(q, cos, sin), ops.apply_rope(k, cos, sin)
        self._keys[index] = np.concatenate([self._keys[index], self._cached(k)])
        self._values[index] = np.concatenate([self._values[index], self._cached(v)])
        out = ops.attention(q, self._keys[index], self._values[index], layer.sliding_window)
        if layer.attention_sub_norm is not None:
            out = self._norm(out, layer.attention_sub_norm)
        return self._linear(layer.o, out)

    def _cached(self, x: Floats) -> Floats:
        """What the cache makes of keys or values."""
        if self._kv_dtype == np.int8:
            codes, scales = ops.quantize_kv(x)
            return codes.astype(self._dtype) * scales
        return x.astype(self._kv_dtype).astype(self._dtype)

    def _mlp(self, layer: LayerSpec, x: Floats) -> Floats:
        gate, up = self._linear(layer.gate, x), self._linear(layer.up, x)
        inner = ops.gated(self.spec.activation, gate, up)
        if layer.mlp_sub_norm is not None:
            inner = self._norm(inner, layer.mlp_sub_norm)
        return self._linear(layer.down, inner)

    def _norm(self, x: Floats, name: str) -> Floats:
        return ops.rms_norm(x, self._weights.vector(name, x.shape[-1]), self.spec.rms_norm_eps)

    def _linear(self, linear: LinearSpec, x: Floats) -> Floats:
        matrix = self._weights.matrix(linear.name, (linear.out_features, linear.in_features))
        out = self._product(linear.name, matrix, x)
        if linear.bias:
            bias = self._weights.vector(f"{linear.name}.bias", linear.out_features)
            out = out + bias.astype(self._dtype)
        return out

    def _product(self, name: str, matrix: Matrix, x: Floats) -> Floats:
        if isinstance(matrix, DenseMatrix) or matrix.activations == "none":
            return ops.linear(x, matrix.values)
        quantize = ops.quantize_token if matrix.activations == "token" else ops.quantize_groups
        activations = quantize(x)
        if self._hook is not None:
            activations = self._hook(name, activations)
        return ops.linear_quantized(activations, matrix.codes, matrix.scales, matrix.group_size)


def record(tape: Tape) -> ActivationHook:
    """A hook that appends every input's codes to the tape, in the order of computation."""

    def hook(name: str, activations: QuantizedActivations) -> QuantizedActivations:
        tape.append((name, activations))
        return activations

    return hook


def replay(tape: Tape) -> ActivationHook:
    """A hook that uses the codes of a tape instead of its own, in the order of computation.

    Codes that flip by one step on a rounding tie are then the same on both sides of a comparison,
    so what is left to compare is the arithmetic. Scales stay the decoder's own.
    """
    rest = iter(tape)

    def hook(name: str, activations: QuantizedActivations) -> QuantizedActivations:
        recorded_name, recorded = next(rest)
        assert recorded_name == name, f"tape has {recorded_name}, decoder is at {name}"
        assert recorded.codes.shape == activations.codes.shape
        return QuantizedActivations(recorded.codes, activations.scales, activations.group_size)

    return hook
