"""One layer against the reference: right kernels pass, and every kind of wrong one is named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from qh_kernels import cpu
from qh_kernels import decoder as native
from qh_kernels import isa as instruction_sets
from qh_kernels.decoder import Decoder, Matrix
from qh_kernels.kv_cache import KvHead
from qh_runtime import formats
from qh_runtime.first_load.closeness import WrongResultError, product, require_close
from qh_runtime.first_load.layer import Arithmetic, check_layer, layers_to_check
from qh_runtime.first_load.sampling import sampled_rows, sampled_tiles
from qh_runtime.reference import ops
from qh_runtime.reference.weights import CodedMatrix
from tests.support.decoder_models import CASES, DecoderModel, make_model

TOKENS = (3, 0, 130, 77, 5)
BEST = instruction_sets.available()[-1]


def check(model: DecoderModel, index: int = 0, **changes: Any) -> None:
    options: dict[str, Any] = {"isa": BEST, "exact": False, "kv_type": "f16", "threads": 1}
    tokens = [x % model.case.vocab_size for x in TOKENS]
    check_layer(model.spec, model.weights, index, tokens, Arithmetic(**(options | changes)))


@pytest.mark.parametrize("isa", instruction_sets.available())
@pytest.mark.parametrize("name", CASES)
def test_every_layer_of_a_sound_model_passes(name: str, isa: str) -> None:
    model = make_model(name)
    for index in range(len(model.spec.layers)):
        for exact, kv_type in ((False, "f16"), (False, "f32"), (False, "int8"), (True, "f16")):
            check(model, index, isa=isa, exact=exact, kv_type=kv_type)


def test_one_token_is_enough() -> None:
    model = make_model("mixed")
    check_layer(model.spec, model.weights, 0, [7], Arithmetic(BEST, False, "f16", 2))


def test_a_layer_for_each_weight_format() -> None:
    one, other = make_model("llama-int8").weights, make_model("llama").weights
    assert layers_to_check(one) == (0,)
    mixed = native.DecoderWeights(
        one.embedding, one.head, one.final_norm, (one.layers[0], one.layers[1], other.layers[2])
    )
    assert layers_to_check(mixed) == (0, 2)


def _times(factor: float) -> Callable[[Any], Any]:
    return lambda y: y * np.float32(factor)


def _one_lane(y: Any) -> Any:
    """One of 16 rows is off by the last digit that a float16 scale would have."""
    y = y.copy()
    y[..., 5::16] *= np.float32(1 + 2**-11)
    return y


def _last_row(y: Any) -> Any:
    y = y.copy()
    y[..., -1] = 0
    return y


# Kernel, what becomes of its result, model, object that is named; other results are right.
FAULTS: dict[str, tuple[str, Callable[[Any], Any], str, str]] = {
    "ternary lane": ("linear_quantized", _one_lane, "bitnet", "layers.0.q"),
    "int8 lane": ("linear_quantized", _one_lane, "llama-int8", "layers.0.q"),
    "int4 lane": ("linear_quantized", _one_lane, "llama-int4", "layers.0.q"),
    "int4 last row": ("linear_quantized", _last_row, "llama-int4-g128", "layers.0.q"),
    "dense lane": ("linear_f32", _one_lane, "llama-f16", "layers.0.q"),
    "dense nothing": ("linear_f32", np.zeros_like, "llama", "layers.0.q"),
    "not a number": ("linear_f32", _times(float("nan")), "llama", "layers.0.q"),
    "norm": ("rms_norm", _times(1 + 2**-12), "llama", "layers.0.attention_norm"),
    "embedding": ("unpack_row", _times(1 + 2**-12), "llama-int8", "embedding"),
    "attention": ("attention", _times(1 + 2**-11), "llama", "attention"),
    "gate": ("gated", _times(1 + 2**-12), "llama", "silu of gate"),
    "squared gate": ("gated", _times(1 + 2**-12), "bitnet", "relu2 of gate"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_wrong_kernel_is_named(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, change, case, named = FAULTS[kind]
    right = getattr(cpu, kernel)
    monkeypatch.setattr(cpu, kernel, lambda *a, **k: change(right(*a, **k)))
    with pytest.raises(WrongResultError) as caught:
        check(make_model(case))
    assert caught.value.facts["object"] == named
    assert caught.value.facts["isa"] == BEST


@pytest.mark.parametrize("name", [x for x in formats.names() if not x.startswith("ternary")])
def test_a_wrong_tail_of_columns_is_found(name: str) -> None:
    """The last of 4096 columns left out: 1.5 % of a result, in the size of real models."""
    rng = np.random.default_rng(1)
    weights = rng.standard_normal((48, 4096)).astype(np.float32)
    matrix = Matrix(name, formats.get(name).pack(weights), 48, 4096)
    x = rng.standard_normal((3, 4096)).astype(np.float32)
    short = x.copy()
    short[:, -1] = 0
    y = cpu.linear_f32(matrix, short)
    ((rows, values),) = sampled_rows(matrix, exact=True)
    with pytest.raises(WrongResultError):
        require_close(name, BEST, y[:, rows], *product(values, x))


def _rope(x: Any, cos: Any, sin: Any, *, isa: str | None = None) -> None:
    half = x.shape[-1] // 2
    a, b = x[:, :half].copy(), x[:, half:].copy()
    x[:, :half], x[:, half:] = a * cos + b * sin, b * cos - a * sin  # the other way round


def test_a_wrong_rotation_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "rope", _rope)
    with pytest.raises(WrongResultError) as caught:
        check(make_model("llama"))
    assert caught.value.facts["object"] == "rotation of q"


def test_a_wrong_cache_type_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 for float16: nearly right, and not."""

    right = cpu.store_kv

    def stored(cache: KvHead, position: int, key: Any, value: Any, *, isa: str) -> None:
        short = (key.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
        right(cache, position, short, value, isa=isa)

    monkeypatch.setattr(cpu, "store_kv", stored)
    with pytest.raises(WrongResultError) as caught:
        check(make_model("llama"))
    assert caught.value.facts["object"] == "stored keys"


@pytest.mark.parametrize("case", ["bitnet", "llama-int8"])
@pytest.mark.parametrize("part", ["codes", "scales"])
def test_wrong_activation_codes_are_named(
    case: str, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "quantize_token" if case == "bitnet" else "quantize_groups"
    right = getattr(cpu, name)

    def wrong(x: Any, *, isa: str | None = None) -> Any:
        found = right(x, isa=isa)
        array = getattr(found, part)
        if part == "codes":
            array[0, np.argmin(np.abs(array[0, :32]))] += 1
        else:
            array *= np.float32(1 + 2**-18)
        return found

    monkeypatch.setattr(cpu, name, wrong)
    with pytest.raises(WrongResultError) as caught:
        check(make_model(case))
    assert caught.value.facts["object"] == "activation codes of q"


class _WrongLogits(Decoder):
    def logits(self) -> Any:
        found = super().logits()
        found[found.argmax()] *= np.float32(1 + 2**-8)
        return found


class _SlipsLater(Decoder):
    """Right for a batch of tokens, wrong in the step after it."""

    def logits(self) -> Any:
        found = super().logits()
        self.asked = getattr(self, "asked", 0) + 1
        if self.asked == 2:
            found[0] = np.nextafter(found[0], np.float32(np.inf))
        return found


class _OtherCodes(Decoder):
    def trace(self) -> Any:
        found = super().trace()
        for record in found:
            if record.name == "down":
                record.codes[-1] = np.roll(record.codes[-1], 1)
        return found


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        (_WrongLogits, "head"),
        (_SlipsLater, "layer 0 token by token"),
        (_OtherCodes, "activation codes of down"),
    ],
)
def test_a_wrong_decoder_is_named(
    kind: type[Decoder], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "Decoder", kind)
    with pytest.raises(WrongResultError) as caught:
        check(make_model("llama-int8"))
    assert caught.value.facts["object"] == named


