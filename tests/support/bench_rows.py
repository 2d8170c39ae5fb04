"""Rows, limits and shapes of a benchmark that nobody measured."""

from __future__ import annotations

from typing import Any

from qh_chat.benchmark.rows import Row
from qh_chat.benchmark.shapes import BenchShape
from qh_runtime.planner.plan import WeightFormats

__all__ = ["ROOFLINE", "TINY_BITNET", "TINY_LLAMA", "a_row", "peer_row"]

# A head that is read in two steps, and sizes that whole blocks of 256 weights divide.
TINY_LLAMA = BenchShape(
    "tiny-llama",
    {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 256,
        "num_hidden_layers": 16,
        "intermediate_size": 512,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "vocab_size": 512,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "rope_theta": 10000.0,
    },
    WeightFormats("int4_g32", "int8", "int8", head_scan="int4_g32"),
)
TINY_BITNET = BenchShape(
    "tiny-bitnet",
    {
        "architectures": ["BitNetForCausalLM"],
        "model_type": "bitnet",
        "hidden_size": 256,
        "num_hidden_layers": 3,
        "intermediate_size": 512,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 400,
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-5,
        "hidden_act": "relu2",
        "tie_word_embeddings": True,
        "rope_theta": 10000.0,
    },
    WeightFormats("ternary", "bf16", "bf16"),
)

ROOFLINE: dict[str, Any] = {
    "read_bandwidth": [
        {"bytes": 1 << 20, "threads": 1, "gb_per_s": 90.0, "spread": (80.0, 95.0), "samples": 3},
        {"bytes": 512 << 20, "threads": 1, "gb_per_s": 30.0, "spread": (29.0, 31.0), "samples": 3},
        {"bytes": 512 << 20, "threads": 2, "gb_per_s": 55.0, "spread": (40.0, 60.0), "samples": 9},
    ],
    "mac_peaks": [
        {"name": "x<y>", "threads": 1, "gmacs_per_s": 230.0, "spread": (220, 233), "samples": 3},
        {"name": "x<y>", "threads": 2, "gmacs_per_s": 460.0, "spread": (440, 466), "samples": 3},
    ],
}


def a_row(kind: str = "decode", **changes: Any) -> Row:
    """A row of a measured model."""
    row = Row(
        kind=kind,
        shape="llama <8b>",
        format="int4_g32",
        isa="avx512vnni",
        threads=2,
        tokens_per_s=10.25,
        bytes_per_token=4_000_000_000,
        gb_per_s=41.0,
        fraction_of_bandwidth=0.745,
        spread=(9.0, 11.0),
        fraction_spread=(0.7, 0.8),
        macs_per_token=7_000_000_000,
        tokens=512 if kind == "prefill" else None,
        context=256 if kind == "decode" else None,
        linear_fraction=0.95 if kind == "decode" else None,
        peak="x<y>" if kind == "prefill" else None,
        fraction_of_peak=0.5 if kind == "prefill" else None,
        foreign_cpu=0.01,
    )
    return row.changed(**changes)


def peer_row(kind: str = "decode") -> Row:
    """A row beside a peer."""
    return a_row(
        kind,
        peer="llama.cpp Q4_0",
        peer_tokens_per_s=5.0,
        peer_bytes_per_token=4_400_000_000,
        ratio=2.05,
        ratio_spread=(1.9, 2.2),
    )
