"""Quantization schemes by the name that config.json gives them; knows no tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qh_runtime.checkpoints.config import read_key
from qh_runtime.checkpoints.strict_json import quoted
from qh_runtime.errors import UnsupportedTensorError

__all__ = ["require_known_scheme"]

_KNOWN = ("bitnet",)


def require_known_scheme(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the quantization_config of a config.json, {} where there is none.

    Raises:
        UnsupportedTensorError: a scheme that no layout reads. Facts: quant_method, supported.
        CheckpointError: a key has the wrong type.
    """
    section: dict[str, Any] = read_key(config, dict, "quantization_config", {})
    if not section:
        return section
    method = read_key(section, str, "quant_method", "", where="quantization_config")
    if method not in _KNOWN:
        raise UnsupportedTensorError(
            f"quantization_config: quant_method: expected {' or '.join(_KNOWN)} or no "
            f"quantization, found {quoted(method)}",
            hint="choose a 16-bit or BitNet checkpoint of this model",
            quant_method=method,
            supported=_KNOWN,
        )
    return section
