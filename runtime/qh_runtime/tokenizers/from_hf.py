"""Loads the tokenizer of a Hugging Face model folder: tokenizer.json and the files around it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from qh_runtime.checkpoints.strict_json import quoted
from qh_runtime.errors import TokenizerError
from qh_runtime.tokenizers.chat_tokenizer import ChatTokenizer, convert_panic
from qh_runtime.tokenizers.detokenizer import byte_rules
from qh_runtime.tokenizers.tokenizer_file import (
    MAX_TOKEN_ID,
    read_json_object,
    read_tokenizer_file,
)

__all__ = ["load_tokenizer"]

_ROLES = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token")
# Tokens that end a turn in the families we know; they count when the vocabulary has them as added
# tokens, because generation_config.json often names only one of them.
# Source: the chat templates of Llama 3, Qwen, Gemma, Phi 3, gpt-oss, Mistral.
_END_TOKENS = (
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<end_of_turn>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|end_of_text|>",
    "<|endoftext|>",
)
_MARKUP = re.compile(r"[<\[{|\u2581\uff5c].*[>\]}|\uff5c]", re.DOTALL)
# Characters that have broken tokenizers: empty, spaces, several bytes, joins, digits, controls.
_PROBES = ("", " ", "a", "Hello world", "\n\n", "caf\u00e9 \u4f60 \U0001f44b\u200d", "0\x00\x7f")


def load_tokenizer(folder: Path) -> ChatTokenizer:
    """Return the tokenizer of a model folder, checked and probed.

    Reads tokenizer.json (required), tokenizer_config.json, special_tokens_map.json,
    added_tokens.json is not needed, generation_config.json and config.json (for the end tokens).

    Raises:
        TokenizerError: a file is missing, malformed, or makes the tokenizers library fail. Facts:
            path and field, or what and cause.
    """
    data, text = read_tokenizer_file(folder)
    config = read_json_object(folder, "tokenizer_config.json")
    tokenizer = convert_panic(lambda: Tokenizer.from_str(text), "load")
    # A file may ask to cut texts short or pad them; a chat wants neither.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    _probe(tokenizer)
    special = _special_tokens(config, read_json_object(folder, "special_tokens_map.json"))
    eos = _eos_ids(
        tokenizer,
        special,
        read_json_object(folder, "generation_config.json"),
        read_json_object(folder, "config.json"),
    )
    special = {role: token for role, token in special.items() if _known(tokenizer, token)}
    extra = _extra_special(config)
    control = _control_ids(tokenizer, {*special.values(), *extra}, eos)
    result = ChatTokenizer(
        tokenizer,
        rules=byte_rules(data.get("decoder")),
        special_tokens=special,
        eos_ids=eos,
        add_bos=_adds_bos(tokenizer, config, special),
        prefix_space=_has_prefix_space(data),
        control_ids=control,
        unknown_id=_unknown_id(tokenizer, data["model"]),
    )
    for probe in _PROBES:
        ids = result.encode_text(probe)
        result.decode(ids)
    return result


def _known(tokenizer: Tokenizer, token: str) -> bool:
    return tokenizer.token_to_id(token) is not None


def _probe(tokenizer: Tokenizer) -> None:
    """Encode and decode what is known to break tokenizers, now instead of in the first chat."""
    for text in _PROBES:
        ids = convert_panic(lambda t=text: tokenizer.encode(t).ids, "probe encode")  # type: ignore[misc]
        convert_panic(lambda i=ids: tokenizer.decode(i), "probe decode")  # type: ignore[misc]
        if any(not 0 <= token_id < MAX_TOKEN_ID for token_id in ids):
            raise TokenizerError(
                f"tokenizer.json: probe encode: expected ids below 2^21, found {max(ids)}",
                hint="the file is damaged; download the tokenizer again",
                field="ids",
                found=max(ids),
            )


def _token_text(value: object) -> str | None:
    """Return the string of a token entry: "x" or {"content": "x", ...}."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) and value else None


