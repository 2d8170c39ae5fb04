"""Decoders of codebook formats with tables: what is rounded, and how work is split."""

from __future__ import annotations

import numpy as np
import pytest

from qh_kernels import isa
from tests.support.decoder_models import make_model
from tests.support.tolerance import assert_within

ISAS = isa.available()
TABLES = ("aqlm_2x8_g8", "aqlm_1x8_g8", "aqlm_8x8_g32")


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("isa_name", ISAS)
def test_exact_logits_equal_the_reference(name: str, isa_name: str) -> None:
    model = make_model("llama", formats={"linear": name, "head": name, "embedding": name})
    tokens = model.tokens(23)
    found = model.decoder(exact=True, isa=isa_name).forward(tokens)
    expected = model.reference(exact=True).forward(tokens)
    assert_within(found, expected, 1e-4, relative=True, label=f"{name} {isa_name}")


@pytest.mark.parametrize("name", TABLES)
def test_logits_are_near_those_without_rounding(name: str) -> None:
    """Tables (11 tokens) cost less than activations of 8 bits, weights of 8 bits (23) as much."""
    model = make_model("llama", formats={"linear": name}, scale=1.0)
    for n_tokens, limit in ((11, 0.1), (23, 0.3)):
        tokens = model.tokens(n_tokens)
        found = model.decoder(kv_type="f32").forward(tokens)
        expected = model.reference().forward(tokens)
        assert_within(found, expected, limit, relative=True, label=name)


@pytest.mark.parametrize("name", TABLES)
def test_threads_do_not_change_a_bit(name: str) -> None:
    """Sizes above the threshold of a hand-over, several column blocks, biases."""
    model = make_model(
        "llama",
        formats={"linear": name, "head": name},
        hidden_size=1100,
        intermediate_size=1300,
        num_hidden_layers=1,
        head_dim=80,
        num_attention_heads=6,
        bias=("q", "k", "down"),
        scale=0.5,
    )
    tokens = model.tokens(20)
    one = model.decoder()
    expected = np.stack([one.forward(tokens[i : i + 1])[0] for i in range(20)])
    for threads in (2, 3, 4):
        decoder = model.decoder(threads=threads)
        found = np.stack([decoder.forward(tokens[i : i + 1])[0] for i in range(20)])
        np.testing.assert_array_equal(found, expected)
    for batch_tokens in (1, 7, 15):
        decoder = model.decoder(threads=2, batch_tokens=batch_tokens)
        np.testing.assert_array_equal(decoder.forward(tokens), expected)
    many = [model.decoder(threads=n).forward(tokens) for n in (1, 2)]
    np.testing.assert_array_equal(many[0], many[1])
