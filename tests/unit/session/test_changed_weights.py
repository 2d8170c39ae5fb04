"""Weight files that are cut short, written over, replaced or deleted under a running model.

A file that was deleted or replaced goes on as it was. One that was changed in place ends the answer
with an error that names it, and every later answer until the model is loaded again: the process
lives, and no text of changed weights passes for an answer.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from qh_runtime.errors import CheckpointError, QhError
from qh_runtime.hardware.profile import probe
from qh_runtime.loader import LoadProgress, load_model
from qh_runtime.options import LoadOptions, SamplingParams
from qh_runtime.session.events import Done, Engine, Token
from qh_runtime.session.weights_watch import WeightsWatch
from qh_runtime.store.entry import describe_folder
from tests.support.cli import write_tiny_model

# Long enough that the files change while it runs.
ANSWER = SamplingParams(temperature=0, max_tokens=200)


@dataclass
class Stand:
    """A model folder, the cache of its packs, and where the weights of both lie."""

    folder: Path
    cache: Path

    @property
    def checkpoint(self) -> Path:
        return self.folder / "model.safetensors"

    @property
    def pack(self) -> Path:
        (found,) = self.cache.glob("*.safetensors")
        return found

    def load(
        self, pack: str | None = None, on_progress: Callable[[LoadProgress], None] | None = None
    ) -> Engine:
        entry = describe_folder("tiny", self.folder, "folder")
        assert entry.problem is None
        options = LoadOptions(pack=pack, context_length=4096, threads=2)
        return load_model(entry, options, probe(self.folder), self.cache, on_progress)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More than a few pages of embedding and of pack, so that most of each can be cut off."""
    return write_tiny_model(
        tmp_path_factory.mktemp("written") / "tiny",
        hidden_size=128,
        vocab_size=1000,
        num_attention_heads=4,
        intermediate_size=256,
    )


@pytest.fixture
def stand(written: Path, tmp_path: Path) -> Stand:
    shutil.copytree(written, tmp_path / "tiny")
    return Stand(tmp_path / "tiny", tmp_path / "cache")


def answer(engine: Engine, change: Callable[[], object] = lambda: None) -> list[int]:
    """The ids of an answer; the change is made after its tenth token."""
    ids: list[int] = []
    done = None
    for event in engine.complete("hello", ANSWER):
        if isinstance(event, Token):
            ids.append(event.id)
            if len(ids) == 10:
                change()
        done = event
    assert isinstance(done, Done)
    return ids


def refused(engine: Engine, path: Path, change: Callable[[], object] = lambda: None) -> None:
    with pytest.raises(CheckpointError) as error:
        answer(engine, change)
    assert error.value.facts["rule"] == "changed"
    assert error.value.facts["path"] == str(path)
    assert error.value.hint


@pytest.mark.parametrize("which", ["checkpoint", "pack"])
@pytest.mark.parametrize("left", [0, 9000])
def test_cut_short(stand: Stand, which: str, left: int) -> None:
    engine = stand.load()
    path: Path = getattr(stand, which)
    assert path.stat().st_size > 4 * 9000
    refused(engine, path, lambda: os.truncate(path, left))
    refused(engine, path)
    engine.close()


@pytest.mark.parametrize("which", ["checkpoint", "pack"])
def test_written_over_in_place(stand: Stand, which: str) -> None:
    engine = stand.load()
    path: Path = getattr(stand, which)

    def write() -> None:
        size = path.stat().st_size
        with path.open("r+b") as file:
            file.seek(size // 2)
            file.write(bytes(size // 4))

    refused(engine, path, write)
    engine.close()


def test_longer_than_before(stand: Stand) -> None:
    engine = stand.load()
    refused(engine, stand.checkpoint, lambda: os.truncate(stand.checkpoint, 1 << 21))
    engine.close()


def test_between_two_answers(stand: Stand) -> None:
    engine = stand.load()
    answer(engine)
    os.truncate(stand.pack, 0)
    refused(engine, stand.pack)
    engine.close()


def test_one_of_several_shards_is_named(stand: Stand, written: Path) -> None:
    """The index lists one tensor in a shard of its own."""
    from qh_runtime.checkpoints import open_checkpoint
    from tests.support.model_tensors import write_tensors

    source = open_checkpoint(written)
    names = source.names()
    head = "model.embed_tokens.weight"
    shards = {"a.safetensors": [head], "b.safetensors": [x for x in names if x != head]}
    for shard, inside in shards.items():
        tensors = {x: (source.info(x).dtype, source.read(x)) for x in inside}
        write_tensors(stand.folder / shard, tensors)
    listed = {x: shard for shard, inside in shards.items() for x in inside}
    text = str({"weight_map": listed}).replace("'", '"')
    (stand.folder / "model.safetensors.index.json").write_text(text)
    stand.checkpoint.unlink()
    engine = stand.load()
    embedding = stand.folder / "a.safetensors"
    refused(engine, embedding, lambda: os.truncate(embedding, 100))
    engine.close()


def test_deleted_and_cut_through_another_name(stand: Stand) -> None:
    """Nothing is left under the name that was opened; the mapping still shows it."""
    engine = stand.load()
    os.link(stand.checkpoint, stand.folder / "other")

    def change() -> None:
        stand.checkpoint.unlink()
        os.truncate(stand.folder / "other", 0)

    refused(engine, stand.checkpoint, change)
    engine.close()


@pytest.mark.parametrize("how", ["deleted", "replaced", "folder deleted"])
def test_other_files_under_the_name_change_nothing(stand: Stand, how: str) -> None:
    engine = stand.load()
    expected = answer(engine)

    def change() -> None:
        for path in (stand.checkpoint, stand.pack):
            path.unlink()
            if how == "replaced":
                path.write_bytes(b"something else")
        if how == "folder deleted":
            shutil.rmtree(stand.folder)

    assert answer(engine, change) == expected
    assert answer(engine) == expected
    engine.close()


def test_a_source_that_is_all_packed_is_not_needed_any_more(stand: Stand) -> None:
    engine = stand.load(pack="int8")
    expected = answer(engine)
    os.truncate(stand.checkpoint, 0)
    assert answer(engine) == expected
    engine.close()


@pytest.mark.parametrize("left", [0, 30_000])
def test_cut_short_while_it_is_packed(stand: Stand, left: int) -> None:
    """No pack of zeros may be kept: it would be found again under the key of the whole file."""

    def cut(progress: LoadProgress) -> None:
        if progress.stage == "pack":
            os.truncate(stand.checkpoint, left)

    with pytest.raises(QhError) as error:
        stand.load(pack="int8", on_progress=cut)
    assert "model.safetensors" in str(error.value) or error.value.facts.get("tensor")
    assert not list(stand.cache.glob("*.safetensors"))
    assert not list(stand.cache.glob(".*.part"))


def test_the_next_load_works(stand: Stand, written: Path) -> None:
    engine = stand.load()
    expected = answer(engine)
    refused(engine, stand.checkpoint, lambda: os.truncate(stand.checkpoint, 50_000))
    engine.close()
    shutil.copy(written / "model.safetensors", stand.checkpoint)
    again = stand.load()
    assert answer(again) == expected
    again.close()


def test_the_check_is_rare() -> None:
    calls = []
    watch = WeightsWatch(lambda: calls.append(0))
    watch.now()
    for _ in range(1000):
        watch.after_step()
    assert 1 <= len(calls) <= 3
