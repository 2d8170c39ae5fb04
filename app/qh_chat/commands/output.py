"""How `run` shows events: streamed text, or JSON lines."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from typing import Any, Protocol, TextIO

from qh_chat.inert import inert
from qh_runtime.errors import QhError
from qh_runtime.session.events import (
    ContextTrimmed,
    Done,
    EngineInfo,
    PromptProgress,
    Token,
)

__all__ = ["JsonOutput", "Output", "TextOutput", "plain"]


class Output(Protocol):
    """Takes what `answer_events` yields."""

    def show(self, event: Any) -> None:
        """Show one event at once."""

    def fail(self, error: QhError) -> None:
        """The answer ended with an error, which the caller reports on standard error."""

    def end(self) -> None:
        """Nothing more comes; called once, also after an interrupt."""


class TextOutput:
    """The answer on standard output; where standard error is a terminal, progress there.

    Args:
        environment: TERM=dumb gets no progress line that rewrites itself.
    """

    def __init__(
        self,
        environment: Mapping[str, str],
        out: TextIO | None = None,
        notes: TextIO | None = None,
    ) -> None:
        self._out = out or sys.stdout
        self._notes = notes or sys.stderr
        self._to_terminal = self._out.isatty()
        self._talks = self._notes.isatty()
        self._rewrites = self._talks and environment.get("TERM", "dumb") != "dumb"
        self._last = "\n"
        self._line_width = 0
        if not self._to_terminal and hasattr(self._out, "reconfigure"):
            # The exact text, whatever the locale; a half of a surrogate pair cannot be written.
            self._out.reconfigure(encoding="utf-8", errors="replace", newline="\n")
        elif hasattr(self._out, "reconfigure"):
            self._out.reconfigure(errors="replace")

    def show(self, event: Any) -> None:
        """Show one event."""
        match event:
            case Token(text=text):
                self._write(text)
            case ContextTrimmed(dropped_turns=turns, dropped_tokens=tokens):
                self._note(f"left out {turns} oldest turns ({tokens:,} tokens) to fit the context")
            case PromptProgress(done_tokens=done, total_tokens=total):
                self._progress(f"reading the prompt {done:,} of {total:,} tokens")
            case EngineInfo():
                for note in event.notes:
                    self._note(note)
                self._progress(f"{event.name}: {event.format} on {event.device} ({event.isa})")
            case Done():
                self._finish(event)
            case _:
                self._progress(_loading(event))

    def fail(self, error: QhError) -> None:
        """Leave the terminal on a fresh line; the caller reports the error."""
        self.end()

    def end(self) -> None:
        """Finish the line of the answer."""
        self._clear_progress()
        if self._last != "\n":
            self._last = "\n"
            self._out.write("\n")
        self._out.flush()

    def _write(self, text: str) -> None:
        if not text:
            return
        self._clear_progress()
        self._out.write(inert(text) if self._to_terminal else text)
        self._out.flush()
        self._last = text[-1]

    def _finish(self, done: Done) -> None:
        self.end()
        stats = done.stats
        if done.reason == "context_full":
            self._note(f"stopped: the context of {stats.context_length:,} tokens is full")
        if self._talks:
            self._note(
                f"{stats.tokens:,} tokens, {stats.tokens_per_s:.1f} tok/s, first token "
                f"{stats.first_token_s:.2f} s, context {stats.context_used:,} of "
                f"{stats.context_length:,}, seed {stats.seed}"
            )

    def _note(self, text: str) -> None:
        self._clear_progress()
        if self._to_terminal and self._last != "\n":
            self._last = "\n"
            self._out.write("\n")
            self._out.flush()
        print(inert(f"qh-chat: {text}"), file=self._notes, flush=True)

    def _progress(self, text: str) -> None:
        """A line that the next one overwrites; only where that works."""
        if not self._rewrites:
            return
        line = inert(text)[:78]
        print(f"\r{line:<{self._line_width}}", end="", file=self._notes, flush=True)
        self._line_width = len(line)

    def _clear_progress(self) -> None:
        if self._line_width:
            print("\r" + " " * self._line_width + "\r", end="", file=self._notes, flush=True)
            self._line_width = 0


class JsonOutput:
    """One JSON object a line on standard output, flushed line by line; ASCII only."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stdout

    def show(self, event: Any) -> None:
        """Print one event; Done becomes "stats" with the reason."""
        match event:
            case Token():
                self._print("token", dataclasses.asdict(event))
            case ContextTrimmed():
                self._print("trimmed", dataclasses.asdict(event))
            case PromptProgress():
                self._print("progress", dataclasses.asdict(event))
            case EngineInfo():
                self._print("model", dataclasses.asdict(event))
            case Done(reason=reason, stats=stats):
                self._print("stats", {**dataclasses.asdict(stats), "reason": reason})
            case _:
                self._print("loading", dataclasses.asdict(event))

    def fail(self, error: QhError) -> None:
        """Print an "error" object with its facts."""
        facts = {key: plain(value) for key, value in error.facts.items()}
        self._print(
            "error",
            {
                "error": type(error).__name__,
                "message": error.message,
                "hint": error.hint,
                "facts": facts,
            },
        )

    def end(self) -> None:
        """Everything was flushed already."""

    def _print(self, kind: str, fields: dict[str, Any]) -> None:
        print(json.dumps({"type": kind, **fields}, allow_nan=False), file=self._out, flush=True)


def plain(value: object) -> Any:
    """Return a value as JSON data; what JSON has no form for becomes text."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if value - value == 0 else str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(dataclasses.asdict(value))
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    return str(value)


def _loading(progress: Any) -> str:
    total = progress.total_bytes
    if not total:
        return str(progress.stage)
    return f"{progress.stage} {progress.done_bytes / total:.0%} of {total / 1e6:,.0f} MB"
