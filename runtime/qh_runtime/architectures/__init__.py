"""Architectures: one file per model type, each with `spec_from_config(config) -> DecoderSpec`.

The folder is the registry: a file that is not named in `_SUPPORT` is an architecture and its name
is the `model_type`. May import `qh_runtime.errors` and `qh_kernels`; the loader, the planner, the
store and the reference decoder call it. Reading a config loads no NumPy.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

from qh_runtime.architectures.base import DecoderSpec, LayerSpec, LinearSpec, RopeSpec
from qh_runtime.architectures.config_reader import shown
from qh_runtime.architectures.decoder_shape import decoder_shape
from qh_runtime.errors import UnsupportedArchitectureError

__all__ = [
    "DecoderSpec",
    "LayerSpec",
    "LinearSpec",
    "RopeSpec",
    "decoder_shape",
    "model_types",
    "spec_from_config",
]

_SUPPORT = frozenset({"base", "config_reader", "decoder_shape", "llama_block", "rope"})


def model_types() -> tuple[str, ...]:
    """All supported model types, sorted."""
    found = {module.name for module in pkgutil.iter_modules(__path__)}
    return tuple(sorted(found - _SUPPORT))


def spec_from_config(config: Mapping[str, Any]) -> DecoderSpec:
    """The decoder that a parsed config.json describes, whatever its model type.

    `auto_map` (code that comes with a checkpoint) is never followed.

    Raises:
        UnsupportedArchitectureError: facts key, value and expected name what is not supported.
    """
    if not isinstance(config, Mapping):
        raise UnsupportedArchitectureError(
            f"config.json: expected an object, found {type(config).__name__}",
            hint="use the config.json of a Hugging Face checkpoint",
            key="",
            value=shown(config),
            expected="an object",
        )
    model_type = config.get("model_type")
    known = model_types()
    if isinstance(model_type, str) and model_type in known:
        module = importlib.import_module(f"{__name__}.{model_type}")
        spec = module.spec_from_config(config)
        assert isinstance(spec, DecoderSpec)
        return spec
    if config.get("text_config") is not None:
        message = f"model_type {shown(model_type)} wraps a text model in text_config"
        hint = "models with images or audio are not supported; use the text-only checkpoint"
    else:
        message = f"model_type: expected one of {', '.join(known)}, found {shown(model_type)}"
        hint = "choose a checkpoint of a supported architecture"
    raise UnsupportedArchitectureError(
        f"config.json: {message}",
        hint=hint,
        key="model_type",
        value=shown(model_type),
        expected=", ".join(known),
    )
