"""A BitNet checkpoint with random weights as a folder, to measure how fast a large model starts.

Written in the published layout (packed ternary, bf16 embedding) with a byte-level tokenizer of the
model's own vocabulary size, because a large tokenizer is part of a real start.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from qh_chat.benchmark.shapes import BenchShape

__all__ = ["write_bitnet_folder"]

_BLOCK_BYTES = 4 << 20
# Real vocabularies of this size have six letters a token on average.
_MAX_TOKEN_LETTERS = 8


def write_bitnet_folder(folder: Path, shape: BenchShape) -> int:
    """Write the folder, complete or not at all, and return the bytes of its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = list(_tensors(shape))
    header: dict[str, Any] = {}
    offset = 0
    for name, dtype, dims, nbytes in tensors:
        header[name] = {"dtype": dtype, "shape": dims, "data_offsets": [offset, offset + nbytes]}
        offset += nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    blocks = _Blocks()
    part = folder / "model.safetensors.part"
    with part.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, dtype, dims, nbytes in tensors:
            blocks.write(file, "ONE" if len(dims) == 1 else dtype, nbytes)
    config = {
        **shape.config,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "quantization_config": {
            "quant_method": "bitnet",
            "linear_class": "autobitlinear",
            "quantization_mode": "offline",
        },
    }
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    (folder / "tokenizer.json").write_text(json.dumps(_tokenizer(shape.spec.vocab_size)), "utf-8")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<s>", "eos_token": "</s>"}), "utf-8"
    )
    part.rename(folder / "model.safetensors")
    return offset


def _tensors(shape: BenchShape) -> Iterator[tuple[str, str, list[int], int]]:
    """(name, container type, dimensions, bytes) of every tensor."""
    spec = shape.spec

    def dense(name: str, *dims: int) -> tuple[str, str, list[int], int]:
        return name, "BF16", list(dims), 2 * int(np.prod(dims))

    yield dense(f"{spec.embedding}.weight", spec.vocab_size, spec.hidden_size)
    yield dense(spec.final_norm, spec.hidden_size)
    for layer in spec.layers:
        for linear in layer.linears:
            rows = -(-linear.out_features // 4)
            dims = [rows, linear.in_features]
            yield f"{linear.name}.weight", "U8", dims, rows * linear.in_features
            yield dense(f"{linear.name}.weight_scale", 1)
        yield dense(layer.attention_norm, spec.hidden_size)
        yield dense(layer.mlp_norm, spec.hidden_size)
        if layer.attention_sub_norm is not None:
            yield dense(layer.attention_sub_norm, spec.num_attention_heads * spec.head_dim)
        if layer.mlp_sub_norm is not None:
            yield dense(layer.mlp_sub_norm, spec.intermediate_size)


class _Blocks:
    """Valid bytes of each type, a few MiB that are written again and again."""

    def __init__(self) -> None:
        dice = np.random.default_rng(20261123)
        fields = [a | b << 2 | c << 4 | d << 6 for a in (0, 1, 2) for b in (0, 1, 2)
                  for c in (0, 1, 2) for d in (0, 1, 2)]  # fmt: skip
        valid = np.array(fields, np.uint8)
        codes = valid[dice.integers(0, len(valid), _BLOCK_BYTES, np.uint8)]
        values = (dice.standard_normal(_BLOCK_BYTES // 2) * 0.02).astype(np.float32)
        dense = (values.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
        # A norm weight or a scale of 1 keeps activations in range; in bf16 that is 0x3f80.
        one = np.full(1 << 16, 0x3F80, np.uint16)
        self._blocks: dict[str, NDArray[np.uint8]] = {
            "U8": codes,
            "BF16": dense.view(np.uint8),
            "ONE": one.view(np.uint8),
        }

    def write(self, file: BinaryIO, kind: str, nbytes: int) -> None:
        """Write nbytes of a kind: "U8" codes, "BF16" random weights, "ONE" norms and scales."""
        block = self._blocks[kind]
        while nbytes > 0:
            piece = block[: min(nbytes, block.nbytes)]
            file.write(piece.data)
            nbytes -= piece.nbytes


def _tokenizer(vocab_size: int) -> dict[str, Any]:
    """A byte-level BPE tokenizer with exactly vocab_size tokens, most of them from merges."""
    # The printable stand-ins of bytes that byte-level BPE uses (GPT-2's table).
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [x for x in range(256) if x not in plain]
    letters = [chr(x) for x in plain] + [chr(256 + i) for i in range(len(others))]
    vocab = {"<s>": 0, "</s>": 1}
    for letter in letters:
        vocab[letter] = len(vocab)
    merges: list[str] = []
    tokens = letters.copy()
    dice = np.random.default_rng(20261123)
    while len(vocab) < vocab_size:
        left, right = (tokens[int(x)] for x in dice.integers(0, min(len(tokens), 4000), 2))
        if len(left + right) <= _MAX_TOKEN_LETTERS and left + right not in vocab:
            vocab[left + right] = len(vocab)
            tokens.append(left + right)
            merges.append(f"{left} {right}")
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": i, "content": text, "special": True, **special}
            for i, text in enumerate(("<s>", "</s>"))
        ],
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    }
