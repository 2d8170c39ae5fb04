"""Headers of files that are still on a hub: the same rules as for files that are here."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from qh_runtime.checkpoints import open_checkpoint
from qh_runtime.checkpoints.safetensors import SafetensorsFile
from qh_runtime.checkpoints.shard_index import parse_index
from qh_runtime.errors import CheckpointError, QhError
from qh_runtime.store import remote_header
from qh_runtime.store.artifacts import ArtifactFile
from qh_runtime.store.remote_header import RemoteTensors
from qh_runtime.store.transfer import RemoteFile
from tests.support.figures import Record
from tests.support.safetensors_bytes import HOSTILE, VALID, entry, file_bytes
from tests.unit.checkpoints.test_folder import FIRST, HOSTILE_MAPS, SECOND, shard
from tests.unit.store.published_models import INDEX, dense, index_of, sharded, ternary


class Far:
    """Files that can be read in ranges, and what was read."""

    def __init__(self, contents: Mapping[str, bytes], *, grown_by: int = 0) -> None:
        self.contents = contents
        self.ranges: list[tuple[str, int, int]] = []
        self.files = [
            ArtifactFile(
                name,
                RemoteFile(name, len(x) + grown_by, hashlib.sha256(x).hexdigest(), "", "https://x"),
                "weights",
            )
            for name, x in contents.items()
        ]

    def read(self, file: ArtifactFile, begin: int, end: int) -> bytes:
        self.ranges.append((file.path, begin, end))
        return self.contents[file.path][begin:end]

    def open(self, shard_of: Mapping[str, str] | None = None) -> RemoteTensors:
        return RemoteTensors(self.files, shard_of, self.read)


def one(content: bytes) -> RemoteTensors:
    return Far({"model.safetensors": content}).open()


def weights_of(files: Mapping[str, bytes]) -> dict[str, bytes]:
    return {k: v for k, v in files.items() if k.endswith(".safetensors")}


@pytest.mark.parametrize("model", ["dense", "sharded", "ternary"])
def test_the_same_tensors_as_in_the_files(model: str, tmp_path: Path) -> None:
    files = {"dense": dense, "sharded": sharded, "ternary": ternary}[model]()
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    here = open_checkpoint(tmp_path)
    index = files.get(INDEX)
    far = Far(weights_of(files))
    there = far.open(parse_index(index, Path(INDEX)) if index else None)
    assert there.names() == here.names()
    for name in here.names():
        assert there.info(name) == here.info(name)
        assert name in there
    assert "no such tensor" not in there
    with pytest.raises(CheckpointError):
        there.info("no such tensor")


def test_one_request_for_a_short_header_and_two_for_a_long_one() -> None:
    far = Far(weights_of(dense()))
    far.open()
    assert len(far.ranges) == 1
    many = {f"layer.{i:05}.{'x' * 60}": entry([1], 4 * i, 4 * i + 4) for i in range(2000)}
    content = file_bytes(many, bytes(8000))
    far = Far({"model.safetensors": content})
    assert len(far.open().names()) == 2000
    (_, begin, middle), (_, again, end) = far.ranges
    assert (begin, middle, again) == (0, 128 << 10, 128 << 10)
    assert end == len(content) - 8000


def test_scalars_come_together_and_nothing_else_is_read() -> None:
    files = ternary()
    far = Far(weights_of(files))
    source = far.open()
    before = len(far.ranges)
    scales = [x for x in source.names() if x.endswith("weight_scale")]
    assert len(scales) == 14
    for name in scales:
        assert source.info(name).shape == (1,)
        assert source.read(name).tolist() == [0x3F80]  # 1 in bfloat16
    assert len(far.ranges) == before + 1
    with pytest.raises(CheckpointError) as caught:
        source.read("model.embed_tokens.weight")
    assert caught.value.facts["tensor"] == "model.embed_tokens.weight"


def test_scalars_of_every_shard_and_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_header, "_GAP_BYTES", 64)
    monkeypatch.setattr(remote_header, "_RANGE_BYTES", 256)
    dice = np.random.default_rng(5)
    contents, expected = {}, {}
    for number in range(3):
        header, data = {}, b""
        for i in range(60):
            count = int(dice.choice([1, 2, 4, 5, 40, 200]))
            values = dice.standard_normal(count).astype(np.float32)
            name = f"s{number}.{i}"
            header[name] = entry([count], len(data), len(data) + 4 * count)
            data += values.tobytes()
            if count <= 4:
                expected[name] = values
        contents[f"s{number}.safetensors"] = file_bytes(header, data)
    far = Far(contents)
    shard_of = {x: f"{x.partition('.')[0]}.safetensors" for x in far.open().names()}
    source = far.open(shard_of)
    assert len(expected) > 60
    for name, values in expected.items():
        np.testing.assert_array_equal(source.read(name), values)
    assert all(end - begin <= 128 << 10 for _, begin, end in far.ranges)


def test_scalars_scattered_all_over_a_huge_file_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(remote_header, "MAX_SCALARS_BYTES", 8)
    source = one(
        file_bytes({x: entry([1], 4 * i, 4 * i + 4) for i, x in enumerate("abc")}, bytes(12))
    )
    with pytest.raises(CheckpointError) as caught:
        source.read("a")
    assert caught.value.facts["rule"] == "scalars"


# Headers of megabytes take a second each; the tests of files have them.
@pytest.mark.parametrize(
    "kind", sorted(HOSTILE.keys() - {"200,000 empty tensors", "65,537 tensors"})
)
def test_hostile_headers_are_refused_by_the_rule_for_files(kind: str) -> None:
    make, rule = HOSTILE[kind]
    with pytest.raises(CheckpointError) as caught:
        one(make())
    assert caught.value.facts["rule"] == rule
    text = str(caught.value)
    assert text.isprintable()
    assert text.isascii()
    assert "model.safetensors" in text
    assert caught.value.hint


@pytest.mark.parametrize("kind", VALID)
def test_legal_headers_are_read(kind: str) -> None:
    content, expected = VALID[kind]
    source = one(content)
    assert {x: (source.info(x).dtype, source.info(x).shape) for x in source.names()} == expected


def mutated(content: bytes, dice: random.Random) -> bytes:
    """The file with a few changes in its header, or cut, or longer."""
    length = int.from_bytes(content[:8], "little")
    changed = bytearray(content)
    for _ in range(dice.randint(1, 3)):
        kind = dice.choice(["byte", "digit", "swap", "drop", "cut", "grow", "length"])
        place = dice.randrange(8, 8 + length)
        if kind == "byte":
            changed[place] = dice.randrange(256)
        elif kind == "digit":
            places = [i for i in range(8, 8 + length) if chr(changed[i % len(changed)]).isdigit()]
            changed[dice.choice(places) % len(changed)] = ord(dice.choice("0123456789"))
        elif kind == "swap":
            other = dice.randrange(8, 8 + length)
            if max(place, other) < len(changed):
                changed[place], changed[other] = changed[other], changed[place]
        elif kind == "drop":
            del changed[place : place + 1]
        elif kind == "cut":
            del changed[dice.randrange(len(changed)) :]
        elif kind == "grow":
            changed += bytes(dice.randint(1, 9))
        else:
            changed[:8] = (length + dice.randint(-9, 9)).to_bytes(8, "little")
        if len(changed) < 8 + length:
            break
    return bytes(changed)


def outcome(open_it: object) -> str:
    """The names and shapes, or the broken rule."""
    try:
        source = open_it()  # type: ignore[operator]
    except CheckpointError as error:
        return f"{type(error).__name__} {error.facts['rule']} {str(error).isprintable()}"
    return repr([(x, source.info(x).shape) for x in source.names()])


COUNTS = [300, pytest.param(10_000, marks=pytest.mark.slow)]


@pytest.mark.parametrize("count", COUNTS)
def test_mutated_headers_have_the_outcome_of_the_same_file_here(
    count: int, tmp_path: Path, record_property: Record
) -> None:
    dice = random.Random(20261124)
    sound = weights_of(ternary())["model.safetensors"]
    path = tmp_path / "model.safetensors"
    refused = 0
    for _ in range(count):
        content = mutated(sound, dice)
        path.write_bytes(content)
        here = outcome(lambda: SafetensorsFile(path))
        assert outcome(lambda x=content: one(x)) == here  # type: ignore[misc]
        refused += "Error" in here
    record_property("cases", count)
    assert refused > count / 2


@pytest.mark.parametrize("grown_by", [-1, 1, 1000, 1 << 40])
def test_a_size_that_the_hub_lies_about_is_refused(grown_by: int) -> None:
    with pytest.raises(CheckpointError) as caught:
        Far(weights_of(dense()), grown_by=grown_by).open()
    assert caught.value.facts["rule"] in ("size", "trailing bytes")


@pytest.mark.parametrize("kind", sorted(set(HOSTILE_MAPS) - {"missing shard"}))
def test_hostile_indexes_are_refused(kind: str) -> None:
    weight_map, rule = HOSTILE_MAPS[kind]
    far = Far({FIRST: shard("a", "b"), SECOND: shard("c")})
    with pytest.raises(CheckpointError) as caught:
        far.open(parse_index(json.dumps({"weight_map": weight_map}).encode(), Path(INDEX)))
    assert caught.value.facts["rule"] == rule


@pytest.mark.parametrize("count", COUNTS)
def test_mutated_indexes_are_refused_or_right(count: int, record_property: Record) -> None:
    dice = random.Random(7)
    far = Far({FIRST: shard("a", "b"), SECOND: shard("c")})
    text = index_of({FIRST: ["a", "b"], SECOND: ["c"]})
    refused = right = 0
    for _ in range(count):
        changed = bytearray(text)
        for _ in range(dice.randint(1, 2)):
            changed[dice.randrange(len(changed))] = dice.choice(b'abc{}[]":,01/.\\\x00\xff')
        try:
            source = far.open(parse_index(bytes(changed), Path(INDEX)))
        except QhError as error:
            refused += str(error).isprintable()
        else:
            right += source.names() == ("a", "b", "c")
    record_property("cases", count)
    assert refused + right == count
    assert refused > count / 2


def test_all_headers_together_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_header, "MAX_HEADERS_BYTES", 300)
    far = Far({f"{i}.safetensors": shard("a", "b") for i in range(9)})
    with pytest.raises(CheckpointError) as caught:
        far.open()
    assert caught.value.facts["rule"] == "header length"


def test_what_the_reader_raises_comes_out() -> None:
    class Lost(Exception):
        pass

    def read(*_: object) -> bytes:
        raise Lost

    with pytest.raises(Lost):
        RemoteTensors(Far(weights_of(sharded())).files, None, read)


def test_identity_follows_hash_and_header() -> None:
    first, second = one(shard("a")), one(shard("b"))
    assert first.identity() == one(shard("a")).identity()
    assert first.identity() != second.identity()
    first.check_unchanged()
    first.close()
