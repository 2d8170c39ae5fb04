"""A scripted engine: the `Engine` protocol without a model, for tests and for drawing screens.

An answer is a `Script`: what is yielded, at which rate, and how it ends. Tokens are words with
their leading space, so that streamed text equals the script's text exactly.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from qh_chat.engine import LoadStep, ModelChoice
from qh_runtime.options import LoadOptions, SamplingParams
from qh_runtime.session.events import (
    ContextTrimmed,
    Done,
    EngineInfo,
    Event,
    GenerationStats,
    Message,
    PromptProgress,
    StopReason,
    Token,
)

__all__ = ["FakeEngine", "FakeModels", "Script", "fake_info", "tokens_of"]


def tokens_of(text: str) -> list[str]:
    """Pieces of `text` whose concatenation is `text`."""
    return re.findall(r"\s*\S+|\s+$", text) if text else []


@dataclass(frozen=True)
class Script:
    """One answer.

    Attributes:
        text: the whole answer.
        rate: tokens per second; 0 streams as fast as the consumer takes them.
        fail_at: index of the token before which `error` is raised; None never fails.
        error: what is raised at `fail_at`.
        trimmed: a ContextTrimmed event sent first, when given.
        reason: why the answer ends.
        hold: when given, waited for before every token: tests step the stream with it.
        first_token_s: pause before the first token, seconds.
    """

    text: str
    rate: float = 0.0
    fail_at: int | None = None
    error: BaseException | None = None
    trimmed: ContextTrimmed | None = None
    reason: StopReason = "end"
    hold: threading.Semaphore | None = None
    first_token_s: float = 0.0


def fake_info(name: str = "scripted", context_length: int = 4096) -> EngineInfo:
    """Facts of a scripted engine."""
    return EngineInfo(
        name=name,
        model_type="bitnet",
        parameters=7_000_000,
        format="ternary",
        device="CPU",
        isa="avx2",
        threads=2,
        context_length=context_length,
        planned_bytes=24_000_000,
    )


@dataclass
class FakeEngine:
    """Answers from `scripts` in order, the last one again and again; records what it was asked."""

    scripts: Sequence[Script] = (Script("Hello there."),)
    facts: EngineInfo = field(default_factory=fake_info)
    fixed_stats: GenerationStats | None = None
    asked: list[tuple[tuple[Message, ...], SamplingParams]] = field(default_factory=list)
    closed: bool = False
    _cancel: threading.Event = field(default_factory=threading.Event)

    @property
    def info(self) -> EngineInfo:
        """What is loaded."""
        return self.facts

    def generate(self, messages: Sequence[Message], params: SamplingParams) -> Iterator[Event]:
        """Play the next script."""
        script = self.scripts[min(len(self.asked), len(self.scripts) - 1)]
        self.asked.append((tuple(messages), params))
        self._cancel.clear()
        return self._play(script, self.count_tokens(messages))

    def complete(self, prompt: str, params: SamplingParams) -> Iterator[Event]:
        """Play the next script, whatever the prompt."""
        return self.generate([Message("user", prompt)], params)

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Words, and four more for each turn."""
        return sum(len(tokens_of(message.content)) + 4 for message in messages)

    def cancel(self) -> None:
        """End the running answer before its next token."""
        self._cancel.set()

    def close(self) -> None:
        """Remember that it was called."""
        self.closed = True

    def _play(self, script: Script, prompt_tokens: int) -> Iterator[Event]:
        started = time.perf_counter()
        if script.trimmed is not None:
            yield script.trimmed
        yield PromptProgress(0, prompt_tokens, 0)
        if script.first_token_s:
            self._cancel.wait(script.first_token_s)
        yield PromptProgress(prompt_tokens, prompt_tokens, 0)
        first: float | None = None
        sent = 0
        reason: StopReason = script.reason
        for index, piece in enumerate(tokens_of(script.text)):
            if script.hold is not None:
                while not script.hold.acquire(timeout=0.01):
                    if self._cancel.is_set():
                        break
            if script.rate and self._cancel.wait(1.0 / script.rate):
                pass
            if self._cancel.is_set():
                reason = "cancelled"
                break
            if script.fail_at == index and script.error is not None:
                raise script.error
            first = first if first is not None else time.perf_counter() - started
            sent += 1
            yield Token(index, piece)
        if script.fail_at is not None and script.error is not None and sent <= script.fail_at:
            raise script.error
        wall = time.perf_counter() - started
        decode = max(wall - (first or 0.0), 1e-9)
        stats = GenerationStats(
            prompt_tokens=prompt_tokens,
            reused_tokens=0,
            tokens=sent,
            prefill_s=first or 0.0,
            decode_s=decode,
            first_token_s=first or wall,
            tokens_per_s=(sent - 1) / decode if sent > 1 else 0.0,
            prefill_tokens_per_s=prompt_tokens / max(first or wall, 1e-9),
            context_used=prompt_tokens + sent,
            context_length=self.facts.context_length,
            seed=7,
        )
        if self.fixed_stats is not None:
            stats = replace(
                self.fixed_stats,
                prompt_tokens=prompt_tokens,
                tokens=sent,
                context_used=prompt_tokens + sent,
                context_length=self.facts.context_length,
            )
        yield Done(reason, stats)


@dataclass
class FakeModels:
    """A model source for the app: a list of choices and how each one loads.

    Attributes:
        engines: engine by model name; an exception in its place is raised by the load.
        steps: progress reported while loading, the same for each model.
        step_s: pause after each step, seconds.
        hold: when given, the load waits for it before it finishes.
    """

    engines: dict[str, FakeEngine | BaseException]
    steps: Sequence[LoadStep] = (LoadStep("reading weights", 5, 10), LoadStep("ready", 10, 10))
    step_s: float = 0.0
    hold: threading.Event | None = None
    loaded: list[tuple[str, LoadOptions]] = field(default_factory=list)
    choices: list[ModelChoice] | None = None
    searched: tuple[str, ...] = ()

    @property
    def default(self) -> str:
        """The first model."""
        return next(iter(self.engines))

    def list(self) -> Sequence[ModelChoice]:
        """All models, with made-up sizes."""
        if self.choices is not None:
            return self.choices
        return [
            ModelChoice(
                name=name,
                where="built in" if index == 0 else f"/models/{name}",
                model_type="bitnet" if index == 0 else "llama",
                format="ternary" if index == 0 else "bf16",
                file_bytes=3_600_000 * (index + 1) ** 3,
            )
            for index, name in enumerate(self.engines)
        ]

    def search(self, folders: Sequence[str]) -> None:
        """Remember the folders."""
        self.searched = tuple(folders)

    def load(
        self, name: str, options: LoadOptions, on_progress: Callable[[LoadStep], None]
    ) -> FakeEngine:
        """Report the steps, then return the engine or raise what stands in its place."""
        self.loaded.append((name, options))
        for step in self.steps:
            on_progress(step)
            time.sleep(self.step_s)
        while self.hold is not None and not self.hold.wait(0.01):
            on_progress(self.steps[0])
        engine = self.engines[name]
        if isinstance(engine, BaseException):
            raise engine
        return engine
