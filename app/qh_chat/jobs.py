"""Jobs: what is known of long work on a stored model, and the means of the thread that does it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from textual.message import Message

from qh_chat.messages import JobChanged
from qh_runtime.store.transfer import StopSignal

if TYPE_CHECKING:
    from qh_chat.settings import Settings
    from qh_runtime.store.integrity import Finding
    from qh_runtime.store.preflight import Preflight

__all__ = ["Job", "JobKind", "JobState", "Line", "Running"]

UPDATE_S = 0.1
"""Least time between two messages of a job that goes on as before."""

JobKind = Literal["pull", "import", "verify", "repair", "source"]
JobState = Literal["looking", "asking", "waiting", "moving", "stopping", "stopped", "done",
                   "damaged", "failed"]  # fmt: skip
_ENDED = ("stopped", "done", "damaged", "failed")


@dataclass(frozen=True)
class Job:
    """How one piece of work stands.

    Attributes:
        name: of the model.
        state: "asking" waits for the person's word on `preflight`, "waiting" for another job;
            "damaged" is the end of a check that has `findings`.
        text: what is done just now, or how it ended. hint: the next step after a failure.
        done_bytes, total_bytes: of all files; total 0 until that is known.
        bytes_per_s, left_s: None until that can be told.
        number: counts jobs, so that a later one of the same model can be told apart.
    """

    name: str
    kind: JobKind
    state: JobState
    number: int = 0
    text: str = ""
    hint: str = ""
    done_bytes: int = 0
    total_bytes: int = 0
    bytes_per_s: float | None = None
    left_s: float | None = None
    preflight: Preflight | None = None
    findings: tuple[Finding, ...] = ()

    @property
    def ended(self) -> bool:
        """Whether nothing more comes."""
        return self.state in _ENDED

    @property
    def failure(self) -> str:
        """Why it failed and what to do now, in a sentence that names the model once."""
        named = self.text.startswith(f"{self.name}:")
        text = self.text if named else f"{self.name}: {self.text}"
        return f"{text} → {self.hint}" if self.hint else text

    @property
    def fetches(self) -> bool:
        """Whether what it has done stays when it is stopped, and goes on later."""
        return self.kind in ("pull", "import")


class Line:
    """Lets one job at a time through, in the order in which they came."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: list[Running] = []

    def enter(self, running: Running) -> bool:
        """Wait for the turn; False if the job is stopped before that."""
        with self._changed:
            self._waiting.append(running)
            while self._waiting[0] is not running:
                running.update(state="waiting", text=f"waits for {self._waiting[0].job.name}")
                self._changed.wait(UPDATE_S)
                if running.stop.stopped:
                    self._waiting.remove(running)
                    return False
        return True

    def leave(self, running: Running) -> None:
        """Let the next one through; nothing happens for a job that never entered."""
        with self._changed:
            if running in self._waiting:
                self._waiting.remove(running)
                self._changed.notify_all()


@dataclass(eq=False)
class Running:
    """A job with its thread's means."""

    job: Job
    settings: Settings
    post: Callable[[Message], object]
    stop: StopSignal = field(default_factory=StopSignal)
    # Set with the person's word on the card.
    answered: threading.Event = field(default_factory=threading.Event)
    agreed: bool = False
    # What arrived is not wanted any more.
    free: bool = False
    thread: threading.Thread | None = None
    _last: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def update(self, **changes: object) -> None:
        """Change the job, and tell unless the last message is too young to be replaced.

        Nothing changes a job that has ended; the screen's thread may be late with a stop.
        """
        with self._lock:
            if self.job.ended:
                return
            before, self.job = self.job, replace(self.job, **changes)  # type: ignore[arg-type]
            now = time.monotonic()
            same = (before.state, before.text) == (self.job.state, self.job.text)
            if self.job == before or (same and now - self._last < UPDATE_S):
                return
            self._last = now
            self.post(JobChanged(self.job))

    def ask(self, preflight: Preflight) -> bool:
        """Wait for the person's word on the card."""
        self.update(state="asking", text="", preflight=preflight)
        while not self.answered.wait(UPDATE_S):
            if self.stop.stopped:
                return False
        return self.agreed
