"""Rotary frequencies: RopeSpec from both config spellings, and the float32 values of transformers.

transformers 5 writes `rope_parameters: {rope_theta, rope_type, ...}`; older files have a top-level
`rope_theta` and `rope_scaling: {type or rope_type, ...}`.
Source: RoFormer (Su et al. 2021), section 3.4; linear: position interpolation (Chen et al. 2023);
llama3: the model card code of Llama 3.1 (Meta 2024).
"""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING

from qh_runtime.architectures.base import RopeSpec
from qh_runtime.architectures.config_reader import ConfigReader

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["inverse_frequencies", "rope_from_config"]

_MAX_THETA = 1e12
_MAX_FACTOR = 1e6
_MAX_POSITIONS = 1 << 24


def rope_from_config(
    config: ConfigReader, *, default_theta: float, max_position_embeddings: int
) -> RopeSpec:
    """The rotary embedding that a config asks for.

    Args:
        config: the whole config.
        default_theta: base where no spelling names one.
        max_position_embeddings: stands in for an absent original length, as in transformers.

    Raises:
        UnsupportedArchitectureError: scaling other than none, linear and llama3; partial rotary
            factors; two spellings that contradict each other.
    """
    theta = config.number("rope_theta", default_theta, 1.0, _MAX_THETA)
    original = config.optional_integer("original_max_position_embeddings", None, 1, _MAX_POSITIONS)
    config.require(
        "partial_rotary_factor", (1.0, 1), "rotary embedding of a part of each head is unsupported"
    )
    found = [
        (key, _read_section(section, theta, original, max_position_embeddings))
        for key in ("rope_parameters", "rope_scaling")
        if (section := config.section(key)) is not None
    ]
    if not found:
        return RopeSpec(theta=theta)
    if len(found) == 2 and found[0][1] != found[1][1]:
        raise config.refuse(
            "rope_scaling", "the same rotary embedding as rope_parameters", "remove one of the two"
        )
    return found[0][1]


def _read_section(
    section: ConfigReader, theta: float, original: int | None, max_position_embeddings: int
) -> RopeSpec:
    # Older files say `type`, newer ones `rope_type`; transformers prefers the newer.
    name = "rope_type" if section.has("rope_type") or not section.has("type") else "type"
    section.raw("type"), section.raw("rope_type")
    scaling = section.choice(
        name,
        "default",
        {"default": "none", "linear": "linear", "llama3": "llama3"},
        "this scaling of the rotary embedding is not supported",
    )
    theta = section.number("rope_theta", theta, 1.0, _MAX_THETA)
    section.require(
        "partial_rotary_factor", (1.0, 1), "rotary embedding of a part of each head is unsupported"
    )
    if scaling == "none":
        section.require("factor", (1.0, 1), "a factor needs a rope_type that uses it")
        # The length before scaling describes training; without scaling nothing depends on it.
        section.raw("original_max_position_embeddings")
        _refuse_other_keys(section)
        return RopeSpec(theta=theta)
    factor = section.number("factor", None, 1e-3, _MAX_FACTOR)
    if scaling == "linear":
        section.raw("original_max_position_embeddings")
        _refuse_other_keys(section)
        return RopeSpec(theta=theta, scaling="linear", factor=factor)
    low = section.number("low_freq_factor", None, 1e-3, _MAX_FACTOR)
    high = section.number("high_freq_factor", None, 1e-3, _MAX_FACTOR)
    if _float32(high) <= _float32(low):
        raise section.refuse("high_freq_factor", f"more than low_freq_factor ({low:g})")
    length = section.integer(
        "original_max_position_embeddings", max_position_embeddings, 1, _MAX_POSITIONS
    )
    _refuse_other_keys(section)
    return RopeSpec(
        theta=theta,
        scaling="llama3",
        factor=factor,
        low_freq_factor=low,
        high_freq_factor=high,
        # A top-level length wins over the nested one in transformers.
        original_max_position_embeddings=original if original is not None else length,
    )


def _refuse_other_keys(section: ConfigReader) -> None:
    """Inside a rope object every key is mathematics: mscale, mrope_section, beta_fast, ..."""
    section.finish(every_key=True)


def _float32(value: float) -> float:
    """The nearest float32; what is computed with."""
    (nearest,) = struct.unpack("f", struct.pack("f", value))
    return float(nearest)


def inverse_frequencies(rope: RopeSpec, head_dim: int) -> NDArray[np.float32]:
    """Angles per position, (head_dim // 2,) float32, as transformers computes them on a CPU.

    Every step rounds to float32, since an angle is a position times this value and a last-bit
    difference grows with the position. The power is taken in float64 and rounded, so the value does
    not depend on a platform's float32 `pow`; it equals torch's to one unit in the last place.
    """
    import numpy as np

    exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    power = (np.float64(rope.theta) ** exponent.astype(np.float64)).astype(np.float32)
    frequency = np.float32(1.0) / power
    if rope.scaling == "linear":
        return np.asarray(frequency / np.float32(rope.factor), dtype=np.float32)
    if rope.scaling == "none":
        return frequency
    low, high = np.float32(rope.low_freq_factor), np.float32(rope.high_freq_factor)
    length = rope.original_max_position_embeddings
    wavelength = np.float32(2 * math.pi) / frequency
    divided = frequency / np.float32(rope.factor)
    smooth = (np.float32(length) / wavelength - low) / (high - low)
    blended = (np.float32(1) - smooth) * frequency / np.float32(rope.factor) + smooth * frequency
    is_long = wavelength > np.float32(length / rope.low_freq_factor)
    is_short = wavelength < np.float32(length / rope.high_freq_factor)
    result = np.where(is_long, divided, np.where(is_short, frequency, blended))
    return np.asarray(result, dtype=np.float32)
