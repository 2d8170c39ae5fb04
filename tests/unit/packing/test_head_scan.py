"""The scan of a head: which models have one, its bytes, and that it never is in the way."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qh_runtime import formats
from qh_runtime.checkpoints import open_checkpoint
from qh_runtime.checkpoints.layouts import layout_for
from qh_runtime.checkpoints.memory_tensors import MemoryTensors
from qh_runtime.formats.bf16 import bf16_to_f32
from qh_runtime.options import LoadOptions
from qh_runtime.packing import PackedModel, load_packed_model, plan_matrices
from qh_runtime.packing.pack_check import check_pack, find_packs
from qh_runtime.planned_model import plan_checkpoint
from tests.support.imagined_machine import machine
from tests.support.model_tensors import config, random_tensors, spec_of, write_checkpoint

DENSE = layout_for({})
LARGE = {"vocab_size": 16384, "hidden_size": 32, "head_dim": 8, "intermediate_size": 64}


def scans(vocab_size: int, pack: str | None, **changes: Any) -> list[str]:
    spec = spec_of(**{**LARGE, "vocab_size": vocab_size, **changes})
    source = MemoryTensors(random_tensors(spec))
    return [x.name for x in plan_matrices(spec, source, DENSE, pack) if x.is_scan]


@pytest.mark.parametrize(
    ("vocab_size", "pack", "expected"),
    [(16384, "int8", 1), (16384, "int4_g32", 1), (16384, None, 0), (16383, "int8", 0)],
)
def test_large_heads_of_packed_models_have_one(
    vocab_size: int, pack: str | None, expected: int
) -> None:
    assert scans(vocab_size, pack) == ["lm_head.scan"] * expected
    tied = ["model.embed_tokens.scan"] * expected
    assert scans(vocab_size, pack, tie_word_embeddings=True) == tied


def load(folder: Path, cache: Path | None, **options: Any) -> PackedModel:
    spec = spec_of(**LARGE)
    model = load_packed_model(
        spec, open_checkpoint(folder), DENSE, pack="int4_g32", cache_folder=cache, **options
    )
    assert model is not None
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("large")
    return write_checkpoint(place, config(**LARGE), random_tensors(spec_of(**LARGE)))


def test_its_bytes_are_the_head_in_its_format(folder: Path, tmp_path: Path) -> None:
    head = bf16_to_f32(random_tensors(spec_of(**LARGE))["lm_head.weight"][1])
    for model in (load(folder, tmp_path), load(folder, None)):
        scan = model.weights.head_scan
        assert scan is not None
        assert (scan.format, scan.rows, scan.cols) == ("int4_g32", *head.shape)
        assert scan.data.tobytes() == formats.get("int4_g32").pack(head).tobytes()


def test_unused_it_stays_in_the_one_pack(folder: Path, tmp_path: Path) -> None:
    with_it = load(folder, tmp_path)
    without = load(folder, tmp_path, head_scan="unused")
    assert without.weights.head_scan is None
    assert without.pack_path == with_it.pack_path
    assert without.origin == "mapped"
    assert with_it.weights.head_scan is not None
    scan_bytes = with_it.weights.head_scan.data.nbytes
    assert with_it.mapped_bytes - without.mapped_bytes == scan_bytes
    in_memory = load(folder, None, head_scan="unused")
    assert load(folder, None).heap_bytes - in_memory.heap_bytes == scan_bytes


def test_a_pack_with_a_scan_is_checked_whole(folder: Path, tmp_path: Path) -> None:
    spec = spec_of(**LARGE)
    load(folder, tmp_path)
    source = open_checkpoint(folder)
    (pack,) = find_packs(spec, source, DENSE, tmp_path)
    compared: list[int] = []
    assert check_pack(spec, source, DENSE, pack, compared.append, lambda: False)
    assert sum(compared) == sum(x.nbytes for x in pack.matrices if x.repacked)


def test_it_is_left_out_before_a_model_is_refused(folder: Path) -> None:
    settings = config(**LARGE)
    options = LoadOptions(pack="int4_g32", context_length=64)

    def planned(available: int | None, **changes: Any) -> Any:
        profile = machine(available)
        chosen = dataclasses.replace(options, **changes)
        return plan_checkpoint(settings, lambda: open_checkpoint(folder), chosen, profile)

    ample = planned(8 << 30)
    assert ample.scans_head
    items = {x.name: x.bytes for x in ample.plan.items}
    scan = formats.get("int4_g32").nbytes((LARGE["vocab_size"], LARGE["hidden_size"]))
    assert items["head scan"] == scan
    assert planned(ample.plan.total_bytes).scans_head
    tight = planned(ample.plan.total_bytes - 1)
    assert tight.plan.fits
    assert not tight.scans_head
    assert ample.plan.total_bytes - tight.plan.total_bytes == scan
    assert not planned(None).scans_head
    assert not planned(8 << 30, exact=True).scans_head
    # The pack on the disk is the same.
    assert {x.packed_bytes for x in (ample, tight)} == {ample.packed_bytes}


def test_what_is_scanned_is_close_to_the_head(folder: Path, tmp_path: Path) -> None:
    model = load(folder, tmp_path)
    assert model.weights.head_scan is not None
    weight_format = formats.get("int4_g32")
    head = bf16_to_f32(random_tensors(spec_of(**LARGE))["lm_head.weight"][1])
    back = weight_format.unpack(model.weights.head_scan.data, head.shape)
    error = np.linalg.norm(back - head) / np.linalg.norm(head)
    assert error < 0.12
