"""Tiny real models as a hub publishes them: names and bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.support.cli import write_tiny_model
from tests.support.model_tensors import Tensors, config, random_tensors, spec_of
from tests.support.safetensors_bytes import file_bytes

__all__ = ["INDEX", "dense", "index_of", "published", "sharded", "ternary", "weights"]

INDEX = "model.safetensors.index.json"
VOCAB = 400
DENSE = {"vocab_size": VOCAB, "bos_token_id": 0, "eos_token_id": 1}


@cache
def _ternary(**changes: Any) -> dict[str, bytes]:
    with TemporaryDirectory() as folder:
        model = write_tiny_model(Path(folder), **changes)
        return {x.name: x.read_bytes() for x in sorted(model.iterdir())}


def ternary(**changes: Any) -> dict[str, bytes]:
    """A packed ternary model with its tokenizer."""
    return dict(_ternary(**changes))


def published(settings: Mapping[str, Any], shards: Mapping[str, bytes]) -> dict[str, bytes]:
    """These settings and weights, with a sound tokenizer."""
    side = {k: v for k, v in ternary().items() if k.startswith("tokenizer")}
    return {"config.json": json.dumps(settings).encode(), **side, **shards}


def dense(tensors: Tensors | None = None, **changes: Any) -> dict[str, bytes]:
    """A small Llama in one file, bfloat16."""
    settings = config(**{**DENSE, **changes})
    if tensors is None:
        tensors = random_tensors(spec_of(**{**DENSE, **changes}))
    return published(settings, {"model.safetensors": weights(tensors)})


def sharded(count: int = 3) -> dict[str, bytes]:
    """The small Llama in shards."""
    tensors = random_tensors(spec_of(**DENSE))
    names = [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    parts = {
        shard: {x: tensors[x] for x in list(tensors)[i::count]} for i, shard in enumerate(names)
    }
    files = {shard: weights(part) for shard, part in parts.items()}
    return published(config(**DENSE), {INDEX: index_of(parts), **files})


def index_of(parts: Mapping[str, Sequence[str] | Mapping[str, Any]]) -> bytes:
    """The index of shards."""
    weight_map = {name: shard for shard, names in parts.items() for name in names}
    return json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}).encode()


def weights(tensors: Mapping[str, tuple[str, NDArray[np.generic]]]) -> bytes:
    """A safetensors file."""
    header: dict[str, Any] = {}
    data = b""
    for name, (dtype, array) in tensors.items():
        raw = array.tobytes()
        span = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": span}
        data += raw
    return file_bytes(header, data)
