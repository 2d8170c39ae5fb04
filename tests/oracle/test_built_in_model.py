"""The built-in model in all three decoders: C++, NumPy and BitNetForCausalLM of transformers.

Two links, each with the activation codes of the one replayed in the other, so that only arithmetic
is left to differ: transformers and the reference, the reference and C++. Codes may differ where an
input lies on a tie, by one step; the text follows from both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qh_kernels import isa
from qh_runtime.evaluation.engines import CHUNK_TOKENS, NativeEngine, ReferenceEngine
from qh_runtime.evaluation.perplexity import measure_perplexity
from qh_runtime.evaluation.windows import Sliding
from qh_runtime.reference.decoder import ActivationHook, Tape, replay
from qh_runtime.reference.ops import QuantizedActivations
from qh_runtime.tokenizers.from_hf import load_tokenizer
from qh_runtime.training.dialogue import HELD_OUT_START, conversation
from tests.support.greedy_text import assert_same_text, native_text, oracle_text
from tests.support.native_model import NativeModel, tape_of
from tests.support.tiny_checkpoint import load_oracle, oracle_logits, oracle_tape
from tests.support.tolerance import assert_within

FOLDER = Path(__file__).resolve().parents[2] / "assets" / "models" / "qh-toy"
PROMPTS = ("Once upon a time", "The old man went to the sea and")


@pytest.fixture(scope="module")
def oracle() -> Any:
    """The model as transformers loads it."""
    return load_oracle(FOLDER)


@pytest.fixture(scope="module")
def model() -> NativeModel:
    """The model as our loader and as the reference see it."""
    return NativeModel.from_folder(FOLDER)


@pytest.fixture(scope="module")
def texts(oracle: Any) -> dict[str, tuple[list[int], list[int], NDArray[np.float32]]]:
    """(prompt, ids, logits) of transformers for each prompt."""
    tokenizer = load_tokenizer(FOLDER)
    prompts = {text: tokenizer.encode_raw(text) for text in PROMPTS}
    return {text: (ids, *oracle_text(oracle, ids)) for text, ids in prompts.items()}


@pytest.fixture(scope="module")
def tokens(texts: dict[str, tuple[list[int], list[int], NDArray[np.float32]]]) -> list[int]:
    """A prompt and what transformers goes on with."""
    prompt, ids, _ = texts[PROMPTS[0]]
    return [*prompt, *ids]


def _replay_and_compare(tape: Tape, label: str) -> ActivationHook:
    """Replays the codes; each layer's own codes, of equal inputs, are theirs but for ties."""
    use = replay(tape)

    def hook(name: str, own: QuantizedActivations) -> QuantizedActivations:
        theirs = use(name, own)
        steps = np.abs(own.codes.astype(int) - theirs.codes)
        assert steps.max() <= 1, f"{label}: {name}: codes differ by {steps.max()} steps"
        # Inputs within rounding of a tie: a thousandth would be far more than there are.
        assert np.count_nonzero(steps) <= 1 + steps.size // 1000, f"{label}: {name}"
        return theirs

    return hook


def test_it_is_ternary(model: NativeModel) -> None:
    linears = {x.name for layer in model.spec.layers for x in layer.linears}
    assert {x.format for x in model.packed.matrices if x.name in linears} == {"ternary"}
    assert model.spec.model_type == "bitnet"


def test_the_reference_equals_transformers(
    oracle: Any, model: NativeModel, tokens: list[int]
) -> None:
    hook = _replay_and_compare(oracle_tape(oracle, tokens), "transformers")
    found = model.reference_decoder(hook=hook).forward(tokens)
    assert_within(found, oracle_logits(oracle, tokens), 1e-4, relative=True, label="reference")


@pytest.mark.parametrize("isa_name", isa.available())
def test_cpp_equals_the_reference(model: NativeModel, tokens: list[int], isa_name: str) -> None:
    with model.decoder(kv_type="f32", isa=isa_name, trace=True) as decoder:
        found = decoder.forward(tokens)
        tape = tape_of(model.spec, decoder.trace())
    expected = model.reference_decoder(hook=_replay_and_compare(tape, isa_name)).forward(tokens)
    assert_within(found, expected, 1e-4, relative=True, label=isa_name)


@pytest.mark.parametrize("isa_name", isa.available())
def test_text_equals_transformers(
    model: NativeModel,
    texts: dict[str, tuple[list[int], list[int], NDArray[np.float32]]],
    isa_name: str,
) -> None:
    for text, (prompt, expected, logits) in texts.items():
        found = native_text(model, prompt, exact=True, isa=isa_name)
        # A code on a tie moves a logit by some hundredths.
        assert_same_text(found, expected, logits, bound=0.1, label=f"{text!r} {isa_name}")


class _TransformersEngine:
    """transformers as a LogitsEngine."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def logits(self, tokens: Sequence[int], first: int) -> Iterator[NDArray[np.float32]]:
        rows = oracle_logits(self._model, list(tokens))
        for begin in range(first, len(tokens), CHUNK_TOKENS):
            yield rows[begin : begin + CHUNK_TOKENS]


@pytest.mark.parametrize("n_tokens", [256, pytest.param(4096, marks=pytest.mark.slow)])
def test_perplexity_by_three_decoders(oracle: Any, model: NativeModel, n_tokens: int) -> None:
    # Of the kind the model was trained on, and not among that.
    stories = (conversation(HELD_OUT_START + i)[-1].content for i in range(n_tokens // 8))
    tokenizer = load_tokenizer(FOLDER)
    tokens = tokenizer.encode_text("\n".join(stories))[:n_tokens]
    assert len(tokens) == n_tokens
    sliding = Sliding(256, 128, (tokenizer.bos_id or 0,))
    theirs = measure_perplexity(_TransformersEngine(oracle), tokens, sliding).perplexity
    reference = model.reference_decoder(exact=True)
    ours = measure_perplexity(ReferenceEngine(reference), tokens, sliding).perplexity
    print(f"\n{n_tokens} tokens: transformers {theirs:.5f}, reference {ours:.5f}")
    # A code on a tie draws the noise of quantization anew (see test_evaluation.py).
    assert ours == pytest.approx(theirs, rel=1e-2)
    for isa_name in isa.available():
        for exact in (True, False):
            with model.decoder(exact=exact, isa=isa_name) as decoder:
                found = measure_perplexity(NativeEngine(decoder), tokens, sliding).perplexity
            print(f"{isa_name} {'exact' if exact else 'as it chats'}: {found:.5f}")
            assert found == pytest.approx(theirs, rel=1e-2)
