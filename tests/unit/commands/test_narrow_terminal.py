"""Terminals of 80 columns: names stay whole, and nothing breaks in the middle of a word."""

from __future__ import annotations

import io
from pathlib import Path

from qh_chat.wrapping import named_rows, wrapped
from qh_runtime.store.layout import StoreLayout
from tests.support.cli import command, qh_environment
from tests.support.stored_models import store_model
from tests.support.terminal import TerminalProgram

LONG = "some-organisation/A-Model-With-A-Rather-Long-Name-2B-4T-instruct"


def shown(home: Path, *words: str) -> list[str]:
    environment = qh_environment(home, TERM="xterm-256color")
    program = TerminalProgram(command(*words), environment, size=(80, 24))
    try:
        assert program.wait() == 0
    finally:
        program.close()
    return [x for x in program.lines if x]


def test_long_names_have_a_line_of_their_own(home: Path) -> None:
    layout = StoreLayout(home / "store")
    store_model(layout, LONG, {"config.json": b"{}"})
    store_model(layout, "org/short", {"config.json": b"{ }"})
    broken = home / "models" / "broken"
    broken.mkdir(parents=True)
    (broken / "config.json").write_text("{")
    for verb in ("ls", "du"):
        lines = shown(home, verb)
        assert LONG in lines
        facts = lines[lines.index(LONG) + 1]
        assert facts.startswith(" ")
        (short,) = (x for x in lines if x.startswith("org/short"))
        # In the same columns as those of a name that fits.
        assert len(short) == len(facts)


def test_elsewhere_a_row_is_a_line() -> None:
    rows = [("a" * 100, "x"), ("b", "y")]
    assert list(named_rows(rows, io.StringIO())) == [f"{'a' * 100}  x", f"{'b':100}  y"]
    assert wrapped("word " * 100, io.StringIO()) == "word " * 100
    assert list(named_rows([], io.StringIO())) == []
