"""Weights in large pages: the same bytes, elsewhere; and when there is room for them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from qh_kernels.decoder import DecoderWeights, Matrix
from qh_runtime import planned_model
from qh_runtime.architectures import DecoderSpec
from qh_runtime.checkpoints import open_checkpoint
from qh_runtime.checkpoints.layouts import layout_for
from qh_runtime.hardware.memory import read_memory
from qh_runtime.options import LoadOptions
from qh_runtime.packing import PackedModel, load_packed_model
from qh_runtime.packing.large_pages import in_large_pages, read_every_token
from qh_runtime.planned_model import PlannedModel, plan_checkpoint
from tests.support.imagined_machine import machine
from tests.support.model_tensors import config, random_tensors, spec_of, write_checkpoint

DENSE = layout_for({})
# Some large pages' worth of weights.
WIDE = {"hidden_size": 512, "head_dim": 64, "intermediate_size": 2048, "vocab_size": 512}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("wide")
    return write_checkpoint(place, config(**WIDE), random_tensors(spec_of(**WIDE)))


def load(folder: Path, spec: DecoderSpec, **options: object) -> PackedModel:
    model = load_packed_model(spec, open_checkpoint(folder), DENSE, **options)  # type: ignore[arg-type]
    assert model is not None
    return model


def every_matrix(weights: DecoderWeights) -> list[Matrix]:
    found = [weights.embedding, weights.head]
    for layer in weights.layers:
        found += [x for x in vars(layer).values() if isinstance(x, Matrix)]
    return found if weights.head_scan is None else [*found, weights.head_scan]


@pytest.mark.parametrize("pack", [None, "int4_g32"])
def test_what_is_read_for_every_token_is_copied_and_nothing_else(
    folder: Path, tmp_path: Path, pack: str | None
) -> None:
    spec = spec_of(**WIDE)
    before = load(folder, spec, pack=pack, cache_folder=tmp_path, head_scan="always").weights
    told: list[tuple[int, int]] = []
    after = in_large_pages(before, 2, lambda done, of: told.append((done, of)))
    often = {x.data.ctypes.data for x in read_every_token(before)}
    for old, new in zip(every_matrix(before), every_matrix(after), strict=True):
        np.testing.assert_array_equal(old.data, new.data)
        assert (old.format, old.rows, old.cols) == (new.format, new.rows, new.cols)
        assert np.shares_memory(old.data, new.data) == (old.data.ctypes.data not in often)
        assert not new.data.flags.writeable
        assert new.data.ctypes.data % 64 == 0 or new.data is old.data
    copied = sum(x.data.nbytes for x in read_every_token(before))
    assert told[-1] == (copied, copied)


def test_a_tied_head_is_one_matrix_still(tmp_path: Path) -> None:
    spec = spec_of(tie_word_embeddings=True)
    settings = config(tie_word_embeddings=True)
    folder = write_checkpoint(tmp_path, settings, random_tensors(spec))
    weights = in_large_pages(load(folder, spec).weights)
    assert weights.head.data.ctypes.data == weights.embedding.data.ctypes.data
    assert weights.head.data.ctypes.data % 64 == 0


def test_what_is_told_may_end_it(folder: Path) -> None:
    class StoppedError(Exception):
        pass

    def stop(done: int, of: int) -> None:
        raise StoppedError

    with pytest.raises(StoppedError):
        in_large_pages(load(folder, spec_of(**WIDE)).weights, 2, stop)


def smaps(address: int) -> dict[str, int]:
    """kB by name, of the mapping that holds an address."""
    found: dict[str, int] = {}
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if match := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(match[1], 16) <= address < int(match[2], 16)
        elif inside and (match := re.match(r"(\w+): +(\d+) kB", line)):
            found[match[1]] = int(match[2])
    return found


@pytest.mark.skipif(
    not read_memory().large_pages.value, reason="the system here has no large pages to give"
)
def test_the_pages_are_large(folder: Path) -> None:
    weights = in_large_pages(load(folder, spec_of(**WIDE)).weights)
    copied = sum(x.data.nbytes for x in read_every_token(weights))
    large = smaps(weights.layers[0].gate.data.ctypes.data)
    assert large["AnonHugePages"] * 1024 > 0.5 * copied


def planned(folder: Path, available: int | None, **changes: bool) -> PlannedModel:
    profile = machine(available, **changes)
    options = LoadOptions(context_length=64)
    return plan_checkpoint(config(**WIDE), lambda: open_checkpoint(folder), options, profile)


def test_there_is_room_for_copies_and_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not planned(folder, 8 << 30, large_pages=True).copies_weights, "too small to gain"
    monkeypatch.setattr(planned_model, "_LEAST_COPIED_BYTES", 1 << 20)
    ample = planned(folder, 8 << 30, large_pages=True)
    assert ample.copies_weights
    items = {x.name: x for x in ample.plan.items}
    assert {x: items[x].placement for x in ("embedding", "linears", "head")} == {
        "embedding": "mapped",
        "linears": "copied",
        "head": "copied",
    }
    assert [x.file_bytes for x in items.values()].count(0) == len(items) - 1
    copied = items["linears"].bytes + items["head"].bytes
    needed = ample.plan.total_bytes + copied
    assert planned(folder, needed, large_pages=True).copies_weights
    tight = planned(folder, needed - 1, large_pages=True)
    assert not tight.copies_weights
    assert tight.plan.fits
    assert tight.plan.total_bytes == ample.plan.total_bytes
    assert not planned(folder, 8 << 30).copies_weights
    assert not planned(folder, None, large_pages=True).copies_weights
