"""Ctrl-C and friends: gone within a second, what was said stays, the terminal is left clean."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli import command, qh_environment, run_qh, write_tiny_model

# From the signal to the end of the process. The promise is one second on an idle machine; tests may
# share theirs with much else, and what they interrupt would go on for longer than this.
GONE_S = 6.0


@pytest.fixture(scope="module")
def slow_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Large enough that an answer to the end of its context takes many seconds."""
    return write_tiny_model(
        tmp_path_factory.mktemp("slow") / "slow",
        hidden_size=512,
        num_hidden_layers=12,
        intermediate_size=1024,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=65536,
    )


def start(home: Path, model: Path, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command("run", "-m", str(model), "--raw", "--temp", "0", *arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=qh_environment(home),
    )


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_while_answering(home: Path, slow_model: Path, number: signal.Signals, code: int) -> None:
    process = start(home, slow_model, "--context", "32768", "hello")
    assert process.stdout is not None
    first = process.stdout.read(40)
    assert len(first) == 40
    sent = time.monotonic()
    process.send_signal(number)
    rest, errors = process.communicate(timeout=20)
    elapsed_s = time.monotonic() - sent
    assert process.returncode == code
    assert rest.endswith(b"\n")
    assert b"Traceback" not in errors
    assert elapsed_s < GONE_S


def test_json_ends_with_the_statistics_of_what_was_said(home: Path, slow_model: Path) -> None:
    lines: list[dict[str, Any]] = []
    with start(home, slow_model, "--context", "32768", "--json", "hello") as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(json.loads(line))
            if len(lines) == 30:
                process.send_signal(signal.SIGINT)
    assert process.returncode == 130
    assert (lines[-1]["type"], lines[-1]["reason"]) == ("stats", "cancelled")
    # An id of -1 is no token: it carries half a character or half a stop string that was held back.
    assert lines[-1]["tokens"] == sum(x["type"] == "token" and x["id"] >= 0 for x in lines)


def _wait_for_our_code(process: subprocess.Popen[bytes]) -> None:
    """Until the command line looks at signals, however long Python takes to start."""
    status = Path(f"/proc/{process.pid}/status")
    for _ in range(2000):
        caught = int(status.read_text().split("SigCgt:")[1].split()[0], 16)
        # Python itself catches SIGINT alone.
        if caught >> (signal.SIGTERM - 1) & 1:
            return
        time.sleep(0.01)
    raise TimeoutError("no handler of SIGTERM after 20 s")


@pytest.mark.parametrize(
    "delay_s",
    [
        0.0,
        0.3,
        0.6,
        pytest.param(0.15, marks=pytest.mark.slow),
        pytest.param(1.2, marks=pytest.mark.slow),
    ],
)
def test_at_any_point_of_the_start(home: Path, slow_model: Path, delay_s: float) -> None:
    """Imports, packing, prompt and answer; a long prompt keeps native code busy."""
    process = start(home, slow_model, "--context", "32768", "word " * 6000)
    if delay_s > 0.2:
        _wait_for_our_code(process)
    time.sleep(delay_s)
    sent = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    elapsed_s = time.monotonic() - sent
    # Before the first line of our own code the interpreter has its own ways to end.
    assert process.returncode in ((130,) if delay_s > 0.2 else (130, -signal.SIGINT, 1))
    assert b"Traceback" not in errors or delay_s < 0.2
    assert elapsed_s < GONE_S
    # Whatever was being written is complete or absent: the next run works.
    again = run_qh(home, "run", "-m", str(slow_model), "--max-tokens", "2", "--context", "64", "hi")
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize(
    "module", ["qh_chat.cli", "qh_chat.settings", "qh_chat.commands.run", "qh_chat.commands.ls"]
)
def test_while_our_modules_are_imported(home: Path, module: str) -> None:
    """At a moment chosen by name, not by the clock: nothing but the exit status is seen."""
    command_name = "run" if module.endswith("run") else "ls"
    script = f"""
import os, signal, sys
class AtModule:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, AtModule())
from qh_chat.__main__ import main
sys.argv = ["qh-chat", {command_name!r}]
sys.exit(main())
"""
    ended = subprocess.run(
        [sys.executable, "-c", script],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=qh_environment(home),
        timeout=60,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, b"", b"")


def test_while_a_long_prompt_becomes_tokens(home: Path, slow_model: Path, tmp_path: Path) -> None:
    """The library works for seconds on one text and knows no cancel."""
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("a" * 2_000_000)
    arguments = [*command("run", "-m", str(slow_model), "--json", "--max-tokens", "2")]
    with (
        prompt.open("rb") as stdin,
        subprocess.Popen(
            arguments,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=qh_environment(home),
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            if json.loads(line)["type"] == "model":
                break
        time.sleep(0.1)
        sent = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
        elapsed_s = time.monotonic() - sent
    assert (process.returncode, errors) == (130, b"")
    assert elapsed_s < GONE_S


def test_ignored_interrupts_stay_ignored(home: Path, slow_model: Path) -> None:
    """What nohup and background jobs of a script ask for."""
    arguments = command("run", "-m", str(slow_model), "--raw", "--temp", "0")
    arguments += ["--max-tokens", "40", "--context", "128", "hello"]
    process = subprocess.Popen(
        arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=qh_environment(home),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert len(out) > 40


def test_a_closed_pipe_ends_quietly(home: Path, slow_model: Path) -> None:
    with start(home, slow_model, "--context", "32768", "hello") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        errors = process.stderr.read()
    assert (process.returncode, errors) == (141, b"")


class Terminal:
    """A pseudo terminal for standard output and error, read to the end in a thread."""

    def __init__(self, arguments: list[str], environment: dict[str, str]) -> None:
        master, slave = pty.openpty()
        self.process = subprocess.Popen(
            arguments, stdin=slave, stdout=slave, stderr=slave, env=environment, close_fds=True
        )
        os.close(slave)
        self.data = b""
        self._master = master
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        while True:
            try:
                piece = os.read(self._master, 65536)
            except OSError:
                break
            if not piece:
                break
            self.data += piece
        os.close(self._master)

    def wait(self) -> int:
        code = self.process.wait(timeout=60)
        self._thread.join(timeout=10)
        return code


def test_on_a_terminal_no_byte_of_the_model_controls_it(home: Path, slow_model: Path) -> None:
    """Random weights speak random bytes, controls and escapes among them."""
    arguments = command("run", "-m", str(slow_model), "--raw", "--temp", "3", "--top-k", "0")
    arguments += ["--top-p", "1", "--min-p", "0", "--seed", "5", "--max-tokens", "400"]
    arguments += ["--context", "512", "hello"]
    raw = subprocess.run(
        arguments, env=qh_environment(home), capture_output=True, check=True, timeout=60
    ).stdout
    assert any(x < 0x20 and x not in (9, 10) for x in raw), "the pipe gets the exact bytes"
    terminal = Terminal(arguments, qh_environment(home, TERM="dumb"))
    assert terminal.wait() == 0
    # The terminal driver turns each newline into a carriage return and a newline.
    shown = terminal.data.replace(b"\r\n", b"\n").decode()
    bad = {x for x in shown if (ord(x) < 0x20 and x not in "\t\n") or 0x7F <= ord(x) < 0xA0}
    assert not bad


def test_progress_lines_on_a_terminal_are_wiped(home: Path, slow_model: Path) -> None:
    arguments = command("run", "-m", str(slow_model), "--raw", "--temp", "0", "--max-tokens", "5")
    terminal = Terminal([*arguments, "--context", "128", "hi"], qh_environment(home, TERM="xterm"))
    assert terminal.wait() == 0
    text = terminal.data.decode()
    assert "\x1b" not in text
    assert "tok/s" in text
    # What a carriage return leaves of each line: the last overwrite of it.
    assert not [x for x in text.split("\r\n") if "\r" in x and "pack" in x.rsplit("\r", 1)[1]]
