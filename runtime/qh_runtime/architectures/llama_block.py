"""The block that all supported architectures share, and the config keys that all of them read.

A pre-norm decoder with RMSNorm, grouped-query attention with rotary positions and a gated MLP,
under the tensor names of Hugging Face's Llama. An architecture file adds its defaults and extras.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qh_runtime.architectures.base import DecoderSpec, LayerSpec, LinearSpec
from qh_runtime.architectures.config_reader import ConfigReader
from qh_runtime.architectures.rope import rope_from_config

__all__ = [
    "Defaults",
    "Extras",
    "build_spec",
    "layer_count",
    "refuse_bitnet_input_norm",
    "refuse_windows",
    "sliding_window",
    "window_layers",
]

# How the first conversions of Llama spelled LlamaForCausalLM.
_OLD_NAMES = frozenset({"LLaMAForCausalLM"})

# Far beyond any published model of these types, and small enough that no product overflows int64.
_MAX_LAYERS = 512
_MAX_HIDDEN = 65536
_MAX_INTERMEDIATE = 1 << 18
_MAX_VOCAB = 1 << 21
_MAX_POSITIONS = 1 << 24
_MAX_HEADS = 4096
_MAX_HEAD_DIM = 4096
_MAX_ATTENTION = 1 << 18

_ACTIVATIONS: dict[str, Literal["silu", "relu2"]] = {
    "silu": "silu",
    "swish": "silu",
    "relu2": "relu2",
}


@dataclass(frozen=True)
class Defaults:
    """What transformers' config class of this model type assumes for absent keys.

    Attributes:
        num_key_value_heads: None means as many as attention heads.
        head_dim: None means hidden_size // num_attention_heads.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None
    max_position_embeddings: int
    rms_norm_eps: float
    hidden_act: str = "silu"
    rope_theta: float = 10000.0
    head_dim: int | None = None


@dataclass(frozen=True)
class Extras:
    """What an architecture adds to the shared block.

    Attributes:
        qkv_bias, o_bias, mlp_bias: which linear layers have biases.
        qk_norm: RMSNorm per head on queries and keys, before the rotation.
        sub_norms: names of the RMSNorms before the output and the down projection, under the
            attention and the MLP; None where there are none.
        windows: sliding window of each layer (0 for none), given the number of layers.
    """

    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    sub_norms: tuple[str, str] | None = None
    windows: tuple[int, ...] | None = None


def build_spec(
    config: ConfigReader, model_type: str, class_name: str, defaults: Defaults, extras: Extras
) -> DecoderSpec:
    """A DecoderSpec from the shared keys; the caller has read its own keys already.

    Args:
        class_name: the causal language model class that `architectures` must name, if anything.

    Raises:
        UnsupportedArchitectureError: facts key, value, expected.
    """
    _check_head(config, class_name)
    config.require("is_causal", (True,), "tokens that see later ones are not supported")
    # Falcon3 names its gated MLP once more.
    config.require("activation", ("swiglu",), "this activation is not supported")
    hidden_size = config.integer("hidden_size", defaults.hidden_size, 1, _MAX_HIDDEN)
    intermediate_size = config.integer(
        "intermediate_size", defaults.intermediate_size, 1, _MAX_INTERMEDIATE
    )
    layers = layer_count(config, defaults)
    heads = config.integer("num_attention_heads", defaults.num_attention_heads, 1, _MAX_HEADS)
    kv_heads = config.optional_integer(
        "num_key_value_heads", defaults.num_key_value_heads, 1, _MAX_HEADS
    )
    kv_heads = heads if kv_heads is None else kv_heads
    if heads % kv_heads:
        raise config.refuse("num_key_value_heads", f"a divisor of num_attention_heads ({heads})")
    head_dim = _head_dim(config, defaults.head_dim, hidden_size, heads)
    if extras.sub_norms and heads * head_dim != hidden_size:
        # The norm before the output projection is as wide as the hidden state in the original.
        raise config.refuse(
            "head_dim", f"hidden_size / num_attention_heads, since heads fill {hidden_size}"
        )
    if heads * head_dim > _MAX_ATTENTION:
        raise config.refuse(
            "num_attention_heads", f"num_attention_heads * head_dim at most {_MAX_ATTENTION}"
        )
    positions = config.integer(
        "max_position_embeddings", defaults.max_position_embeddings, 1, _MAX_POSITIONS
    )
    vocab_size = config.integer("vocab_size", defaults.vocab_size, 1, _MAX_VOCAB)
    tied = config.boolean("tie_word_embeddings", False)
    activation = config.choice(
        "hidden_act", defaults.hidden_act, _ACTIVATIONS, "this activation is not supported"
    )
    rope = rope_from_config(
        config, default_theta=defaults.rope_theta, max_position_embeddings=positions
    )
    eps = config.number("rms_norm_eps", defaults.rms_norm_eps, 1e-30, 1.0)
    config.finish()
    windows = extras.windows or (0,) * layers
    return DecoderSpec(
        model_type=model_type,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=vocab_size,
        max_position_embeddings=positions,
        rms_norm_eps=eps,
        activation=activation,
        rope=rope,
        embedding="model.embed_tokens",
        final_norm="model.norm.weight",
        head=LinearSpec("model.embed_tokens" if tied else "lm_head", vocab_size, hidden_size),
        tied_head=tied,
        layers=tuple(
            _layer(
                f"model.layers.{index}",
                hidden_size,
                intermediate_size,
                heads * head_dim,
                kv_heads * head_dim,
                extras,
                windows[index],
            )
            for index in range(layers)
        ),
    )