def test_the_decoder_itself_is_what_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder of other weights than those that are checked does not pass by its own reference."""
    other = make_model("llama-f16", seed=1).weights.layers[0].down
    right = native.Decoder

    def swapped(shape: Any, weights: Any, **options: Any) -> Decoder:
        layer = native.LayerWeights(**{**vars(weights.layers[0]), "down": other})
        whole = native.DecoderWeights(weights.embedding, weights.head, weights.final_norm, (layer,))
        return right(shape, whole, **options)

    monkeypatch.setattr(native, "Decoder", swapped)
    with pytest.raises(WrongResultError) as caught:
        check(make_model("llama-f16"))
    assert caught.value.facts["object"] == "head"


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 255, 256, 257, 5000])
def test_samples_have_the_first_and_the_last_row(rows: int) -> None:
    tiles = sampled_tiles(rows)
    assert tiles[0] == 0
    assert tiles[-1] == (rows - 1) // 16
    assert len(tiles) == min(16, -(-rows // 16)) == len(set(tiles.tolist()))
    assert (np.diff(tiles) > 0).all()


@pytest.mark.parametrize("name", formats.names())
def test_sampled_rows_are_those_of_the_matrix(name: str) -> None:
    weight_format = formats.get(name)
    weights = np.random.default_rng(0).standard_normal((700, 40)).astype(np.float32)
    data = weight_format.pack(weights)
    matrix = Matrix(name, data, 700, 40)
    whole = weight_format.unpack(data, (700, 40))
    seen: list[int] = []
    for rows, values in sampled_rows(matrix, exact=True):
        np.testing.assert_array_equal(values.values, whole[rows])
        seen += rows.tolist()
    assert len(seen) == 15 * 16 + 700 % 16
    assert {0, 699} <= set(seen)


@pytest.mark.parametrize("name", [x for x in formats.names() if x not in ("f32", "f16", "bf16")])
def test_the_bound_is_above_the_rounding_and_far_below_the_result(name: str) -> None:
    rng = np.random.default_rng(2)
    weights = rng.standard_normal((64, 2048)).astype(np.float32)
    matrix = Matrix(name, formats.get(name).pack(weights), 64, 2048)
    x = rng.standard_normal((2, 2048)).astype(np.float32)
    token = name.startswith("ternary")
    held = cpu.quantize_token(x) if token else cpu.quantize_groups(x)
    size = 2048 if token else 32
    codes = ops.QuantizedActivations(held.codes, held.scales, size)
    y = cpu.linear_quantized(matrix, held)
    for rows, values in sampled_rows(matrix, exact=False):
        expected, bound = product(values, codes)
        assert (np.abs(y[:, rows] - expected) <= bound).all()
        # The rounding of tables may add up in one direction, so its bound is wide.
        tables = isinstance(values, CodedMatrix) and values.rounding is not None
        share = (0.4 if name == "aqlm_8x8_g32" else 0.1) if tables else 0.002
        assert bound.max() < share * np.abs(expected).mean()


def _with_scan(head_format: str) -> DecoderModel:
    """A head that is larger than what is computed again from it."""
    formats_of = {"linear": "int8", "head": head_format}
    model = make_model(replace(CASES["llama"], formats=formats_of), vocab_size=9001)
    values = model.dense.matrices["head"].values
    scan = Matrix("int4_g32", formats.get("int4_g32").pack(values), *values.shape)
    return replace(model, weights=replace(model.weights, head_scan=scan))


@pytest.mark.parametrize("isa", instruction_sets.available())
@pytest.mark.parametrize("head_format", ["bf16", "int8"])
def test_a_sound_scan_of_the_head_passes(head_format: str, isa: str) -> None:
    model = _with_scan(head_format)
    check(model, isa=isa)
    check(model, isa=isa, exact=True)


def test_a_wrong_choice_of_rows_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but the scan, as if no row were computed again."""
    right = native.Decoder

    def scan_alone(shape: Any, weights: Any, **options: Any) -> Decoder:
        if weights.head_scan is not None:
            weights = replace(weights, head=weights.head_scan, head_scan=None)
        return right(shape, weights, **options)

    monkeypatch.setattr(native, "Decoder", scan_alone)
    with pytest.raises(WrongResultError) as caught:
        check(_with_scan("bf16"))
    assert caught.value.facts["object"] == "scan of head"
