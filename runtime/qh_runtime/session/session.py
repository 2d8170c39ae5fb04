"""A live conversation on our own decoder: messages in, events out, the KV cache kept in between."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from qh_kernels.sampler import Sampler
from qh_runtime.errors import CheckpointError, ContextLengthError, KernelError, SessionError
from qh_runtime.options import SamplingParams
from qh_runtime.session.context import FittedPrompt, PromptBuilder
from qh_runtime.session.decoder_protocol import SessionDecoder
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
from qh_runtime.session.moving_weights import WeightMover
from qh_runtime.session.stop import StopMatcher
from qh_runtime.session.weights_watch import WeightsWatch
from qh_runtime.tokenizers.chat_template import ChatTemplate
from qh_runtime.tokenizers.chat_tokenizer import ChatTokenizer
from qh_runtime.tokenizers.template_source import TemplateKind

__all__ = ["NativeSession"]

T = TypeVar("T")
_Steps = Generator[Event, None, T]
_PromptMaker = Callable[[], FittedPrompt]

_PROGRESS_S = 0.1
# Prefill goes in slices of about one progress interval; the first is small because the speed of the
# machine is not known yet, and all are multiples of the decoder's batch.
_FIRST_SLICE_TOKENS = 64
_MAX_SLICE_TOKENS = 2048
# A base model that was shown a transcript goes on with the next question unless stopped.
_PLAIN_STOP = ("\nUser:",)


@dataclass
class _Clock:
    """Times of one answer, in seconds of time.perf_counter."""

    start: float
    prefill_start: float = 0.0
    prefill_end: float = 0.0
    first_token: float = 0.0
    last_token: float = 0.0


@dataclass
class _Run:
    """State of one answer."""

    params: SamplingParams
    seed: int
    clock: _Clock
    prompt: list[int]
    reused: int = 0
    tokens: int = 0


class NativeSession:
    """An `Engine` over the C++ decoder (or anything that follows `SessionDecoder`).

    One answer at a time. The tokens of the turn before stay in the KV cache, and the longest common
    prefix of old and new prompt is not computed again. With temperature 0 the answer depends on the
    model and the messages alone, not on what was reused.

    Args:
        decoder: owned from here on; `close` closes it.
        tokenizer: the model's tokenizer.
        template: the model's chat template.
        info: what is loaded.
        check_weights: raises where a file that the weights are mapped from has changed.
        mover: moves the weights to faster memory while there are answers.
    """

    def __init__(
        self,
        decoder: SessionDecoder,
        tokenizer: ChatTokenizer,
        template: ChatTemplate,
        info: EngineInfo,
        check_weights: Callable[[], None] = lambda: None,
        mover: WeightMover | None = None,
    ) -> None:
        self._decoder = decoder
        self._tokenizer = tokenizer
        self._template = template
        self._info = info
        self._weights = WeightsWatch(check_weights)
        self._mover = mover
        self._prompts = PromptBuilder(tokenizer, template, decoder.context_length)
        self._fed: list[int] = []  # tokens given to or drawn from the decoder, in order
        self._cancelled = threading.Event()
        self._running = threading.Lock()
        self._closed = False

    @property
    def info(self) -> EngineInfo:
        """What is loaded."""
        return self._info

    @property
    def template_kind(self) -> TemplateKind:
        """Where the chat template is from; "plain" means a base model shown a transcript."""
        return self._template.kind

    def generate(self, messages: Sequence[Message], params: SamplingParams) -> Iterator[Event]:
        """Answer the conversation; see `Engine.generate`.

        Yields ContextTrimmed if turns were left out, PromptProgress at the start and end of the
        prompt and at most ten times a second between, one Token per generated token (an end token
        included, it carries the text that was held back), and Done. Closing the iterator ends the
        answer; what was computed stays in the KV cache.

        Raises:
            ContextLengthError: what must stay of the prompt does not fit.
            SessionError: no messages, an answer is running, or the session is closed.
            CheckpointError: a file of the weights has changed since they were loaded, or they
                make no difference between tokens.
            TemplateError, TokenizerError, KernelError: from below.
        """
        start = self._begin()
        turns = tuple(messages)

        def prompt() -> FittedPrompt:
            return self._prompts.fit(turns, params.context_policy, params.max_tokens)

        return self._events(start, prompt, params, chat=True)

    def complete(self, prompt: str, params: SamplingParams) -> Iterator[Event]:
        """Continue a raw text; see `Engine.complete`. Events and errors are those of `generate`.

        An empty text continues from the bos token; without one it is refused. A text that does not
        fit is refused with "drop" too, because there are no turns to leave out.
        """
        start = self._begin()

        def fitted() -> FittedPrompt:
            return self._fit_raw(prompt, params)

        return self._events(start, fitted, params, chat=False)

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Return the tokens the conversation takes, the start of the next answer included."""
        return len(self._prompts.ids(messages)) if messages else 0

    def cancel(self) -> None:
        """Make a running answer end with Done("cancelled") within one token; any thread."""
        self._cancelled.set()
        self._decoder.cancel()

    def close(self) -> None:
        """End a running answer and free the decoder; later calls are refused."""
        self._closed = True
        self.cancel()
        if self._mover is not None:
            self._mover.stop()
            self._mover = None
        self._decoder.close()
        # Lets the files go with the decoder's views of them.
        self._weights = WeightsWatch(lambda: None)

    def _begin(self) -> float:
        """Forget an old cancellation, now: one that comes before the first event must count."""
        if self._closed:
            raise SessionError("session: expected an open one, found a closed one", found="closed")
        if self._running.locked():
            raise SessionError(
                "session: expected one answer at a time, found one that is running",
                hint="stop the running answer first",
                found="running",
            )
        self._cancelled.clear()
        self._decoder.clear_cancel()
        return time.perf_counter()

    def _fit_raw(self, text: str, params: SamplingParams) -> FittedPrompt:
        ids = self._tokenizer.encode_raw(text)
        limit = self._decoder.context_length - 1
        if not ids:
            raise SessionError(
                "prompt: expected at least one token, found none (the model has no bos token)",
                hint="write at least one character",
                expected="at least one token",
                found=0,
            )
        if len(ids) > limit and params.context_policy != "stop":
            raise ContextLengthError(
                f"prompt: expected at most {limit} tokens, found {len(ids)} tokens",
                hint="shorten the text, or load the model with a longer context",
                prompt_tokens=len(ids),
                context_length=self._decoder.context_length,
            )
        return FittedPrompt(ids, fits=len(ids) <= limit)

    def _events(
        self, start: float, prompt: _PromptMaker, params: SamplingParams, *, chat: bool
    ) -> Iterator[Event]:
        if not self._running.acquire(blocking=False):
            raise SessionError(
                "session: expected one answer at a time, found one that is running",
                hint="stop the running answer first",
                found="running",
            )
        try:
            fitted = prompt()
            self._check_ids(fitted.ids)
            run = self._new_run(start, fitted.ids, params)
            if fitted.dropped_turns:
                yield ContextTrimmed(fitted.dropped_turns, fitted.dropped_tokens)
            if not fitted.fits:
                yield self._done(run, "context_full")
                return
            sampler = self._sampler(run)
            weights = self._weights
            try:
                weights.now()
                read = yield from self._prefill(run)
                reason: StopReason = "cancelled"
                if read:
                    reason = yield from self._decode(run, sampler, chat=chat)
                weights.now()
            except GeneratorExit:
                raise  # the reader has seen enough; what is in the KV cache is good
            except KernelError:
                self._forget()
                weights.now()  # says more than the numbers that came of changed weights
                raise
            except BaseException:
                self._forget()
                raise
            yield self._done(run, reason)
        finally:
            self._running.release()

    def _cached(self) -> list[int]:
        """Return the tokens in the KV cache (not the one drawn last, which is pending)."""
        return self._fed[: self._decoder.position]

    def _forget(self) -> None:
        """Empty the KV cache: after an error nobody knows what is in it."""
        self._fed = []
        if not self._closed:
            self._decoder.truncate(0)

    def _check_ids(self, ids: Sequence[int]) -> None:
        top = max(ids, default=0)
        if top >= self._decoder.vocab_size:
            raise SessionError(
                f"tokenizer: expected ids below {self._decoder.vocab_size} (the model's rows), "
                f"found {top} ({self._tokenizer.token(top)!r})",
                hint="tokenizer.json and the weights are not of the same model",
                expected=self._decoder.vocab_size,
                found=top,
            )

    def _new_run(self, start: float, ids: list[int], params: SamplingParams) -> _Run:
        if params.max_tokens is not None and params.max_tokens < 0:
            raise SessionError(
                f"max_tokens: expected 0 or more, found {params.max_tokens}",
                hint="leave it out for an answer as long as the context lasts",
                expected="0 or more",
                found=params.max_tokens,
            )
        seed = secrets.randbits(32) if params.seed is None else params.seed
        return _Run(params, seed, _Clock(start), ids)

    def _sampler(self, run: _Run) -> Sampler:
        params = run.params
        vocab = self._decoder.vocab_size
        sampler = Sampler(
            vocab,
            temperature=params.temperature,
            top_k=params.top_k,
            top_p=params.top_p,
            min_p=params.min_p,
            repetition_penalty=params.repetition_penalty,
            presence_penalty=params.presence_penalty,
            frequency_penalty=params.frequency_penalty,
            penalty_window=params.penalty_window,
            seed=run.seed,
            allowed_vocab=min(vocab, self._tokenizer.vocab_size),
        )
        if params.penalty_window > 0:
            sampler.observe(run.prompt[-params.penalty_window :])
        return sampler

    def _prefill(self, run: _Run) -> _Steps[bool]:
        """Bring the KV cache to the prompt; False when cancelled."""
        prompt, decoder = run.prompt, self._decoder
        reused = 0
        # The last token is always computed again: its logits are what the answer starts from.
        for old, new in zip(self._cached(), prompt[:-1], strict=False):
            if old != new:
                break
            reused += 1
        run.reused = reused
        decoder.truncate(reused)
        self._fed = list(prompt)
        run.clock.prefill_start = time.perf_counter()
        shown = run.clock.prefill_start
        yield PromptProgress(reused, len(prompt), reused)
        ids = np.asarray(prompt, dtype=np.int32)
        done, slice_tokens = reused, _FIRST_SLICE_TOKENS
        while done < len(prompt):
            if self._cancelled.is_set():
                return False
            before = time.perf_counter()
            part = ids[done : done + slice_tokens]
            if not decoder.prefill(part):
                return False
            self._weights.after_step()
            done += len(part)
            now = time.perf_counter()
            speed = len(part) / max(now - before, 1e-9)
            batches = int(speed * _PROGRESS_S) // _FIRST_SLICE_TOKENS
            slice_tokens = min(max(batches, 1) * _FIRST_SLICE_TOKENS, _MAX_SLICE_TOKENS)
            if done < len(prompt) and now - shown >= _PROGRESS_S:
                shown = now
                yield PromptProgress(done, len(prompt), reused)
        self._check_logits()
        run.clock.prefill_end = time.perf_counter()
        yield PromptProgress(done, len(prompt), reused)
        return True

    def _check_logits(self) -> None:
        """Refuse weights that make every token as likely as any other.

        Zeros where weights should be do that; what would be drawn looks like an answer and is dice.
        """
        logits = self._decoder.logits()
        lowest = float(logits.min())
        if len(logits) > 1 and lowest == float(logits.max()):
            raise CheckpointError(
                f"model {self._info.name}: expected logits that differ from token to token, found "
                f"{lowest:g} for all {len(logits)}",
                hint="its weights are damaged or empty; fetch them again",
                rule="logits",
                found=lowest,
            )

    def _decode(self, run: _Run, sampler: Sampler, *, chat: bool) -> _Steps[StopReason]:
        """Draw tokens until something ends the answer."""
        params, clock = run.params, run.clock
        plain = chat and self._template.kind == "plain"
        stops = StopMatcher((*params.stop, *(_PLAIN_STOP if plain else ())))
        text_of = self._tokenizer.detokenizer(continuation=not chat)
        limit = self._decoder.context_length - len(run.prompt)
        reason: StopReason = "context_full"
        if params.max_tokens is not None and params.max_tokens <= limit:
            limit, reason = params.max_tokens, "max_tokens"
        blank = plain  # "Assistant:" leads to an answer that starts with a space
        while run.tokens < limit:
            token = -1 if self._cancelled.is_set() else self._decoder.next_token(sampler)
            self._weights.after_step()
            if self._mover is not None:
                self._mover.between_tokens()
            if token < 0:
                tail = stops.push(text_of.flush()) + stops.flush()
                if tail:
                    yield Token(-1, tail)
                return "cancelled"
            clock.last_token = time.perf_counter()
            if run.tokens == 0:
                clock.first_token = clock.last_token
            run.tokens += 1
            self._fed.append(token)
            ends = token in self._tokenizer.eos_ids
            text = "" if ends else stops.push(text_of.push(token))
            if (ends or run.tokens == limit) and stops.matched is None:
                text += stops.push(text_of.flush()) + stops.flush()
            if blank and text:
                text = text.lstrip()
                blank = not text
            yield Token(token, text)
            if stops.matched is not None:
                return "stop_string"
            if ends:
                return "end"
        return reason

    def _done(self, run: _Run, reason: StopReason) -> Done:
        clock = run.clock
        new = len(run.prompt) - run.reused
        prefill_s = max(0.0, clock.prefill_end - clock.prefill_start) if clock.prefill_end else 0.0
        decode_s = clock.last_token - clock.first_token
        used = len(run.prompt) + run.tokens
        if reason == "cancelled" and not clock.prefill_end:
            used = self._decoder.position
        return Done(
            reason,
            GenerationStats(
                prompt_tokens=len(run.prompt),
                reused_tokens=run.reused,
                tokens=run.tokens,
                prefill_s=prefill_s,
                decode_s=decode_s,
                first_token_s=clock.first_token - clock.start if run.tokens else 0.0,
                tokens_per_s=(run.tokens - 1) / decode_s if decode_s > 0 else 0.0,
                prefill_tokens_per_s=new / prefill_s if prefill_s > 0 else 0.0,
                context_used=min(used, self._decoder.context_length),
                context_length=self._decoder.context_length,
                seed=run.seed,
            ),
        )
