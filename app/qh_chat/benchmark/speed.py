"""Decode and prefill tokens per second of a model, beside the read bandwidth of this machine."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import numpy as np

from qh_chat.benchmark.shapes import BenchModel
from qh_kernels.decoder import Decoder
from qh_kernels.sampler import Sampler
from qh_runtime.architectures import decoder_shape

__all__ = ["SpeedRow", "measure_speed"]

# Tokens before the measured ones, so that attention reads a cache as in a conversation.
_WARM_TOKENS = 32
_DECODE_CONTEXT = 512


@dataclass(frozen=True)
class SpeedRow:
    """One measured rate.

    Attributes:
        kind: "decode" or "prefill".
        tokens_per_s: from the median time of a step; spread is (slow tenth, fast tenth).
        bytes_per_token: weights and mean KV cache that a decode step reads; for prefill, the
            weights of one batch over its tokens.
        gb_per_s: bytes_per_token * tokens_per_s, in 10**9 bytes.
        fraction_of_bandwidth: gb_per_s over the measured read bandwidth with as many threads.
        in_cache: what a decode step reads fits the largest cache, so the fraction may exceed 1.
        tokens: measured tokens; for prefill the length of the prompt.
    """

    kind: str
    shape: str
    format: str
    isa: str
    threads: int
    tokens_per_s: float
    spread: tuple[float, float]
    bytes_per_token: int
    gb_per_s: float
    fraction_of_bandwidth: float
    in_cache: bool
    tokens: int


def measure_speed(
    model: BenchModel,
    threads: int,
    bandwidth: float,
    cache_bytes: int,
    seconds: float,
    prompt_tokens: int,
) -> tuple[SpeedRow, SpeedRow]:
    """Return the decode and the prefill row of a model.

    Args:
        bandwidth: bytes per second with this many threads.
        cache_bytes: of the largest cache.
        seconds: least time of each of the two measurements, unless the context ends first.
    """
    spec = model.spec
    context_length = min(spec.max_position_embeddings, _DECODE_CONTEXT + prompt_tokens)
    prompt_tokens = min(prompt_tokens, context_length - 1)
    dice = np.random.default_rng(20261123)
    prompt = dice.integers(0, spec.vocab_size, context_length).astype(np.int32)
    with Decoder(
        decoder_shape(spec), model.weights, context_length=context_length, threads=threads
    ) as decoder:
        isa = decoder.isa
        batch_tokens = min(64, prompt_tokens)
        prefill = _prefill_times(decoder, prompt[:prompt_tokens], seconds)
        decoder.truncate(0)
        warm = min(_WARM_TOKENS, context_length // 2)
        decoder.prefill(prompt[:warm])
        decode = _decode_times(decoder, Sampler(spec.vocab_size, temperature=0.0), seconds)
    mean_position = warm + len(decode) / 2
    kv_bytes = 2 * spec.num_hidden_layers * spec.num_key_value_heads * spec.head_dim * 2
    per_token = model.token_bytes + int(kv_bytes * mean_position)

    def row(kind: str, step_s: list[float], step_tokens: int, moved: int, tokens: int) -> SpeedRow:
        rates = sorted(step_tokens / x for x in step_s)
        middle = statistics.median(rates)
        rate = moved * middle
        return SpeedRow(
            kind=kind,
            shape=model.name,
            format=model.format,
            isa=isa,
            threads=threads,
            tokens_per_s=middle,
            spread=(rates[len(rates) // 10], rates[-1 - len(rates) // 10]),
            bytes_per_token=moved,
            gb_per_s=rate / 1e9,
            fraction_of_bandwidth=rate / bandwidth,
            in_cache=per_token < cache_bytes,
            tokens=tokens,
        )

    return (
        row("decode", decode, 1, per_token, len(decode)),
        row("prefill", prefill, prompt_tokens, model.token_bytes // batch_tokens, prompt_tokens),
    )


def _prefill_times(decoder: Decoder, prompt: np.ndarray, seconds: float) -> list[float]:
    """Seconds of each whole prompt; the first, which touches fresh memory, is not kept."""
    times: list[float] = []
    while not times or sum(times) < seconds:
        decoder.truncate(0)
        start = time.perf_counter()
        decoder.prefill(prompt)
        times.append(time.perf_counter() - start)
    return times[1:] or times


def _decode_times(decoder: Decoder, sampler: Sampler, seconds: float) -> list[float]:
    """Seconds of each token; the first two, which wake the threads, are not kept."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    decoder.next_token(sampler)
    while decoder.position < decoder.context_length:
        start = time.perf_counter()
        decoder.next_token(sampler)
        now = time.perf_counter()
        times.append(now - start)
        if now >= end and len(times) >= 8:
            break
    return times[2:] or times
