"""Ternary weights and int8 activations with straight-through gradients, as BitNet b1.58 trains
them.

Forward sees the values that the exported checkpoint will have; backward pretends that rounding was
not there, so that the float master weights keep moving until one of them crosses a rounding
boundary.

Source: Ma et al. 2024, "The Era of 1-bit LLMs", equations 1-3 (absmean weights); Wang et al. 2023,
"BitNet", section 2.2 (straight-through estimator) and equations 4-5 (absmax activations, here per
token and 8 bits).
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

#: Smallest scale; keeps an all-zero tensor from dividing by zero. Fixed by the checkpoint format.
SCALE_FLOOR = 1e-5


def absmean_scale(weight: Tensor) -> Tensor:
    """Return s = max(mean|W|, 1e-5) as a float32 scalar tensor."""
    return weight.float().abs().mean().clamp(min=SCALE_FLOOR)


def ternary_codes(weight: Tensor) -> Tensor:
    """Return T = clamp(round(W / s), -1, 1), float32, same shape; rounding is half to even.

    The division is written as a product with 1/s because readers of the format do the same, and a
    weight that sits on a rounding boundary must fall on the same side everywhere.
    """
    return (weight.float() * (1.0 / absmean_scale(weight))).round().clamp(-1, 1)


class WeightQuant(torch.autograd.Function):
    """s * T in forward, identity in backward."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        """Return s * T in the dtype of `weight` (out_features, in_features)."""
        inverse = 1.0 / absmean_scale(weight)
        return ((weight.float() * inverse).round().clamp(-1, 1) / inverse).to(weight.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Tensor:
        """Return the incoming gradient unchanged."""
        return cast(Tensor, grad_outputs[0])


class ActQuant(torch.autograd.Function):
    """Per-token absmax rounding to 8 bits in forward, identity in backward."""

    @staticmethod
    def forward(ctx: Any, activation: Tensor) -> Tensor:
        """Return q / a with a = 127 / max(max|x|, 1e-5) over the last axis; (..., features),
        dtype kept.
        """
        x = activation.float()
        scale = 127.0 / x.abs().amax(dim=-1, keepdim=True).clamp(min=SCALE_FLOOR)
        return ((x * scale).round().clamp(-128, 127) / scale).to(activation.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Tensor:
        """Return the incoming gradient unchanged."""
        return cast(Tensor, grad_outputs[0])


def quantize_weight(weight: Tensor) -> Tensor:
    """Return `weight` rounded to s * T, differentiable straight through."""
    return cast(Tensor, WeightQuant.apply(weight))  # type: ignore[no-untyped-call]


def quantize_activation(activation: Tensor) -> Tensor:
    """Return `activation` rounded to 8 bits per token, differentiable straight through."""
    return cast(Tensor, ActQuant.apply(activation))  # type: ignore[no-untyped-call]


class BitLinear(nn.Module):
    """A linear layer without bias whose weight is ternary in forward; `weight` holds the float
    master values.

    The input must already be quantized: layers that share an input (query, key and value; gate and
    up) then pay for its rounding once.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))

    def forward(self, x: Tensor) -> Tensor:
        """Return x @ (s T)^T, shape (..., out_features), in the dtype of `x`."""
        return nn.functional.linear(x, quantize_weight(self.weight).to(x.dtype))
