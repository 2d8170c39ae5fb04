"""Small tokenizer.json files of the three common kinds, complete for every byte."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qh_runtime.tokenizers.detokenizer import BYTE_ALPHABET

__all__ = ["byte_level_file", "metaspace_file", "write_tokenizer"]

_WORDS = ("hello", "world", "the", "and", "im", "end", "start")


def _added(tokens: Sequence[str], first_id: int, special: bool = True) -> list[dict[str, Any]]:
    return [
        {
            "id": first_id + index,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": special,
        }
        for index, token in enumerate(tokens)
    ]


def _merges(vocab: dict[str, int], words: Sequence[str]) -> list[list[str]]:
    """Give each word a chain of merges from its left end; their results enter the vocabulary."""
    merges: list[list[str]] = []
    for word in words:
        for at in range(1, len(word)):
            pair = [word[:at], word[at]]
            if pair not in merges:
                merges.append(pair)
                vocab.setdefault(word[: at + 1], len(vocab))
    return merges


def byte_level_file(*, special: Sequence[str] = (), plain: Sequence[str] = ()) -> dict[str, Any]:
    """A byte-level BPE (GPT-2, Llama 3, Qwen) with some merges.

    Args:
        special: special added tokens.
        plain: added tokens that are not marked as special.
    """
    vocab = {char: index for index, char in enumerate(BYTE_ALPHABET)}
    merges = _merges(vocab, [*_WORDS, *("\u0120" + word for word in _WORDS)])
    first = len(vocab)
    level = {
        "type": "ByteLevel",
        "add_prefix_space": True,
        "trim_offsets": True,
        "use_regex": True,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            *_added(special, first),
            *_added(plain, first + len(special), special=False),
        ],
        "normalizer": None,
        "pre_tokenizer": {**level, "add_prefix_space": False},
        "post_processor": None,
        "decoder": level,
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    }


def metaspace_file(*, scheme: str = "first", legacy: bool = False) -> dict[str, Any]:
    """A SentencePiece-like BPE with byte fallback (Llama 2, Mistral, Gemma).

    Args:
        scheme: prepend_scheme of Metaspace.
        legacy: normalizers and a decoder sequence instead of Metaspace, as Llama 2 was exported.
    """
    specials = ["<unk>", "<s>", "</s>"]
    vocab = {token: index for index, token in enumerate(specials)}
    for byte in range(256):
        vocab[f"<0x{byte:02X}>"] = len(vocab)
    for char in "\u2581abcdefghijklmnopqrstuvwxyzHWT.,!<>/0123456789":
        vocab[char] = len(vocab)
    merges = _merges(vocab, [*_WORDS, *("\u2581" + word for word in _WORDS), "\u2581\u2581"])
    metaspace = {
        "type": "Metaspace",
        "replacement": "\u2581",
        "prepend_scheme": scheme,
        "split": False,
    }
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if scheme != "never":
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    normalizer = {
        "type": "Sequence",
        "normalizers": [
            {"type": "Prepend", "prepend": "\u2581"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
        ],
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added(specials, 0),
        "normalizer": normalizer if legacy else None,
        "pre_tokenizer": None if legacy else metaspace,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "<s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [
                {"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {"type": "Sequence", "decoders": steps},
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocab,
            "merges": merges,
        },
    }


def write_tokenizer(folder: Path, data: dict[str, Any], **config: Any) -> Path:
    """Write tokenizer.json, and tokenizer_config.json with the given keys; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(data), "utf-8")
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    return folder
