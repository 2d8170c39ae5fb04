"""Random weights for a DecoderSpec, in memory or as a checkpoint folder; no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qh_runtime.architectures import DecoderSpec, spec_from_config
from qh_runtime.formats.bf16 import f32_to_bf16
from tests.support.safetensors_bytes import file_bytes

__all__ = ["config", "random_tensors", "spec_of", "stored", "write_checkpoint", "write_tensors"]

# Container type name and array.
Tensors = dict[str, tuple[str, NDArray[Any]]]


def config(model_type: str = "llama", **changes: Any) -> dict[str, Any]:
    """A small config.json; no size is a multiple of tiles, groups or paddings."""
    return {
        "model_type": model_type,
        "vocab_size": 83,
        "hidden_size": 72,
        "intermediate_size": 100,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 18,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        **changes,
    }


def spec_of(**changes: Any) -> DecoderSpec:
    """The spec of `config`."""
    return spec_from_config(config(**changes))


def stored(values: NDArray[np.float32], dtype: str) -> tuple[str, NDArray[Any]]:
    """Values in a container type: "F32", "F16" or "BF16"."""
    if dtype == "BF16":
        return dtype, f32_to_bf16(values)
    return dtype, values.astype(np.float16 if dtype == "F16" else np.float32)


def random_tensors(spec: DecoderSpec, *, seed: int = 1, dtype: str = "BF16") -> Tensors:
    """Every tensor of a dense checkpoint of this spec."""
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {
        f"{spec.embedding}.weight": (spec.vocab_size, spec.hidden_size),
        spec.final_norm: (spec.hidden_size,),
    }
    if not spec.tied_head:
        shapes[f"{spec.head.name}.weight"] = (spec.vocab_size, spec.hidden_size)
    for layer in spec.layers:
        for linear in layer.linears:
            shapes[f"{linear.name}.weight"] = (linear.out_features, linear.in_features)
            if linear.bias:
                shapes[f"{linear.name}.bias"] = (linear.out_features,)
        heads = spec.num_attention_heads * spec.head_dim
        for name, size in (
            (layer.attention_norm, spec.hidden_size),
            (layer.mlp_norm, spec.hidden_size),
            (layer.q_norm, spec.head_dim),
            (layer.k_norm, spec.head_dim),
            (layer.attention_sub_norm, heads),
            (layer.mlp_sub_norm, spec.intermediate_size),
        ):
            if name is not None:
                shapes[name] = (size,)
    return {
        name: stored(rng.standard_normal(shape).astype(np.float32) * np.float32(0.05), dtype)
        for name, shape in shapes.items()
    }


def write_tensors(
    path: Path, tensors: Mapping[str, tuple[str, NDArray[Any]]], *, misaligned_by: int = 0
) -> None:
    """A safetensors file in the given order; data begins at a multiple of 8 or beside it."""
    header: dict[str, Any] = {}
    data = b""
    for name, (dtype, array) in tensors.items():
        raw = array.tobytes()
        span = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": span}
        data += raw
    text = json.dumps(header)
    path.write_bytes(file_bytes(text + " " * (-len(text) % 8 + misaligned_by), data))


def write_checkpoint(
    folder: Path, settings: Mapping[str, Any], tensors: Mapping[str, tuple[str, NDArray[Any]]]
) -> Path:
    """config.json and model.safetensors in a folder, which is made and returned."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(settings))
    write_tensors(folder / "model.safetensors", tensors)
    return folder
