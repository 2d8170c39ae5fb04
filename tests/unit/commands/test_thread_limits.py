"""A user who may start few threads: an answer, or one clear line; never a traceback or an abort."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from qh_chat.thread_limit import thread_refusal
from tests.support.cli import command, qh_environment
from tests.support.hub_stub import HubStub
from tests.unit.store.published_models import ternary

# A user who has no other processes; they would count.
_USER = "54321"
# Files may be read wherever this run of the tests may read them.
_RIGHTS = "-all,+dac_override,+dac_read_search"

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("setpriv"),
    reason="the limit counts all processes of a user: needs another user, and so root",
)


def limited(home: Path, limit: int, words: Sequence[str]) -> subprocess.Popen[bytes]:
    """A qh-chat process that may have so many threads, itself included."""
    user = ["setpriv", f"--reuid={_USER}", f"--regid={_USER}", "--clear-groups"]
    rights = ["--inh-caps", _RIGHTS, "--ambient-caps", _RIGHTS, "--bounding-set", _RIGHTS]
    return subprocess.Popen(
        ["prlimit", f"--nproc={limit}:{limit}", *user, *rights, *command(*words)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # As on a machine with many cores: the numeric library would start a thread for each.
        env=qh_environment(home, PYTHONDONTWRITEBYTECODE="1"),
    )


def outcome(process: subprocess.Popen[bytes]) -> int:
    """The exit status, after what was said was looked at."""
    _, errors = process.communicate(timeout=60)
    text = errors.decode()
    if process.returncode == 3:
        (line,) = text.splitlines()
        assert line.startswith("qh-chat: ")
        assert "threads" in line
    for word in ("Traceback", "a bug", "OpenBLAS", "panicked"):
        assert word not in text
    return process.returncode


def test_an_answer_or_a_clear_line(home: Path) -> None:
    words = ("run", "--max-tokens", "3", "hello")
    limits = (1, 2, 3, 5, 40)
    found = [outcome(limited(home, x, words)) for x in limits]
    assert (found[0], found[-1]) == (3, 0)
    assert set(found) == {0, 3}


def test_a_pull_ends_with_a_clear_line(home: Path, hub: HubStub) -> None:
    hub.add("org/model", ternary())
    found = [outcome(limited(home, x, ("pull", "org/model"))) for x in (1, 2, 3, 40)]
    assert (found[0], found[-1]) == (3, 0)
    assert set(found) == {0, 3}


@pytest.mark.parametrize(
    "wait_s", [0.3, *(pytest.param(x / 10, marks=pytest.mark.slow) for x in (1, 2, 4, 5, 6, 8))]
)
def test_an_interrupt_is_obeyed(home: Path, wait_s: float) -> None:
    process = limited(home, 2, ("run", "--max-tokens", "5000", "hello"))
    time.sleep(wait_s)
    process.send_signal(signal.SIGINT)
    # The last: before there was anything of qh-chat to obey it.
    assert outcome(process) in (3, 130, -signal.SIGINT)


def test_other_errors_are_what_they_were() -> None:
    assert thread_refusal(RuntimeError("dictionary changed size during iteration")) is None
    assert thread_refusal(OSError("can't start new thread")) is None
