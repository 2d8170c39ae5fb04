"""The app in a real pseudo-terminal: keys as terminals send them, signals, and the screen after."""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.terminal import TerminalProgram

REPOSITORY = Path(__file__).resolve().parents[2]


def _environment(folder: Path) -> dict[str, str]:
    path = os.pathsep.join(str(REPOSITORY / part) for part in ("app", "runtime", "kernels", "."))
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "TERM": "xterm-256color",
        "LANG": "C.UTF-8",
        "PYTHONPATH": path,
        "PYTHONWARNINGS": "error",
    }


@pytest.fixture
def program(tmp_path: Path) -> Iterator[TerminalProgram]:
    program = TerminalProgram(
        [sys.executable, "-m", "tests.support.run_fake_app", str(tmp_path / "home")],
        _environment(tmp_path),
        folder=REPOSITORY,
    )
    yield program
    program.close()


def _messages(folder: Path) -> list[tuple[str, str, str, str]]:
    path = next(folder.glob("home/**/history.*"))
    connection = sqlite3.connect(path)
    try:
        rows = connection.execute("SELECT role, state, reason, content FROM messages ORDER BY id")
        return [tuple(row) for row in rows]
    finally:
        connection.close()


def _assert_restored(output: bytes) -> None:
    """The last word on each terminal mode is that it is off, and the cursor is shown."""
    for on, off in (
        (b"\x1b[?1049h", b"\x1b[?1049l"),
        (b"\x1b[?25l", b"\x1b[?25h"),
        (b"\x1b[?1000h", b"\x1b[?1000l"),
        (b"\x1b[?1003h", b"\x1b[?1003l"),
        (b"\x1b[?1006h", b"\x1b[?1006l"),
        (b"\x1b[?2004h", b"\x1b[?2004l"),
        (b"\x1b[?1004h", b"\x1b[?1004l"),
    ):
        assert output.rfind(off) > output.rfind(on), off


def test_newlines_by_ctrl_j_and_alt_enter_and_a_paste_never_sends(
    program: TerminalProgram, tmp_path: Path
) -> None:
    program.wait_for("Ask anything")
    program.send("one\ntwo\x1b\rthree")
    program.wait_for(lambda text: "one" in text and "two" in text and "three" in text)
    program.send("\x1b[200~\nfour\n\x1b[201~")
    program.wait_for("four")
    assert "qh  " not in program.text
    program.send("\r")
    program.wait_for("qh   Start with")
    program.send("\x1b")
    program.wait_for("stopped")
    assert _messages(tmp_path)[0][3] == "one\ntwo\nthree\nfour\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_leaves_a_clean_terminal_and_the_partial_answer(
    program: TerminalProgram, tmp_path: Path, number: signal.Signals
) -> None:
    program.wait_for("scripted")
    program.send("sharpen\r")
    program.wait_for("flat back")
    program.send("a draft")
    program.wait_for("a draft")
    began = time.monotonic()
    program.signal(number)
    assert program.wait() == 128 + number
    assert time.monotonic() - began < 3.0
    _assert_restored(bytes(program.output))
    role, state, reason, content = _messages(tmp_path)[1]
    assert (role, state, reason) == ("assistant", "partial", "interrupted")
    assert content.startswith("Start with a **flat back**")


def test_a_closed_terminal_ends_the_program_and_keeps_the_partial_answer(
    program: TerminalProgram, tmp_path: Path
) -> None:
    program.wait_for("scripted")
    program.send("sharpen\r")
    program.wait_for("flat back")
    program.hang_up()
    program.process.wait(5)
    assert _messages(tmp_path)[1][1:3] == ("partial", "interrupted")


def test_resizing_folds_and_unfolds(program: TerminalProgram) -> None:
    program.wait_for("Ask anything")
    assert "Chats" not in program.text


def test_ctrl_c_twice_leaves(program: TerminalProgram) -> None:
    program.wait_for("scripted")
    program.send("\x03")
    program.wait_for("again to leave")
    program.send("\x03")
    assert program.wait() == 0
    _assert_restored(bytes(program.output))


def test_a_bug_says_where_the_log_is_and_shows_no_texts(tmp_path: Path) -> None:
    script = (
        "from qh_chat.app import QhChatApp\n"
        "from tests.support.run_fake_app import main\n"
        "def broken(self):\n"
        "    chats = 'a secret'\n"
        "    raise ZeroDivisionError('by zero')\n"
        "QhChatApp.action_models = broken\n"
        "main()\n"
    )
    folder = tmp_path / "home"
    program = TerminalProgram(
        [sys.executable, "-c", script, str(folder)], _environment(tmp_path), folder=REPOSITORY
    )
    try:
        program.wait_for("scripted")
        program.send("a draft")
        program.wait_for("a draft")
        program.send("\x1bOR")
        program.wait()
        after = bytes(program.output).rpartition(b"\x1b[?1049l")[2].decode()
        assert "qh-chat ended because of a bug: ZeroDivisionError: by zero" in after
        assert str(folder / "logs" / "qh-chat.log") in after.replace("\r\n", "")
        assert "secret" not in after
        assert "Traceback" not in after
        _assert_restored(bytes(program.output))
        connection = sqlite3.connect(folder / "history" / "history.db")
        assert connection.execute("SELECT draft FROM conversations").fetchall() == [("a draft",)]
        connection.close()
    finally:
        program.close()


@pytest.mark.parametrize("term", ["dumb", "unknown", None])
def test_a_terminal_that_cannot_draw_is_refused(tmp_path: Path, term: str | None) -> None:
    environment = _environment(tmp_path) | {"QH_HOME": str(tmp_path)}
    environment.pop("TERM")
    if term is not None:
        environment["TERM"] = term
    program = TerminalProgram([sys.executable, "-m", "qh_chat"], environment, folder=REPOSITORY)
    try:
        assert program.wait() == 2
        assert "qh-chat run" in program.text
        assert b"\x1b" not in program.output
    finally:
        program.close()
