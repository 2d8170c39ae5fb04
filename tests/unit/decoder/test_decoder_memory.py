"""What a decoder allocates, and what it costs while nobody asks for anything."""

from __future__ import annotations

import gc
import os
import threading
import time

import psutil
import pytest

from qh_kernels.decoder import decoder_bytes
from qh_kernels.errors import KernelError
from qh_kernels.sampler import Sampler
from tests.support.decoder_models import CASES, make_model


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kv_type", ["f16", "f32", "int8"])
def test_allocation_equals_the_size_function(name: str, kv_type: str) -> None:
    model = make_model(name)
    for context_length, threads, batch_tokens in ((1, 1, 64), (77, 3, 16), (500, 2, 128)):
        decoder = model.decoder(
            context_length=context_length,
            threads=threads,
            kv_type=kv_type,
            batch_tokens=batch_tokens,
        )
        expected = decoder_bytes(model.shape, context_length, threads, kv_type, batch_tokens)
        assert decoder.allocated_bytes == expected


def test_cache_size_is_the_textbook_formula() -> None:
    """2 (keys and values) * layers * positions * kv heads * (head_dim * bytes of a value + scale).

    Positions are rounded up to blocks of 64.
    """
    model = make_model("llama", head_dim=16)
    for n_bytes, kv_type in ((2 * 16, "f16"), (4 * 16, "f32"), (16 + 4, "int8")):
        found = decoder_bytes(model.shape, 1000, 1, kv_type)["kv_cache"]
        assert found == 2 * 3 * 1024 * 2 * n_bytes


def test_exact_counts_a_float32_cache() -> None:
    model = make_model("llama")
    found = model.decoder(exact=True, kv_type="f16").allocated_bytes
    assert found == decoder_bytes(model.shape, 64, 1, "f32")


def test_tied_weights_count_once() -> None:
    tied, untied = make_model("qwen2"), make_model("qwen2", tied=False)
    head = untied.weights.head.data.nbytes
    assert untied.decoder().weights_bytes == tied.decoder().weights_bytes + head


def test_size_function_refuses_what_no_machine_has() -> None:
    model = make_model("llama")
    with pytest.raises(KernelError) as raised:
        decoder_bytes(model.shape, 1 << 40, 1)
    assert raised.value.facts["object"] == "context_length"


def test_too_little_memory_is_an_error_with_the_sum() -> None:
    """Every size is in range, but the product is more than any address space."""
    model = make_model(
        "one",
        num_hidden_layers=16,
        num_attention_heads=1024,
        num_key_value_heads=1024,
        head_dim=128,
    )
    with pytest.raises(KernelError) as raised:
        model.decoder(context_length=1 << 24, kv_type="f32")
    assert str(2 * 16 * (1 << 24) * 1024 * 128 * 4)[:3] in str(raised.value.facts["expected"])


def test_a_thousand_tokens_allocate_nothing() -> None:
    """Resident memory after the buffers were used once stays what it is."""
    model = make_model("mixed", hidden_size=264, intermediate_size=520, vocab_size=2003)
    decoder = model.decoder(context_length=600, threads=2)
    sampler = Sampler(
        2003, temperature=1.0, top_k=40, top_p=0.9, min_p=0.01, repetition_penalty=1.1, seed=7
    )
    process = psutil.Process()

    def answer(n_tokens: int) -> None:
        decoder.truncate(0)
        decoder.prefill(model.tokens(90))
        for _ in range(n_tokens):
            assert decoder.next_token(sampler) >= 0

    answer(500)
    before = process.memory_info().rss
    for _ in range(2):
        answer(500)
    # The logits of one token alone are 8 kB: a leak per token would be at least 8 MB.
    assert process.memory_info().rss - before < 1 << 20


def _settles_at(n_threads: int) -> bool:
    """Whether the process comes to have so many threads.

    The system counts one for a moment longer than joining it takes.
    """
    process = psutil.Process()
    end = time.monotonic() + 10
    while process.num_threads() != n_threads and time.monotonic() < end:
        time.sleep(0.001)
    return process.num_threads() == n_threads


def test_closing_frees_the_threads_and_the_cache() -> None:
    model = make_model("llama")
    process = psutil.Process()
    gc.collect()  # decoders of tests before, whose threads are counted for a moment longer
    time.sleep(0.05)
    threads_before = process.num_threads()
    grown = []
    for _ in range(3):
        rss_before = process.memory_info().rss
        for _ in range(20):
            decoder = model.decoder(threads=4, context_length=20_000, kv_type="f32")
            decoder.prefill(model.tokens(300))
            assert _settles_at(threads_before + 3)
            decoder.close()
            assert _settles_at(threads_before)
        grown.append(process.memory_info().rss - rss_before)
    # 20 caches of which 300 positions were used, and 20 scratch buffers: 9 MB had they stayed, each
    # time. The allocator itself takes some MB once, how many depends on what ran before.
    assert min(grown) < 4 << 20, grown


def test_idle_workers_use_no_cpu_time() -> None:
    model = make_model("llama", hidden_size=512, intermediate_size=512)
    decoder = model.decoder(threads=4)
    decoder.prefill(model.tokens(5))
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.01


def test_workers_keep_the_affinity_of_the_thread_that_made_them() -> None:
    if not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs an operating system with affinity masks, and two CPUs")
    allowed = os.sched_getaffinity(0)
    one = {min(allowed)}
    model = make_model("llama")
    masks: list[set[int]] = []

    def make_and_look() -> None:
        os.sched_setaffinity(0, one)
        known = {int(name) for name in os.listdir("/proc/self/task")}
        with model.decoder(threads=3) as decoder:
            decoder.prefill(model.tokens(5))
            workers = {int(name) for name in os.listdir("/proc/self/task")} - known
            masks.extend(os.sched_getaffinity(worker) for worker in workers)

    runner = threading.Thread(target=make_and_look)
    runner.start()
    runner.join()
    assert masks == [one, one]
    assert os.sched_getaffinity(0) == allowed
