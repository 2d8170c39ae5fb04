"""The sizes of the built-in model, as plain data. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of a BitNet decoder; field names are those of `config.json`.

    Every matrix dimension is a multiple of 64, so that packed rows start on block edges in all of
    our kernels.
    """

    vocab_size: int = 4096
    hidden_size: int = 256
    intermediate_size: int = 640
    num_hidden_layers: int = 6
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 64
    max_position_embeddings: int = 512
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        """Raise ValueError when the sizes do not fit together."""
        if self.num_attention_heads * self.head_dim != self.hidden_size:
            # attn_sub_norm has hidden_size weights but sees num_attention_heads * head_dim
            # features.
            raise ValueError(
                f"num_attention_heads * head_dim must equal hidden_size {self.hidden_size}, "
                f"found {self.num_attention_heads} * {self.head_dim}"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} must be a multiple of "
                f"num_key_value_heads, found {self.num_key_value_heads}"
            )

    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """Return (out_features, in_features) of each ternary matrix of one layer, keyed by its
        name.
        """
        query, key_value = self.hidden_size, self.num_key_value_heads * self.head_dim
        return {
            "self_attn.q_proj": (query, self.hidden_size),
            "self_attn.k_proj": (key_value, self.hidden_size),
            "self_attn.v_proj": (key_value, self.hidden_size),
            "self_attn.o_proj": (self.hidden_size, query),
            "mlp.gate_proj": (self.intermediate_size, self.hidden_size),
            "mlp.up_proj": (self.intermediate_size, self.hidden_size),
            "mlp.down_proj": (self.hidden_size, self.intermediate_size),
        }

    @property
    def ternary_parameters(self) -> int:
        """Number of weights that are stored as -1, 0 or +1."""
        return self.num_hidden_layers * sum(n * k for n, k in self.linear_shapes().values())

    @property
    def parameters(self) -> int:
        """Number of all weights; the tied embedding counts once."""
        norms = self.num_hidden_layers * (3 * self.hidden_size + self.intermediate_size)
        return self.ternary_parameters + norms + self.hidden_size * (self.vocab_size + 1)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as a dict that JSON can hold."""
        return asdict(self)