def _special_tokens(config: Mapping[str, Any], mapping: Mapping[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for role in _ROLES:
        token = _token_text(config.get(role)) or _token_text(mapping.get(role))
        if token is not None:
            found[role] = token
    return found


def _extra_special(config: Mapping[str, Any]) -> set[str]:
    extra = config.get("additional_special_tokens", config.get("extra_special_tokens"))
    values: Iterable[object] = ()
    if isinstance(extra, Mapping):
        values = extra.values()
    elif isinstance(extra, list):
        values = extra
    return {token for value in values if (token := _token_text(value)) is not None}


def _eos_ids(
    tokenizer: Tokenizer,
    special: Mapping[str, str],
    generation: Mapping[str, Any],
    config: Mapping[str, Any],
) -> frozenset[int]:
    """Return the union of what the files name and the known end-of-turn tokens that exist."""
    top = max(tokenizer.get_vocab(with_added_tokens=True).values())
    ids: set[int] = set()
    for name, source in (("generation_config.json", generation), ("config.json", config)):
        value = source.get("eos_token_id")
        for item in value if isinstance(value, list) else [value]:
            if item is None:
                continue
            if type(item) is not int or not 0 <= item < MAX_TOKEN_ID:
                raise TokenizerError(
                    f"{name}: eos_token_id: expected ids in 0..2^21-1, found {quoted(item)}",
                    hint="correct the file or download it again",
                    path=name,
                    field="eos_token_id",
                    expected="ids in 0..2^21-1",
                    found=quoted(item),
                )
            if item <= top:
                ids.add(item)
    eos = special.get("eos_token")
    if eos is not None and (eos_id := tokenizer.token_to_id(eos)) is not None:
        ids.add(eos_id)
    for token_id, added in tokenizer.get_added_tokens_decoder().items():
        if added.content in _END_TOKENS:
            ids.add(token_id)
    return frozenset(ids)


def _control_ids(tokenizer: Tokenizer, named: set[str], eos_ids: frozenset[int]) -> dict[int, str]:
    """Return id -> text of every token that message text must not produce.

    These are the special added tokens, the tokens that a file gives a role, the end tokens, and
    added tokens that look like markup ("<think>", "[TOOL_CALLS]") although they are not marked as
    special. Runs of spaces and plain words that were added to a vocabulary are ordinary text.
    """
    control: dict[int, str] = {}
    for token_id, added in tokenizer.get_added_tokens_decoder().items():
        text = added.content
        markup = len(text) > 2 and _MARKUP.fullmatch(text) is not None
        if added.special or text in named or token_id in eos_ids or markup:
            control[token_id] = text
    for text in named:
        if (named_id := tokenizer.token_to_id(text)) is not None:
            control[named_id] = text
    for token_id in eos_ids:
        if name := tokenizer.id_to_token(token_id):
            control.setdefault(token_id, name)
    return control


def _unknown_id(tokenizer: Tokenizer, model: Mapping[str, Any]) -> int | None:
    """Return the id that the model gives for what it does not know."""
    unk = model.get("unk_id") if model.get("type") == "Unigram" else model.get("unk_token")
    return tokenizer.token_to_id(unk) if isinstance(unk, str) else unk


def _adds_bos(tokenizer: Tokenizer, config: Mapping[str, Any], special: Mapping[str, str]) -> bool:
    """Return whether raw text starts with bos: the config's word, else the post-processor's."""
    bos = special.get("bos_token")
    if bos is None:
        return False
    stated = config.get("add_bos_token")
    if isinstance(stated, bool):
        return stated
    bos_id = tokenizer.token_to_id(bos)
    ids = convert_panic(lambda: tokenizer.encode("a", add_special_tokens=True).ids, "encode")
    return bool(ids) and ids[0] == bos_id


def _has_prefix_space(data: Mapping[str, Any]) -> bool:
    """Return whether a space is put before the first word (SentencePiece, some byte-level BPE)."""
    stack: list[object] = [data.get("normalizer"), data.get("pre_tokenizer")]
    while stack:
        item = stack.pop()
        if isinstance(item, list):
            stack.extend(item)
        elif isinstance(item, Mapping):
            kind = item.get("type")
            if kind == "Prepend":
                return True
            if kind == "Metaspace" and item.get("prepend_scheme", "always") != "never":
                return True
            if kind == "ByteLevel" and item.get("add_prefix_space", True):
                return True
            stack.extend(item.values())
    return False
