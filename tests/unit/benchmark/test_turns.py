"""Medians, turns, shares of the time, and what others used meanwhile."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from qh_chat.benchmark.cases import Budget
from qh_chat.benchmark.cpu_load import CpuWatch
from qh_chat.benchmark.limits import Limits, peak_name
from qh_chat.benchmark.measuring import take_turns
from qh_chat.benchmark.samples import spread
from qh_kernels.bench import ReadBench, mac_peak_names


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([3.0], (3.0, 3.0, 3.0)),
        ([2.0, 1.0], (1.5, 1.0, 2.0)),
        ([5, 1, 9], (5, 1, 9)),
        # Of ten, one at each end is left out; of thirty, three.
        (list(range(10)), (4.5, 1, 8)),
        (list(range(30)), (14.5, 3, 26)),
    ],
)
def test_medians_and_spreads(values: list[float], expected: tuple[float, float, float]) -> None:
    random.Random(1).shuffle(values)
    found = spread(values)
    assert (found.median, found.low, found.high) == expected
    assert found.range == expected[1:]


def ticking(step: float) -> Callable[[], float]:
    """A clock that goes on by a step with every look at it."""
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += step
        return now

    return clock


def test_every_runner_is_between_two_limits() -> None:
    log: list[str] = []
    limits = iter([10.0, 20.0, 30.0, 40.0, 50.0])
    rates = {"ours": iter([1.0, 3.0]), "peer": iter([2.0, 4.0])}

    def runner(name: str) -> Callable[[], float]:
        def run() -> float:
            log.append(name)
            return next(rates[name])

        return run

    def limit() -> float:
        log.append("limit")
        return next(limits)

    turns = take_turns(limit, [runner("ours"), runner("peer")], 2, 1e9, ticking(1.0))
    assert log == ["limit", *("ours", "limit", "peer", "limit") * 2]
    assert turns.rates == ([1.0, 3.0], [2.0, 4.0])
    assert turns.limits == ([15.0, 35.0], [25.0, 45.0])
    assert turns.ratios() == [0.5, 0.75]
    assert turns.fractions(1, 100) == [8.0, pytest.approx(8.888888)]


def test_turns_end_when_their_time_is_over() -> None:
    def once() -> float:
        return 1.0

    assert len(take_turns(once, [once], 1000, 5.0, ticking(1.0)).rates[0]) == 5
    # One is taken, however late it is.
    assert len(take_turns(once, [once], 1000, 0.0, ticking(1.0)).rates[0]) == 1
    assert len(take_turns(once, [once], 3, 1e9, ticking(1.0)).rates[0]) == 3


def test_a_budget_is_shared_by_cost() -> None:
    now = [0.0]
    budget = Budget([1.0, 1.0, 2.0], 40.0, lambda: now[0])
    assert budget.left_s() is None
    assert budget.step_seconds(1.0) == 10.0
    now[0] = 5.0
    budget.done(1.0)
    assert budget.left_s() == pytest.approx(15.0)
    # The first took half of its share: there is more for the others.
    assert budget.step_seconds(1.0) == pytest.approx(35 / 3)
    now[0] = 39.0
    budget.done(1.0)
    assert budget.step_seconds(2.0) == pytest.approx(1.0)
    assert budget.left_s() == pytest.approx(1.0)
    now[0] = 50.0
    assert budget.step_seconds(2.0) == 0.0
    endless = Budget([1.0], None, lambda: now[0])
    assert endless.step_seconds(1.0) is None


def write_proc(folder: Path, busy: int, steal: int, child: int | None) -> None:
    """busy ticks in user, system and irq; idle ticks do not count."""
    parts = [busy - 20, 0, 15, 10**6, 50, 3, 2, steal, 0, 0]
    text = "cpu  " + " ".join(map(str, parts)) + "\ncpu0 1 2 3\n"
    (folder / "stat").write_text(text, "ascii")
    (folder / "77").mkdir(exist_ok=True)
    if child is not None:
        fields = ["S", *["0"] * 10, str(child - 5), "5", *["0"] * 30]
        (folder / "77/stat").write_text("77 (a) b (c) " + " ".join(fields), "ascii")


def test_what_others_used_is_what_is_not_ours(tmp_path: Path) -> None:
    tick = 1 / os.sysconf("SC_CLK_TCK")
    now = [0.0, 0.0]
    write_proc(tmp_path, 1000, 100, 50)
    watch = CpuWatch([77], tmp_path, lambda: now[0], lambda: now[1])
    # In 10 s 1,000 ticks of everybody; ours are 300 of this process and 200 of the child.
    write_proc(tmp_path, 2000, 150, 250)
    now[:] = [1000 * tick, 300 * tick]
    load = watch.load()
    assert load.foreign == pytest.approx(0.5)
    assert load.steal == pytest.approx(0.05)


def test_systems_that_do_not_tell(tmp_path: Path) -> None:
    watch = CpuWatch((), tmp_path)
    assert watch.load().foreign is None
    assert watch.load().steal is None
    (tmp_path / "stat").write_text("intr 1 2 3\n", "ascii")
    assert CpuWatch((), tmp_path).load().foreign is None
    write_proc(tmp_path, 1000, 0, None)
    # A child that is gone: what was its is not known.
    assert CpuWatch([77], tmp_path).load().foreign is None


def test_limits_remember_every_sample() -> None:
    limits = Limits(ReadBench(1 << 22), 0.004)
    limits.measure([1, 2], [1, 4, 512], rounds=2)
    limits.bandwidth(2)
    roofline = limits.roofline()
    read = {(x["bytes"], x["threads"]): x for x in roofline["read_bandwidth"]}
    # What is larger than the memory is the memory.
    assert set(read) == {(size << 20, threads) for size in (1, 4) for threads in (1, 2)}
    assert read[4 << 20, 2]["samples"] == 2 + 2 + 1
    assert all(x["spread"][0] <= x["gb_per_s"] <= x["spread"][1] for x in read.values())
    names = {(x["name"], x["threads"]) for x in roofline["mac_peaks"]}
    assert names == {(name, threads) for name in mac_peak_names() for threads in (1, 2)}


@pytest.mark.parametrize(
    ("isa", "family", "expected"),
    [
        ("avx512vnni", "lut4", "vpdpbusd_zmm"),
        ("avx512vbmi", "codebook", "vpdpbusd_zmm"),
        ("avx512vnni", "dense", "fma_zmm"),
        ("avxvnni", "ternary", "vpdpbusd_ymm"),
        ("avx2", "ternary", "maddubs_ymm"),
        ("avx2", "dense", "fma_ymm"),
        ("avx512amx", "ternary", "tdpbssd"),
        ("amx", "int8", "tdpbssd"),
        ("amx", "lut4", "tdpbf16ps"),
        ("neon", "int8", "smlal"),
        ("neon", "dense", "fmla"),
        ("neon_dotprod", "lut4", "sdot"),
        ("neon_i8mm", "lut4", "smmla"),
        ("scalar", "lut4", None),
    ],
)
def test_the_sequence_that_limits_prefill(
    isa: str, family: str, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = ("fma_zmm", "fma_ymm", "fmla", "vpdpbusd_zmm", "vpdpbusd_ymm", "maddubs_ymm")
    everything += ("tdpbssd", "tdpbf16ps", "smlal", "sdot", "smmla")
    monkeypatch.setattr("qh_chat.benchmark.limits.mac_peak_names", lambda: everything)
    assert peak_name(isa, family) == expected
    monkeypatch.setattr("qh_chat.benchmark.limits.mac_peak_names", lambda: ())
    assert peak_name(isa, family) is None
