"""DecoderSpec: plain data that says what a decoder computes and which tensor goes where.

`architectures/<model_type>.py` returns one from a config; the planner sizes it, the NumPy reference
runs it, and the C++ decoder executes it. No forward code lives beside a spec.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["DecoderSpec", "LayerSpec", "LinearSpec", "RopeSpec"]


@dataclass(frozen=True)
class RopeSpec:
    """Rotary embedding: base frequency and the scaling rule of its frequencies."""

    theta: float
    scaling: Literal["none", "linear", "llama3"] = "none"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


@dataclass(frozen=True)
class LinearSpec:
    """One linear layer y = W x (+ b).

    Attributes:
        name: module path in the checkpoint, without ".weight".
        out_features, in_features: W is (out_features, in_features).
        bias: whether `<name>.bias` (out_features,) exists.
    """

    name: str
    out_features: int
    in_features: int
    bias: bool = False


@dataclass(frozen=True)
class LayerSpec:
    """One pre-norm block: attention, then a gated MLP. Norms are tensor names or None."""

    q: LinearSpec
    k: LinearSpec
    v: LinearSpec
    o: LinearSpec
    gate: LinearSpec
    up: LinearSpec
    down: LinearSpec
    attention_norm: str
    mlp_norm: str
    q_norm: str | None = None
    k_norm: str | None = None
    attention_sub_norm: str | None = None
    mlp_sub_norm: str | None = None
    sliding_window: int = 0

    @property
    def linears(self) -> tuple[LinearSpec, ...]:
        """The seven linear layers, in the order they run."""
        return (self.q, self.k, self.v, self.o, self.gate, self.up, self.down)


@dataclass(frozen=True)
class DecoderSpec:
    """A whole decoder.

    Attributes:
        head: for a tied head its name is the embedding's module path.
        tied_head: logits use the embedding matrix.
        activation: of the gated MLP, act(gate) * up.
    """

    model_type: str
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    activation: Literal["silu", "relu2"]
    rope: RopeSpec
    embedding: str
    final_norm: str
    head: LinearSpec
    tied_head: bool
    layers: tuple[LayerSpec, ...]

    @property
    def num_hidden_layers(self) -> int:
        """Number of blocks."""
        return len(self.layers)

    @property
    def parameters(self) -> int:
        """Weights of embedding, head (once if tied) and all linear layers; norms not counted."""
        total = self.vocab_size * self.hidden_size * (1 if self.tied_head else 2)
        for layer in self.layers:
            total += sum(x.out_features * x.in_features for x in layer.linears)
        return total
