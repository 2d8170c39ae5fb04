"""Checkpoint folders: shards and their index, links, and what is not a checkpoint."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qh_runtime.checkpoints import open_checkpoint
from qh_runtime.errors import CheckpointError
from tests.support.safetensors_bytes import VALID, entry, file_bytes, write_file

INDEX = "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def shard(*names: str) -> bytes:
    """A shard with one float32 per name, valued by the name."""
    header = {name: entry([1], 4 * i, 4 * i + 4) for i, name in enumerate(names)}
    return file_bytes(header, np.array([ord(x[0]) for x in names], np.float32).tobytes())


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """a and b in the first shard, c in the second."""
    write_file(tmp_path / FIRST, shard("a", "b"))
    write_file(tmp_path / SECOND, shard("c"))
    write_index(tmp_path, {"a": FIRST, "b": FIRST, "c": SECOND})
    return tmp_path


def write_index(folder: Path, weight_map: Any, **more: Any) -> None:
    index = {"metadata": {"total_size": 12}, "weight_map": weight_map, **more}
    (folder / INDEX).write_text(json.dumps(index))


def refused(folder: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(folder)
    assert str(error.value).isprintable()
    assert str(error.value).isascii()
    return error.value


def test_shards_read_as_one(sharded: Path) -> None:
    source = open_checkpoint(sharded)
    assert source.names() == ("a", "b", "c")
    assert [float(source.read(name)[0]) for name in source.names()] == [97.0, 98.0, 99.0]
    assert source.info("c").file == SECOND
    assert "c" in source
    assert "d" not in source
    with pytest.raises(CheckpointError) as error:
        source.read("d")
    assert error.value.facts["tensor"] == "d"


def test_views_outlive_close(sharded: Path) -> None:
    source = open_checkpoint(sharded)
    view = source.read("c")
    source.close()
    assert view.tolist() == [99.0]
    with pytest.raises(CheckpointError):
        source.read("a")


def test_identity_covers_every_shard(sharded: Path) -> None:
    before = open_checkpoint(sharded).identity()
    assert open_checkpoint(sharded).identity() == before
    os.utime(sharded / SECOND, ns=(1, 1))
    assert open_checkpoint(sharded).identity() != before


def test_a_single_file_comes_before_an_index(sharded: Path) -> None:
    write_file(sharded / "model.safetensors", VALID["one tensor"][0])
    assert open_checkpoint(sharded).names() == ("a",)
    assert open_checkpoint(sharded).info("a").shape == (2, 2)


HOSTILE_MAPS: dict[str, tuple[Any, str]] = {
    "no map": (None, "weight_map"),
    "list": ([FIRST], "weight_map"),
    "empty": ({}, "weight_map"),
    "shard is a number": ({"a": 1}, "shard name"),
    "shard is null": ({"a": None}, "shard name"),
    "shard is a list": ({"a": [FIRST]}, "shard name"),
    "shard is empty": ({"a": ""}, "shard name"),
    "parent folder": ({"a": f"../{FIRST}"}, "shard name"),
    "parent in the middle": ({"a": f"x/../{FIRST}"}, "shard name"),
    "absolute": ({"a": f"/tmp/{FIRST}"}, "shard name"),
    "subfolder": ({"a": f"sub/{FIRST}"}, "shard name"),
    "Windows separator": ({"a": f"..\\{FIRST}"}, "shard name"),
    "Windows drive": ({"a": f"C:{FIRST}"}, "shard name"),
    "UNC": ({"a": f"\\\\host\\{FIRST}"}, "shard name"),
    "URL": ({"a": f"https://example.org/{FIRST}"}, "shard name"),
    "NUL": ({"a": f"x\0{FIRST}"}, "shard name"),
    "line break": ({"a": f"x\n{FIRST}"}, "shard name"),
    "line break at the end": ({"a": f"{FIRST}\n"}, "shard name"),
    "escape sequence": ({"a": f"\x1b[2J{FIRST}"}, "shard name"),
    "direction override": ({"a": f"\u202e{FIRST}"}, "shard name"),
    "hidden file": ({"a": f".{FIRST}"}, "shard name"),
    "two dots": ({"a": "a..safetensors"}, "shard name"),
    "pickle": ({"a": "pytorch_model.bin"}, "shard name"),
    "very long": ({"a": "a" * 300 + ".safetensors"}, "shard name"),
    "full-width letters": ({"a": "ａ.safetensors"}, "shard name"),
    "too many shards": ({f"t{i}": f"s{i}.safetensors" for i in range(1025)}, "shard count"),
    "missing shard": ({"a": FIRST, "b": FIRST, "c": "model-3.safetensors"}, "missing file"),
    "tensor in the wrong shard": ({"a": FIRST, "b": SECOND, "c": SECOND}, "wrong shard"),
    "tensor that no shard holds": (
        {"a": FIRST, "b": FIRST, "c": SECOND, "d": SECOND},
        "missing tensor",
    ),
    "tensor that is not listed": ({"a": FIRST, "c": SECOND}, "wrong shard"),
}


@pytest.mark.parametrize("kind", HOSTILE_MAPS)
def test_hostile_indexes_are_refused(kind: str, sharded: Path) -> None:
    weight_map, rule = HOSTILE_MAPS[kind]
    write_index(sharded, weight_map)
    assert refused(sharded).facts["rule"] == rule


HOSTILE_TEXTS: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "syntax"),
    "not JSON": (lambda: b"<html>", "syntax"),
    "a list": (lambda: b"[]", "object"),
    "not UTF-8": (lambda: b'{"weight_map":"\xff"}', "encoding"),
    "duplicate tensor": (
        lambda: b'{"weight_map":{"a":"x.safetensors","a":"y.safetensors"}}',
        "duplicate key",
    ),
    "two maps": (lambda: b'{"weight_map":{},"weight_map":{}}', "duplicate key"),
    "NaN": (lambda: b'{"metadata":{"total_size":NaN},"weight_map":{}}', "number"),
    "deep": (lambda: b'{"weight_map":' + b"[" * 5000 + b"]" * 5000 + b"}", "depth"),
    "half a surrogate pair": (lambda: b'{"weight_map":{"a":"\\udfff"}}', "encoding"),
    "a million entries": (
        lambda: json.dumps(
            {"weight_map": {str(i): "x.safetensors" for i in range(1_000_000)}}
        ).encode(),
        "index items",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE_TEXTS)
def test_hostile_index_texts_are_refused(kind: str, sharded: Path) -> None:
    make, rule = HOSTILE_TEXTS[kind]
    (sharded / INDEX).write_bytes(make())
    assert refused(sharded).facts["rule"] == rule


def test_an_index_beyond_the_limit_is_not_even_read(sharded: Path) -> None:
    with (sharded / INDEX).open("wb") as file:
        file.truncate((32 << 20) + 1)
    error = refused(sharded)
    assert error.facts["expected"] == 32 << 20
    assert error.facts["found"] == (32 << 20) + 1


def test_a_shard_that_is_cut_is_refused(sharded: Path) -> None:
    path = sharded / SECOND
    path.write_bytes(path.read_bytes()[:-1])
    assert refused(sharded).facts["path"] == str(path)


# Links.


def test_links_of_a_hub_cache_are_followed(tmp_path: Path) -> None:
    repository = tmp_path / "models--someone--something"
    snapshot = repository / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    blob = write_file(repository / "blobs" / "e3b0c442", VALID["one tensor"][0])
    (snapshot / "model.safetensors").symlink_to(Path("../../blobs") / blob.name)
    assert open_checkpoint(snapshot).names() == ("a",)


def test_links_inside_the_folder_are_followed(tmp_path: Path) -> None:
    write_file(tmp_path / "weights.bin", VALID["one tensor"][0])
    (tmp_path / "model.safetensors").symlink_to("weights.bin")
    assert open_checkpoint(tmp_path).names() == ("a",)


def test_the_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    write_file(tmp_path / "real" / "model.safetensors", VALID["one tensor"][0])
    (tmp_path / "link").symlink_to("real")
    assert open_checkpoint(tmp_path / "link").names() == ("a",)


@pytest.mark.parametrize(
    "how", ["outside", "other repository", "blobs of no cache", "through a link"]
)
def test_links_that_leave_the_folder_are_refused(how: str, tmp_path: Path) -> None:
    secret = write_file(tmp_path / "secret", VALID["one tensor"][0])
    folder = tmp_path / "repository" / "snapshots" / "rev"
    folder.mkdir(parents=True)
    target = secret
    if how == "other repository":
        target = tmp_path / "other" / "blobs" / "x"
        target.parent.mkdir(parents=True)
        write_file(target, secret.read_bytes())
    elif how == "blobs of no cache":
        folder = tmp_path / "a" / "b"
        folder.mkdir(parents=True)
        target = tmp_path / "blobs" / "x"
        target.parent.mkdir()
        write_file(target, secret.read_bytes())
    elif how == "through a link":
        blobs = tmp_path / "repository" / "blobs"
        blobs.mkdir()
        target = blobs / "x"
        target.symlink_to(secret)
    (folder / "model.safetensors").symlink_to(target)
    assert refused(folder).facts["rule"] == "link"


@pytest.mark.parametrize("how", ["dangling", "loop"])
def test_links_that_lead_nowhere_are_refused(how: str, tmp_path: Path) -> None:
    target = "nowhere" if how == "dangling" else "model.safetensors"
    (tmp_path / "model.safetensors").symlink_to(target)
    assert refused(tmp_path).facts["rule"] == "missing file"


# What is not a checkpoint.


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([], "found neither"),
        (["pytorch_model.bin", "config.json"], "run code"),
        (["consolidated.00.pth"], "run code"),
        (["model.PT"], "run code"),
        (["model.gguf"], "GGUF"),
        ([FIRST], INDEX),
        (["adapter_model.safetensors"], "neither"),
    ],
)
def test_folders_without_weights_say_what_is_there(
    files: list[str], words: str, tmp_path: Path
) -> None:
    for name in files:
        (tmp_path / name).write_bytes(b"\x80\x04")
    error = refused(tmp_path)
    assert error.facts["rule"] == "no weights"
    assert words in str(error)


def test_a_missing_folder_and_a_file_are_refused(tmp_path: Path) -> None:
    assert "nothing" in str(refused(tmp_path / "x\x1b[2J"))
    assert "a file" in str(refused(write_file(tmp_path / "f", b"")))
