"""Layouts: what the raw tensors of a quantization scheme mean; one file per scheme.

A layout turns config and raw tensors into dense elements or into codes and scales of a weight
format; it has no arithmetic of its own beyond that. What a linear layer holds is decided from its
tensors, never from a skip list in the config.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qh_runtime.checkpoints.layouts.base import CodedWeights, DenseWeights, Layout, LinearWeights
from qh_runtime.checkpoints.layouts.bitnet import BitnetLayout, is_original_bitnet
from qh_runtime.checkpoints.layouts.dense import DenseLayout
from qh_runtime.checkpoints.schemes import require_known_scheme

__all__ = ["CodedWeights", "DenseWeights", "Layout", "LinearWeights", "layout_for"]


def layout_for(config: Mapping[str, Any]) -> Layout:
    """The layout that a config.json asks for.

    Raises:
        UnsupportedTensorError: another quantization method. Facts: quant_method, supported.
        CheckpointError: a key of the quantization_config has the wrong type or value.
    """
    section = require_known_scheme(config)
    if section:
        return BitnetLayout.from_config(section)
    return BitnetLayout.masters() if is_original_bitnet(config) else DenseLayout()
