"""T1: no payload moves the terminal, whole or split anywhere; the screen shows the inert text."""

from __future__ import annotations

import itertools
import unicodedata

import pyte
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qh_chat.inert import inert, is_inert

ESC, BEL, ST8 = "\x1b", "\x07", "\x9c"
_ENDS = [BEL, ESC + "\\", ST8, ""]


def _payloads() -> list[str]:
    osc = [
        "0;owned", "1;icon", "2;owned", "4;1;rgb:ff/00/00", "7;file:///etc", "8;;http://evil.example",
        "8;id=1;http://evil.example", "9;note", "10;?", "11;?", "52;c;b3duZWQ=", "52;p;?",
        "104", "110", "133;A", "133;C", "777;notify;a;b", "1337;File=inline=1:AAAA",
        "1337;SetMark", "1337;CopyToClipboard=", "50;font", "112", "22;pointer", "99;i=1:x",
    ]  # fmt: skip
    csi = [
        "2J", "3J", "H", "1;1H", "999C", "999D", "A", "B", "K", "2K", "L", "M", "P", "@", "31m",
        "0m", "8m", "38;2;1;2;3m", "?25l", "?25h", "?1049h", "?1049l", "?1000h", "?1006h", "?2004h",
        "?7l", "?6h", "?5h", "6n", "5n", "c", ">c", "=c", ">q", "!p", "4h", "20h", "r", "3;5r",
        "s", "u", "18t", "21t", "8;1;1t", "?1;2S", "t", "14t", "22;0t", "g", "3g", "Z", "5 q",
        "?2026h", ">1u", "<u", "i", "4i", "?996n",
    ]  # fmt: skip
    cases = [f"{opener}{body}{end}" for body in osc for opener in (ESC + "]",) for end in _ENDS]
    cases += [f"\x9d{body}{BEL}" for body in osc]
    cases += [f"{ESC}[{body}" for body in csi] + [f"\x9b{body}" for body in csi]
    for seven, eight in (("P", "\x90"), ("_", "\x9f"), ("^", "\x9e"), ("X", "\x98")):
        for body in ("x", "+q544e", "1$r0m", "Gf=100;AAAA", "tmux;\x1b\x1b]52;c;AA\x07", "q#0"):
            cases += [f"{ESC}{seven}{body}{ESC}\\", f"{eight}{body}{ST8}", f"{ESC}{seven}{body}"]
    cases += [f"{ESC}{char}" for char in "cDEHMNOVWZ78=>Fnlo|}~6#%()*+-./ "]
    cases += [f"{ESC}#8", f"{ESC}(0lqqk", f"{ESC}%G", f"{ESC} F", f"{ESC}]", f"{ESC}[", ESC]
    cases += [chr(code) for code in range(0x20) if code not in (9, 10)]
    cases += ["\x7f", *(chr(code) for code in range(0x80, 0xA0))]
    cases += ["\u202eevil\u202c", "\u2066a\u2069", "\u202d1\u202c", "\u2067x", "\u2068y"]
    cases += [
        "\U000e0001\U000e0068\U000e0069\U000e007f",
        "\ud800",
        "\udfff\ud800",
        "a\x08b",
        "a\rb",
    ]
    cases += [
        "\x0e lqqk \x0f",
        "\x05",
        "\x1a",
        "\x1b\x1b[2J",
        "\x1b[\x1b[2J",
        "\x1b]0;a\x1b]0;b\x07",
    ]
    cases += ["\x1b[3\x1b[1mm", "\x1b\x18[2J", "\u200b" * 50, "\u200d" * 50, "a\u0301" * 20]
    return [f"before {case} after" for case in dict.fromkeys(cases)]


PAYLOADS = _payloads()


class _Screen(pyte.Screen):
    """A terminal that remembers what was asked of it."""

    def __init__(self) -> None:
        super().__init__(100, 12)
        self.answers: list[str] = []
        self.mode_changes: list[object] = []

    def write_process_input(self, data: str) -> None:
        self.answers.append(data)

    def report_device_status(self, mode: int, **kwargs: object) -> None:
        self.answers.append(f"status {mode}")

    def set_mode(self, *modes: int, **kwargs: object) -> None:
        self.mode_changes.append(modes)
        super().set_mode(*modes, **kwargs)


