"""Large ternary models hold five weights to a byte where the processor takes them apart fast."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qh_kernels.decoder import Decoder
from qh_runtime.hardware.profile import probe
from qh_runtime.loader import load_model, plan_model
from qh_runtime.options import LoadOptions
from qh_runtime.packing import matrices
from qh_runtime.session.session import NativeSession
from qh_runtime.store.entry import ModelEntry
from tests.support.cli import write_tiny_model


def allow(monkeypatch: pytest.MonkeyPatch, least_bytes: int, *names: str) -> None:
    """Models of so many ternary bytes are held so where one of these instruction sets runs."""
    monkeypatch.setattr(matrices, "_DENSE_TERNARY_BYTES", least_bytes)
    monkeypatch.setattr(matrices, "_DENSE_TERNARY_ISAS", frozenset(names))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelEntry:
    return ModelEntry("tiny", write_tiny_model(tmp_path_factory.mktemp("tiny")), "folder")


def formats_of(model: ModelEntry, tmp_path: Path) -> set[str]:
    planned = plan_model(model, LoadOptions(), probe(tmp_path))
    return {x.format for x in planned.matrices if x.format.startswith("ternary")}


@pytest.mark.parametrize(
    ("least_bytes", "names", "expected"),
    [
        (1, ("another", "scalar"), "ternary5"),
        (1, ("another",), "ternary"),
        (1 << 40, ("another", "scalar"), "ternary"),
    ],
)
def test_size_and_processor_decide(
    least_bytes: int,
    names: tuple[str, ...],
    expected: str,
    model: ModelEntry,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    allow(monkeypatch, least_bytes, *names)
    assert formats_of(model, tmp_path) == {expected}


def test_both_forms_give_the_same_bits_and_allocate_what_is_planned(
    model: ModelEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {}
    # Also the check of a first load compares rows of the pack with those of the checkpoint.
    for names in (("another",), ("scalar",)):
        allow(monkeypatch, 1, *names)
        plan = plan_model(model, LoadOptions(), probe(tmp_path)).plan
        session = load_model(model, LoadOptions(), probe(tmp_path), tmp_path / "cache")
        assert isinstance(session, NativeSession)
        decoder = session._decoder
        assert isinstance(decoder, Decoder)
        assert decoder.weights_bytes == plan.group_bytes("weights")
        found[names] = np.array(decoder.forward([1, 2, 3, 5, 8]))
        session.close()
    first, second = found.values()
    np.testing.assert_array_equal(first, second)
