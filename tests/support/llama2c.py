"""Checkpoints of llama2.c as configs, tensors and Hugging Face folders.

llama2.c rotates the interleaved pairs (2i, 2i + 1) of a head, Hugging Face the pairs
(i, i + head_dim / 2); the rows of the query and key projections are permuted accordingly.
Source: Karpathy 2023, llama2.c: run.c (version 0), runq.c (version 2) and tokenizer.py.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

__all__ = [
    "encode_greedy",
    "read_pieces",
    "read_version0",
    "read_version2",
    "sentencepiece_tokenizer",
    "write_folder",
]

F32 = NDArray[np.float32]
_MAGIC = 0x616B3432
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6
_SPACE = "\u2581"


class _Reader:
    def __init__(self, data: bytes, offset: int) -> None:
        self._data, self._offset = data, offset

    def floats(self, *shape: int) -> F32:
        count = int(np.prod(shape))
        values = np.frombuffer(self._data, "<f4", count, self._offset)
        self._offset += 4 * count
        return values.reshape(shape).astype(np.float32)

    def int8_groups(self, group: int, *shape: int) -> F32:
        count = int(np.prod(shape))
        codes = np.frombuffer(self._data, np.int8, count, self._offset).astype(np.float32)
        self._offset += count
        scales = self.floats(count // group)
        return (codes.reshape(-1, group) * scales[:, None]).reshape(shape)

    def skip(self, nbytes: int) -> None:
        self._offset += nbytes

    def end(self) -> None:
        assert self._offset == len(self._data), f"{len(self._data) - self._offset} bytes are left"


def _config(header: tuple[int, ...], tied: bool) -> dict[str, Any]:
    dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len = header
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": dim,
        "intermediate_size": hidden_dim,
        "num_hidden_layers": n_layers,
        "num_attention_heads": n_heads,
        "num_key_value_heads": n_kv_heads,
        "vocab_size": abs(vocab_size),
        "max_position_embeddings": seq_len,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float32",
    }


def _half_split(weight: F32, n_heads: int) -> F32:
    rows, cols = weight.shape
    pairs = weight.reshape(n_heads, rows // n_heads // 2, 2, cols)
    return np.ascontiguousarray(pairs.transpose(0, 2, 1, 3).reshape(rows, cols))


def _tensors(config: dict[str, Any], parts: dict[str, Any]) -> dict[str, F32]:
    tensors = {
        "model.embed_tokens.weight": parts["embedding"],
        "model.norm.weight": parts["final_norm"],
    }
    if not config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = parts["head"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    for index in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{index}"
        tensors |= {
            f"{prefix}.input_layernorm.weight": parts["attention_norm"][index],
            f"{prefix}.post_attention_layernorm.weight": parts["mlp_norm"][index],
            f"{prefix}.self_attn.q_proj.weight": _half_split(parts["q"][index], heads),
            f"{prefix}.self_attn.k_proj.weight": _half_split(parts["k"][index], kv_heads),
            f"{prefix}.self_attn.v_proj.weight": parts["v"][index],
            f"{prefix}.self_attn.o_proj.weight": parts["o"][index],
            f"{prefix}.mlp.gate_proj.weight": parts["w1"][index],
            f"{prefix}.mlp.down_proj.weight": parts["w2"][index],
            f"{prefix}.mlp.up_proj.weight": parts["w3"][index],
        }
    return tensors


def _matrix_shapes(config: dict[str, Any]) -> dict[str, tuple[int, int]]:
    dim, hidden_dim = config["hidden_size"], config["intermediate_size"]
    kv_dim = dim // config["num_attention_heads"] * config["num_key_value_heads"]
    return {
        "q": (dim, dim),
        "k": (kv_dim, dim),
        "v": (kv_dim, dim),
        "o": (dim, dim),
        "w1": (hidden_dim, dim),
        "w2": (dim, hidden_dim),
        "w3": (hidden_dim, dim),
    }


def read_version0(path: Path) -> tuple[dict[str, Any], dict[str, F32]]:
    """(config, tensors under Hugging Face names) of a float32 checkpoint."""
    data = path.read_bytes()
    header = struct.unpack("<7i", data[:28])
    config = _config(header, tied=header[5] > 0)
    layers, dim = config["num_hidden_layers"], config["hidden_size"]
    reader = _Reader(data, 28)
    shapes = _matrix_shapes(config)
    parts: dict[str, Any] = {"embedding": reader.floats(config["vocab_size"], dim)}
    parts["attention_norm"] = reader.floats(layers, dim)
    for name in ("q", "k", "v", "o"):
        parts[name] = reader.floats(layers, *shapes[name])
    parts["mlp_norm"] = reader.floats(layers, dim)
    for name in ("w1", "w2", "w3"):
        parts[name] = reader.floats(layers, *shapes[name])
    parts["final_norm"] = reader.floats(dim)
    # Tables of cosines and sines, which later versions compute.
    reader.skip(4 * config["max_position_embeddings"] * (dim // config["num_attention_heads"]))
    if not config["tie_word_embeddings"]:
        parts["head"] = reader.floats(config["vocab_size"], dim)
    reader.end()
    return config, _tensors(config, parts)


def read_version2(path: Path) -> tuple[dict[str, Any], dict[str, F32]]:
    """(config, dequantized tensors under Hugging Face names) of an int8 checkpoint."""
    data = path.read_bytes()
    magic, version, *header = struct.unpack("<Ii7i", data[:36])
    assert (magic, version) == (_MAGIC, 2), f"{path.name}: not a version 2 checkpoint"
    tied, group = struct.unpack("<Bi", data[36:41])
    config = _config(tuple(header), tied=bool(tied))
    layers, dim = config["num_hidden_layers"], config["hidden_size"]
    reader = _Reader(data, 256)
    parts: dict[str, Any] = {
        "attention_norm": reader.floats(layers, dim),
        "mlp_norm": reader.floats(layers, dim),
        "final_norm": reader.floats(dim),
        "embedding": reader.int8_groups(group, config["vocab_size"], dim),
    }
    for name, shape in _matrix_shapes(config).items():
        parts[name] = [reader.int8_groups(group, *shape) for _ in range(layers)]
    if not tied:
        parts["head"] = reader.int8_groups(group, config["vocab_size"], dim)
    reader.end()
    return config, _tensors(config, parts)


def _fields(data: bytes) -> list[tuple[int, Any]]:
    """(field number, value) of a protocol buffer message; floats as float, bytes as bytes."""

    def varint(at: int) -> tuple[int, int]:
        value, shift = 0, 0
        while True:
            byte = data[at]
            value |= (byte & 127) << shift
            at, shift = at + 1, shift + 7
            if byte < 128:
                return value, at

    fields: list[tuple[int, Any]] = []
    at = 0
    while at < len(data):
        key, at = varint(at)
        kind = key & 7
        if kind == 0:
            value, at = varint(at)
            fields.append((key >> 3, value))
        elif kind == 5:
            fields.append((key >> 3, struct.unpack("<f", data[at : at + 4])[0]))
            at += 4
        elif kind == 2:
            length, at = varint(at)
            fields.append((key >> 3, data[at : at + length]))
            at += length
        else:
            raise ValueError(f"wire type {kind} at byte {at}")
    return fields


def read_pieces(path: Path) -> list[tuple[str, float, int]]:
    """(piece, score, type) of a SentencePiece model, in the order of ids."""
    pieces = []
    for number, value in _fields(path.read_bytes()):
        if number == 1:
            found = dict(_fields(value))
            pieces.append((found[1].decode(), float(found.get(2, 0.0)), int(found.get(3, _NORMAL))))
    return pieces


def sentencepiece_tokenizer(path: Path) -> Tokenizer:
    """A tokenizer with the ids of a SentencePiece BPE model with byte fallback."""
    pieces = read_pieces(path)
    vocab = {piece: index for index, (piece, _, _) in enumerate(pieces)}
    merges: list[tuple[str, str]] = []
    normal = [(score, piece) for piece, score, kind in pieces if kind == _NORMAL]
    # The score of a piece is minus the rank of the merge that makes it.
    for _, piece in sorted(normal, key=lambda x: -x[0]):
        splits = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        merges += sorted((s for s in splits if s[0] in vocab and s[1] in vocab), key=_ids(vocab))
    tokenizer = Tokenizer(
        models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(_SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(
        [
            AddedToken(piece, special=True, normalized=False)
            for piece, _, kind in pieces
            if kind in (_UNKNOWN, _CONTROL)
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", vocab["<s>"])]
    )
    return tokenizer


def _ids(vocab: dict[str, int]) -> Any:
    return lambda split: (vocab[split[0]], vocab[split[1]])


def encode_greedy(text: str, pieces: list[tuple[str, float, int]]) -> list[int]:
    """Token ids as llama2.c finds them: join the adjacent pair with the best score, repeatedly."""
    vocab = {piece: index for index, (piece, _, _) in enumerate(pieces)}
    ids: list[int] = []
    for character in (_SPACE + text.replace(" ", _SPACE)) if text else "":
        if character in vocab:
            ids.append(vocab[character])
        else:
            ids += [vocab[f"<0x{byte:02X}>"] for byte in character.encode()]
    while True:
        candidates = [
            (-pieces[joined][1], at, joined)
            for at in range(len(ids) - 1)
            if (joined := vocab.get(pieces[ids[at]][0] + pieces[ids[at + 1]][0])) is not None
        ]
        if not candidates:
            return [vocab["<s>"], *ids]
        _, at, joined = min(candidates)
        ids[at : at + 2] = [joined]


def write_folder(
    config: dict[str, Any], tensors: dict[str, F32], tokenizer: Tokenizer, folder: Path
) -> Path:
    """A Hugging Face checkpoint folder; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "bos_token": "<s>",
                "eos_token": "</s>",
                "unk_token": "<unk>",
                "add_bos_token": True,
                "tokenizer_class": "PreTrainedTokenizerFast",
            }
        )
    )
    (folder / "generation_config.json").write_text(
        json.dumps({"bos_token_id": 1, "eos_token_id": 2})
    )
    return folder
