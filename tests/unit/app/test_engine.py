"""The engine thread: batches, cancelling at any moment, failures, and that threads do not grow."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest
from textual.message import Message

from qh_chat.engine import EngineThread, LoadStep
from qh_chat.messages import (
    AnswerDone,
    AnswerText,
    ContextCounted,
    EngineFailed,
    LoadCancelled,
    ModelLoading,
    ModelReady,
)
from qh_runtime.errors import DoesNotFitError, QhError
from qh_runtime.options import LoadOptions, SamplingParams
from qh_runtime.session.events import Message as Turn
from tests.support.fake_engine import FakeEngine, FakeModels, Script

TURNS = [Turn("user", "go")]


class Box:
    """Collects messages from any thread."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self._new = threading.Condition()

    def post(self, message: Message) -> None:
        with self._new:
            self.messages.append(message)
            self._new.notify_all()

    def wait(self, check: Callable[[Message], bool], seconds: float = 10.0) -> Message:
        end = time.monotonic() + seconds
        with self._new:
            while True:
                for message in self.messages:
                    if check(message):
                        return message
                assert self._new.wait(end - time.monotonic()), self.messages

    def of(self, kind: type[Message]) -> list[Message]:
        return [message for message in self.messages if type(message) is kind]


@pytest.fixture
def box() -> Box:
    return Box()


@pytest.fixture
def started(box: Box) -> Iterator[Callable[..., tuple[EngineThread, FakeEngine]]]:
    threads: list[EngineThread] = []

    def start(*scripts: Script) -> tuple[EngineThread, FakeEngine]:
        engine = FakeEngine(scripts)
        thread = EngineThread(FakeModels({"m": engine}), box.post)
        threads.append(thread)
        thread.load("m", LoadOptions())
        box.wait(lambda m: isinstance(m, ModelReady))
        return thread, engine

    yield start
    for thread in threads:
        assert thread.close(5.0)


Start = Callable[..., tuple[EngineThread, FakeEngine]]


def text_of(box: Box, answer_id: int) -> str:
    return "".join(
        m.text for m in box.messages if isinstance(m, AnswerText) and m.answer_id == answer_id
    )


def test_text_comes_whole_in_order_and_in_few_messages(started: Start, box: Box) -> None:
    words = " ".join(f"w{n}" for n in range(3000))
    thread, _ = started(Script(words))
    began = time.monotonic()
    thread.generate(1, TURNS, SamplingParams())
    box.wait(lambda m: isinstance(m, AnswerDone))
    took = time.monotonic() - began
    assert text_of(box, 1) == words
    assert len(box.of(AnswerText)) <= took * 15 + 3
    assert isinstance(box.messages[-1], AnswerDone)


def test_the_last_token_does_not_wait_for_the_next(started: Start, box: Box) -> None:
    hold = threading.Semaphore(0)
    thread, _ = started(Script("one two three", hold=hold))
    thread.generate(1, TURNS, SamplingParams())
    for expected in ("one", "one two"):
        hold.release()
        hold_until = time.monotonic() + 5
        while text_of(box, 1) != expected:
            assert time.monotonic() < hold_until
            time.sleep(0.01)
    hold.release(5)
    box.wait(lambda m: isinstance(m, AnswerDone))


def test_stop_within_one_token(started: Start, box: Box) -> None:
    thread, _ = started(Script("one two three four", hold=threading.Semaphore(2)))
    thread.generate(1, TURNS, SamplingParams())
    box.wait(lambda m: isinstance(m, AnswerText))
    thread.stop(1)
    done = box.wait(lambda m: isinstance(m, AnswerDone))
    assert isinstance(done, AnswerDone)
    assert done.reason == "cancelled"
    assert done.stats is not None


def test_stop_before_the_answer_began(started: Start, box: Box) -> None:
    hold = threading.Semaphore(1)
    thread, _ = started(Script("one two", hold=hold), Script("three"))
    thread.generate(1, TURNS, SamplingParams())
    box.wait(lambda m: isinstance(m, AnswerText))
    thread.generate(2, TURNS, SamplingParams())
    thread.stop(2)
    hold.release(5)
    box.wait(lambda m: isinstance(m, AnswerDone) and m.answer_id == 2)
    assert text_of(box, 2) == ""


def test_a_stop_for_another_answer_is_no_stop_for_this_one(started: Start, box: Box) -> None:
    hold = threading.Semaphore(1)
    thread, _ = started(Script("one two", hold=hold))
    thread.generate(1, TURNS, SamplingParams())
    box.wait(lambda m: isinstance(m, AnswerText))
    thread.stop(99)
    hold.release(5)
    done = box.wait(lambda m: isinstance(m, AnswerDone))
    assert isinstance(done, AnswerDone)
    assert done.reason == "end"


