"""Fake quantization: the values of the checkpoint format forward, straight through backward."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from qh_runtime.training.ternary import (  # noqa: E402
    BitLinear,
    absmean_scale,
    quantize_activation,
    quantize_weight,
    ternary_codes,
)


def normal(*shape: int, seed: int = 3) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("factor", [1.0, 1e-8, 1e3])
def test_values_equal_those_of_transformers(factor: float) -> None:
    bitnet = pytest.importorskip("transformers.integrations.bitnet")
    weight, x = normal(24, 20) * factor, normal(5, 20, seed=4) * factor
    assert torch.equal(quantize_weight(weight), bitnet.WeightQuant.apply(weight))
    assert torch.equal(quantize_activation(x), bitnet.ActQuant.apply(x))


def test_a_quantized_weight_is_scale_times_code() -> None:
    weight = normal(16, 12)
    scale = absmean_scale(weight)
    codes = ternary_codes(weight)
    assert set(codes.unique().tolist()) == {-1.0, 0.0, 1.0}
    torch.testing.assert_close(quantize_weight(weight), scale * codes, rtol=2e-7, atol=0.0)


def test_zero_weights_stay_zero_and_finite() -> None:
    weight = torch.zeros(8, 8)
    assert torch.equal(quantize_weight(weight), weight)
    assert torch.equal(quantize_activation(weight), weight)


def test_activations_keep_their_largest_value_and_127_steps() -> None:
    x = normal(7, 33)
    quantized = quantize_activation(x)
    step = x.abs().amax(dim=-1, keepdim=True) / 127
    torch.testing.assert_close(quantized.abs().amax(-1), x.abs().amax(-1), rtol=1e-6, atol=0.0)
    # Half a step, and a little for the product and the division in float32.
    assert bool(((quantized - x).abs() <= step * 0.5001).all())


def test_gradients_pass_straight_through() -> None:
    layer = BitLinear(6, 8)
    with torch.no_grad():
        layer.weight.copy_(normal(8, 6))
    x = normal(3, 6, seed=5).requires_grad_()
    upstream = normal(3, 8, seed=6)
    layer(quantize_activation(x)).backward(upstream)
    seen = quantize_activation(x.detach())
    torch.testing.assert_close(layer.weight.grad, upstream.T @ seen)
    torch.testing.assert_close(x.grad, upstream @ quantize_weight(layer.weight.detach()))
