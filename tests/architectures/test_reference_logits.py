"""The NumPy reference against transformers, on a tiny checkpoint of every architecture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qh_runtime.architectures import spec_from_config
from qh_runtime.reference.decoder import ReferenceDecoder, record, replay
from tests.support.tiny_checkpoint import (
    BITNET_ENCODINGS,
    CASES,
    TinyCheckpoints,
    load_oracle,
    oracle_logits,
    oracle_tape,
    reference_weights,
)
from tests.support.tolerance import assert_within

DENSE = [name for name in CASES if "bitnet" not in name and "ternary" not in name]
TERNARY = [name for name in CASES if name not in DENSE]
TOKENS = [0, *np.random.default_rng(7).integers(2, 131, size=47).tolist()]


def _reference(folder: Path, **options: Any) -> ReferenceDecoder:
    spec = spec_from_config(json.loads((folder / "config.json").read_text()))
    return ReferenceDecoder(spec, reference_weights(folder), **options)


@pytest.mark.parametrize("name", DENSE)
def test_reference_equals_transformers(tiny: TinyCheckpoints, name: str) -> None:
    folder = tiny.folder(name)
    expected = oracle_logits(load_oracle(folder), TOKENS)
    assert_within(_reference(folder).forward(TOKENS), expected, 1e-4, relative=True, label=name)


@pytest.mark.parametrize("encoding", BITNET_ENCODINGS)
@pytest.mark.parametrize("name", TERNARY)
def test_ternary_reference_equals_transformers(
    tiny: TinyCheckpoints, name: str, encoding: str
) -> None:
    folder = tiny.folder(name, encoding)
    model = load_oracle(folder)
    expected = oracle_logits(model, TOKENS)
    found = _reference(folder, hook=replay(oracle_tape(model, TOKENS))).forward(TOKENS)
    assert_within(found, expected, 1e-4, relative=True, label=f"{name} {encoding}")


@pytest.mark.parametrize("name", TERNARY)
def test_codes_differ_from_transformers_on_ties_only(tiny: TinyCheckpoints, name: str) -> None:
    """Up to the first layer with a difference the inputs are equal, so a difference is a tie."""
    folder = tiny.folder(name, "B")
    model = load_oracle(folder)
    expected, found = oracle_tape(model, TOKENS), list[Any]()
    _reference(folder, hook=record(found)).forward(TOKENS)
    assert [layer for layer, _ in found] == [layer for layer, _ in expected]
    for (_, ours), (_, theirs) in zip(found, expected, strict=True):
        differs = ours.codes != theirs.codes
        if differs.any():
            steps = np.abs(ours.codes.astype(int) - theirs.codes)[differs]
            assert steps.max() == 1
            assert differs.mean() < 0.001
            return
