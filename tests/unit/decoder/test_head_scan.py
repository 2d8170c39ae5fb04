"""A head in two steps: every logit from few bits, the best of them again from the head itself.

Oracle: two decoders that have only the one or only the other head, and NumPy's sort.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from qh_kernels import isa
from qh_kernels.decoder import Decoder, Matrix
from qh_kernels.errors import KernelError
from qh_runtime import formats
from qh_runtime.reference.two_step_head import two_step_logits
from tests.support.decoder_models import DecoderModel, make_model

F32 = NDArray[np.float32]
ISAS = isa.available()
TILE = 16
TOKENS = [3, 1, 4, 1, 5]


def packed(format_name: str, values: F32) -> Matrix:
    return Matrix(format_name, formats.get(format_name).pack(values), *values.shape)


def decoder(
    model: DecoderModel, head: Matrix, scan: Matrix | None = None, **options: object
) -> Decoder:
    weights = replace(model.weights, head=head, head_scan=scan)
    settings: dict[str, object] = {"context_length": 32, "threads": 1, **options}
    return Decoder(model.shape, weights, **settings)  # type: ignore[arg-type]


def check(model: DecoderModel, values: F32, head_format: str, **options: object) -> F32:
    head, scan = packed(head_format, values), packed("int4_g32", values)
    scanned = decoder(model, scan, **options).forward(TOKENS)
    full = decoder(model, head, **options).forward(TOKENS)
    with decoder(model, head, scan, **options) as both:
        found = both.forward(TOKENS)
    unit = 1 if head_format in ("f32", "f16", "bf16") else TILE
    expected = [two_step_logits(a, b, unit) for a, b in zip(scanned, full, strict=True)]
    np.testing.assert_array_equal(found, np.stack(expected))
    return found


@pytest.mark.parametrize("head_format", ["bf16", "f32", "int8"])
@pytest.mark.parametrize("vocab_size", [6, 127, 128, 131, 8192, 8193, 9001])
def test_the_best_rows_come_from_the_head_and_the_others_from_the_scan(
    vocab_size: int, head_format: str
) -> None:
    model = make_model("llama", vocab_size=vocab_size, num_hidden_layers=1)
    values = model.dense.matrices["head"].values
    check(model, values, head_format)


@pytest.mark.parametrize("isa_name", ISAS)
@pytest.mark.parametrize("threads", [1, 3])
def test_on_every_instruction_set_and_with_threads(isa_name: str, threads: int) -> None:
    model = make_model("llama-int4", vocab_size=9001, num_hidden_layers=1)
    values = model.dense.matrices["head"].values
    for head_format in ("bf16", "int8"):
        check(model, values, head_format, isa=isa_name, threads=threads)


@pytest.mark.parametrize("distinct", [1, 2, 40])
def test_of_equal_logits_the_first_rows_are_taken(distinct: int) -> None:
    """As of a vocabulary with thousands of tokens that were never trained."""
    model = make_model("llama", vocab_size=9001, num_hidden_layers=1)
    values = model.dense.matrices["head"].values.copy()
    values[distinct:] = values[0]
    check(model, values, "bf16")
    values[:] = 0
    assert not check(model, values, "bf16").any()


def test_token_by_token_equals_all_at_once() -> None:
    model = make_model("llama-int8", vocab_size=9001, num_hidden_layers=1)
    values = model.dense.matrices["head"].values
    head, scan = packed("int8", values), packed("int4_g32", values)
    with decoder(model, head, scan) as together, decoder(model, head, scan) as one:
        rows = together.forward(TOKENS)
        for token, row in zip(TOKENS, rows, strict=True):
            assert one.prefill([token])
            np.testing.assert_array_equal(one.logits(), row)


def test_exact_activations_read_the_head_alone() -> None:
    model = make_model("llama", vocab_size=9001, num_hidden_layers=1)
    values = model.dense.matrices["head"].values
    head, scan = packed("bf16", values), packed("int4_g32", values)
    with (
        decoder(model, head, scan, exact=True) as both,
        decoder(model, head, exact=True) as alone,
    ):
        np.testing.assert_array_equal(both.forward(TOKENS), alone.forward(TOKENS))


def test_a_number_that_is_none_is_found() -> None:
    model = make_model("llama", vocab_size=9001, num_hidden_layers=1)
    values = model.dense.matrices["head"].values
    head, scan = packed("f32", values), packed("int4_g32", values)
    best = int(np.argmax(decoder(model, scan).forward(TOKENS)[-1]))
    data = head.data.copy()
    data.view(np.float32)[best * head.cols] = np.nan
    with (
        decoder(model, replace(head, data=data), scan) as both,
        pytest.raises(KernelError, match=r"NaN|finite"),
    ):
        both.forward(TOKENS)


def test_the_scan_has_the_shape_of_the_head() -> None:
    model = make_model("llama")
    head = model.weights.head
    other = packed("int4_g32", np.zeros((head.rows + 16, head.cols), np.float32))
    with pytest.raises(KernelError, match="head_scan"):
        decoder(model, head, other)


def test_the_scan_counts_as_weights() -> None:
    model = make_model("llama")
    scan = packed("int4_g32", model.dense.matrices["head"].values)
    with decoder(model, model.weights.head, scan) as both, model.decoder() as alone:
        assert both.weights_bytes - alone.weights_bytes == scan.data.nbytes
