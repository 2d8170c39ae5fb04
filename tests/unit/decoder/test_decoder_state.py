"""Position, pending token, truncation, cancellation and misuse of a decoder."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from qh_kernels.decoder import Matrix
from qh_kernels.errors import KernelError
from qh_kernels.sampler import Sampler
from tests.support.decoder_models import DecoderModel, make_model


def slow_model() -> DecoderModel:
    """A token takes milliseconds, so that another thread can interrupt it."""
    return make_model(
        "llama", hidden_size=512, intermediate_size=1024, vocab_size=4000, num_hidden_layers=6
    )


def greedy(model: DecoderModel) -> Sampler:
    return Sampler(model.case.vocab_size, temperature=0.0)


def test_next_token_feeds_the_pending_token_first() -> None:
    model = make_model("llama")
    prompt = list(model.tokens(6))
    decoder = model.decoder(threads=2)
    assert decoder.prefill(prompt)
    sampler = greedy(model)
    found = []
    for step in range(10):
        token = decoder.next_token(sampler)
        assert decoder.pending == token
        # The token drawn last is not in the cache: no pass is wasted on it.
        assert decoder.position == 6 + step
        found.append(token)

    reference = model.decoder()
    expected: list[int] = []
    for _ in range(10):
        reference.truncate(0)
        reference.prefill(prompt + expected)
        expected.append(int(reference.logits().argmax()))
    assert found == expected


def test_commit_pending_puts_the_token_into_the_cache() -> None:
    model = make_model("qwen3")
    decoder = model.decoder()
    decoder.prefill([1, 2, 3])
    token = decoder.next_token(greedy(model))
    assert decoder.commit_pending()
    assert decoder.pending is None
    assert decoder.position == 4
    fresh = model.decoder()
    fresh.prefill([1, 2, 3, token])
    np.testing.assert_array_equal(decoder.logits(), fresh.logits())
    assert decoder.commit_pending()
    assert decoder.position == 4


def test_truncate_and_prefill_again_equals_fresh() -> None:
    model = make_model("windows")
    tokens = model.tokens(40)
    decoder = model.decoder()
    decoder.prefill(tokens)
    decoder.next_token(greedy(model))
    decoder.truncate(11)
    assert decoder.position == 11
    assert decoder.pending is None
    decoder.prefill(tokens[::-1][:9])
    fresh = model.decoder()
    fresh.prefill(np.concatenate([tokens[:11], tokens[::-1][:9]]))
    np.testing.assert_array_equal(decoder.logits(), fresh.logits())


def test_truncate_forgets_the_logits() -> None:
    model = make_model("llama")
    decoder = model.decoder()
    for state in ("new", "truncated"):
        with pytest.raises(KernelError) as raised:
            decoder.logits()
        assert raised.value.facts["found"] == "none", state
        with pytest.raises(KernelError):
            decoder.next_token(greedy(model))
        decoder.prefill([1, 2])
        decoder.truncate(1)


@pytest.mark.parametrize("position", [-1, 3, 1000])
def test_truncate_only_backwards(position: int) -> None:
    decoder = make_model("llama").decoder()
    decoder.prefill([1, 2])
    with pytest.raises(KernelError) as raised:
        decoder.truncate(position)
    assert raised.value.facts["found"] == position
    assert decoder.position == 2


def test_context_overflow_is_an_error_before_anything_runs() -> None:
    model = make_model("llama")
    decoder = model.decoder(context_length=8)
    decoder.prefill(model.tokens(5))
    before = decoder.logits()
    with pytest.raises(KernelError) as raised:
        decoder.prefill(model.tokens(4))
    assert raised.value.facts["context_length"] == 8
    assert raised.value.facts["position"] == 5
    assert raised.value.facts["tokens"] == 4
    assert decoder.position == 5
    np.testing.assert_array_equal(decoder.logits(), before)


def test_full_context_gives_one_more_token_and_then_an_error() -> None:
    model = make_model("llama")
    decoder = model.decoder(context_length=8)
    decoder.prefill(model.tokens(8))
    assert decoder.next_token(greedy(model)) >= 0
    with pytest.raises(KernelError) as raised:
        decoder.next_token(greedy(model))
    assert raised.value.facts["context_length"] == 8
    with pytest.raises(KernelError):
        decoder.commit_pending()


def test_prefill_with_a_pending_token_is_refused() -> None:
    model = make_model("llama")
    decoder = model.decoder()
    decoder.prefill([1])
    decoder.next_token(greedy(model))
    with pytest.raises(KernelError):
        decoder.prefill([2])


@pytest.mark.parametrize(
    "tokens", [[], [-1], [131], [0, 2**31], [0.5], [[1, 2]], np.zeros((2, 2), np.int32)]
)
def test_bad_tokens_are_refused(tokens: object) -> None:
    decoder = make_model("llama").decoder()
    with pytest.raises(KernelError) as raised:
        decoder.prefill(tokens)  # type: ignore[arg-type]
    assert raised.value.facts["object"] == "tokens"
    assert decoder.position == 0


def test_cancel_from_another_thread_ends_a_prefill_at_a_batch() -> None:
    model = slow_model()
    decoder = model.decoder(context_length=2000, batch_tokens=8, threads=2)
    tokens = model.tokens(2000)
    results: list[bool] = []
    runner = threading.Thread(target=lambda: results.append(decoder.prefill(tokens)))
    runner.start()
    while decoder.position < 16:
        time.sleep(0.0005)
    decoder.cancel()
    cancelled_at = time.perf_counter()
    runner.join(10)
    waited = time.perf_counter() - cancelled_at
    assert results == [False]
    assert 16 <= decoder.position < 2000
    assert decoder.position % 8 == 0
    assert waited < 1.0
    # The cancelled batch left nothing behind.
    done = decoder.position
    decoder.clear_cancel()
    assert decoder.prefill(tokens[done : done + 5])
    fresh = model.decoder(context_length=2000, threads=2)
    fresh.prefill(tokens[: done + 5])
    np.testing.assert_array_equal(decoder.logits(), fresh.logits())


def test_cancelled_next_token_changes_nothing() -> None:
    model = make_model("llama")
    decoder = model.decoder()
    decoder.prefill([1, 2, 3])
    sampler = greedy(model)
    first = decoder.next_token(sampler)
    decoder.cancel()
    assert decoder.next_token(sampler) == -1
    assert not decoder.commit_pending()
    assert (decoder.position, decoder.pending) == (3, first)
    decoder.truncate(3)
    with pytest.raises(KernelError) as raised:
        decoder.forward([1])
    assert raised.value.facts["cancelled"]
    decoder.clear_cancel()
    decoder.truncate(0)
    decoder.prefill([1, 2, 3])
    assert decoder.next_token(sampler) == first


def test_cancel_ends_decoding_within_a_token() -> None:
    model = slow_model()
    decoder = model.decoder(context_length=4096, threads=2)
    decoder.prefill([1])
    sampler = greedy(model)
    drawn: list[int] = []

    def run() -> None:
        while (token := decoder.next_token(sampler)) >= 0:
            drawn.append(token)

    runner = threading.Thread(target=run)
    runner.start()
    while len(drawn) < 3:
        time.sleep(0.0005)
    decoder.cancel()
    drawn_then = len(drawn)
    runner.join(10)
    assert not runner.is_alive()
    assert len(drawn) <= drawn_then + 1


def test_second_thread_is_refused_and_close_waits() -> None:
    model = slow_model()
    decoder = model.decoder(context_length=4000, batch_tokens=8)
    tokens = model.tokens(4000)
    results: list[bool] = []
    runner = threading.Thread(target=lambda: results.append(decoder.prefill(tokens)))
    runner.start()
    while decoder.position == 0:
        time.sleep(0.0005)
    with pytest.raises(KernelError) as raised:
        decoder.prefill([1])
    assert raised.value.facts["found"] == "a second thread"
    decoder.close()
    assert decoder.position == 0
    runner.join(10)
    assert results == [False]


def test_closed_decoder_says_so() -> None:
    decoder = make_model("llama").decoder()
    with decoder:
        decoder.prefill([1])
    decoder.close()
    decoder.cancel()
    decoder.clear_cancel()
    with pytest.raises(KernelError) as raised:
        decoder.logits()
    assert raised.value.facts["found"] == "a closed one"


def test_non_finite_values_name_the_position() -> None:
    """An f32 embedding row of infinities: only the token that looks it up is at fault."""
    model = make_model("llama")
    bad = model.weights.embedding.data.copy().view(np.float32)
    bad.reshape(131, 56)[77, 3] = np.inf
    embedding = Matrix("f32", bad.view(np.uint8), 131, 56)
    broken = replace(model, weights=replace(model.weights, embedding=embedding))
    for options in ({"threads": 1}, {"threads": 3, "batch_tokens": 4}):
        decoder = broken.decoder(**options)
        decoder.prefill([1, 2, 3])
        with pytest.raises(KernelError) as raised:
            decoder.prefill([4, 5, 77, 6])
        assert raised.value.facts["position"] == 5
        assert decoder.position == 3


@pytest.mark.parametrize("name", ["llama", "bitnet", "llama-int8"])
def test_non_finite_values_inside_a_layer_are_found(name: str) -> None:
    """A NaN that is born before a quantized layer must not come out as an ordinary code."""
    model = make_model(name)
    layer = model.weights.layers[1]
    # Finite, so it is let in, and overflows only in the product.
    large = np.full(layer.up.rows, 3e38, np.float32)
    biased = replace(layer, up_bias=large, gate_bias=large)
    layers = [model.weights.layers[0], biased, model.weights.layers[2]]
    overflowing = replace(model, weights=replace(model.weights, layers=layers))
    with pytest.raises(KernelError) as raised:
        overflowing.decoder().prefill([1, 2])
    assert raised.value.facts["position"] == 0


def test_keys_beyond_float16_are_found() -> None:
    model = make_model("qwen2")
    layer = replace(model.weights.layers[0], k_bias=np.full(28, 1e5, np.float32))
    layers = [layer, *model.weights.layers[1:]]
    large = replace(model, weights=replace(model.weights, layers=layers))
    assert large.decoder(kv_type="f32").prefill([1, 2])
    assert large.decoder(kv_type="int8").prefill([1, 2])
    with pytest.raises(KernelError) as raised:
        large.decoder(kv_type="f16").prefill([1, 2])
    assert raised.value.facts["position"] == 0


@pytest.mark.parametrize("kv_type", ["f32", "int8"])
def test_keys_that_overflow_are_found(kv_type: str) -> None:
    """Finite before they are rotated, and no longer at position 1."""
    model = make_model("qwen2")
    layer = replace(model.weights.layers[2], k_bias=np.full(28, 3e38, np.float32))
    layers = [*model.weights.layers[:2], layer]
    large = replace(model, weights=replace(model.weights, layers=layers))
    with pytest.raises(KernelError) as raised:
        large.decoder(kv_type=kv_type).prefill([1, 2])
    assert raised.value.facts["position"] in (0, 1)


def test_infinite_logits_name_the_position() -> None:
    """Only the head overflows: the prefill is good, what it would be sampled from is not."""
    model = make_model("llama")
    weights = model.weights.head.data.copy().view(np.float32)
    weights[:] = np.sign(weights) * 3e38
    head = replace(model.weights.head, data=weights.view(np.uint8))
    decoder = replace(model, weights=replace(model.weights, head=head)).decoder()
    assert decoder.prefill([1, 2, 3])
    for ask in (decoder.logits, lambda: decoder.next_token(greedy(model))):
        with pytest.raises(KernelError) as raised:
            ask()
        assert raised.value.facts["position"] == 2
    decoder.truncate(0)
    with pytest.raises(KernelError) as raised:
        decoder.forward([1, 2, 3])
    assert raised.value.facts["position"] == 0


def test_logits_outlive_a_cancelled_prefill_only_if_they_were_asked_for() -> None:
    model = make_model("llama")
    decoder = model.decoder()
    decoder.prefill([1, 2, 3])
    before = decoder.logits()
    decoder.cancel()
    assert not decoder.prefill([4])
    np.testing.assert_array_equal(decoder.logits(), before)
    decoder.clear_cancel()
    decoder.prefill([4])
    decoder.cancel()
    assert not decoder.prefill([5])
    with pytest.raises(KernelError) as raised:
        decoder.logits()
    assert raised.value.facts["found"] == "none"
