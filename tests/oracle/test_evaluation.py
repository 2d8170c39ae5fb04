"""Perplexity and divergence: their arithmetic, and the C++ decoder against the NumPy reference."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from qh_runtime.errors import SessionError
from qh_runtime.evaluation.__main__ import main
from qh_runtime.evaluation.divergence import kl_divergence, measure_divergence
from qh_runtime.evaluation.engines import CHUNK_TOKENS, NativeEngine, ReferenceEngine
from qh_runtime.evaluation.perplexity import log_softmax, measure_perplexity
from qh_runtime.evaluation.windows import Sliding, windows
from qh_runtime.tokenizers.from_hf import load_tokenizer
from qh_runtime.training.books import read_book
from tests.support.native_model import NativeModel

# Format: perplexity over that of the model's own weights, and mean KL divergence, at most.
PACKS = {
    "f32": (1.001, 1e-5),
    "int8": (1.02, 5e-3),
    "int4_g32": (1.25, 0.2),
    "int4_g128": (1.25, 0.25),
    "nf4": (1.25, 0.2),
    "mxfp4": (1.4, 0.4),
    "nvfp4": (1.25, 0.2),
}


class _Bigrams:
    """A decoder whose logits depend on the last token only."""

    def __init__(self, table: np.ndarray) -> None:
        self.table = table

    def logits(self, tokens: Sequence[int], first: int) -> Iterator[np.ndarray]:
        for begin in range(first, len(tokens), CHUNK_TOKENS):
            yield self.table[list(tokens[begin : begin + CHUNK_TOKENS])]


@pytest.mark.parametrize("prefix", [(), (3,)])
@pytest.mark.parametrize(("context", "stride"), [(8, 1), (8, 4), (8, 7), (5, 3), (100, 50)])
def test_every_token_is_scored_once(context: int, stride: int, prefix: tuple[int, ...]) -> None:
    tokens = np.random.default_rng(1).integers(0, 50, size=43).tolist()
    scored: list[int] = []
    for window in windows(tokens, Sliding(context, stride, prefix)):
        assert len(window.tokens) < context
        assert window.tokens[: len(prefix)] == list(prefix)
        for offset, target in enumerate(window.targets):
            # Row i of the logits predicts token i + 1; the last target is not given away.
            seen = [*window.tokens, window.targets[-1]]
            assert seen[window.first + offset + 1] == target
        assert len(window.tokens) == window.first + len(window.targets)
        scored += window.targets
    assert scored == tokens[0 if prefix else 1 :]


@pytest.mark.parametrize(
    ("tokens", "sliding"),
    [
        ([1, 2, 3], Sliding(8, 0)),
        ([1, 2, 3], Sliding(8, 8)),
        ([1, 2, 3], Sliding(1, 1)),
        ([1], Sliding(8, 4)),
        ([], Sliding(8, 4, (1,))),
    ],
)
def test_windows_that_score_nothing_are_refused(tokens: list[int], sliding: Sliding) -> None:
    with pytest.raises(SessionError):
        list(windows(tokens, sliding))


def test_perplexity_of_known_probabilities() -> None:
    probabilities = np.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]])
    tokens = [0, 1, 1, 2, 0, 0, 2]
    expected = -np.mean([math.log(probabilities[a, b]) for a, b in pairwise(tokens)])
    found = measure_perplexity(_Bigrams(np.log(probabilities) + 5), tokens, Sliding(4, 2))
    assert found.n_tokens == 6
    assert found.nats_per_token == pytest.approx(expected, rel=1e-12)
    assert found.perplexity == pytest.approx(math.exp(expected), rel=1e-12)


def test_perplexity_does_not_depend_on_chunks() -> None:
    table = np.random.default_rng(5).standard_normal((40, 40))
    tokens = np.random.default_rng(6).integers(0, 40, size=5 * CHUNK_TOKENS).tolist()
    pairs = list(pairwise(tokens))
    expected = -np.mean([log_softmax(table[a])[b] for a, b in pairs])
    for sliding in (Sliding(1000, 500), Sliding(CHUNK_TOKENS + 7, CHUNK_TOKENS), Sliding(9, 2)):
        found = measure_perplexity(_Bigrams(table), tokens, sliding)
        assert found.n_tokens == len(pairs)
        assert found.nats_per_token == pytest.approx(expected, rel=1e-12)


def test_divergence_of_known_probabilities() -> None:
    p, q = np.array([[0.5, 0.5], [0.9, 0.1]]), np.array([[0.25, 0.75], [0.9, 0.1]])
    tokens = [0, 1, 0, 1, 1]
    found = measure_divergence(_Bigrams(np.log(p)), _Bigrams(np.log(q)), tokens, Sliding(8, 4))
    one = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    assert found.mean == pytest.approx(one * 2 / 4, rel=1e-12)
    assert found.largest == pytest.approx(one, rel=1e-12)
    assert found.top1_agreement == 0.5
    assert kl_divergence(log_softmax(np.log(p)), log_softmax(np.log(p))).tolist() == [0.0, 0.0]


def test_logits_that_are_not_finite_are_refused() -> None:
    table = np.zeros((3, 3))
    table[1, 2] = np.nan
    with pytest.raises(SessionError):
        measure_perplexity(_Bigrams(table), [0, 1, 2], Sliding(8, 4))


def _text(shared: Path, name: str, n_books: int) -> str:
    """Stories for the one; for the other the last parts of books, which it was not shown."""
    texts = shared / "data" / "text"
    if name == "stories260K":
        stories: list[str] = json.loads((texts / "tinystories_800.json").read_text())
        return "\n".join(stories[:40])
    paths = sorted((texts / "gutenberg").glob("*_*.txt"))[:n_books]
    return "\n".join(line for path in paths for line in read_book(path).held_out[:9])


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("n_tokens", "n_books", "context"),
    [(200, 1, 128), pytest.param(4000, 30, 256, marks=pytest.mark.slow)],
    ids=["short", "long"],
)
@pytest.mark.parametrize("name", ["stories260K", "prose-7m"])
def test_perplexity_by_cpp_and_by_reference(
    name: str,
    n_tokens: int,
    n_books: int,
    context: int,
    shared_data: Path,
    request: pytest.FixtureRequest,
) -> None:
    folder: Path = request.getfixturevalue("stories260k" if name == "stories260K" else "prose7m")
    tokenizer = load_tokenizer(folder)
    tokens = tokenizer.encode_text(_text(shared_data, name, n_books))[:n_tokens]
    assert len(tokens) == n_tokens
    assert tokenizer.bos_id is not None
    sliding = Sliding(context, context // 2, (tokenizer.bos_id,))
    base = ReferenceEngine(NativeModel.from_folder(folder).reference_decoder())
    print(f"\n{name}: {len(tokens)} tokens, context {context}, stride {context // 2}")
    print("format     reference   C++ exact   C++         mean KL    p99 KL     top-1")
    plain = 0.0
    for pack in PACKS:
        model = NativeModel.from_folder(folder, pack)
        reference = model.reference_decoder()
        exact_reference = model.reference_decoder(exact=True)
        expected = measure_perplexity(ReferenceEngine(reference), tokens, sliding)
        expected_exact = measure_perplexity(ReferenceEngine(exact_reference), tokens, sliding)
        with model.decoder(exact=True) as decoder:
            exact = measure_perplexity(NativeEngine(decoder), tokens, sliding)
        with model.decoder() as decoder:
            found = measure_perplexity(NativeEngine(decoder), tokens, sliding)
            divergence = measure_divergence(base, NativeEngine(decoder), tokens, sliding)
        print(
            f"{pack:10} {expected.perplexity:9.5f}   {exact.perplexity:9.5f}   "
            f"{found.perplexity:9.5f}   {divergence.mean:.6f}   {divergence.p99:.6f}   "
            f"{divergence.top1_agreement:.4f}"
        )
        # The same to 4 digits.
        assert exact.perplexity == pytest.approx(expected_exact.perplexity, rel=5e-5)
        # One code on a tie changes what the next layer quantizes, so the noise of quantization is
        # drawn anew: about sqrt(2 * KL / n_tokens) of the mean, 2e-3 nats for int8 here. f32 has
        # no codes; its cache of halves is all that differs.
        drawn_anew = 2e-4 if pack == "f32" else 1e-2
        assert found.perplexity == pytest.approx(expected.perplexity, rel=drawn_anew)
        plain = plain or expected.perplexity
        most_perplexity, most_divergence = PACKS[pack]
        assert found.perplexity < plain * most_perplexity
        assert divergence.mean < most_divergence


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("n_tokens", "n_books", "context"),
    [(300, 1, 256), pytest.param(4000, 30, 512, marks=pytest.mark.slow)],
    ids=["short", "long"],
)
@pytest.mark.parametrize(
    ("name", "most"), [("stories260K", (3e-3, 3e-2)), ("prose-7m", (3e-4, 3e-3))]
)
def test_an_int8_cache_costs_little(
    name: str,
    most: tuple[float, float],
    n_tokens: int,
    n_books: int,
    context: int,
    shared_data: Path,
    request: pytest.FixtureRequest,
) -> None:
    folder: Path = request.getfixturevalue("stories260k" if name == "stories260K" else "prose7m")
    tokenizer = load_tokenizer(folder)
    tokens = tokenizer.encode_text(_text(shared_data, name, n_books))[:n_tokens]
    assert tokenizer.bos_id is not None
    sliding = Sliding(context, context // 2, (tokenizer.bos_id,))
    model = NativeModel.from_folder(folder)
    found = {}
    print(f"\n{name}: {len(tokens)} tokens, context {context}, stride {context // 2}")
    for kv_type in ("f16", "int8"):
        with (
            model.decoder(exact=True, context_length=context) as base,
            model.decoder(kv_type=kv_type, context_length=context) as decoder,
        ):
            engine = NativeEngine(decoder)
            found[kv_type] = measure_perplexity(engine, tokens, sliding).perplexity
            divergence = measure_divergence(NativeEngine(base), engine, tokens, sliding)
        print(
            f"{kv_type:10} {found[kv_type]:9.5f}   {divergence.mean:.7f}   {divergence.p99:.6f}   "
            f"{divergence.top1_agreement:.4f}"
        )
    # int8 is the last.
    assert 0 < divergence.mean < most[0]
    assert divergence.p99 < most[1]
    assert found["int8"] == pytest.approx(found["f16"], rel=5e-3)


@pytest.mark.shared_data
def test_command_line_gives_json(
    stories260k: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time, there was a little girl. She liked to play.", "utf-8")
    arguments = [str(stories260k), "--text", str(text), "--context", "32", "--stride", "16"]
    assert main([*arguments, "--pack", "f32", "--pack", "int8"]) == 0
    report = json.loads(capsys.readouterr().out)
    plain, packed = report["results"]
    assert plain["perplexity"]["perplexity"] < 30
    assert plain["bits_per_weight"] == 32.0
    assert 8 < packed["bits_per_weight"] < 10
    assert 0 < packed["divergence"]["mean"] < 0.01
    assert main([*arguments, "--kv", "f16", "--kv", "int8"]) == 0
    f16, int8 = json.loads(capsys.readouterr().out)["results"]
    assert (f16["kv"], int8["kv"]) == ("f16", "int8")
    assert f16["divergence"]["mean"] < int8["divergence"]["mean"] < 0.01
    assert main([*arguments, "--pack", "no-such-format"]) == 3
    assert main([*arguments, "--stride", "32", "--context", "16"]) == 3
    with pytest.raises(SystemExit) as caught:
        main([*arguments, "--limit", "-5"])
    assert caught.value.code == 2
    assert main([str(tmp_path / "nothing"), "--text", str(text)]) == 3
