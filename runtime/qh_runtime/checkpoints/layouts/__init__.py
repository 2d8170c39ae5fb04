"""Layouts: what the raw tensors of a quantization scheme mean; one file per scheme.

A layout turns config and raw tensors into dense elements or into codes and scales of a weight
format; it has no arithmetic of its own beyond that. What a linear layer holds is decided from its
tensors, never from a skip list in the config.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qh_runtime.checkpoints.config import read_key
from qh_runtime.checkpoints.layouts.base import CodedWeights, DenseWeights, Layout, LinearWeights
from qh_runtime.checkpoints.layouts.bitnet import BitnetLayout, is_original_bitnet
from qh_runtime.checkpoints.layouts.dense import DenseLayout
from qh_runtime.checkpoints.strict_json import quoted
from qh_runtime.errors import UnsupportedTensorError

__all__ = ["CodedWeights", "DenseWeights", "Layout", "LinearWeights", "layout_for"]


def layout_for(config: Mapping[str, Any]) -> Layout:
    """The layout that a config.json asks for.

    Raises:
        UnsupportedTensorError: another quantization method. Facts: quant_method, supported.
        CheckpointError: a key of the quantization_config has the wrong type or value.
    """
    section = read_key(config, dict, "quantization_config", {})
    if not section:
        return BitnetLayout.masters() if is_original_bitnet(config) else DenseLayout()
    method = read_key(section, str, "quant_method", "", where="quantization_config")
    if method == "bitnet":
        return BitnetLayout.from_config(section)
    raise UnsupportedTensorError(
        f"quantization_config: quant_method: expected bitnet or no quantization, "
        f"found {quoted(method)}",
        hint="choose a 16-bit or BitNet checkpoint of this model",
        quant_method=method,
        supported=("bitnet",),
    )
