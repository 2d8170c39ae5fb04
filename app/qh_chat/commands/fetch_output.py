"""How the progress of `pull` and `import` is shown: lines for people, or JSON lines.

Progress goes to standard error, the result to standard output. On a terminal one line rewrites
itself; elsewhere there is a line every few seconds.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TextIO

from qh_chat.commands.fetch_card import preflight_facts
from qh_chat.commands.output import plain
from qh_chat.inert import inert
from qh_chat.model_words import ready_text, transfer_text
from qh_chat.wrapping import wrapped
from qh_runtime.errors import QhError
from qh_runtime.store.pull import (
    Checked,
    Checking,
    Finished,
    Linked,
    Listed,
    PullEvent,
    Transfer,
)

__all__ = ["STOPPED", "FetchOutput", "ProgressLine", "fetch_output", "to_stderr"]

STOPPED = "stopped; what arrived is kept; the same command continues"
# Between the lines of a progress that cannot rewrite itself, and between JSON lines.
_LINE_S = 5.0
_JSON_S = 0.5
_WIDTH = 78


class FetchOutput(Protocol):
    """Shows what happens."""

    def show(self, event: PullEvent) -> None:
        """Show one event."""

    def end(self) -> None:
        """Leave the terminal on a fresh line."""

    def stopped(self) -> None:
        """Say that it was stopped."""

    def fail(self, error: QhError) -> None:
        """The caller reports the error on standard error."""


def to_stderr(text: str, end: str = "\n") -> None:
    """Print what is no result; a transfer goes on also where nobody can be told about it."""
    with contextlib.suppress(OSError, ValueError):
        print(text, end=end, file=sys.stderr, flush=True)


class ProgressLine:
    """A line on standard error that rewrites itself, or one every few seconds where it cannot.

    Args:
        environment: TERM=dumb gets no line that rewrites itself.
        clock: seconds that only go forward.
    """

    def __init__(
        self, environment: Mapping[str, str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rewrites = sys.stderr.isatty() and environment.get("TERM", "dumb") != "dumb"
        self._clock = clock
        # What is over sooner needs no line.
        self._next = clock() + _LINE_S
        self._width = 0

    def show(self, text: str) -> None:
        """Show a state that the next one replaces."""
        if self._rewrites:
            line = inert(text.replace("\n", " "))[:_WIDTH]
            to_stderr(f"\r{line:<{self._width}}", end="")
            self._width = len(line)
        elif self._clock() >= self._next:
            self._next = self._clock() + _LINE_S
            to_stderr(inert(text.replace("\n", " ")))

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self.clear()
        to_stderr(wrapped(inert(text), sys.stderr))

    def clear(self) -> None:
        """Leave an empty line to whoever writes next."""
        if self._width:
            to_stderr("\r" + " " * self._width + "\r", end="")
            self._width = 0


class TextFetch:
    """Progress for people, and the outcome at the end.

    Args:
        result: where the outcome goes.
    """

    def __init__(self, environment: Mapping[str, str], result: TextIO) -> None:
        self._line = ProgressLine(environment)
        self._result = result

    def show(self, event: PullEvent) -> None:
        """See FetchOutput."""
        match event:
            case Listed(listing=listing, continues=continues, replaces=replaces):
                if continues:
                    self._line.say(f"going on with the pull of commit {listing.commit[:12]}")
                elif replaces:
                    self._line.say(
                        f"commit {listing.commit[:12]} takes the place of {replaces[:12]}"
                    )
            case Checking(file=file):
                self._line.show(f"looking at {file.path}")
            case Transfer():
                self._line.show(transfer_text(event))
            case Checked() | Linked():
                self._line.clear()
            case Finished(manifest=manifest, up_to_date=up_to_date):
                self._line.clear()
                text = ready_text(manifest, up_to_date=up_to_date)
                print(inert(text), file=self._result, flush=True)

    def end(self) -> None:
        """See FetchOutput."""
        self._line.clear()

    def stopped(self) -> None:
        """See FetchOutput."""
        self._line.say(f"qh-chat: {STOPPED}")

    def fail(self, error: QhError) -> None:
        """See FetchOutput."""
        self.end()


class JsonFetch:
    """One JSON object a line on standard output."""

    def __init__(self) -> None:
        self._next = 0.0

    def show(self, event: PullEvent) -> None:
        """See FetchOutput."""
        match event:
            case Listed(listing=listing, continues=continues, replaces=replaces):
                fields = {"commit": listing.commit, "continues": continues, "replaces": replaces}
                self._print("listed", {"name": listing.repo, **fields})
            case Checking(file=file):
                self._print("checking", {"path": file.path})
            case Checked(preflight=preflight):
                self._print("checked", preflight_facts(preflight))
            case Transfer(file=file):
                now = time.monotonic()
                if file.state != "done" and now < self._next:
                    return
                self._next = now + _JSON_S
                self._print("transfer", plain(event))
            case Linked(folder=folder):
                self._print("linked", {"folder": str(folder)})
            case Finished(manifest=manifest, up_to_date=up_to_date):
                self._print("finished", {"up_to_date": up_to_date, "model": plain(manifest)})

    def end(self) -> None:
        """Everything was flushed already."""

    def stopped(self) -> None:
        """See FetchOutput."""
        self._print("stopped", {"message": STOPPED})

    def fail(self, error: QhError) -> None:
        """See FetchOutput."""
        self._print(
            "error",
            {
                "error": type(error).__name__,
                "message": error.message,
                "hint": error.hint,
                "facts": {key: plain(value) for key, value in error.facts.items()},
            },
        )

    def _print(self, kind: str, fields: Mapping[str, Any]) -> None:
        print(json.dumps({"type": kind, **fields}, allow_nan=False), flush=True)


def fetch_output(
    environment: Mapping[str, str], *, as_json: bool = False, result: TextIO | None = None
) -> FetchOutput:
    """Return what shows the events of one command.

    Args:
        result: where the outcome goes in place of standard output.
    """
    return JsonFetch() if as_json else TextFetch(environment, result or sys.stdout)
