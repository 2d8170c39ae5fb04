"""The reliability table names tests that exist, and a figure beyond its limit is a failure."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

from tests.reliability import Collector, Outcome, matches, page, table
from tests.support.figures import LARGEST, SUMMED
from tests.support.reliability_rows import ATTACKS, GOALS

TESTS = Path(__file__).resolve().parents[1]


@cache
def names(file: str) -> tuple[set[str], str]:
    """Tests of a file, those of classes as Class::test, and its text."""
    text = (TESTS / file).read_text("utf-8")
    found = set()
    for node in ast.parse(text).body:
        inner = node.body if isinstance(node, ast.ClassDef) else [node]
        prefix = f"{node.name}::" if isinstance(node, ast.ClassDef) else ""
        functions = (x for x in inner if isinstance(x, ast.FunctionDef | ast.AsyncFunctionDef))
        found |= {f"{prefix}{x.name}" for x in functions}
    return found, text


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda x: f"{x.row} {x.name}")
def test_every_test_exists(attack: object) -> None:
    for test in attack.tests:  # type: ignore[attr-defined]
        file, _, name = test.partition("::")
        function, _, parameters = name.partition("[")
        found, text = names(file)
        assert function in found, test
        assert parameters in text, test


def test_every_row_and_figure_is_known() -> None:
    assert {x.row for x in ATTACKS} == set(GOALS)
    assert len({(x.row, x.name) for x in ATTACKS}) == len(ATTACKS)
    assert all(set(x.limits) <= {*SUMMED, *LARGEST} for x in ATTACKS)


def test_a_figure_beyond_its_limit_fails_the_attack() -> None:
    (kills, *_) = [x for x in ATTACKS if "refetched_bytes" in x.limits]
    assert Outcome().result(kills) == "not run"
    good = Outcome(passed=1, cases=20, figures={"refetched_bytes": 8 << 20})
    assert good.result(kills) == "met"
    assert Outcome(passed=1, figures={"refetched_bytes": (8 << 20) + 1}).result(kills) == "FAILED"
    assert Outcome(passed=1, failed=1).result(kills) == "FAILED"
    collector = Collector()
    collector.outcomes[id(kills)] = good
    (line,) = [x for x in table(collector.outcomes) if f"| {kills.name} |" in x]
    assert "| 20 | met | fetched again, most: 8.00 MiB |" in line


def test_tests_are_told_by_name_and_parameter() -> None:
    assert matches("tests/unit/a.py::test_x", "unit/a.py::test_x")
    assert matches("tests/unit/a.py::test_x[drop 1-small]", "unit/a.py::test_x[drop 1")
    assert not matches("tests/unit/a.py::test_x[reset]", "unit/a.py::test_x[drop")
    assert not matches("tests/unit/a.py::test_xy", "unit/a.py::test_x")


def test_the_page_has_every_attack_and_the_worst_figures() -> None:
    outcomes = Collector().outcomes
    for number, attack in enumerate(x for x in ATTACKS if x.row == "D1"):
        kept = {"refetched_bytes": float(number << 20), "bad_files": 0.0, "orphan_bytes": 0.0}
        outcomes[id(attack)] = Outcome(passed=1, cases=5, figures=kept)
    text = page(outcomes, 61.4, "counts")
    assert "| fetched again after a kill, at most | 2.00 MiB |" in text
    assert "61 s on" in text
    assert all(f"| {x.name} |" in text for x in ATTACKS)
    assert "{" not in text
