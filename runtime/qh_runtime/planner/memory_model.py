"""Bytes that a decoder takes besides its weights: KV cache, scratch, and the process around it.

KV cache and scratch follow the layout of the C++ decoder (kernels/src/decoder/kv_cache.h and
scratch.h) piece by piece; a test holds the sums equal to what the native module reports. They are
computed here as well so that a plan needs no native code, as for a machine that is only imagined.
"""

from __future__ import annotations

from qh_kernels.kv_cache import KV_BLOCK, KvType, kv_block_bytes
from qh_runtime.architectures.base import DecoderSpec

__all__ = ["BATCH_TOKENS", "kv_cache_bytes", "norm_bytes", "runtime_bytes", "scratch_bytes"]

# Tokens of a prompt that go through a layer together: enough to use each weight block many times
# while it is in the cache, few enough that the scratch of a 2B model stays near 20 MB.
BATCH_TOKENS = 64

# kAlignment, kActivationPad and kActivationGroup of the C++ decoder.
_ALIGNMENT = 64
_PAD = 128
_GROUP = 32

# kKvSegment of its kernel_table.h: positions whose attention is one part.
_KV_SEGMENT = 256

# kBestBlock and kRescoredRows of its best_rows.h.
_BEST_BLOCK = 64
_RESCORED_ROWS = 128

# The same of codebook_layout.h: columns of a part of a product, rows of a pass.
_PART_COLUMNS = 1024
_PART_ROWS = 256

# What the process grows by after it was measured, besides what the plan lists: the loader's own
# modules, native module, template engine, thread stacks. 12 MB in `qh-chat run` (x86-64 Linux,
# CPython 3.11, 2026-11).
_GROWTH_BYTES = 12 << 20
# Stands in for the process where its size is not known; the same runs held 38 MB.
_PROCESS_BYTES = 38 << 20
# A byte-level BPE tokenizer with 50,257 tokens added 28 MB, 573 bytes per token (same machine).
_TOKENIZER_BYTES_PER_TOKEN = 640


def kv_cache_bytes(spec: DecoderSpec, context_length: int, kv_type: KvType = "f16") -> int:
    """Bytes of keys and values of every layer and position, with the scales of int8."""
    blocks = -(-context_length // KV_BLOCK)
    heads = spec.num_hidden_layers * spec.num_key_value_heads
    return heads * blocks * kv_block_bytes(kv_type, spec.head_dim)


def scratch_bytes(
    spec: DecoderSpec, context_length: int, threads: int, batch_tokens: int = BATCH_TOKENS
) -> int:
    """Bytes of every buffer that a forward pass writes, with logits and rope tables."""
    batch_tokens = min(batch_tokens, context_length)
    hidden = _round_up(spec.hidden_size, _PAD)
    q = _round_up(spec.num_attention_heads * spec.head_dim, _PAD)
    kv = _round_up(spec.num_key_value_heads * spec.head_dim, _PAD)
    intermediate = _round_up(spec.intermediate_size, _PAD)
    widest = max(hidden, q, intermediate)
    group = spec.num_attention_heads // spec.num_key_value_heads
    part = _round_up(group * (spec.head_dim + 2), _ALIGNMENT // 4)
    segments = -(-context_length // _KV_SEGMENT)
    per_token_f32 = (hidden, widest, q, kv, kv, q, hidden, *[intermediate] * 3)
    pieces = [
        *(4 * batch_tokens * width for width in per_token_f32),
        *[batch_tokens * widest] * 2,  # int8 codes, by token and by group
        *[4 * batch_tokens] * 2,  # their scales and sums, by token
        4 * batch_tokens * (widest // _GROUP),  # scales by group
        4 * batch_tokens * 2 * (widest // _GROUP),  # sums of groups and of their halves
        4 * _part_floats(spec),
        4 * spec.vocab_size,
        4 * 2 * -(-spec.vocab_size // _BEST_BLOCK),  # the best of the scanned logits
        4 * min(spec.vocab_size, _RESCORED_ROWS * (_BEST_BLOCK + 1)),
        threads * _round_up(4 * _round_up(spec.head_dim, 4), _ALIGNMENT),  # codes of queries
        4 * max(threads, spec.num_key_value_heads * segments) * part,  # attention of segments
        4 * 2 * batch_tokens * spec.num_attention_heads,  # its largest score and sum of weights
        *[4 * context_length * (spec.head_dim // 2)] * 2,  # cosines and sines
    ]
    return sum(_round_up(piece, _ALIGNMENT) for piece in pieces)


def _part_floats(spec: DecoderSpec) -> int:
    """Floats of the parts of the largest products that one input goes into together."""

    def parts(rows: int, cols: int) -> int:
        return -(-cols // _PART_COLUMNS) * _round_up(rows, _PART_ROWS)

    q = spec.num_attention_heads * spec.head_dim
    kv = spec.num_key_value_heads * spec.head_dim
    return max(
        parts(q, spec.hidden_size) + 2 * parts(kv, spec.hidden_size),
        parts(spec.hidden_size, q),
        2 * parts(spec.intermediate_size, spec.hidden_size),
        parts(spec.hidden_size, spec.intermediate_size),
    )


def norm_bytes(spec: DecoderSpec) -> int:
    """Bytes of norms and biases, float32 in memory whatever the checkpoint holds."""
    q = spec.num_attention_heads * spec.head_dim
    count = spec.hidden_size
    for layer in spec.layers:
        count += 2 * spec.hidden_size
        count += sum(x.out_features for x in layer.linears if x.bias)
        count += spec.head_dim * sum(x is not None for x in (layer.q_norm, layer.k_norm))
        count += q if layer.attention_sub_norm is not None else 0
        count += spec.intermediate_size if layer.mlp_sub_norm is not None else 0
    return 4 * count


def runtime_bytes(spec: DecoderSpec, process_bytes: int | None) -> int:
    """Bytes of the process around the decoder: as it is now, its growth, and the tokenizer.

    Args:
        process_bytes: resident now; None where that is not known.
    """
    now = _PROCESS_BYTES if process_bytes is None else process_bytes
    return now + _GROWTH_BYTES + _TOKENIZER_BYTES_PER_TOKEN * spec.vocab_size


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
