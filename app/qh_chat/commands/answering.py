"""Loads a model and answers in a thread, so that ctrl+c is obeyed within a second at any point.

The main thread only waits for events, which signals interrupt; native code, packing and the
tokenizer run in the worker. An interrupted answer ends within one token. A load that does not end
in time is left to the end of the process: what it writes becomes visible only when complete.
"""

from __future__ import annotations

import queue
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

from qh_chat.thread_limit import thread_refusal
from qh_runtime.errors import HardwareError
from qh_runtime.session.events import Done, Engine, Event

if TYPE_CHECKING:
    from qh_runtime.loader import LoadProgress
    from qh_runtime.options import LoadOptions

__all__ = ["Interrupted", "LoadFunction", "answer_events", "worker_is_left"]

LoadFunction = Callable[["str | None", "LoadOptions", "Callable[[LoadProgress], None]"], Engine]
# An interrupted command is gone within a second; this leaves time to write what there is.
_GRACE_S = 0.6
# Of an interrupted command whose grace may be over: only what is about to end is waited for.
_LAST_GRACE_S = 0.1
_THREAD_NAME = "qh-answer"
# Signals that ask the command to end, with the exit code of each.
_SIGNALS = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}


class Interrupted(Exception):
    """A signal asked the command to end; everything that was generated has been yielded."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


class _Abandoned(Exception):
    """Raised inside the loader through its progress callback."""


class _Worker:
    """Runs load and answer in a thread and hands everything on through a queue."""

    def __init__(
        self,
        load: Callable[[Callable[[LoadProgress], None]], Engine],
        answer: Callable[[Engine], Iterator[Event]],
    ) -> None:
        self._load = load
        self._answer = answer
        self._stopping = threading.Event()
        self._engine: Engine | None = None
        self.events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.finished = object()
        self._thread = threading.Thread(target=self._run, name=_THREAD_NAME, daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            raise thread_refusal(error) or error from None

    def stop(self) -> None:
        """Ask for the end: an answer stops within one token, a load at its next progress."""
        self._stopping.set()
        engine = self._engine
        if engine is not None:
            engine.cancel()

    def join(self, timeout_s: float) -> None:
        """Wait for the end of the worker, but not longer than this."""
        self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            engine = self._load(self._progress)
            try:
                self._engine = engine
                if not self._stopping.is_set():
                    self.events.put(engine.info)
                    for event in self._answer(engine):
                        self.events.put(event)
                        if self._stopping.is_set():
                            engine.cancel()
            finally:
                engine.close()
        except _Abandoned:
            pass
        except MemoryError as error:
            self.events.put(_out_of_memory(error))
        except BaseException as error:  # noqa: BLE001 - handed to the main thread, which raises it
            self.events.put(thread_refusal(error) or error)
        self.events.put(self.finished)

    def _progress(self, progress: LoadProgress) -> None:
        if self._stopping.is_set():
            raise _Abandoned
        self.events.put(progress)


def _out_of_memory(error: MemoryError) -> HardwareError:
    refusal = HardwareError(
        "memory: expected enough to load the model and to answer, found it used up",
        hint="close other programs, or choose a smaller model or --context",
    )
    refusal.__cause__ = error
    return refusal


def answer_events(
    load: Callable[[Callable[[LoadProgress], None]], Engine],
    answer: Callable[[Engine], Iterator[Event]],
) -> Generator[Any, None, None]:
    """Yield the load's progress, the EngineInfo, then the answer's events.

    Must be called in the main thread, whose signal handlers it replaces while it runs.

    Raises:
        Interrupted: SIGINT, SIGTERM or SIGHUP came; an answer's last events were yielded first.
        QhError: from load or answer.
    """
    received: list[int] = []
    worker: _Worker | None = None

    def on_signal(number: int, frame: FrameType | None) -> None:
        received.append(_SIGNALS[signal.Signals(number).name])
        if worker is not None:
            worker.stop()

    numbers = [getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)]
    # A shell that starts a command in the background, and nohup, have signals ignored: keep that.
    numbers = [x for x in numbers if signal.getsignal(x) is not signal.SIG_IGN]
    before = {number: signal.signal(number, on_signal) for number in numbers}
    try:
        worker = _Worker(load, answer)
        yield from _until_finished(worker, received)
    finally:
        if worker is not None:
            # However the caller left: nobody wants the rest of the answer.
            worker.stop()
            worker.join(_LAST_GRACE_S if received else _GRACE_S)
        for number, handler in before.items():
            signal.signal(number, handler)


def worker_is_left() -> bool:
    """Whether a worker outlived its answer_events: native code that could not be stopped in time.

    The interpreter must then not be torn down under it; see os._exit.
    """
    return any(x.name == _THREAD_NAME and x.is_alive() for x in threading.enumerate())


def _until_finished(worker: _Worker, received: list[int]) -> Iterator[Any]:
    deadline: float | None = None
    while True:
        if received and deadline is None:
            deadline = time.monotonic() + _GRACE_S
            # The signal may have come before the worker was known to its handler.
            worker.stop()
        wait_s = 0.1 if deadline is None else deadline - time.monotonic()
        if wait_s <= 0:
            raise Interrupted(received[0])
        try:
            event = worker.events.get(timeout=wait_s)
        except queue.Empty:
            continue
        if event is worker.finished:
            if received:
                raise Interrupted(received[0])
            return
        if isinstance(event, BaseException):
            if received:
                raise Interrupted(received[0]) from event
            raise event
        yield event
        if isinstance(event, Done) and event.reason == "cancelled" and received:
            raise Interrupted(received[0])
