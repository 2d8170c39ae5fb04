"""Numbers that no trained model has: NaN, infinity, the largest, the smallest and zero, everywhere.

Whatever is in the files, the outcome is one of two: a refusal in words, while loading or before a
second token, or an answer whose logits are finite and differ. Never a signal, and never text that
was drawn from nothing.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from qh_kernels.decoder import Decoder
from qh_runtime.architectures import decoder_shape, spec_from_config
from qh_runtime.checkpoints import open_checkpoint
from qh_runtime.checkpoints.layouts import layout_for
from qh_runtime.checkpoints.memory_tensors import MemoryTensors
from qh_runtime.errors import QhError
from qh_runtime.hardware.profile import HardwareProfile, probe
from qh_runtime.loader import load_model
from qh_runtime.options import LoadOptions, SamplingParams
from qh_runtime.packing import load_packed_model
from qh_runtime.session.events import Token
from qh_runtime.session.session import NativeSession
from qh_runtime.store.entry import describe_folder
from tests.support.cli import write_tiny_model
from tests.support.model_tensors import config, random_tensors, stored, write_checkpoint
from tests.support.token_files import byte_level_file, write_tokenizer

Fault = Callable[[NDArray[np.float32]], None]
Outcome = Literal["refused", "text"]

MODELS: dict[str, dict[str, Any]] = {
    "llama": config("llama", vocab_size=400),
    "qwen2": config("qwen2", vocab_size=400, tie_word_embeddings=True),
    "qwen3": config("qwen3", vocab_size=400),
}
LAYER = "model.layers.1."
PARTS = {
    "embedding": "model.embed_tokens.weight",
    "head": "lm_head.weight",
    **{x: f"{LAYER}self_attn.{x}_proj.weight" for x in "qkvo"},
    **{x: f"{LAYER}mlp.{x}_proj.weight" for x in ("gate", "up", "down")},
    "attention norm": f"{LAYER}input_layernorm.weight",
    "mlp norm": f"{LAYER}post_attention_layernorm.weight",
    "final norm": "model.norm.weight",
}
MORE_PARTS = {
    "qwen2": {"bias": f"{LAYER}self_attn.k_proj.bias"},
    "qwen3": {"q norm": f"{LAYER}self_attn.q_norm.weight"},
}


def _all(value: float) -> Fault:
    def fault(array: NDArray[np.float32]) -> None:
        array[...] = value

    return fault


def _one(value: float) -> Fault:
    """One element of each row: of every vocabulary entry, whichever the prompt is made of."""

    def fault(array: NDArray[np.float32]) -> None:
        array.reshape(array.shape[0], -1)[:, -1] = value

    return fault


def _mixed(value: float) -> Fault:
    """Half of the elements positive, half negative: sums do not simply grow."""

    def fault(array: NDArray[np.float32]) -> None:
        array.reshape(-1)[...] = value
        array.reshape(-1)[::2] *= -1

    return fault


FATAL: dict[str, Fault] = {
    "NaN": _one(np.nan),
    "infinity": _one(np.inf),
    "-infinity": _one(-np.inf),
    "all NaN": _all(np.nan),
}
# Finite, so that a model is not refused for having them; what comes of them decides.
EXTREME: dict[str, Fault] = {
    "all max": _all(3.4e38),
    "mixed max": _mixed(3.3e38),
    "one max": _one(3.4e38),
    "all 1e30": _all(1e30),
    "all denormal": _all(1e-42),
    "all tiny": _all(1.2e-38),
    "all 0": _all(0.0),
    "all -0": _all(-0.0),
    "all 1": _all(1.0),
}


@dataclass
class Bench:
    """Folders to write models into, and the machine they are planned for."""

    root: Path
    profile: HardwareProfile
    count: int = 0

    def folder(self) -> Path:
        self.count += 1
        return self.root / f"model-{self.count}"

    def write(self, settings: dict[str, Any], tensors: dict[str, Any]) -> Path:
        folder = write_checkpoint(self.folder(), settings, tensors)
        return write_tokenizer(folder, byte_level_file())

    def outcome(
        self,
        folder: Path,
        pack: str | None = None,
        *,
        exact: bool = False,
        latest_refusal: int = 1,
    ) -> Outcome:
        """What becomes of an answer of eight tokens; fails the test where it is neither.

        Args:
            latest_refusal: tokens that may come before one.
        """
        entry = describe_folder("model", folder, "folder")
        options = LoadOptions(pack=pack, exact=exact, context_length=64, threads=1)
        tokens = 0
        try:
            if entry.error is not None:
                raise entry.error
            session = load_model(entry, options, self.profile, self.root / "cache")
        except QhError as error:
            _check_words(error)
            return "refused"
        assert isinstance(session, NativeSession)
        params = SamplingParams(temperature=1.0, top_k=0, top_p=1.0, min_p=0, seed=3, max_tokens=8)
        try:
            for event in session.complete("hello world", params):
                if isinstance(event, Token):
                    tokens += 1
                    logits = session._decoder.logits()
                    assert np.isfinite(logits).all()
                    assert logits.min() < logits.max()
        except QhError as error:
            _check_words(error)
            assert tokens <= latest_refusal
            return "refused"
        finally:
            session.close()
        assert tokens == 8
        return "text"


def _check_words(error: QhError) -> None:
    assert str(error).isprintable()
    assert error.hint


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    root = tmp_path_factory.mktemp("numeric")
    return Bench(root, probe(root))


def _faulty(model: str, part: str, fault: Fault, dtype: str) -> tuple[dict[str, Any], Any]:
    settings = MODELS[model]
    tensors = random_tensors(spec_from_config(settings), dtype="F32")
    name = {**PARTS, **MORE_PARTS.get(model, {})}[part]
    array = tensors[name][1].copy()
    fault(array)
    with np.errstate(over="ignore"):
        tensors[name] = stored(array, dtype)
    return settings, tensors


def _parts_of(model: str) -> Iterator[str]:
    for part in (*PARTS, *MORE_PARTS.get(model, {})):
        if not (part == "head" and MODELS[model]["tie_word_embeddings"]):
            yield part


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("pack", [None, "int8", "int4_g32"])
def test_sound_weights_give_text(bench: Bench, model: str, pack: str | None) -> None:
    settings = MODELS[model]
    tensors = random_tensors(spec_from_config(settings), dtype="F32")
    assert bench.outcome(bench.write(settings, tensors), pack) == "text"


@pytest.mark.parametrize("part", PARTS)
def test_what_is_not_a_number_is_refused(bench: Bench, part: str) -> None:
    for kind, fault in FATAL.items():
        settings, tensors = _faulty("llama", part, fault, "F32")
        assert bench.outcome(bench.write(settings, tensors)) == "refused", kind


@pytest.mark.parametrize("part", PARTS)
def test_extreme_weights_are_refused_or_computed(bench: Bench, part: str) -> None:
    for kind in ("all max", "one max", "all denormal", "all 0"):
        settings, tensors = _faulty("llama", part, EXTREME[kind], "F32")
        # Finite numbers may meet only later in an overflow.
        found = bench.outcome(bench.write(settings, tensors), latest_refusal=8)
        # Nothing is left to choose by.
        if part in ("head", "final norm") and kind in ("all denormal", "all 0"):
            assert found == "refused", kind


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    "pack", [None, "f16", "int8", "int4_g32", "int4_g128", "nf4", "mxfp4", "nvfp4"]
)
def test_every_fault_everywhere(bench: Bench, model: str, pack: str | None) -> None:
    for part, dtype in itertools.product(_parts_of(model), ("F32", "F16", "BF16")):
        for kind, fault in {**FATAL, **EXTREME}.items():
            settings, tensors = _faulty(model, part, fault, dtype)
            fatal = kind in FATAL
            found = bench.outcome(
                bench.write(settings, tensors),
                pack,
                exact=dtype == "F16",
                latest_refusal=1 if fatal else 8,
            )
            assert found == "refused" or not fatal, (part, dtype, kind)


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}

# What an attacker may write where the range of a config key ends.
CONFIGS: dict[str, dict[str, Any]] = {
    "smallest eps": {"rms_norm_eps": 1e-30},
    "largest eps": {"rms_norm_eps": 1.0},
    "smallest theta": {"rope_theta": 1.0},
    "largest theta": {"rope_theta": 1e12},
    "linear, smallest factor": {"rope_scaling": {"type": "linear", "factor": 1e-3}},
    "linear, largest factor": {"rope_scaling": {"type": "linear", "factor": 1e6}},
    "llama3, extremes": {
        "rope_scaling": {
            **LLAMA3,
            "factor": 1e6,
            "low_freq_factor": 1e-3,
            "high_freq_factor": 1e6,
            "original_max_position_embeddings": 1 << 24,
        }
    },
    "llama3, no range": {
        "rope_scaling": {
            **LLAMA3,
            "factor": 1e-3,
            "high_freq_factor": 1.0000002,
            "original_max_position_embeddings": 1,
        }
    },
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_extremes_of_the_config_compute(bench: Bench, kind: str) -> None:
    settings = {**MODELS["llama"], **CONFIGS[kind]}
    tensors = random_tensors(spec_from_config(settings), dtype="F32")
    assert bench.outcome(bench.write(settings, tensors)) == "text"


@pytest.mark.parametrize(
    "changes",
    [
        {"rms_norm_eps": 0.0},
        {"rms_norm_eps": 1e-31},
        {"rms_norm_eps": 1e300},
        {"rope_theta": 0.999},
        {"rope_theta": 1e13},
        {"rope_theta": 1e-300},
        {"rope_scaling": {"type": "linear", "factor": 1e-300}},
        {"rope_scaling": {"type": "linear", "factor": 1e300}},
        {"rope_scaling": {**LLAMA3, "high_freq_factor": 1.0000000001}},
    ],
)
def test_beyond_them_it_is_refused(bench: Bench, changes: dict[str, Any]) -> None:
    tensors = random_tensors(spec_from_config(MODELS["llama"]), dtype="F32")
    assert bench.outcome(bench.write({**MODELS["llama"], **changes}, tensors)) == "refused"


@pytest.fixture(scope="module")
def ternary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("ternary") / "model")


@pytest.mark.parametrize("name", ["self_attn.v_proj", "mlp.down_proj"])
@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        (np.nan, "refused"),
        (np.inf, "refused"),
        (-1.0, "refused"),
        (0.0, "refused"),
        (-0.0, "refused"),
        (3e38, "refused"),
        (1e-45, None),
        (1e-38, None),
        (1e29, None),
    ],
)
def test_scales_of_ternary_layers(
    bench: Bench, ternary: Path, name: str, scale: float, expected: Outcome | None
) -> None:
    source = open_checkpoint(ternary)
    tensors = {x: (source.info(x).dtype, source.read(x)) for x in source.names()}
    tensors[f"{LAYER}{name}.weight_scale"] = ("F32", np.array([scale], np.float32))
    settings = json.loads((ternary / "config.json").read_text())
    folder = write_checkpoint(bench.folder(), settings, tensors)
    (folder / "tokenizer.json").write_bytes((ternary / "tokenizer.json").read_bytes())
    found = bench.outcome(folder, latest_refusal=8)
    assert expected in (None, found)


def test_denormal_weights_are_not_slower() -> None:
    """They are flushed; computed as they are, they would take ten times as long and more."""
    settings = config(
        "llama",
        hidden_size=256,
        intermediate_size=512,
        num_attention_heads=4,
        head_dim=64,
        vocab_size=400,
    )
    spec = spec_from_config(settings)

    def best_s(factor: float) -> float:
        tensors = random_tensors(spec, dtype="F32")
        for name, (_, array) in tensors.items():
            if "_proj" in name:
                tensors[name] = ("F32", array * np.float32(factor))
        model = load_packed_model(spec, MemoryTensors(tensors), layout_for(settings), threads=1)
        assert model is not None
        times = []
        with Decoder(decoder_shape(spec), model.weights, context_length=64, threads=1) as decoder:
            for _ in range(30):
                decoder.truncate(0)
                start = time.perf_counter()
                decoder.prefill([1])
                decoder.prefill([2])
                times.append(time.perf_counter() - start)
        return min(times)

    assert best_s(1e-40) < 2 * best_s(1.0)
