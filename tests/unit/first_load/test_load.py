"""The check in `load_model`: what passes is recorded, what is wrong falls back or is refused."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qh_chat.paths import assets_dir
from qh_kernels import cpu
from qh_kernels import decoder as native
from qh_kernels import isa as instruction_sets
from qh_kernels.decoder import Decoder
from qh_runtime.architectures import spec_from_config
from qh_runtime.checkpoints import open_checkpoint
from qh_runtime.errors import CheckpointError, IntegrityError, KernelError
from qh_runtime.first_load import check
from qh_runtime.first_load.sampling import sampled_tiles
from qh_runtime.hardware.profile import HardwareProfile, probe
from qh_runtime.loader import LoadProgress, load_model
from qh_runtime.options import LoadOptions
from qh_runtime.session.session import NativeSession
from qh_runtime.store.entry import ModelEntry
from tests.support.cli import write_tiny_model
from tests.support.model_tensors import config, random_tensors, stored, write_checkpoint

AVAILABLE = instruction_sets.available()
BEST = AVAILABLE[-1]
CONFIG = config(
    vocab_size=400,
    hidden_size=128,
    intermediate_size=512,
    head_dim=32,
    bos_token_id=0,
    eos_token_id=1,
)
needs_two = pytest.mark.skipif(len(AVAILABLE) < 2, reason="one instruction set runs here")


@pytest.fixture(scope="module")
def ternary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "ternary")


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> HardwareProfile:
    return probe(tmp_path_factory.mktemp("machine"))


class Bench:
    """Loads models into one cache folder."""

    def __init__(self, root: Path, ternary: Path, profile: HardwareProfile) -> None:
        self.root, self.ternary, self.profile = root, ternary, profile
        self.cache = root / "cache"
        self.stages: list[str] = []

    def dense(self, change: Callable[[dict[str, np.ndarray]], None] = lambda t: None) -> Path:
        """A dense model in bfloat16, after a change of its float32 tensors."""
        tensors = random_tensors(spec_from_config(CONFIG), dtype="F32")
        values = {name: array.copy() for name, (_, array) in tensors.items()}
        for name in values:
            if "norm" in name:
                values[name] += 1  # what comes of random norms is nearly nothing
        change(values)
        folder = self.root / f"dense-{len(list(self.root.iterdir()))}"
        written = {name: stored(array, "BF16") for name, array in values.items()}
        return self.with_tokenizer(write_checkpoint(folder, CONFIG, written))

    def with_tokenizer(self, folder: Path) -> Path:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(self.ternary / name, folder / name)
        return folder

    def load(self, folder: Path, **options: Any) -> NativeSession:
        self.stages = []

        def note(progress: LoadProgress) -> None:
            if progress.stage not in self.stages:
                self.stages.append(progress.stage)

        chosen = LoadOptions(**{"context_length": 64, "threads": 1, **options})
        entry = ModelEntry(folder.name, folder, "folder")
        session = load_model(entry, chosen, self.profile, self.cache, note)
        assert isinstance(session, NativeSession)
        return session

    @property
    def checked(self) -> bool:
        return "self-test" in self.stages

    def records(self) -> list[Path]:
        return sorted(self.cache.glob("*.self-test.json"))


@pytest.fixture
def bench(tmp_path: Path, ternary: Path, machine: HardwareProfile) -> Bench:
    return Bench(tmp_path, ternary, machine)


class _Faulty(Decoder):
    """Gives wrong logits with some instruction sets."""

    wrong: tuple[str, ...] = ()

    def logits(self) -> Any:
        found = super().logits()
        return found + np.float32(1) if self.isa in self.wrong else found


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> type[_Faulty]:
    class Faulty(_Faulty):
        pass

    monkeypatch.setattr(native, "Decoder", Faulty)
    return Faulty


def test_what_passed_is_not_asked_again(bench: Bench) -> None:
    folder = bench.dense()
    first = bench.load(folder)
    assert bench.stages == ["plan", "tokenizer", "pack", "decoder", "self-test", "ready"]
    assert first._decoder.position == 0
    second = bench.load(folder)
    assert bench.stages == ["plan", "tokenizer", "pack", "decoder", "ready"]
    assert (first.info.isa, second.info.isa) == (BEST, BEST)
    assert first.info.notes == second.info.notes
    assert len(bench.records()) == 1


def test_other_options_and_other_weights_are_asked_again(bench: Bench) -> None:
    folder = bench.dense()
    bench.load(folder)
    for options in ({"exact": True}, {"pack": "int8"}, {"pack": "int4_g32"}, {"isa": "scalar"}):
        bench.load(folder, **options)
        assert bench.checked, options
    bench.load(folder, threads=2)
    assert not bench.checked
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes())
    bench.load(folder)
    assert bench.checked


def test_other_kernels_are_asked_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.load(bench.ternary)
    monkeypatch.setattr(check, "kernels_identity", lambda: "another build")
    bench.load(bench.ternary)
    assert bench.checked


def test_a_damaged_record_is_asked_again(bench: Bench) -> None:
    bench.load(bench.ternary)
    (path,) = bench.records()
    path.write_text("{")
    bench.load(bench.ternary)
    assert bench.checked
    bench.load(bench.ternary)
    assert not bench.checked


def test_a_record_of_what_does_not_run_here_is_not_used(bench: Bench) -> None:
    bench.load(bench.ternary)
    (path,) = bench.records()
    path.write_text(json.dumps(json.loads(path.read_text()) | {"isa": "sse9"}))
    assert bench.load(bench.ternary).info.isa == BEST
    assert bench.checked


def test_without_a_cache_folder_it_is_asked_each_time(bench: Bench) -> None:
    bench.cache.write_text("a file where the folder should be")
    for _ in range(2):
        (note,) = bench.load(bench.dense(), pack="int8").info.notes
        assert note.startswith("packed weights are not kept")
        assert bench.checked


def test_a_load_that_is_given_up_leaves_no_record(bench: Bench) -> None:
    class GivenUpError(Exception):
        pass

    def give_up(progress: LoadProgress) -> None:
        if progress.stage == "self-test":
            raise GivenUpError

    entry = ModelEntry("m", bench.ternary, "folder")
    with pytest.raises(GivenUpError):
        load_model(entry, LoadOptions(), bench.profile, bench.cache, give_up)
    assert bench.records() == []


@pytest.mark.parametrize("context_length", [1, 2, 5])
def test_a_short_context_is_enough(bench: Bench, context_length: int) -> None:
    session = bench.load(bench.ternary, context_length=context_length)
    assert (session._decoder.position, session._decoder.context_length) == (0, context_length)


@needs_two
def test_a_wrong_instruction_set_is_dropped_and_named(
    bench: Bench, faulty: type[_Faulty], caplog: pytest.LogCaptureFixture
) -> None:
    faulty.wrong = (BEST,)
    lower = AVAILABLE[-2]
    folder = bench.dense()
    with caplog.at_level(logging.WARNING):
        session = bench.load(folder)
    assert session.info.isa == session._decoder.isa == lower  # type: ignore[attr-defined]
    assert f"{BEST} gave a wrong result for lm_head: using {lower}" in session.info.notes
    assert f"lm_head: {BEST}: expected" in caplog.text
    again = bench.load(folder)
    assert not bench.checked
    assert (again.info.isa, again.info.notes) == (lower, session.info.notes)


@needs_two
def test_so_is_one_whose_kernel_is_wrong(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    right = cpu.linear_quantized

    def wrong(matrix: Any, x: Any, *, isa: str) -> Any:
        y = right(matrix, x, isa=isa)
        if isa == BEST and matrix.rows == 128 and matrix.cols == 512:
            y[:, 77] *= np.float32(1 + 2**-11)
        return y

    monkeypatch.setattr(cpu, "linear_quantized", wrong)
    notes = bench.load(bench.dense(), pack="int4_g32").info.notes
    expected = f"{BEST} gave a wrong result for model.layers.0.mlp.down_proj: using {AVAILABLE[-2]}"
    assert expected in notes


def test_all_wrong_is_refused(bench: Bench, faulty: type[_Faulty]) -> None:
    faulty.wrong = AVAILABLE
    with pytest.raises(KernelError) as caught:
        bench.load(bench.dense())
    facts = caught.value.facts
    assert facts["object"] == "lm_head"
    assert len(facts["failures"]) == len(AVAILABLE)
    assert bench.records() == []


@needs_two
@pytest.mark.parametrize("by", ["option", "variable"])
def test_a_forced_instruction_set_is_never_changed(
    bench: Bench, by: str, faulty: type[_Faulty], monkeypatch: pytest.MonkeyPatch
) -> None:
    faulty.wrong = (BEST,)
    folder = bench.dense()
    bench.load(folder)  # leaves a record of the fallback
    options = {"isa": BEST} if by == "option" else {}
    if by == "variable":
        monkeypatch.setenv("QH_FORCE_ISA", BEST)
    with pytest.raises(KernelError) as caught:
        bench.load(folder, **options)
    assert caught.value.facts["isa"] == BEST
    faulty.wrong = ()
    assert bench.load(folder, **options).info.isa == BEST


LAYER = "model.layers.1."


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("tensor", [f"{LAYER}mlp.down_proj", f"{LAYER}self_attn.v_proj", "lm_head"])
def test_weights_that_are_no_numbers_are_refused_by_name(
    bench: Bench, tensor: str, value: float
) -> None:
    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors[f"{tensor}.weight"][-1, 0] = value

    with pytest.raises(CheckpointError) as caught:
        bench.load(bench.dense(change))
    assert caught.value.facts["tensor"] == tensor
    assert bench.records() == []


@pytest.mark.parametrize(
    "tensor", ["model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"]
)
def test_weights_without_which_there_is_no_model_are_refused(bench: Bench, tensor: str) -> None:
    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors[tensor][...] = 0

    for pack in (None, "int8"):
        with pytest.raises(CheckpointError) as caught:
            bench.load(bench.dense(change), pack=pack)
        assert caught.value.facts["tensor"] == tensor.removesuffix(".weight").replace(
            "model.norm", "model.norm.weight"
        )


@pytest.mark.parametrize("pack", [None, "int8", "int4_g32"])
def test_zeros_in_a_block_are_named(bench: Bench, pack: str | None) -> None:
    def change(tensors: dict[str, np.ndarray]) -> None:
        for name in tensors:
            if name.startswith(f"{LAYER}mlp"):
                tensors[name][...] = 0

    notes = bench.load(bench.dense(change), pack=pack).info.notes
    assert any(f"{LAYER}mlp.gate_proj" in note for note in notes), notes


def test_swapped_bytes_are_refused_by_name(bench: Bench) -> None:
    folder = bench.dense()
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    data[start::2], data[start + 1 :: 2] = data[start + 1 :: 2], data[start::2]
    path.write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        bench.load(folder)
    assert caught.value.facts["tensor"]


def test_keys_beyond_float16_are_refused_unless_exact(bench: Bench) -> None:
    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors[f"{LAYER}self_attn.k_proj.weight"] *= 1e7

    folder = bench.dense(change)
    with pytest.raises(CheckpointError) as caught:
        bench.load(folder)
    assert caught.value.facts["object"] == "layer 1"
    assert "--exact" in str(caught.value.hint)
    assert bench.load(folder, exact=True).info.isa == BEST


@pytest.mark.parametrize("pack", ["int8", "int4_g32"])
def test_a_pack_that_its_checksum_does_not_catch_is_refused(bench: Bench, pack: str) -> None:
    """The checksum is of windows; a bit between them flips, in a row that is sampled."""
    folder = bench.dense()
    bench.load(folder, pack=pack)
    bench.records()[0].unlink()
    (path,) = bench.cache.glob(f"*-{pack}.safetensors")
    data = bytearray(path.read_bytes())
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    name = f"{LAYER}mlp.gate_proj"
    begin, end = header[name]["data_offsets"]
    tile_bytes = (end - begin) * 16 // CONFIG["intermediate_size"]
    tile = sampled_tiles(CONFIG["intermediate_size"], 3)[1]
    data[8 + int.from_bytes(data[:8], "little") + begin + tile * tile_bytes] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError) as caught:
        bench.load(folder, pack=pack)
    assert caught.value.facts["tensor"] == name
    assert caught.value.facts["path"] == str(path)
    path.unlink()
    bench.load(folder, pack=pack)


def test_the_built_in_model_has_nothing_to_say(bench: Bench) -> None:
    assert bench.load(_built_in()).info.notes == ()


def test_wrong_scales_of_a_trained_model_are_noticed(bench: Bench) -> None:
    """A thirtieth: what the blocks add no longer counts, and the embedding speaks alone."""
    folder = bench.root / "wrong"
    shutil.copytree(_built_in(), folder)
    source = open_checkpoint(folder)
    tensors = {x: (source.info(x).dtype, source.read(x).copy()) for x in source.names()}
    for name, (dtype, array) in tensors.items():
        if name.endswith("weight_scale"):
            value = (array.astype(np.uint32) << 16).view(np.float32) if dtype == "BF16" else array
            tensors[name] = ("F32", (value / 30).astype(np.float32))
    source.close()
    settings = json.loads((folder / "config.json").read_text())
    write_checkpoint(folder, settings, tensors)
    (note,) = bench.load(folder).info.notes
    assert "worse than guessing" in note


def _built_in() -> Path:
    assets, _ = assets_dir()
    assert assets is not None
    (folder,) = (assets / "models").iterdir()
    return folder
