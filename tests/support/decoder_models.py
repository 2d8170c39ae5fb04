"""Small random decoders, once for the NumPy reference and once packed for the C++ decoder.

Weights are larger than an initializer would draw, so that attention is far from uniform and a
swapped matrix, a missing bias or a wrong rotation shows in the logits. Sizes are not multiples of
tiles (16), activation groups (32) or paddings (128).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qh_kernels.decoder import Decoder, DecoderShape, DecoderWeights, LayerWeights, Matrix, Tokens
from qh_runtime import formats
from qh_runtime.architectures.base import DecoderSpec, LayerSpec, LinearSpec, RopeSpec
from qh_runtime.architectures.decoder_shape import decoder_shape
from qh_runtime.reference.decoder import ActivationHook, ReferenceDecoder
from qh_runtime.reference.weights import ReferenceWeights, dense_weights, quantized_matrix

__all__ = ["CASES", "DecoderCase", "DecoderModel", "make_model"]

_LINEARS = ("q", "k", "v", "o", "gate", "up", "down")


@dataclass(frozen=True)
class DecoderCase:
    """What a random decoder has.

    Attributes:
        formats: weight format of "linear" (all of a block), or of a single one ("q" ...), and of
            "embedding" and "head"; "f32" where nothing is said.
        tied: the head is the embedding.
    """

    name: str
    formats: Mapping[str, str] = field(default_factory=dict)
    hidden_size: int = 56
    intermediate_size: int = 104
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 14
    vocab_size: int = 131
    num_hidden_layers: int = 3
    activation: str = "silu"
    bias: tuple[str, ...] = ()
    qk_norm: bool = False
    sub_norms: bool = False
    windows: tuple[int, ...] = ()
    tied: bool = False
    scale: float = 2.0
    seed: int = 20261123

    def format_of(self, part: str) -> str:
        """The weight format of a linear layer, the embedding or the head."""
        default = self.formats.get("linear", "f32") if part in _LINEARS else "f32"
        return self.formats.get(part, default)


CASES: dict[str, DecoderCase] = {
    case.name: case
    for case in (
        DecoderCase("llama"),
        DecoderCase("llama-tied", {"embedding": "bf16", "linear": "bf16"}, tied=True),
        DecoderCase("llama-f16", {"embedding": "f16", "linear": "f16", "head": "f16"}),
        DecoderCase("llama-int8", {"linear": "int8", "head": "int8", "embedding": "int8"}),
        DecoderCase("llama-int4", {"linear": "int4_g32", "head": "int8"}, head_dim=16),
        DecoderCase("llama-int4-g128", {"linear": "int4_g128"}, hidden_size=160),
        DecoderCase("llama-nf4", {"linear": "nf4", "head": "int8"}, head_dim=16),
        DecoderCase("llama-mxfp4", {"linear": "mxfp4"}, hidden_size=160),
        DecoderCase("llama-nvfp4", {"linear": "nvfp4"}, head_dim=16),
        DecoderCase("llama-aqlm-1x16", {"linear": "aqlm_1x16_g8", "head": "int8"}, head_dim=16),
        DecoderCase("qwen2", bias=("q", "k", "v"), tied=True),
        DecoderCase("biases", {"linear": "int8"}, bias=_LINEARS, num_key_value_heads=1),
        DecoderCase("qwen3", qk_norm=True, head_dim=20, num_key_value_heads=4),
        DecoderCase("windows", windows=(5, 0, 9)),
        DecoderCase(
            "bitnet",
            {"linear": "ternary", "embedding": "bf16"},
            activation="relu2",
            sub_norms=True,
            tied=True,
        ),
        DecoderCase("falcon-ternary", {"linear": "ternary"}),
        DecoderCase(
            "mixed",
            {"q": "ternary", "k": "int8", "v": "f32", "o": "int4_g32", "gate": "bf16",
             "up": "ternary", "down": "int8", "head": "bf16", "embedding": "f16"},
            hidden_size=72,
            bias=("k", "down"),
            qk_norm=True,
        ),
        DecoderCase("one", hidden_size=2, intermediate_size=1, num_attention_heads=1,
                    num_key_value_heads=1, head_dim=2, vocab_size=3, num_hidden_layers=1),
    )
}  # fmt: skip


@dataclass(frozen=True)
class DecoderModel:
    """One random decoder in both forms."""

    case: DecoderCase
    spec: DecoderSpec
    shape: DecoderShape
    weights: DecoderWeights
    dense: ReferenceWeights

    def reference(
        self, *, exact: bool = False, hook: ActivationHook | None = None, **options: Any
    ) -> ReferenceDecoder:
        """The NumPy decoder of the packed weights; exact keeps activations of int8 and int4."""
        matrices = {
            name: quantized_matrix(
                self.case.format_of(part),
                self.dense.matrices[name].values,
                exact=exact and self.case.format_of(part) != "ternary",
            )
            for name, part in _parts(self.spec, self.case)
        }
        if not self.case.tied:
            # The lookup never multiplies, so only the values count.
            matrices["embedding"] = quantized_matrix(
                self.case.format_of("embedding"),
                self.dense.matrices["embedding"].values,
                exact=True,
            )
        weights = ReferenceWeights(matrices, self.dense.vectors)
        return ReferenceDecoder(self.spec, weights, hook=hook, **options)

    def decoder(self, **options: Any) -> Decoder:
        """The C++ decoder; 64 positions and one thread unless said otherwise."""
        settings: dict[str, Any] = {"context_length": 64, "threads": 1, **options}
        return Decoder(self.shape, self.weights, **settings)

    def tokens(self, n_tokens: int, seed: int = 0) -> Tokens:
        """Random token ids."""
        ids = np.random.default_rng(seed).integers(0, self.case.vocab_size, n_tokens)
        return ids.astype(np.int32)


def make_model(case: DecoderCase | str, **changes: Any) -> DecoderModel:
    """The model of a case, by name or with changes."""
    chosen = CASES[case] if isinstance(case, str) else case
    chosen = replace(chosen, **changes)
    spec = _spec(chosen)
    tensors = _tensors(spec, chosen)
    dense = dense_weights(tensors)

    def matrix(name: str, part: str) -> Matrix:
        values = dense.matrices[name].values
        weight_format = chosen.format_of(part)
        rows, cols = values.shape
        return Matrix(weight_format, formats.get(weight_format).pack(values), rows, cols)

    def vector(name: str) -> NDArray[np.float32] | None:
        return dense.vectors.get(name)

    layers = []
    for index, layer in enumerate(spec.layers):
        parts = {part: matrix(f"layers.{index}.{part}", part) for part in _LINEARS}
        biases = {f"{part}_bias": vector(f"layers.{index}.{part}.bias") for part in _LINEARS}
        norms = {
            name: vector(f"layers.{index}.{name}")
            for name in (
                "attention_norm",
                "mlp_norm",
                "q_norm",
                "k_norm",
                "attention_sub_norm",
                "mlp_sub_norm",
            )
        }
        assert len(layer.linears) == len(parts)
        layers.append(LayerWeights(**parts, **biases, **norms))  # type: ignore[arg-type]
    embedding = matrix("embedding", "embedding")
    weights = DecoderWeights(
        embedding=embedding,
        head=embedding if chosen.tied else matrix("head", "head"),
        final_norm=dense.vectors["final_norm"],
        layers=layers,
    )
    return DecoderModel(chosen, spec, decoder_shape(spec), weights, dense)


def _parts(spec: DecoderSpec, case: DecoderCase) -> list[tuple[str, str]]:
    """(matrix name, part) of everything that is multiplied."""
    parts = [(x.name, x.name.rsplit(".", 1)[1]) for layer in spec.layers for x in layer.linears]
    return [*parts, ("embedding", "embedding") if case.tied else ("head", "head")]


def _spec(case: DecoderCase) -> DecoderSpec:
    q_size = case.num_attention_heads * case.head_dim
    kv_size = case.num_key_value_heads * case.head_dim
    hidden, inner = case.hidden_size, case.intermediate_size
    sizes = {
        "q": (q_size, hidden),
        "k": (kv_size, hidden),
        "v": (kv_size, hidden),
        "o": (hidden, q_size),
        "gate": (inner, hidden),
        "up": (inner, hidden),
        "down": (hidden, inner),
    }
    layers = []
    for index in range(case.num_hidden_layers):
        prefix = f"layers.{index}."
        linears = {
            part: LinearSpec(prefix + part, *sizes[part], bias=part in case.bias)
            for part in _LINEARS
        }
        layers.append(
            LayerSpec(
                **linears,
                attention_norm=prefix + "attention_norm",
                mlp_norm=prefix + "mlp_norm",
                q_norm=prefix + "q_norm" if case.qk_norm else None,
                k_norm=prefix + "k_norm" if case.qk_norm else None,
                attention_sub_norm=prefix + "attention_sub_norm" if case.sub_norms else None,
                mlp_sub_norm=prefix + "mlp_sub_norm" if case.sub_norms else None,
                sliding_window=case.windows[index] if case.windows else 0,
            )
        )
    return DecoderSpec(
        model_type=case.name,
        hidden_size=hidden,
        intermediate_size=inner,
        num_attention_heads=case.num_attention_heads,
        num_key_value_heads=case.num_key_value_heads,
        head_dim=case.head_dim,
        vocab_size=case.vocab_size,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        activation="relu2" if case.activation == "relu2" else "silu",
        rope=RopeSpec(theta=10000.0),
        embedding="embedding",
        final_norm="final_norm",
        head=LinearSpec("embedding" if case.tied else "head", case.vocab_size, hidden),
        tied_head=case.tied,
        layers=tuple(layers),
    )


def _tensors(spec: DecoderSpec, case: DecoderCase) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(case.seed)

    def normal(*shape: int, size: float = 1.0, mean: float = 0.0) -> NDArray[np.float32]:
        return (mean + size * rng.standard_normal(shape)).astype(np.float32)

    tensors = {"embedding.weight": normal(case.vocab_size, case.hidden_size)}
    for index, layer in enumerate(spec.layers):
        for linear in layer.linears:
            size = case.scale / np.sqrt(linear.in_features)
            tensors[f"{linear.name}.weight"] = normal(
                linear.out_features, linear.in_features, size=size
            )
            if linear.bias:
                tensors[f"{linear.name}.bias"] = normal(linear.out_features, size=0.5)
        norms = {
            layer.attention_norm: case.hidden_size,
            layer.mlp_norm: case.hidden_size,
            layer.q_norm: case.head_dim,
            layer.k_norm: case.head_dim,
            layer.attention_sub_norm: case.num_attention_heads * case.head_dim,
            layer.mlp_sub_norm: case.intermediate_size,
        }
        assert index < len(spec.layers)
        for name, length in norms.items():
            if name is not None:
                tensors[name] = normal(length, size=0.3, mean=1.0)
    tensors["final_norm"] = normal(case.hidden_size, size=0.3, mean=1.0)
    if not case.tied:
        tensors["head.weight"] = normal(
            case.vocab_size, case.hidden_size, size=case.scale / np.sqrt(case.hidden_size)
        )
    return tensors
