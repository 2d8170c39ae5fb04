"""A whole model folder with something wrong in one of its files: it loads, or is refused in words.

Every file takes part: config, index, two shards, tokenizer, its companions and the template. JSON
is changed as JSON (values, types, keys) or byte by byte; an outcome is a load or a QhError whose
one line is printable, short and names a file or a tensor.
"""

from __future__ import annotations

import copy
import json
import random
import time
from pathlib import Path
from typing import Any

import pytest

from qh_runtime.architectures import spec_from_config
from qh_runtime.checkpoints import open_checkpoint, read_config
from qh_runtime.checkpoints.layouts import layout_for
from qh_runtime.errors import QhError
from qh_runtime.packing import load_packed_model
from qh_runtime.store.entry import describe_folder
from qh_runtime.tokenizers.chat_template import load_chat_template
from qh_runtime.tokenizers.from_hf import load_tokenizer
from tests.support.figures import Record
from tests.support.model_tensors import config, random_tensors, spec_of, write_tensors
from tests.support.token_files import byte_level_file

SHARDS = ("part-1.safetensors", "part-2.safetensors")
INDEX = "model.safetensors.index.json"
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 3, 17, 1 << 31, 1 << 63, 10**39, 1.5, -0.0, 1e-300, 1e308),
    *("", "x", "\ud800", "\x00\x1b[2J", "\u202e", "<s>", "y" * 5000, "../up", "/etc/passwd"),
    *(SHARDS[0], f"{SHARDS[1]}\x00", "silu", "llama3"),
    *([], [[]], ["<s>", None, 3], {}, {"content": None}, {"a": {"b": {"c": 1}}}),
    [{"name": "default", "template": 3}],
)


def _files(folder: Path) -> dict[str, Any]:
    """Writes the shards; name -> JSON of every other file of a sound model."""
    spec = spec_of(vocab_size=400)
    tensors = random_tensors(spec)
    names = list(tensors)
    placed = {name: SHARDS[i * 2 // len(names)] for i, name in enumerate(names)}
    for shard in SHARDS:
        inside = {name: tensors[name] for name in names if placed[name] == shard}
        write_tensors(folder / shard, inside)
    return {
        "config.json": {
            **config("llama", vocab_size=400, eos_token_id=[1]),
            "rope_scaling": {"type": "linear", "factor": 2.0},
        },
        INDEX: {"metadata": {"total_size": 1}, "weight_map": placed},
        "generation_config.json": {"eos_token_id": [1, 2], "temperature": 0.6},
        "special_tokens_map.json": {"bos_token": "<s>", "unk_token": {"content": "<s>"}},
        "tokenizer.json": byte_level_file(special=["<s>", "</s>"], plain=["<x>"]),
        "tokenizer_config.json": {
            "bos_token": "<s>",
            "eos_token": {"content": "</s>"},
            "chat_template": "{{ messages[0].content }}",
            "additional_special_tokens": ["<x>"],
        },
        "chat_template.json": {"chat_template": "x"},
    }


def _mutate_json(root: Any, dice: random.Random) -> None:
    places: list[tuple[Any, Any]] = []
    stack = [root]
    while stack:
        item = stack.pop()
        pairs = item.items() if isinstance(item, dict) else enumerate(item)
        for key, value in list(pairs):
            places.append((item, key))
            if isinstance(value, dict | list):
                stack.append(value)
    for _ in range(dice.randint(1, 3)):
        item, key = dice.choice(places)
        action = dice.random()
        if isinstance(item, dict) and action < 0.15:
            item.pop(key, None)
        elif isinstance(item, dict) and action < 0.3 and key in item:
            item[key + dice.choice(["", "x", "\x1b", "/.."])] = item.pop(key)
        elif isinstance(item, dict) or key < len(item):
            item[key] = copy.deepcopy(dice.choice(VALUES))


def _mutate_bytes(data: bytearray, dice: random.Random) -> None:
    # Mostly where a header is: all else is any number.
    for _ in range(dice.randint(1, 3)):
        end = min(len(data), 3000) if dice.random() < 0.9 else len(data)
        data[dice.randrange(end)] = dice.randrange(256)
    if dice.random() < 0.2:
        del data[dice.randrange(len(data)) :]


def _load(folder: Path) -> None:
    """Everything that a load does before it computes."""
    entry = describe_folder("model", folder, "folder")
    if entry.error is not None:
        raise entry.error
    settings = read_config(folder).model
    spec = spec_from_config(settings)
    load_packed_model(spec, open_checkpoint(folder), layout_for(settings), threads=1)
    tokenizer = load_tokenizer(folder)
    tokenizer.decode(tokenizer.encode_text("hello <s> world"))
    load_chat_template(folder, tokenizer)


def _run(folder: Path, count: int, seed: int, record: Record) -> dict[str, int]:
    """Outcome -> how many of the mutated folders had it."""
    dice = random.Random(seed)
    folder.mkdir()
    sound = _files(folder)
    texts = {name: json.dumps(value) for name, value in sound.items()}
    shards = {name: (folder / name).read_bytes() for name in SHARDS}
    for name, text in texts.items():
        (folder / name).write_text(text)
    _load(folder)
    outcomes: dict[str, int] = {}
    for number in range(count):
        name = dice.choice([*sound, *SHARDS])
        if name in shards or dice.random() < 0.25:
            before = shards.get(name) or texts[name].encode()
            data = bytearray(before)
            _mutate_bytes(data, dice)
            (folder / name).write_bytes(data)
        else:
            before = texts[name].encode()
            value = copy.deepcopy(sound[name])
            _mutate_json(value, dice)
            (folder / name).write_text(json.dumps(value))
        begin = time.perf_counter()
        try:
            _load(folder)
            outcome = "loaded"
        except QhError as error:
            record("reject_s", time.perf_counter() - begin)
            outcome = type(error).__name__
            text = str(error)
            assert text.isprintable(), (number, name, text)
            assert len(text) < 800, (number, name, text[:200])
            assert any(x in text for x in (".json", ".safetensors", "model.", "lm_head")), text
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
        (folder / name).write_bytes(before)
    record("cases", count)
    return outcomes


def test_mutated_folders(tmp_path: Path, record_property: Record) -> None:
    outcomes = _run(tmp_path / "model", 300, 20261124, record_property)
    # Neither all harmless nor all fatal, else nothing was tested.
    assert outcomes["loaded"] > 20
    assert outcomes["CheckpointError"] > 50
    assert outcomes["TokenizerError"] > 20


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_many_mutated_folders(tmp_path: Path, seed: int, record_property: Record) -> None:
    assert _run(tmp_path / "model", 2000, seed, record_property)["loaded"] > 100