def test_failures_are_one_message_and_the_next_answer_works(started: Start, box: Box) -> None:
    error = DoesNotFitError("too big", hint="choose a smaller one", required_bytes=2)
    thread, _ = started(
        Script("one two", fail_at=1, error=error),
        Script("x", fail_at=0, error=KeyError("bug")),
        Script("x", fail_at=0, error=MemoryError()),
        Script("fine"),
    )
    for answer_id in range(1, 5):
        thread.generate(answer_id, TURNS, SamplingParams())
    box.wait(lambda m: isinstance(m, AnswerDone))
    failures = [m for m in box.messages if isinstance(m, EngineFailed)]
    assert [(f.answer_id, f.bug, f.hint is None) for f in failures] == [
        (1, False, False),
        (2, True, True),
        (3, False, False),
    ]
    assert text_of(box, 1) == "one"
    assert text_of(box, 4) == "fine"


def test_an_answer_without_a_model_fails_with_a_hint(box: Box) -> None:
    thread = EngineThread(FakeModels({"m": FakeEngine()}), box.post)
    thread.generate(1, TURNS, SamplingParams())
    failed = box.wait(lambda m: isinstance(m, EngineFailed))
    assert isinstance(failed, EngineFailed)
    assert failed.answer_id == 1
    assert failed.hint
    assert thread.close(5.0)


def test_a_failed_load_keeps_the_model_of_before(box: Box) -> None:
    good = FakeEngine()
    models = FakeModels({"good": good, "bad": QhError("broken", hint="look")})
    thread = EngineThread(models, box.post)
    thread.load("good", LoadOptions())
    box.wait(lambda m: isinstance(m, ModelReady))
    thread.load("bad", LoadOptions())
    failed = box.wait(lambda m: isinstance(m, EngineFailed))
    assert isinstance(failed, EngineFailed)
    assert (failed.doing, failed.text, failed.hint) == ("load", "broken", "look")
    thread.generate(1, TURNS, SamplingParams())
    box.wait(lambda m: isinstance(m, AnswerDone))
    assert not good.closed
    assert thread.close(5.0)
    assert good.closed


def test_a_load_can_be_stopped_and_another_one_works(box: Box) -> None:
    hold = threading.Event()
    models = FakeModels({"slow": FakeEngine(), "next": FakeEngine()}, hold=hold)
    thread = EngineThread(models, box.post)
    thread.load("slow", LoadOptions())
    box.wait(lambda m: isinstance(m, ModelLoading) and m.step != "waiting")
    thread.cancel_load()
    box.wait(lambda m: isinstance(m, LoadCancelled))
    hold.set()
    thread.load("next", LoadOptions(threads=1))
    box.wait(lambda m: isinstance(m, ModelReady))
    assert models.loaded[-1] == ("next", LoadOptions(threads=1))
    assert thread.close(5.0)


def test_a_new_model_closes_the_old_one(box: Box) -> None:
    first, second = FakeEngine(), FakeEngine()
    models = FakeModels({"a": first, "b": second}, steps=[LoadStep("x", 0, 0)])
    thread = EngineThread(models, box.post)
    thread.load("a", LoadOptions())
    box.wait(lambda m: isinstance(m, ModelReady))
    thread.load("b", LoadOptions())
    box.wait(lambda m: len(box.of(ModelReady)) == 2)
    assert (first.closed, second.closed) == (True, False)
    assert thread.close(5.0)


def test_only_the_newest_count_is_answered(started: Start, box: Box) -> None:
    hold = threading.Semaphore(1)
    thread, engine = started(Script("one two", hold=hold))
    thread.generate(1, TURNS, SamplingParams())
    box.wait(lambda m: isinstance(m, AnswerText))
    for request in range(1, 50):
        thread.count(request, [Turn("user", "a b c")], SamplingParams())
    hold.release(5)
    box.wait(lambda m: isinstance(m, ContextCounted))
    thread.count(50, TURNS, SamplingParams())
    box.wait(lambda m: isinstance(m, ContextCounted) and m.request == 50)
    counted = [m.request for m in box.messages if isinstance(m, ContextCounted)]
    assert counted == [49, 50]
    assert engine.count_tokens([Turn("user", "a b c")]) == 7


def test_closing_during_an_answer_is_quick(box: Box) -> None:
    engine = FakeEngine([Script("one two three", hold=threading.Semaphore(1))])
    thread = EngineThread(FakeModels({"m": engine}), box.post)
    thread.load("m", LoadOptions())
    thread.generate(1, TURNS, SamplingParams())
    box.wait(lambda m: isinstance(m, AnswerText))
    began = time.monotonic()
    assert thread.close(5.0)
    assert time.monotonic() - began < 2.0
    assert engine.closed


def test_five_hundred_answers_leave_no_threads_behind(started: Start, box: Box) -> None:
    thread, _ = started(Script("a b c"))
    thread.generate(0, TURNS, SamplingParams())
    box.wait(lambda m: isinstance(m, AnswerDone))
    before = threading.active_count()
    for answer_id in range(1, 501):
        thread.generate(answer_id, TURNS, SamplingParams())
    box.wait(lambda m: isinstance(m, AnswerDone) and m.answer_id == 500, 30.0)
    # Fewer when threads of an earlier test have ended meanwhile.
    assert threading.active_count() <= before
