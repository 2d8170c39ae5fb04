"""bitnet: the three ways in which Hugging Face files hold BitNet b1.58 layers.

    packed, divide     `.weight` U8 (ceil(N/4), K) and `.weight_scale` = 1 / s   ("bitlinear")
    packed, multiply   the same with `.weight_scale` = s                (offline "autobitlinear")
    masters            `.weight` float (N, K), quantized here: s = max(mean|W|, 1e-5)   (online)

Packed bytes hold four rows, R = ceil(N/4) apart: bits 2i..2i+1 of byte [r, k] are T[iR + r, k] + 1;
field value 3 is never written. Which of the three a layer is follows from its tensors; whether a
scale divides is not in the tensors, only in the config: multiply where linear_class is
autobitlinear, divide otherwise, whatever the architecture, as transformers does.

Source: transformers 5.23, integrations/bitnet.py (layout); Ma et al. 2024 (quantizer).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qh_runtime.checkpoints.config import read_key
from qh_runtime.checkpoints.layouts.base import CodedWeights, DenseWeights, LinearWeights
from qh_runtime.checkpoints.layouts.dense import check_shape, dense_format, dense_matrix
from qh_runtime.checkpoints.reader import TensorInfo, TensorSource
from qh_runtime.checkpoints.strict_json import quoted
from qh_runtime.errors import CheckpointError, UnsupportedTensorError
from qh_runtime.formats import get
from qh_runtime.formats.families.dense import DenseFormat
from qh_runtime.formats.ternary import absmean, ternary_codes

__all__ = ["BitnetLayout", "is_original_bitnet", "unpack_rows_apart"]

_WHERE = "quantization_config"
# Rows quantized at a time: bounds the float32 copy of a master tensor.
_CHUNK_WEIGHTS = 1 << 20


def is_original_bitnet(config: Mapping[str, Any]) -> bool:
    """Whether a config without quantization_config is of the first BitNet release.

    Those files hold float masters that must be quantized on load; they say so by the class name
    BitnetForCausalLM (small n) or by `weight_bits: 1`.
    """
    names = config.get("architectures")
    by_name = isinstance(names, list) and "BitnetForCausalLM" in names
    bits = config.get("weight_bits")
    return by_name or (type(bits) is int and bits == 1)


@dataclass(frozen=True)
class BitnetLayout:
    """BitNet layers.

    Attributes:
        multiply: a packed layer's weight_scale is s; otherwise it is 1 / s.
        online: a float `.weight` is a master to be quantized; otherwise it is a dense layer.
    """

    multiply: bool
    online: bool

    @classmethod
    def masters(cls) -> BitnetLayout:
        """Float masters without a quantization_config."""
        return cls(multiply=True, online=True)

    @classmethod
    def from_config(cls, section: Mapping[str, Any]) -> BitnetLayout:
        """The layout that a quantization_config describes.

        Raises:
            CheckpointError: a key has the wrong type or value. Facts: key, expected, found.
            UnsupportedTensorError: use_rms_norm.
        """
        linear_class = _one_of(section, "linear_class", "bitlinear", "autobitlinear")
        mode = _one_of(section, "quantization_mode", "offline", "online")
        if read_key(section, bool, "use_rms_norm", False, where=_WHERE):
            raise UnsupportedTensorError(
                f"{_WHERE}: use_rms_norm: expected false, found true: a norm inside every linear "
                "layer is not supported",
                hint="choose a checkpoint without it",
                key="use_rms_norm",
            )
        auto = linear_class == "autobitlinear"
        return cls(multiply=auto, online=auto and mode == "online")

    @property
    def key(self) -> str:
        """See Layout."""
        scale = "multiply" if self.multiply else "divide"
        return f"bitnet {scale} {'online' if self.online else 'offline'}"

    def format_of(self, source: TensorSource, name: str) -> str:
        """See Layout."""
        info = self._weight(source, name)
        if info.dtype == "U8":
            return "ternary"
        dense = dense_format(info)
        return "ternary" if self.online else dense

    def tensors_of(self, source: TensorSource, name: str) -> tuple[str, ...]:
        """See Layout."""
        if self._weight(source, name).dtype == "U8":
            return (f"{name}.weight", f"{name}.weight_scale")
        return (f"{name}.weight",)

    def check(self, source: TensorSource, name: str, shape: tuple[int, int]) -> None:
        """See Layout."""
        info = self._weight(source, name)
        if info.dtype == "U8":
            check_shape(info, (-(-shape[0] // 4), shape[1]))
            self._scale(source, name)
        else:
            check_shape(info, shape)

    def linear(self, source: TensorSource, name: str, shape: tuple[int, int]) -> LinearWeights:
        """See Layout."""
        self.check(source, name, shape)
        if self._weight(source, name).dtype == "U8":
            packed = source.read(f"{name}.weight")
            if _has_field_three(packed):
                raise CheckpointError(
                    f"{name}.weight: expected 2-bit fields 0, 1 or 2, found 3",
                    hint="the file is damaged or not a BitNet checkpoint",
                    tensor=f"{name}.weight",
                    expected="0, 1 or 2",
                    found=3,
                )
            return CodedWeights(
                "ternary", unpack_rows_apart(packed, shape[0]), self._scale(source, name)
            )
        dense = dense_matrix(source, f"{name}.weight", shape)
        return _quantize_masters(name, dense) if self.online else dense

    def _weight(self, source: TensorSource, name: str) -> TensorInfo:
        info = source.info(f"{name}.weight")
        if info.dtype == "U8" and f"{name}.rms_norm.weight" in source:
            raise UnsupportedTensorError(
                f"{name}.rms_norm.weight: a norm inside a linear layer is not supported",
                hint="choose a checkpoint without it",
                tensor=f"{name}.rms_norm.weight",
                dtype=info.dtype,
            )
        return info

    def _scale(self, source: TensorSource, name: str) -> NDArray[np.float32]:
        """s of a packed layer, float32 ()."""
        tensor = f"{name}.weight_scale"
        info = source.info(tensor)
        stored = get(dense_format(info))
        if info.shape not in ((), (1,)):
            raise CheckpointError(
                f"{tensor}: shape: expected [1], found {list(info.shape)}",
                hint="this BitNet variant is not supported",
                tensor=tensor,
                expected=(1,),
                found=info.shape,
            )
        assert isinstance(stored, DenseFormat)
        value = float(stored.decode(source.read(tensor).reshape(1))[0])
        scale = value if self.multiply else (1 / value if value else float("inf"))
        if not 0 < scale < 1e30 or not 0 < value < 1e30:
            raise CheckpointError(
                f"{tensor}: expected a positive finite scale, found {value}",
                hint="the file is damaged",
                tensor=tensor,
                expected="0 < scale < 1e30",
                found=value,
            )
        return np.asarray(scale, np.float32)


def unpack_rows_apart(packed: NDArray[np.uint8], rows: int) -> NDArray[np.int8]:
    """Codes int8 (rows, K) of packed bytes (ceil(rows / 4), K); see the drawing above."""
    quarter = packed.shape[0]
    out = np.empty((4 * quarter, packed.shape[1]), np.uint8)
    for i in range(4):
        part = out[i * quarter : (i + 1) * quarter]
        np.right_shift(packed, 2 * i, out=part)
        part &= 3
    out -= 1
    return out.view(np.int8)[:rows]


def _has_field_three(packed: NDArray[np.uint8]) -> bool:
    for begin in range(0, len(packed), 256):
        part = packed[begin : begin + 256]
        if (part & (part >> 1) & 0x55).any():
            return True
    return False


def _quantize_masters(name: str, dense: DenseWeights) -> CodedWeights:
    stored = get(dense.format)
    assert isinstance(stored, DenseFormat)
    rows, cols = dense.elements.shape
    step = max(1, _CHUNK_WEIGHTS // cols)

    def chunks() -> Iterator[NDArray[np.float32]]:
        for begin in range(0, rows, step):
            yield stored.decode(dense.elements[begin : begin + step])

    scale = absmean(chunks())
    if not np.isfinite(scale):
        raise CheckpointError(
            f"{name}.weight: expected finite weights, found mean magnitude {scale}",
            hint="the file is damaged",
            tensor=f"{name}.weight",
        )
    codes = np.empty((rows, cols), np.int8)
    for begin, chunk in zip(range(0, rows, step), chunks(), strict=True):
        codes[begin : begin + step] = ternary_codes(chunk, scale)
    return CodedWeights("ternary", codes, np.asarray(scale, np.float32))


def _one_of(section: Mapping[str, Any], key: str, default: str, other: str) -> str:
    value = read_key(section, str, key, default, where=_WHERE)
    if value not in (default, other):
        raise CheckpointError(
            f"{_WHERE}: {key}: expected {default} or {other}, found {quoted(value)}",
            hint="this BitNet variant is not supported",
            key=key,
            expected=(default, other),
            found=value,
        )
    return value
