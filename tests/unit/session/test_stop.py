"""Stop strings: found across any borders, and nothing of them, or held back for them, is lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qh_runtime.session.stop import StopMatcher


def _run(stops: tuple[str, ...], parts: list[str]) -> tuple[str, str | None, list[str]]:
    matcher = StopMatcher(stops)
    shown = []
    for part in parts:
        shown.append(matcher.push(part))
        if matcher.matched is not None:
            break
    shown.append(matcher.flush())
    return "".join(shown), matcher.matched, shown


@pytest.mark.parametrize(
    ("stops", "parts", "text", "matched"),
    [
        ((), ["a", "b"], "ab", None),
        (("",), ["a"], "a", None),
        (("STOP",), ["abSTOPcd"], "ab", "STOP"),
        (("STOP",), ["ab", "S", "T", "O", "P", "cd"], "ab", "STOP"),
        (("STOP",), ["abST"], "abST", None),
        (("STOP",), ["SSTOP"], "S", "STOP"),
        (("aab",), ["a", "a", "a", "b"], "a", "aab"),
        (("\n\n",), ["x\n", "y\n", "\nz"], "x\ny", "\n\n"),
        (("bc", "abcd"), ["abcd"], "", "abcd"),
        (("bc", "abcd"), ["ab", "c", "d"], "a", "bc"),
        (("b", "ab"), ["xab"], "x", "ab"),
        (("\u4f60\u597d",), ["\u4f60", "\u597d!"], "", "\u4f60\u597d"),
    ],
)
def test_examples(stops: tuple[str, ...], parts: list[str], text: str, matched: str | None) -> None:
    found, hit, _ = _run(stops, parts)
    assert (found, hit) == (text, matched)


def test_text_is_held_only_while_undecided() -> None:
    _, _, shown = _run(("STOP",), ["a", "S", "x", "ST", "ay"])
    assert shown == ["a", "", "Sx", "", "STay", ""]


def test_nothing_comes_after_a_match() -> None:
    matcher = StopMatcher(("x",))
    assert matcher.push("axb") == "a"
    assert matcher.push("more") == ""
    assert matcher.flush() == ""


@given(
    parts=st.lists(st.text("abc", max_size=4), max_size=12),
    stops=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
)
def test_text_before_the_first_stop_string(parts: list[str], stops: list[str]) -> None:
    """Whatever the borders: the stop string that is complete first ends the text before it."""
    text, matched, _ = _run(tuple(stops), parts)
    whole = "".join(parts)
    if matched is None:
        assert text == whole
        assert not any(stop in whole for stop in stops)
    else:
        assert whole.startswith(text + matched)
        # Nothing shown holds a stop string.
        assert not any(stop in text for stop in stops)


@given(text=st.text("abc", max_size=20), stop=st.text("abc", min_size=1, max_size=4))
def test_borders_do_not_matter_for_one_stop_string(text: str, stop: str) -> None:
    assert _run((stop,), list(text))[:2] == _run((stop,), [text])[:2]
