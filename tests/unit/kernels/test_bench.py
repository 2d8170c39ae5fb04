"""What is measured is what was done: bytes and multiply-adds add up, and nothing is disturbed."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest

from qh_kernels import KernelError
from qh_kernels import isa as instruction_sets
from qh_kernels.bench import (
    ReadBench,
    bench_stack,
    fill_cache,
    mac_peak_names,
    measure_mac_peak,
    timed_linears,
)
from qh_kernels.sampler import Sampler
from tests.support.decoder_models import make_model


def refused(call: Callable[[], object]) -> KernelError:
    with pytest.raises(KernelError) as caught:
        call()
    return caught.value


def test_every_sequence_of_multiply_adds_is_counted() -> None:
    names = mac_peak_names()
    assert len(set(names)) == len(names)
    assert bool(names) == (instruction_sets.available() != ("scalar",))
    for name in names:
        for threads in (1, 2):
            # From an emulated processor to more than any socket has.
            assert 1e6 < measure_mac_peak(name, threads, 0.01) < 1e15, name


def test_wrong_sequences_are_refused() -> None:
    error = refused(lambda: measure_mac_peak("vpdpbusd"))
    assert error.facts["found"] == "vpdpbusd"
    for name in mac_peak_names():
        assert name in error.facts["expected"]
        refused(lambda name=name: measure_mac_peak(name, 0))
        refused(lambda name=name: measure_mac_peak(name, 1, 0.0))


@pytest.mark.parametrize("n_bytes", [64 * 3, 1000, 1 << 16, 3 << 20, 1 << 22])
def test_parts_of_memory_of_any_size_are_read(n_bytes: int) -> None:
    bench = ReadBench(1 << 22)
    for threads in (1, 2, 3):
        assert 1e6 < bench.measure(threads, 0.01, n_bytes) < 1e13


def test_memory_that_is_not_there_is_refused() -> None:
    bench = ReadBench(1 << 16)
    refused(lambda: bench.measure(1, 0.01, (1 << 16) + 1))
    refused(lambda: bench.measure(1, 0.01, 0))
    refused(lambda: bench.measure(0, 0.01))
    refused(lambda: bench.measure(1, -1.0))
    # Less than a cache line for each thread.
    refused(lambda: bench.measure(4, 0.01, 255))
    refused(lambda: ReadBench(0))
    refused(lambda: ReadBench((1 << 40) + 1))


@pytest.mark.parametrize("name", ["llama-int4", "llama-nf4", "bitnet", "llama-f16", "biases"])
def test_a_stack_runs_whole_layers(name: str, isa: str) -> None:
    model = make_model(name)
    decoder = model.decoder(threads=2, isa=isa)
    first = bench_stack(decoder, 1, seconds=1e-9)
    assert first.layers == 1
    assert first.elapsed_s > 0
    # More than once through the layers, and no faster than the time that was asked for.
    rate = bench_stack(decoder, 3, seconds=0.02)
    assert rate.layers > model.case.num_hidden_layers
    assert 0.02 <= rate.elapsed_s < 5


def test_a_stack_is_as_large_as_its_layers() -> None:
    """Sixteen times the multiply-adds take at least twice as long."""
    small = make_model("llama-int8", hidden_size=128, intermediate_size=256).decoder()
    large = make_model("llama-int8", hidden_size=512, intermediate_size=1024).decoder()
    seconds = [
        min(x.elapsed_s / x.layers for x in (bench_stack(d, 8, seconds=0.02) for _ in range(5)))
        for d in (small, large)
    ]
    assert seconds[1] > 2 * seconds[0]


def test_a_stack_leaves_the_position_and_needs_a_new_token() -> None:
    model = make_model("bitnet")
    decoder = model.decoder()
    decoder.prefill([1, 2, 3])
    bench_stack(decoder, 1, seconds=0.001)
    assert decoder.position == 3
    refused(decoder.logits)
    decoder.prefill([4])
    fresh = model.decoder()
    fresh.prefill([1, 2, 3, 4])
    np.testing.assert_array_equal(decoder.logits(), fresh.logits())
    refused(lambda: bench_stack(decoder, 0))
    refused(lambda: bench_stack(decoder, decoder.batch_tokens + 1))
    refused(lambda: bench_stack(decoder, 1, 0.0))
    refused(lambda: bench_stack(decoder, 1, float("nan")))


@pytest.mark.parametrize("name", ["llama", "bitnet", "qwen3", "windows"])
def test_a_filled_cache_is_read(name: str, isa: str) -> None:
    model = make_model(name)

    def logits(position: int) -> np.ndarray:
        decoder = model.decoder(isa=isa, threads=2)
        fill_cache(decoder, position)
        assert decoder.position == position
        decoder.prefill([7])
        return decoder.logits()

    assert np.isfinite(logits(30)).all()
    assert not np.array_equal(logits(30), logits(29))
    # What is at a position does not depend on how far the cache was filled.
    decoder = model.decoder(isa=isa)
    fill_cache(decoder, 37)
    decoder.truncate(30)
    decoder.prefill([7])
    np.testing.assert_array_equal(decoder.logits(), logits(30))
    refused(lambda: fill_cache(decoder, decoder.context_length + 1))
    refused(lambda: fill_cache(decoder, -1))


def test_time_in_linear_layers_is_a_part_of_the_time() -> None:
    model = make_model("llama-int8", hidden_size=256, intermediate_size=512)
    sampler = Sampler(model.case.vocab_size, temperature=0.0)
    plain, timed = model.decoder(threads=2), model.decoder(threads=2)
    for decoder in (plain, timed):
        decoder.prefill([1, 2, 3])
    expected = [plain.next_token(sampler) for _ in range(8)]
    begun = time.perf_counter()
    with timed_linears(timed) as timer:
        assert timer.seconds() == 0
        found = [timed.next_token(sampler) for _ in range(8)]
        inside = timer.seconds()
    assert 0 < inside < time.perf_counter() - begun
    assert found == expected
    timed.next_token(sampler)
    assert timer.seconds() == 0
