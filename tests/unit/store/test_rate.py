"""Rates over the last seconds, by a clock of our own."""

from __future__ import annotations

import pytest

from qh_runtime.store.rate import RateMeter


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def feed(meter: RateMeter, clock: Clock, rate: int, seconds: int, begin: int = 0) -> int:
    """Feed ten samples a second; returns the bytes so far."""
    for step in range(1, 10 * seconds + 1):
        clock.now += 0.1
        meter.add(begin + rate * step // 10)
    return begin + rate * seconds


def test_nothing_is_said_before_there_is_enough(clock: Clock) -> None:
    meter = RateMeter(clock)
    assert meter.bytes_per_s is None
    assert meter.left_s(1) is None
    assert meter.left_s(0) == 0.0
    clock.now += 0.4
    meter.add(1000)
    assert meter.bytes_per_s is None
    clock.now += 0.1
    meter.add(1000)
    assert meter.bytes_per_s == pytest.approx(2000)
    assert meter.left_s(4000) == pytest.approx(2.0)


def test_only_the_last_seconds_count(clock: Clock) -> None:
    meter = RateMeter(clock)
    done = feed(meter, clock, 1_000_000, 60)
    assert meter.bytes_per_s == pytest.approx(1_000_000, rel=0.05)
    done = feed(meter, clock, 1000, 3, done)
    assert 300_000 < (meter.bytes_per_s or 0) < 500_000
    feed(meter, clock, 1000, 6, done)
    assert meter.bytes_per_s == pytest.approx(1000, rel=0.05)


def test_a_stall_shows_although_nothing_is_fed(clock: Clock) -> None:
    meter = RateMeter(clock)
    feed(meter, clock, 1000, 5)
    before = meter.bytes_per_s
    clock.now += 20
    assert before is not None
    assert (meter.bytes_per_s or 0) < before / 4
    meter.add(5000)
    meter.add(5000)
    assert meter.bytes_per_s is not None


def test_no_bytes_are_no_rate_to_divide_by(clock: Clock) -> None:
    meter = RateMeter(clock)
    clock.now += 3
    meter.add(0)
    assert meter.bytes_per_s == 0
    assert meter.left_s(10) is None
