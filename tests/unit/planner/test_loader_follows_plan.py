"""The loader allocates what the plan says, byte for byte, and opens nothing that does not fit."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest

from qh_kernels.decoder import Decoder
from qh_runtime.errors import DoesNotFitError
from qh_runtime.hardware.facts import Fact
from qh_runtime.hardware.profile import HardwareProfile, probe
from qh_runtime.loader import LoadProgress, load_model, plan_model
from qh_runtime.options import LoadOptions
from qh_runtime.session.session import NativeSession
from qh_runtime.store.entry import ModelEntry
from tests.support.cli import write_tiny_model
from tests.support.model_tensors import config, random_tensors, spec_of, write_checkpoint

VOCAB = 400


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelEntry]:
    """A ternary checkpoint and a dense one, small and sound."""
    root = tmp_path_factory.mktemp("models")
    ternary = write_tiny_model(root / "ternary", vocab_size=VOCAB)
    changes = {"vocab_size": VOCAB, "bos_token_id": 0, "eos_token_id": 1}
    dense = write_checkpoint(
        root / "dense", config(**changes), random_tensors(spec_of(vocab_size=VOCAB))
    )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ternary / name, dense / name)
    return {folder.name: ModelEntry(folder.name, folder, "folder") for folder in (ternary, dense)}


def machine(tmp_path: Path, usable_bytes: int | None = None) -> HardwareProfile:
    """This machine, with less memory where asked for."""
    profile = probe(tmp_path)
    if usable_bytes is None:
        return profile
    memory = dataclasses.replace(profile.memory, usable_bytes=Fact(usable_bytes, "imagined"))
    return dataclasses.replace(profile, memory=memory)


def decoder_of(session: object) -> Decoder:
    assert isinstance(session, NativeSession)
    decoder = session._decoder
    assert isinstance(decoder, Decoder)
    return decoder


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ternary", {}),
        ("ternary", {"context_length": 33, "threads": 1}),
        ("ternary", {"pack": "int8", "exact": True}),
        ("ternary", {"kv_type": "int8", "context_length": 100}),
        ("dense", {}),
        ("dense", {"pack": "int8", "context_length": 50}),
        ("dense", {"pack": "int4_g32", "exact": True}),
        ("dense", {"pack": "nf4"}),
        ("dense", {"pack": "mxfp4"}),
        ("dense", {"pack": "nvfp4"}),
        ("dense", {"pack": "f16"}),
    ],
)
def test_every_planned_byte_is_the_one_that_is_allocated(
    name: str, options: dict[str, Any], models: dict[str, ModelEntry], tmp_path: Path
) -> None:
    chosen, profile = LoadOptions(**options), machine(tmp_path)
    plan = plan_model(models[name], chosen, profile).plan
    session = load_model(models[name], chosen, profile, tmp_path / "cache")
    decoder = decoder_of(session)
    assert decoder.allocated_bytes == {
        "kv_cache": plan.group_bytes("kv_cache"),
        "scratch": plan.group_bytes("scratch"),
    }
    assert decoder.weights_bytes == plan.group_bytes("weights")
    assert (decoder.context_length, decoder.threads) == (plan.context_length, plan.threads)
    assert session.info.planned_bytes == plan.total_bytes
    session.close()


def test_what_does_not_fit_is_refused_before_anything_is_made(
    models: dict[str, ModelEntry], tmp_path: Path
) -> None:
    stages: list[str] = []

    def note(progress: LoadProgress) -> None:
        stages.append(progress.stage)

    cache = tmp_path / "cache"
    with pytest.raises(DoesNotFitError) as caught:
        load_model(models["ternary"], LoadOptions(), machine(tmp_path, 1 << 20), cache, note)
    assert stages == ["plan"]
    assert not cache.exists()
    facts = caught.value.facts
    assert facts["required_bytes"] == sum(item["bytes"] for item in facts["plan"]["items"])
    groups = {item["group"] for item in facts["plan"]["items"]}
    assert groups == {"weights", "kv_cache", "scratch", "runtime"}


def test_force_loads_what_does_not_fit(models: dict[str, ModelEntry], tmp_path: Path) -> None:
    profile = machine(tmp_path, 1 << 20)
    options = LoadOptions(force=True)
    assert not plan_model(models["ternary"], options, profile).plan.fits
    session = load_model(models["ternary"], options, profile, tmp_path / "cache")
    assert decoder_of(session).prefill([1, 2, 3])
    session.close()