def layer_count(config: ConfigReader, defaults: Defaults) -> int:
    """num_hidden_layers, 1..512."""
    return config.integer("num_hidden_layers", defaults.num_hidden_layers, 1, _MAX_LAYERS)


def sliding_window(config: ConfigReader, default: int | None) -> int | None:
    """sliding_window in positions attended to (the token itself included), or None."""
    return config.optional_integer("sliding_window", default, 1, _MAX_POSITIONS)


def refuse_windows(config: ConfigReader) -> None:
    """Refuses sliding windows in a model type that has none."""
    window = sliding_window(config, None)
    positions = config.raw("max_position_embeddings")
    # A window as long as the context cuts nothing off; some exporters write one.
    if window is not None and not (isinstance(positions, int) and window >= positions):
        raise config.refuse("sliding_window", "null", "this model type attends to all positions")
    types = config.strings("layer_types")
    if types is not None and any(name != "full_attention" for name in types):
        raise config.refuse("layer_types", "full_attention for all layers")


def refuse_bitnet_input_norm(config: ConfigReader) -> None:
    """Refuses the BitNet variant with one more learned norm before each linear layer."""
    section = config.section("quantization_config")
    if section is not None:
        section.require(
            "use_rms_norm", (False,), "a norm inside every linear layer is not supported"
        )


def window_layers(config: ConfigReader, defaults: Defaults) -> tuple[int, ...]:
    """The sliding window of each layer, as the Qwen configs say it.

    Layers from max_window_layers on slide when use_sliding_window is true; an explicit layer_types
    list takes precedence over that.
    """
    layers = layer_count(config, defaults)
    window = None
    if config.boolean("use_sliding_window", False):
        window = sliding_window(config, 4096)
    else:
        # Published configs keep a number here while use_sliding_window is false.
        config.raw("sliding_window")
    first = config.integer("max_window_layers", 28, 0, _MAX_POSITIONS)
    types = config.strings("layer_types", layers)
    if types is None:
        slides = [index >= first for index in range(layers)]
    else:
        for name in types:
            if name not in ("full_attention", "sliding_attention"):
                raise config.refuse("layer_types", "full_attention or sliding_attention entries")
        slides = [name == "sliding_attention" for name in types]
        if any(slides) and window is None:
            raise config.refuse(
                "layer_types", "a sliding_window (with use_sliding_window) for sliding layers"
            )
    return tuple(window if slide and window is not None else 0 for slide in slides)


def _check_head(config: ConfigReader, class_name: str) -> None:
    """A checkpoint of these types may hold a classifier or an encoder instead."""
    names = config.strings("architectures")
    if names and class_name not in names and not _OLD_NAMES.intersection(names):
        raise config.refuse(
            "architectures",
            f"[{class_name!r}]",
            "the weights are for another class, which computes something else",
        )


def _head_dim(config: ConfigReader, default: int | None, hidden_size: int, heads: int) -> int:
    # Where the default is a number, null means nothing to transformers either.
    read = config.optional_integer if default is None else config.integer
    explicit = read("head_dim", default, 2, _MAX_HEAD_DIM)
    if explicit is None and hidden_size % heads:
        raise config.refuse("num_attention_heads", f"a divisor of hidden_size ({hidden_size})")
    head_dim = hidden_size // heads if explicit is None else explicit
    if head_dim % 2 or not 2 <= head_dim <= _MAX_HEAD_DIM:
        raise config.refuse(
            "head_dim",
            f"an even number 2..{_MAX_HEAD_DIM} (hidden_size // num_attention_heads where absent: "
            f"{head_dim})",
        )
    return head_dim


def _layer(
    prefix: str,
    hidden_size: int,
    intermediate_size: int,
    q_size: int,
    kv_size: int,
    extras: Extras,
    window: int,
) -> LayerSpec:
    attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
    qkv_bias, mlp_bias, sub_norms = extras.qkv_bias, extras.mlp_bias, extras.sub_norms
    return LayerSpec(
        q=LinearSpec(f"{attention}.q_proj", q_size, hidden_size, qkv_bias),
        k=LinearSpec(f"{attention}.k_proj", kv_size, hidden_size, qkv_bias),
        v=LinearSpec(f"{attention}.v_proj", kv_size, hidden_size, qkv_bias),
        o=LinearSpec(f"{attention}.o_proj", hidden_size, q_size, extras.o_bias),
        gate=LinearSpec(f"{mlp}.gate_proj", intermediate_size, hidden_size, mlp_bias),
        up=LinearSpec(f"{mlp}.up_proj", intermediate_size, hidden_size, mlp_bias),
        down=LinearSpec(f"{mlp}.down_proj", hidden_size, intermediate_size, mlp_bias),
        attention_norm=f"{prefix}.input_layernorm.weight",
        mlp_norm=f"{prefix}.post_attention_layernorm.weight",
        q_norm=f"{attention}.q_norm.weight" if extras.qk_norm else None,
        k_norm=f"{attention}.k_norm.weight" if extras.qk_norm else None,
        attention_sub_norm=f"{attention}.{sub_norms[0]}.weight" if sub_norms else None,
        mlp_sub_norm=f"{mlp}.{sub_norms[1]}.weight" if sub_norms else None,
        sliding_window=window,
    )
