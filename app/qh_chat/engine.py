"""An engine in a thread of its own, its events as messages.

Every engine call except `cancel` is made on one thread, in the order asked. A second thread hands
the streamed text on, at most about fifteen times a second, so that a fast model costs the screen
no more than a slow one and the last token never waits for the next.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from textual.message import Message

from qh_chat.messages import (
    AnswerDone,
    AnswerPrompt,
    AnswerText,
    AnswerTrimmed,
    ContextCounted,
    Doing,
    EngineFailed,
    LoadCancelled,
    ModelLoading,
    ModelReady,
)
from qh_runtime.errors import ContextLengthError, QhError
from qh_runtime.options import LoadOptions, SamplingParams
from qh_runtime.session.events import (
    ContextTrimmed,
    Done,
    Engine,
    PromptProgress,
    Token,
)
from qh_runtime.session.events import Message as Turn

__all__ = ["EngineThread", "LoadStep", "ModelChoice", "ModelSource"]

log = logging.getLogger(__name__)

UPDATE_S = 1 / 15
"""Least time between two text messages: what a person still sees as flowing."""


@dataclass(frozen=True)
class LoadStep:
    """What a load is doing: a short name, and how far in bytes or steps (total 0 if unknown)."""

    step: str
    done: int
    total: int


@dataclass(frozen=True)
class ModelChoice:
    """One row of the model picker.

    Attributes:
        name: what `load` takes. where: "built in", or its folder.
        format: how the weights are stored, "" when the store cannot tell without reading them.
        file_bytes: size on disk. problem: why it cannot be loaded, when that is known.
        goes_on: of a model that is not all here, how it goes on; "" for all others.
        done_bytes: what is here of such a model.
    """

    name: str
    where: str
    model_type: str
    format: str
    file_bytes: int
    problem: str | None = None
    goes_on: Literal["", "pull", "import"] = ""
    done_bytes: int = 0


class ModelSource(Protocol):
    """Where models come from. `list` and `load` may take long: they run on other threads."""

    @property
    def default(self) -> str:
        """Name of the model that is loaded when the person never chose one."""
        ...

    def list(self) -> Sequence[ModelChoice]:
        """Models that can be chosen."""
        ...

    def search(self, folders: Sequence[str]) -> None:
        """Look for models in these folders instead of the ones before; at once, on any thread."""
        ...

    def load(
        self, name: str, options: LoadOptions, on_progress: Callable[[LoadStep], None]
    ) -> Engine:
        """Load one; whatever `on_progress` raises must come out of here."""
        ...


class _Cancelled(Exception):
    """Raised inside a load through its progress callback."""


class _TextPump:
    """Collects streamed text and hands it on at most every UPDATE_S seconds, on its own thread."""

    def __init__(self, post: Callable[[Message], object]) -> None:
        self._post = post
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closed = False
        self._pending: AnswerText | None = None
        threading.Thread(target=self._run, name="qh-text", daemon=True).start()

    def add(self, answer_id: int, text: str, tokens: int, tokens_per_s: float) -> None:
        with self._lock:
            before = self._pending
            if before is not None and before.answer_id == answer_id:
                text = before.text + text
            elif before is not None:
                self._post(before)
            self._pending = AnswerText(answer_id, text, tokens, tokens_per_s)
        self._wake.set()

    def flush(self) -> None:
        """Everything added so far is posted when this returns."""
        with self._lock:
            pending, self._pending = self._pending, None
            if pending is not None:
                self._post(pending)

    def close(self) -> None:
        self._closed = True
        self._wake.set()

    def _run(self) -> None:
        while True:
            self._wake.wait()
            if self._closed:
                return
            self._wake.clear()
            self.flush()
            time.sleep(UPDATE_S)


class EngineThread:
    """Loads models and answers on a thread of its own.

    Args:
        models: where models come from.
        post: takes each message, called on other threads; a Textual `post_message`.
    """

    def __init__(self, models: ModelSource, post: Callable[[Message], object]) -> None:
        self._models = models
        self._post = post
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._pump = _TextPump(post)
        self._engine: Engine | None = None
        self._loads = 0
        self._stopped: set[int] = set()
        self._running: int | None = None
        self._count_wanted: tuple[int, Sequence[Turn], SamplingParams] | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="qh-engine", daemon=True)
        self._thread.start()

    def load(self, name: str, options: LoadOptions) -> None:
        """Load a model instead of one that is being loaded; the ready one answers meanwhile."""
        self._loads += 1
        ticket = self._loads
        self._post(ModelLoading(name, "waiting", 0, 0))
        self._jobs.put(lambda: self._load(ticket, name, options))

    def cancel_load(self) -> None:
        """Stop a load that has not finished; ends with LoadCancelled."""
        self._loads += 1

    def generate(self, answer_id: int, turns: Sequence[Turn], params: SamplingParams) -> None:
        """Answer; ends with exactly one AnswerDone or EngineFailed for this id."""
        self._jobs.put(lambda: self._generate(answer_id, turns, params))

    def stop(self, answer_id: int) -> None:
        """End an answer within one token, also one that has not begun."""
        self._stopped.add(answer_id)
        engine = self._engine
        if engine is not None and self._running == answer_id:
            engine.cancel()

    def count(self, request: int, turns: Sequence[Turn], params: SamplingParams) -> None:
        """Count tokens when the engine is free; only the newest request is answered."""
        waiting = self._count_wanted is not None
        self._count_wanted = (request, turns, params)
        if not waiting:
            self._jobs.put(self._count)

    def close(self, timeout_s: float = 0.8) -> bool:
        """Stop what runs and free the engine; True when that was done within the time."""
        self._closed.set()
        self._loads += 1
        engine, running = self._engine, self._running
        if running is not None:
            self._stopped.add(running)
            if engine is not None:
                engine.cancel()
        self._jobs.put(None)
        self._thread.join(timeout_s)
        self._pump.close()
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            job = self._jobs.get()
            if job is None or self._closed.is_set():
                break
            job()
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def _load(self, ticket: int, name: str, options: LoadOptions) -> None:
        last = 0.0

        def progress(step: LoadStep) -> None:
            nonlocal last
            if ticket != self._loads:
                raise _Cancelled
            now = time.monotonic()
            if now - last >= UPDATE_S or step.done >= step.total:
                last = now
                self._post(ModelLoading(name, step.step, step.done, step.total))

        try:
            if ticket != self._loads:
                raise _Cancelled
            engine = self._models.load(name, options, progress)
        except _Cancelled:
            self._post(LoadCancelled(name))
            return
        except Exception as error:  # noqa: BLE001 - a worker turns every failure into one message
            self._post(self._failure("load", error))
            return
        if ticket != self._loads:
            engine.close()
            self._post(LoadCancelled(name))
            return
        before, self._engine = self._engine, engine
        if before is not None:
            before.close()
        self._post(ModelReady(engine.info))

    def _generate(self, answer_id: int, turns: Sequence[Turn], params: SamplingParams) -> None:
        engine = self._engine
        if answer_id in self._stopped or engine is None:
            self._stopped.discard(answer_id)
            if engine is None:
                self._post(EngineFailed("answer", "No model is loaded.", "f3 picks one", answer_id))
            else:
                self._post(AnswerDone(answer_id, "cancelled", None))
            return
        self._running = answer_id
        try:
            self._stream(engine, answer_id, turns, params)
        except Exception as error:  # noqa: BLE001 - a worker turns every failure into one message
            self._pump.flush()
            self._post(self._failure("answer", error, answer_id))
        finally:
            self._running = None
            self._stopped.discard(answer_id)

    def _stream(
        self, engine: Engine, answer_id: int, turns: Sequence[Turn], params: SamplingParams
    ) -> None:
        tokens = 0
        first = time.monotonic()
        for event in engine.generate(turns, params):
            match event:
                case Token(text=text):
                    tokens += 1
                    now = time.monotonic()
                    if tokens == 1:
                        first = now
                    rate = (tokens - 1) / (now - first) if now > first else 0.0
                    self._pump.add(answer_id, text, tokens, rate)
                case PromptProgress(done_tokens=done, total_tokens=total, reused_tokens=reused):
                    self._post(AnswerPrompt(answer_id, done, total, reused))
                case ContextTrimmed(dropped_turns=left_out, dropped_tokens=left_out_tokens):
                    self._post(AnswerTrimmed(answer_id, left_out, left_out_tokens))
                case Done(reason=reason, stats=stats):
                    self._pump.flush()
                    self._post(AnswerDone(answer_id, reason, stats))
                    return
            if answer_id in self._stopped:
                # A stop may come before the engine has begun to listen; asking again is harmless.
                engine.cancel()
        raise RuntimeError("the engine ended an answer without a Done event")

    def _count(self) -> None:
        wanted, self._count_wanted = self._count_wanted, None
        if wanted is None or self._engine is None:
            return
        try:
            counted = _counted(self._engine, *wanted)
        except Exception as error:  # noqa: BLE001 - a worker turns every failure into one message
            self._post(self._failure("count", error))
            return
        self._post(counted)

    def _failure(
        self, doing: Doing, error: Exception, answer_id: int | None = None
    ) -> EngineFailed:
        if isinstance(error, QhError):
            log.warning("%s failed: %s", doing, error)
            return EngineFailed(doing, error.message, error.hint, answer_id)
        if isinstance(error, MemoryError):
            log.error("%s ran out of memory", doing, exc_info=error)
            return EngineFailed(
                doing,
                "The machine ran out of memory.",
                "choose a smaller model or context (f3, f6)",
                answer_id,
            )
        log.error("%s failed with a bug", doing, exc_info=error)
        text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        return EngineFailed(doing, text, None, answer_id, bug=True)


def _counted(
    engine: Engine, request: int, turns: Sequence[Turn], params: SamplingParams
) -> ContextCounted:
    """Count, and where it is close find out what an answer to this would leave out."""
    tokens, length = engine.count_tokens(turns), engine.info.context_length
    if params.context_policy == "stop":
        return ContextCounted(request, tokens, fits=tokens < length)
    # The room that is kept for an answer is never more than a quarter of the context.
    if 4 * tokens <= 3 * length:
        return ContextCounted(request, tokens)
    asked = turns if turns[-1].role == "user" else [*turns, Turn("user", "?")]
    # What is left out is the first event of an answer, before anything of it is computed.
    events = engine.generate(asked, params)
    try:
        first = next(events)
    except ContextLengthError as error:
        return ContextCounted(request, error.facts.get("prompt_tokens", tokens), fits=False)
    finally:
        end = getattr(events, "close", None)
        if end is not None:
            end()
    if isinstance(first, ContextTrimmed):
        return ContextCounted(request, tokens, first.dropped_turns, first.dropped_tokens)
    return ContextCounted(request, tokens)
