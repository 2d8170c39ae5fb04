"""The session end to end: real weights, real tokenizer, the C++ decoder and sampler."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from qh_runtime.options import SamplingParams
from qh_runtime.session.events import ContextTrimmed, Done, Event, Message, PromptProgress, Token
from qh_runtime.session.session import NativeSession
from qh_runtime.tokenizers.from_hf import load_tokenizer
from tests.support.real_session import open_session

GREEDY = SamplingParams(temperature=0, max_tokens=24)
TALK = [Message("system", "A talk by the sea."), Message("user", "Who are you?")]


@pytest.fixture(scope="module")
def session(shared_data: Path) -> Iterator[NativeSession]:
    opened = open_session(shared_data / "models" / "prose-7m")
    yield opened
    opened.close()


def _read(events: Iterator[Event]) -> tuple[str, list[int], Done]:
    text, ids = "", []
    for event in events:
        if isinstance(event, Token):
            text += event.text
            ids.append(event.id)
        elif isinstance(event, Done):
            return text, ids, event
    raise AssertionError("no Done event")


def test_greedy_text_is_the_same_fresh_and_reused(
    session: NativeSession, shared_data: Path
) -> None:
    fresh = open_session(shared_data / "models" / "prose-7m")
    first = _read(fresh.complete("It was a dark and stormy night", GREEDY))
    fresh.close()
    _read(session.complete("It was a bright day", GREEDY))
    second = _read(session.complete("It was a dark and stormy night", GREEDY))
    third = _read(session.complete("It was a dark and stormy night", GREEDY))
    assert first[:2] == second[:2] == third[:2]
    assert first[2].stats.reused_tokens == 0
    assert second[2].stats.reused_tokens >= 3
    assert third[2].stats.reused_tokens == third[2].stats.prompt_tokens - 1


def test_streamed_text_is_the_text_of_the_tokens(session: NativeSession, shared_data: Path) -> None:
    tokenizer = load_tokenizer(shared_data / "models" / "prose-7m")
    for seed in range(3):
        params = SamplingParams(
            seed=seed, max_tokens=60, temperature=1.5, top_k=0, top_p=1, min_p=0
        )
        text, ids, done = _read(session.complete("The sea", params))
        assert text == tokenizer.decode(ids, continuation=True)
        assert done.stats.tokens == len(ids)


def test_a_seed_repeats_an_answer(session: NativeSession) -> None:
    params = SamplingParams(seed=11, max_tokens=30)
    first = _read(session.generate(TALK, params))
    assert _read(session.generate(TALK, params))[:2] == first[:2]
    assert first[2].stats.seed == 11
    other = _read(session.generate(TALK, SamplingParams(seed=12, max_tokens=30)))
    assert other[1] != first[1]


def test_second_turn_reuses_the_first(session: NativeSession) -> None:
    answer, _, first = _read(session.generate(TALK, GREEDY))
    talk = [*TALK, Message("assistant", answer), Message("user", "Why?")]
    _, _, second = _read(session.generate(talk, GREEDY))
    assert second.stats.reused_tokens >= first.stats.prompt_tokens - 1


def test_long_conversation_is_trimmed(session: NativeSession) -> None:
    talk = [TALK[0]]
    for turn in range(30):
        talk += [Message("user", f"Tell me of the river, {turn}."), Message("assistant", "No.")]
    talk.append(Message("user", "Why?"))
    events = list(session.generate(talk, GREEDY))
    assert isinstance(events[0], ContextTrimmed)
    assert isinstance(events[-1], Done)
    assert events[-1].reason in ("max_tokens", "end", "stop_string")
    assert events[-1].stats.context_used <= 256


def test_cancel_from_another_thread(session: NativeSession) -> None:
    started = threading.Event()

    def stop() -> None:
        started.wait(10)
        session.cancel()

    thread = threading.Thread(target=stop)
    thread.start()
    ids = 0
    for event in session.complete("The sea", SamplingParams(seed=1)):
        if isinstance(event, Token):
            ids += 1
            started.set()
        if isinstance(event, Done):
            assert event.reason == "cancelled"
    thread.join()
    assert 0 < ids < 250


def test_context_ends_visibly(session: NativeSession) -> None:
    _, ids, done = _read(session.complete("The", SamplingParams(seed=3)))
    assert done.reason in ("context_full", "end")
    assert done.stats.context_used == len(ids) + done.stats.prompt_tokens <= 256


def test_stop_string_and_progress(session: NativeSession) -> None:
    events = list(session.complete("It was a dark", SamplingParams(temperature=0, stop=(" the ",))))
    assert isinstance(events[0], PromptProgress)
    text = "".join(event.text for event in events if isinstance(event, Token))
    done = events[-1]
    assert isinstance(done, Done)
    assert done.reason == "stop_string"
    assert " the " not in text
