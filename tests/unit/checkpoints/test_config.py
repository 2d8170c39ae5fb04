"""JSON files of a checkpoint: strictness, limits, typed keys."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qh_runtime.checkpoints import read_config
from qh_runtime.checkpoints.config import read_json_file, read_key
from qh_runtime.errors import CheckpointError

HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "syntax"),
    "a number": (lambda: b"1", "object"),
    "null": (lambda: b"null", "object"),
    "a list": (lambda: b"[{}]", "object"),
    "cut": (lambda: b'{"hidden_size": 1', "syntax"),
    "two objects": (lambda: b"{}{}", "syntax"),
    "trailing comma": (lambda: b'{"a":1,}', "syntax"),
    "comment": (lambda: b'{"a":1} // x', "syntax"),
    "NaN": (lambda: b'{"rms_norm_eps": NaN}', "number"),
    "Infinity": (lambda: b'{"rope_theta": Infinity}', "number"),
    "minus Infinity": (lambda: b'{"rope_theta": -Infinity}', "number"),
    "overflowing exponent": (lambda: b'{"rope_theta": 1e400}', "number"),
    "long integer": (lambda: b'{"vocab_size": ' + b"9" * 41 + b"}", "number"),
    "very long integer": (lambda: b'{"vocab_size": ' + b"9" * 500_000 + b"}", "number"),
    "long fraction": (lambda: b'{"x": 0.' + b"9" * 500_000 + b"}", "number"),
    "duplicate key": (lambda: b'{"hidden_size": 1, "hidden_size": 2}', "duplicate key"),
    "nested duplicate key": (lambda: b'{"a": [{"b": 1, "b": 1}]}', "duplicate key"),
    "duplicate key through an escape": (lambda: b'{"a": 1, "\\u0061": 2}', "duplicate key"),
    "33 levels": (lambda: b'{"a":' * 33 + b"1" + b"}" * 33, "depth"),
    "33 lists": (lambda: b'{"a":' + b"[" * 32 + b"]" * 32 + b"}", "depth"),
    "100,000 levels": (lambda: b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "depth"),
    "not UTF-8": (lambda: b'{"a": "\xc3\x28"}', "encoding"),
    "UTF-16": (lambda: '{"a": 1}'.encode("utf-16"), "encoding"),
    "byte order mark": (lambda: b'\xef\xbb\xbf{"a": 1}', "encoding"),
    "half a surrogate pair": (lambda: b'{"a": "\\ud834"}', "encoding"),
    "half a surrogate pair in a key": (lambda: b'{"\\udc00": 1}', "encoding"),
    "NUL": (lambda: b'{"a": 1}\0', "syntax"),
    "control character in a string": (lambda: b'{"a": "\x01"}', "syntax"),
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json"])
def test_hostile_files_are_refused(kind: str, name: str, tmp_path: Path) -> None:
    make, rule = HOSTILE[kind]
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_bytes(make())
    begin = time.process_time()
    with pytest.raises(CheckpointError) as error:
        read_config(tmp_path)
    assert time.process_time() - begin < 5
    assert error.value.facts["rule"] == rule
    assert error.value.facts["path"] == str(tmp_path / name)
    assert name in str(error.value)
    assert str(error.value).isprintable()


def test_the_limits_themselves_are_fine(tmp_path: Path) -> None:
    deep = '{"a":' * 31 + "[]" + "}" * 31
    (tmp_path / "config.json").write_text(deep + " " * ((1 << 20) - len(deep)))
    assert read_config(tmp_path).model["a"]


@pytest.mark.parametrize(
    ("name", "limit"), [("config.json", 1 << 20), ("tokenizer_config.json", 4 << 20)]
)
def test_larger_files_are_refused_unread(name: str, limit: int, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with (tmp_path / name).open("wb") as file:
        file.truncate(limit + 1)
    with pytest.raises(CheckpointError) as error:
        read_config(tmp_path)
    assert (error.value.facts["expected"], error.value.facts["found"]) == (limit, limit + 1)


def test_config_is_required_and_the_others_are_not(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as error:
        read_config(tmp_path)
    assert error.value.facts["path"] == str(tmp_path / "config.json")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    config = read_config(tmp_path)
    assert config.model == {"model_type": "llama"}
    assert config.generation == {}
    assert config.tokenizer == {}


def test_a_dangling_link_is_no_absent_file(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").symlink_to("nowhere")
    with pytest.raises(CheckpointError):
        read_json_file(tmp_path, "generation_config.json")


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text("{}")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(CheckpointError) as error:
        read_config(folder)
    assert error.value.facts["rule"] == "link"


CONFIG: dict[str, Any] = {"i": 3, "f": 0.5, "s": "x", "t": True, "n": None, "l": [1], "o": {"a": 1}}


@pytest.mark.parametrize(
    ("kind", "key", "default", "expected"),
    [
        (int, "i", 0, 3),
        (float, "f", 0.0, 0.5),
        (float, "i", 0.0, 3.0),
        (str, "s", "", "x"),
        (bool, "t", False, True),
        (list, "l", [], [1]),
        (dict, "o", {}, {"a": 1}),
        (int, "n", 7, 7),
        (str, "absent", "d", "d"),
    ],
)
def test_keys_of_the_right_type(kind: Any, key: str, default: Any, expected: Any) -> None:
    found = read_key(CONFIG, kind, key, default)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        (int, "t"),
        (float, "t"),
        (int, "f"),
        (int, "s"),
        (str, "i"),
        (bool, "i"),
        (dict, "l"),
        (list, "o"),
    ],
)
def test_keys_of_another_type_name_key_expected_and_found(kind: Any, key: str) -> None:
    with pytest.raises(CheckpointError) as error:
        read_key(CONFIG, kind, key, None)
    assert error.value.facts["key"] == key
    assert error.value.facts["expected"] == kind.__name__
    assert error.value.facts["found"]


def test_a_found_value_is_shown_short_and_inert(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"k": "\x1b[2J" + "x" * 100_000}))
    config = read_config(tmp_path).model
    with pytest.raises(CheckpointError) as error:
        read_key(config, int, "k", 0)
    assert len(str(error.value)) < 400
    assert str(error.value).isprintable()
