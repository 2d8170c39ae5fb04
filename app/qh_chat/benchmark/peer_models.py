"""Our shapes as llama.cpp holds them: which tensors, in which of its types.

Source: llama.cpp, src/models/{llama,bitnet}.cpp (names) and src/llama-quant.cpp (which types its
named mixes give to which tensors of a model with four or more query heads a key-value head).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from qh_chat.benchmark.gguf_file import GgufTensor, Value
from qh_runtime.architectures import DecoderSpec

__all__ = ["MIXES", "Mix", "metadata_of", "peers_of", "tensors_of", "token_bytes_of"]


@dataclass(frozen=True)
class Mix:
    """Types of a model's tensors.

    Attributes:
        linear: (name such as "attn_v", layer, layers) to the type of that matrix.
        head: of the head; a tied embedding is one.
    """

    name: str
    linear: Callable[[str, int, int], str]
    head: str = "Q6_K"


def _all(quant: str) -> Callable[[str, int, int], str]:
    return lambda name, layer, layers: quant


def _more_bits(layer: int, layers: int) -> bool:
    """The first eighth, the last eighth and every third layer between."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def _q4_k_m(name: str, layer: int, layers: int) -> str:
    return "Q6_K" if name in ("attn_v", "ffn_down") and _more_bits(layer, layers) else "Q4_K"


def _q2_k(name: str, layer: int, layers: int) -> str:
    return {"attn_v": "Q4_K", "attn_output": "Q3_K", "ffn_down": "Q3_K"}.get(name, "Q2_K")


def _iq2_xxs(name: str, layer: int, layers: int) -> str:
    if name == "attn_v":
        return "Q4_K"
    return "Q2_K" if name == "ffn_down" and layer < layers // 8 else "IQ2_XXS"


MIXES: Mapping[str, Mix] = {
    x.name: x
    for x in (
        Mix("TQ2_0", _all("TQ2_0")),
        Mix("TQ1_0", _all("TQ1_0")),
        Mix("Q4_0", _all("Q4_0")),
        Mix("Q4_K_M", _q4_k_m),
        Mix("Q2_K", _q2_k),
        Mix("IQ2_XXS", _iq2_xxs, head="Q5_K"),
    )
}

# Our format -> what it is measured against: as near in bits as there is.
_PEERS: Mapping[str, tuple[str, ...]] = {
    "int4_g32": ("Q4_0", "Q4_K_M"),
    "int4_g128": ("Q4_0", "Q4_K_M"),
}


def peers_of(format_name: str, family: str) -> tuple[str, ...]:
    """Names of the mixes that a weight format of ours is measured against; none for some."""
    if family == "ternary" or format_name.startswith("ternary"):
        return ("TQ2_0", "TQ1_0")
    if format_name.startswith("aqlm"):
        return ("IQ2_XXS", "Q2_K")
    return _PEERS.get(format_name, ("Q4_0",) if family == "lut4" else ())


def metadata_of(spec: DecoderSpec, context_length: int) -> dict[str, Value]:
    """The keys of a file of this shape, without a vocabulary."""
    arch = "bitnet" if spec.model_type == "bitnet" else "llama"
    return {
        "general.architecture": arch,
        "general.name": "random weights",
        f"{arch}.vocab_size": spec.vocab_size,
        f"{arch}.context_length": context_length,
        f"{arch}.embedding_length": spec.hidden_size,
        f"{arch}.block_count": spec.num_hidden_layers,
        f"{arch}.feed_forward_length": spec.intermediate_size,
        f"{arch}.attention.head_count": spec.num_attention_heads,
        f"{arch}.attention.head_count_kv": spec.num_key_value_heads,
        f"{arch}.attention.layer_norm_rms_epsilon": float(spec.rms_norm_eps),
        f"{arch}.rope.dimension_count": spec.head_dim,
        f"{arch}.rope.freq_base": float(spec.rope.theta),
        "tokenizer.ggml.model": "none",
    }


def tensors_of(spec: DecoderSpec, mix: Mix) -> Sequence[GgufTensor]:
    """Every tensor of the file."""
    hidden, vocab, layers = spec.hidden_size, spec.vocab_size, spec.num_hidden_layers
    found = [GgufTensor("token_embd.weight", mix.head, vocab, hidden)]
    if not spec.tied_head:
        found.append(GgufTensor("output.weight", mix.head, vocab, hidden))
    found.append(GgufTensor("output_norm.weight", "F32", 0, hidden))
    for index, layer in enumerate(spec.layers):
        block = f"blk.{index}"
        linears = {
            "attn_q": layer.q,
            "attn_k": layer.k,
            "attn_v": layer.v,
            "attn_output": layer.o,
            "ffn_gate": layer.gate,
            "ffn_up": layer.up,
            "ffn_down": layer.down,
        }
        for name, x in linears.items():
            quant = mix.linear(name, index, layers)
            found.append(GgufTensor(f"{block}.{name}.weight", quant, x.out_features, x.in_features))
        found.append(GgufTensor(f"{block}.attn_norm.weight", "F32", 0, hidden))
        found.append(GgufTensor(f"{block}.ffn_norm.weight", "F32", 0, hidden))
        if layer.attention_sub_norm is not None:
            size = layer.o.in_features
            found.append(GgufTensor(f"{block}.attn_sub_norm.weight", "F32", 0, size))
        if layer.mlp_sub_norm is not None:
            size = layer.down.in_features
            found.append(GgufTensor(f"{block}.ffn_sub_norm.weight", "F32", 0, size))
    return found


def token_bytes_of(spec: DecoderSpec, tensors: Sequence[GgufTensor]) -> int:
    """Weights that one decode step reads: everything but an embedding that is not the head."""
    looked_up = () if spec.tied_head else ("token_embd.weight",)
    return sum(x.nbytes for x in tensors if x.name not in looked_up)
