"""The planned cache and scratch are the bytes that the C++ decoder allocates, exactly."""

from __future__ import annotations

from typing import Any

import pytest

from qh_kernels.decoder import DEFAULT_BATCH_TOKENS, decoder_bytes
from qh_kernels.kv_cache import KV_TYPES, KvType
from qh_runtime.architectures import decoder_shape
from qh_runtime.planner.memory_model import (
    BATCH_TOKENS,
    kv_cache_bytes,
    norm_bytes,
    scratch_bytes,
)
from tests.support.specs import BITNET_2B, LLAMA_1B, PROSE_7M, TINY_QWEN3, spec_of

CONFIGS = {"bitnet": BITNET_2B, "llama": LLAMA_1B, "prose": PROSE_7M, "qwen3": TINY_QWEN3}


@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("name", CONFIGS)
def test_equal_to_what_the_decoder_allocates(name: str, threads: int, kv_type: KvType) -> None:
    spec = spec_of(CONFIGS[name])
    for context_length in (1, 17, 64, 129, spec.max_position_embeddings):
        for batch_tokens in (1, 16, 64, 200):
            native = decoder_bytes(
                decoder_shape(spec), context_length, threads, kv_type, batch_tokens
            )
            assert kv_cache_bytes(spec, context_length, kv_type) == native["kv_cache"]
            assert scratch_bytes(spec, context_length, threads, batch_tokens) == native["scratch"]


def test_the_planned_batch_is_one_the_decoder_takes_by_default() -> None:
    assert BATCH_TOKENS == DEFAULT_BATCH_TOKENS


@pytest.mark.parametrize(
    ("config", "changes", "count"),
    [
        (PROSE_7M, {}, 256 * (2 * 8 + 1)),
        (BITNET_2B, {}, 2560 * 61 + 30 * (2560 + 6912)),
        (TINY_QWEN3, {}, 56 * 7 + 3 * 2 * 24),
        (PROSE_7M, {"attention_bias": True}, 256 * 17 + 8 * (256 + 128 + 128 + 256)),
    ],
)
def test_norms_and_biases(config: dict[str, Any], changes: dict[str, Any], count: int) -> None:
    assert norm_bytes(spec_of(config, **changes)) == 4 * count
