"""The sampler against a second reading of its rules in NumPy: supports, and draws by chi-square.

All seeds are fixed, so a test that passes once passes always; the chi-square bounds are the
1 - 1e-6 quantile: a wrong distribution fails, and the chosen seeds do not have to be lucky.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qh_kernels.errors import KernelError
from qh_kernels.sampler import Sampler

F64 = NDArray[np.float64]


def expected_probabilities(
    logits: NDArray[np.float32],
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    seen: tuple[int, ...] = (),
    allowed_vocab: int | None = None,
) -> F64:
    """Probability of each id, by full sorts."""
    x = logits.astype(np.float32).copy()
    for token in set(seen):
        value = x[token]
        rate = np.float32(repetition_penalty)
        value = value / rate if value > 0 else value * rate
        value -= np.float32(presence_penalty)
        value -= np.float32(frequency_penalty) * np.float32(seen.count(token))
        x[token] = value
    if allowed_vocab is not None:
        x[allowed_vocab:] = -np.inf
    ids = np.arange(len(x))
    ranked = ids[np.lexsort((ids, -x))]
    if temperature == 0:
        return np.asarray(ids == ranked[0], dtype=np.float64)
    with np.errstate(under="ignore"):
        p = np.exp((x.astype(np.float64) - x.max()) / temperature)
    keep = ranked[:top_k] if top_k else ranked
    p[np.setdiff1d(ids, keep)] = 0
    p /= p.sum()
    if top_p < 1:
        before = np.cumsum(p[ranked]) - p[ranked]
        # The first that reaches top_p stays; rounding must not decide, so tests avoid ties.
        p[ranked[1:][before[1:] >= top_p]] = 0
        p /= p.sum()
    p[p < min_p * p.max()] = 0
    return np.asarray(p / p.sum())


def draws(logits: NDArray[np.float32], n: int, seed: int = 1, **options: Any) -> NDArray[np.int64]:
    sampler = Sampler(len(logits), seed=seed, **options)
    return np.array([sampler.sample(logits) for _ in range(n)])


def assert_distributed(found: NDArray[np.int64], p: F64) -> None:
    """Chi-square of the counts against p, ids with fewer than 5 expected draws put together."""
    counts = np.bincount(found, minlength=len(p)).astype(np.float64)
    assert counts[p == 0].sum() == 0, "drew an id that must not be drawn"
    expected = p * len(found)
    common = expected >= 5
    observed = np.append(counts[common], counts[~common].sum())
    target = np.append(expected[common], expected[~common].sum())
    observed, target = observed[target > 0], target[target > 0]
    statistic = float(np.sum((observed - target) ** 2 / target))
    freedom = len(target) - 1
    if freedom == 0:
        return
    # Wilson and Hilferty 1931: chi-square quantiles from the normal one; 4.753 is 1 - 1e-6.
    limit = freedom * (1 - 2 / (9 * freedom) + 4.753 * np.sqrt(2 / (9 * freedom))) ** 3
    assert statistic < limit, f"chi-square {statistic:.1f} above {limit:.1f}"


CONFIGURATIONS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.5},
    {"temperature": 3.0},
    {"top_k": 5},
    {"top_k": 1},
    {"top_k": 100},
    {"top_k": 1000, "top_p": 0.8},
    {"top_p": 0.7},
    {"top_p": 0.01},
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "min_p": 0.05},
    {"temperature": 1.5, "top_k": 10, "top_p": 0.5},
    {"temperature": 0.7, "top_p": 0.95, "min_p": 0.02},
    {"allowed_vocab": 30},
    {"allowed_vocab": 30, "top_k": 40, "top_p": 0.99},
]


@pytest.mark.parametrize("options", CONFIGURATIONS, ids=str)
def test_distribution(options: dict[str, Any]) -> None:
    logits = np.random.default_rng(5).normal(0, 2, 50).astype(np.float32)
    found = draws(logits, 20_000, **options)
    assert_distributed(found, expected_probabilities(logits, **options))


@pytest.mark.parametrize("options", CONFIGURATIONS, ids=str)
def test_distribution_over_seeds(options: dict[str, Any]) -> None:
    """First draws of many seeds: the seeding, not only the stream, is uniform."""
    logits = np.random.default_rng(6).normal(0, 2, 50).astype(np.float32)
    found = np.array([Sampler(50, seed=seed, **options).sample(logits) for seed in range(8000)])
    assert_distributed(found, expected_probabilities(logits, **options))


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.7},
        {"repetition_penalty": 0.6},
        {"presence_penalty": 1.5},
        {"frequency_penalty": 0.8},
        {"frequency_penalty": -0.5},
        {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.3, "top_k": 9},
    ],
    ids=str,
)
def test_penalties(options: dict[str, Any]) -> None:
    logits = np.random.default_rng(7).normal(0, 1.5, 40).astype(np.float32)
    seen = (3, 3, 3, 7, 0, 39, 7)
    expected = expected_probabilities(logits, seen=seen, **options)
    found = []
    for seed in range(8000):
        sampler = Sampler(40, seed=seed, penalty_window=16, **options)
        sampler.observe(seen)
        found.append(sampler.sample(logits))
    assert_distributed(np.array(found), expected)


def test_penalty_window_forgets_the_oldest() -> None:
    logits = np.zeros(8, np.float32)
    sampler = Sampler(8, temperature=0, presence_penalty=1.0, penalty_window=3)
    # Greedy with a penalty on the last three: the lowest id that is not among them.
    assert [sampler.sample(logits) for _ in range(9)] == [0, 1, 2, 3, 0, 1, 2, 3, 0]
    sampler = Sampler(8, temperature=0, presence_penalty=1.0, penalty_window=3)
    sampler.observe([0, 1, 2, 4])
    assert sampler.sample(logits) == 0


def test_penalty_window_of_zero_is_off() -> None:
    logits = np.zeros(4, np.float32)
    sampler = Sampler(4, temperature=0, presence_penalty=9.0, penalty_window=0)
    sampler.observe([0])
    assert [sampler.sample(logits) for _ in range(3)] == [0, 0, 0]


def test_greedy_takes_the_lowest_id_among_equals() -> None:
    logits = np.array([1, 5, 3, 5, 5], np.float32)
    assert Sampler(5, temperature=0).sample(logits) == 1
    assert Sampler(5, temperature=0, allowed_vocab=1).sample(logits) == 0


def test_top_k_among_equals_keeps_the_lowest_ids() -> None:
    logits = np.zeros(50, np.float32)
    logits[30] = 1
    assert set(draws(logits, 500, top_k=4)) == {30, 0, 1, 2}
    assert set(draws(logits, 2000, top_p=0.1)) == {30, 0, 1, 2}


def test_large_vocabulary_with_a_flat_distribution() -> None:
    """Thousands of candidates are kept, none is far likelier than another."""
    vocab = 2000
    logits = np.linspace(0, 0.5, vocab, dtype=np.float32)
    found = draws(logits, 10_000, top_p=0.5)
    p = expected_probabilities(logits, top_p=0.5)
    assert 500 < np.count_nonzero(p) < vocab
    assert found.min() == np.flatnonzero(p).min()
    assert_distributed(found, p)


@settings(max_examples=150, deadline=None)
@given(
    logits=st.lists(
        st.floats(-30, 30, width=32) | st.just(float("-inf")), min_size=1, max_size=600
    ),
    temperature=st.floats(0.05, 5),
    top_k=st.integers(0, 700),
    top_p=st.floats(0.05, 1),
    min_p=st.floats(0, 1),
    seed=st.integers(0, 2**64 - 1),
)
def test_every_draw_is_in_the_support(
    logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float, seed: int
) -> None:
    values = np.array(logits, dtype=np.float32)
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    sampler = Sampler(len(values), seed=seed, **options)
    if not np.isfinite(values).any():
        with pytest.raises(KernelError):
            sampler.sample(values)
        return
    with np.errstate(invalid="ignore"):
        # Slightly wider, because sums in another order may end a hair before or behind top_p.
        wide = {**options, "top_p": min(1.0, top_p + 1e-9), "min_p": min_p * (1 - 1e-9)}
        p = expected_probabilities(values, **wide)
    for _ in range(20):
        assert p[sampler.sample(values)] > 0


def test_same_seed_same_tokens_and_other_seed_others() -> None:
    logits = np.random.default_rng(8).normal(0, 1, 300).astype(np.float32)
    first = draws(logits, 100, seed=42, top_k=50)
    np.testing.assert_array_equal(first, draws(logits, 100, seed=42, top_k=50))
    assert (first != draws(logits, 100, seed=43, top_k=50)).any()
    # Negative and large seeds are taken by their low 64 bits.
    np.testing.assert_array_equal(draws(logits, 9, seed=-1), draws(logits, 9, seed=2**64 - 1))


def test_generator_is_the_published_one() -> None:
    """Tokens of uniform logits are the top bits of xoshiro256**, written here a second time."""
    mask = 2**64 - 1
    state, seed = [], 1234
    for _ in range(4):
        seed = (seed + 0x9E3779B97F4A7C15) & mask
        z = seed
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        state.append(z ^ (z >> 31))
    expected = []
    for _ in range(200):
        product = (state[1] * 5) & mask
        word = ((product << 7 | product >> 57) & mask) * 9 & mask
        expected.append(word >> 56)
        shifted = (state[1] << 17) & mask
        state[2] ^= state[0]
        state[3] ^= state[1]
        state[1] ^= state[2]
        state[0] ^= state[3]
        state[2] ^= shifted
        state[3] = (state[3] << 45 | state[3] >> 19) & mask
    assert list(draws(np.zeros(256, np.float32), 200, seed=1234)) == expected


def test_impossible_tokens_are_never_drawn() -> None:
    logits = np.full(20, -np.inf, np.float32)
    logits[[4, 9]] = [0.0, 1.0]
    for options in CONFIGURATIONS:
        if options.get("allowed_vocab") is None:
            assert set(draws(logits, 200, **options)) <= {4, 9}


@pytest.mark.parametrize(
    "bad", [[0, float("nan"), 1], [float("inf"), 0, 0], [float("-inf")] * 3, [float("nan")] * 3]
)
@pytest.mark.parametrize("options", [{"temperature": 0}, {}, {"top_k": 2}, {"top_p": 0.5}])
def test_logits_that_cannot_be_sampled(bad: list[float], options: dict[str, Any]) -> None:
    with pytest.raises(KernelError) as raised:
        Sampler(3, **options).sample(np.array(bad, np.float32))
    assert raised.value.facts["object"] == "logits"


def test_values_behind_the_allowed_vocabulary_do_not_matter() -> None:
    logits = np.array([0, 1, np.nan, np.inf], np.float32)
    assert Sampler(4, temperature=0, allowed_vocab=2).sample(logits) == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("vocab_size", 0),
        ("allowed_vocab", 11),
        ("allowed_vocab", 0),
        ("temperature", -1.0),
        ("temperature", float("nan")),
        ("temperature", 1e-30),
        ("top_k", -1),
        ("top_k", 2.5),
        ("top_p", 1.5),
        ("top_p", float("nan")),
        ("min_p", -0.1),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", float("inf")),
        ("presence_penalty", float("nan")),
        ("frequency_penalty", 1e9),
        ("penalty_window", -1),
    ],
)
def test_bad_settings(name: str, value: Any) -> None:
    options: dict[str, Any] = {"vocab_size": 10, name: value}
    with pytest.raises(KernelError) as raised:
        Sampler(options.pop("vocab_size"), **options)
    assert raised.value.facts["object"] == name


def test_bad_tokens_and_logits() -> None:
    sampler = Sampler(10, presence_penalty=1.0)
    for tokens in ([10], [-1], [[1]]):
        with pytest.raises(KernelError):
            sampler.observe(tokens)
    for shape in (9, 11, (1, 10)):
        with pytest.raises(KernelError):
            sampler.sample(np.zeros(shape, np.float32))