def _show(parts: list[str]) -> _Screen:
    screen = _Screen()
    screen.mode_changes.clear()
    stream = pyte.ByteStream(screen)
    for part in parts:
        stream.feed(part.encode("utf-8"))
    return screen


def test_there_are_enough_payloads() -> None:
    assert len(PAYLOADS) >= 300


def test_payloads_do_harm_without_inert() -> None:
    """The corpus is a real one: shown raw, it changes title, screen, cursor or modes."""
    harmed = 0
    for payload in PAYLOADS:
        raw = payload.encode("utf-8", "replace").decode("utf-8")
        screen = _show([raw])
        plain = _show([inert(payload)])
        harmed += bool(screen.title or screen.answers) or screen.display != plain.display
    assert harmed > len(PAYLOADS) * 0.8


@pytest.mark.parametrize("block", range(4))
def test_screen_equals_the_inert_text_at_every_split(block: int) -> None:
    for payload in PAYLOADS[block::4]:
        wanted = inert(payload)
        assert len(wanted) == len(payload)
        screen = _show([wanted])
        line = screen.display[0].rstrip()
        marks = {c for c in wanted if unicodedata.combining(c) or c in "\u200b\u200d"}
        if not marks:
            assert line == wanted.rstrip()
        assert (screen.title, screen.icon_name, screen.answers) == ("", "", [])
        assert screen.mode_changes == []
        assert screen.cursor.attrs == pyte.screens.Char(" ")
        for at in range(1, len(payload)):
            parts = [inert(payload[:at]), inert(payload[at:])]
            assert "".join(parts) == wanted


def test_bytes_of_inert_text_hold_no_control() -> None:
    for payload in PAYLOADS:
        encoded = inert(payload).encode("utf-8")
        assert all(byte >= 0x20 or byte in (9, 10) for byte in encoded)
        assert 0x7F not in encoded
        assert not any(0x80 <= ord(char) < 0xA0 for char in inert(payload))


def test_every_code_point_is_decided() -> None:
    """Exactly the stated ranges change, nothing else in all of Unicode."""
    changed = {code for code in range(0x110000) if inert(chr(code)) != chr(code)}
    wanted = {
        *(code for code in range(0x20) if code not in (9, 10)), *range(0x7F, 0xA0),
        *range(0x202A, 0x202F), *range(0x2066, 0x206A), *range(0xD800, 0xE000),
        *range(0xE0000, 0xE0080),
    }  # fmt: skip
    assert changed == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("plain text", "plain text"),
        ("tab\tline\n", "tab\tline\n"),
        ("\x1b[31mred", "\u241b[31mred"),
        ("\x00\x07\x7f", "\u2400\u2407\u2421"),
        ("\x9b2J\u202e\ud800\U000e0041", "\ufffd2J\ufffd\ufffd\ufffd"),
        ("a\r\nb", "a\u240d\nb"),
        ("\u0627\u200f \u0915\u094d\u200d\u0937 \U0001f468\u200d\U0001f469", None),
    ],
)
def test_what_is_shown(text: str, wanted: str | None) -> None:
    assert inert(text) == (text if wanted is None else wanted)


@given(st.lists(st.text(st.characters(codec=None), max_size=20), max_size=5))
def test_works_on_any_chunks(parts: list[str]) -> None:
    whole = inert("".join(parts))
    assert "".join(map(inert, parts)) == whole
    assert inert(whole) == whole
    assert is_inert(whole)
    whole.encode("utf-8")


def test_nested_payloads_cannot_join() -> None:
    """Deleting a sequence could leave a new one; replacing never does."""
    for outer, inner in itertools.product(PAYLOADS[::17], PAYLOADS[::23]):
        assert is_inert(inert(outer[: len(outer) // 2] + inner + outer[len(outer) // 2 :]))
