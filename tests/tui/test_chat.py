"""Chatting: send, stop, again, alternatives, edit and branch, errors, trimmed context."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from textual.widgets import Markdown, Static

from qh_chat.history.store import HistoryStore
from qh_chat.messages import ChatChosen
from qh_chat.settings import Settings
from qh_chat.widgets.status_bar import StatusBar
from qh_runtime.errors import SessionError
from qh_runtime.options import SamplingParams
from qh_runtime.session.events import ContextTrimmed, Message
from tests.support.chat_app import ChatPilot, chat_app
from tests.support.fake_engine import FakeEngine, FakeModels, Script
from tests.support.sample_text import CHISEL, THINKING


def engine_of(chat: ChatPilot) -> FakeEngine:
    models = chat.app.models
    assert isinstance(models, FakeModels)
    engine = next(iter(models.engines.values()))
    assert isinstance(engine, FakeEngine)
    return engine


async def test_an_answer_is_streamed_shown_and_kept(tmp_path: Path) -> None:
    async with chat_app(tmp_path, Script(CHISEL, rate=400)) as chat:
        await chat.say("How do I sharpen a chisel?")
        assert chat.texts == ["How do I sharpen a chisel?", CHISEL]
        assert chat.views[1].query_one(Markdown).source == CHISEL
        assert chat.numbers() == "31 tok/s · 90 tokens · first token 0.4 s"
        facts = chat.app.chat.query_one(StatusBar).facts
        assert facts.tokens_per_s == 31.2
        assert facts.context_used is not None
        assert facts.context_used > 90
    store = HistoryStore(tmp_path / "history" / "history.db")
    (summary,) = store.conversations()
    assert summary.title == "How do I sharpen a chisel?"
    assert [m.content for m in store.messages(summary.id)] == [
        "How do I sharpen a chisel?",
        CHISEL,
    ]
    store.close()


async def test_the_second_turn_carries_the_first(tmp_path: Path) -> None:
    async with chat_app(tmp_path, Script("one"), Script("two")) as chat:
        await chat.say("first")
        await chat.say("second")
        turns, _ = engine_of(chat).asked[1]
        assert turns == (
            Message("user", "first"),
            Message("assistant", "one"),
            Message("user", "second"),
        )


async def test_escape_stops_and_keeps_the_partial_answer(tmp_path: Path) -> None:
    hold = threading.Semaphore(5)
    async with chat_app(tmp_path, Script(CHISEL, hold=hold)) as chat:
        await chat.say("sharpen", wait=False)
        await chat.until(lambda: chat.texts[-1].startswith("Start with a **flat back**."))
        await chat.press("escape")
        await chat.idle()
        assert chat.mark() == "stopped"
        assert chat.views[-1].record.state == "partial"
        assert chat.texts[-1] == "Start with a **flat back**."


async def test_again_makes_an_alternative_and_the_arrows_walk(tmp_path: Path) -> None:
    async with chat_app(tmp_path, Script("first answer"), Script("second answer")) as chat:
        await chat.say("question")
        await chat.press("ctrl+r")
        await chat.idle()
        assert chat.texts == ["question", "second answer"]
        assert str(chat.views[-1].query_one(".which", Static).content) == "2 of 2"
        chat.app.chat.transcript.focus()
        await chat.press("left")
        await chat.until(lambda: chat.texts == ["question", "first answer"])
        await chat.press("left")
        assert chat.texts == ["question", "first answer"]
        await chat.press("right")
        await chat.until(lambda: chat.texts == ["question", "second answer"])


async def test_alternatives_by_mouse(tmp_path: Path) -> None:
    async with chat_app(tmp_path, Script("first answer"), Script("second answer")) as chat:
        await chat.say("question")
        await chat.press("ctrl+r")
        await chat.idle()
        await chat.pilot.click(chat.views[-1].query(".step").first())
        await chat.until(lambda: chat.texts == ["question", "first answer"])


async def test_up_in_an_empty_box_edits_and_branches(tmp_path: Path) -> None:
    async with chat_app(tmp_path, Script("one"), Script("two")) as chat:
        await chat.say("questoin")
        await chat.press("up")
        assert chat.app.chat.composer.text == "questoin"
        await chat.say("question")
        assert chat.texts == ["question", "two"]
        turns, _ = engine_of(chat).asked[1]
        assert turns == (Message("user", "question"),)
        chat.app.chat.transcript.focus()
        await chat.press("k", "left")
        await chat.until(lambda: chat.texts == ["questoin", "one"])


async def test_escape_leaves_an_edit_and_brings_the_draft_back(tmp_path: Path) -> None:
    async with chat_app(tmp_path) as chat:
        await chat.say("question")
        await chat.press("d", "r", "a", "f", "t")
        chat.app.chat.transcript.focus()
        await chat.press("e")
        assert chat.app.chat.composer.text == "question"
        await chat.press("escape")
        assert chat.app.chat.composer.text == "draft"


async def test_an_error_is_shown_with_its_hint_and_the_text_is_kept(tmp_path: Path) -> None:
    error = SessionError("the score of token 3 is not a number", hint="load the model again (f3)")
    async with chat_app(tmp_path, Script("one two three", fail_at=2, error=error)) as chat:
        await chat.say("go")
        assert chat.texts[-1] == "one two"
        assert chat.views[-1].record.state == "partial"
        assert "token 3 is not a number; load the model again (f3)" in chat.mark()
        await chat.say("go on")


async def test_a_bug_names_the_log(tmp_path: Path) -> None:
    script = Script("one two", fail_at=1, error=ZeroDivisionError("division by zero"))
    async with chat_app(tmp_path, script) as chat:
        await chat.say("go")
        assert "ZeroDivisionError" in chat.mark()
        assert "qh-chat.log" in chat.mark()


async def test_a_trimmed_context_is_said_and_kept(tmp_path: Path) -> None:
    async with chat_app(tmp_path, Script("short", trimmed=ContextTrimmed(3, 812))) as chat:
        await chat.say("go")
        assert chat.mark() == "left out the oldest 3 messages (812 tokens)"
    async with chat_app(tmp_path) as chat:
        await chat.until(lambda: len(chat.views) == 2)
        assert chat.mark() == "left out the oldest 3 messages (812 tokens)"


async def test_a_full_context_is_said(tmp_path: Path) -> None:
    async with chat_app(tmp_path, Script("cut", reason="context_full")) as chat:
        await chat.say("go")
        assert chat.mark().startswith("stopped: the context is full")


async def test_a_message_may_be_sent_before_the_model_is_there(tmp_path: Path) -> None:
    hold = threading.Event()
    models = FakeModels({"built-in": FakeEngine([Script("here")])}, hold=hold)
    async with chat_app(tmp_path, models=models) as chat:
        await chat.until(lambda: chat.app.loading is not None)
        await chat.say("hello", wait=False)
        assert "loading built-in" in chat.app.chat.query_one(StatusBar).facts.loading
        hold.set()
        await chat.idle()
        assert chat.texts == ["hello", "here"]


async def test_thinking_is_folded(tmp_path: Path) -> None:
    async with chat_app(tmp_path, Script(THINKING)) as chat:
        await chat.say("go")
        thinking = chat.views[-1].query_one(".thinking", Static)
        assert "thought for 12 words" in str(thinking.content)
        assert "flat back" not in str(thinking.content)
        chat.app.chat.transcript.focus()
        await chat.press("t")
        assert "flat back first" in str(thinking.content)
        assert chat.views[-1].query_one(Markdown).source.startswith("Flatten the back")


async def test_an_answer_goes_on_while_another_chat_is_open(tmp_path: Path) -> None:
    hold = threading.Semaphore(2)
    async with chat_app(tmp_path, Script("one two three four", hold=hold)) as chat:
        await chat.say("first chat", wait=False)
        await chat.until(lambda: chat.texts[-1:] == ["one two"])
        first = chat.app.chat.conversation.id
        assert first is not None
        await chat.press("ctrl+n")
        await chat.until(lambda: chat.views == [])
        hold.release()
        chat.app.chat.post_message(ChatChosen(first))
        await chat.until(lambda: chat.texts == ["first chat", "one two three"])
        hold.release(5)
        await chat.idle()
        assert chat.texts == ["first chat", "one two three four"]


@pytest.mark.parametrize("tokens", [1, 5])
async def test_text_that_comes_while_its_chat_is_being_opened_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokens: int
) -> None:
    """One more token, or the rest and the end, between reading the path and mounting it."""
    hold = threading.Semaphore(2)
    async with chat_app(tmp_path, Script("one two three four", hold=hold)) as chat:
        await chat.say("first chat", wait=False)
        await chat.until(lambda: chat.texts[-1:] == ["one two"])
        first = chat.app.chat.conversation.id
        await chat.press("ctrl+n")
        transcript = chat.app.chat.transcript
        mount_all = transcript.mount_all

        async def late(*widgets: Any, **where: Any) -> None:
            monkeypatch.undo()
            before = chat.app.chat.answer_text
            hold.release(tokens)
            await chat.until(lambda: chat.app.chat.answer_text != before, pause=False)
            await mount_all(*widgets, **where)

        monkeypatch.setattr(transcript, "mount_all", late)
        await chat.app.chat.open_chat(first)
        await chat.until(lambda: len(chat.views) == 2)
        shown = "one two three" if tokens == 1 else "one two three four"
        await chat.until(lambda: chat.texts == ["first chat", shown])
        await chat.until(lambda: chat.views[1].query_one(Markdown).source == shown)
        assert chat.views[1].live is (tokens == 1)
        hold.release(5)
        await chat.idle()
        await chat.until(lambda: chat.views[1].query_one(Markdown).source == "one two three four")


async def test_two_chats_opened_at_once_do_not_mix(tmp_path: Path) -> None:
    async with chat_app(tmp_path, Script("one"), Script("two")) as chat:
        await chat.say("first")
        first = chat.app.chat.conversation.id
        await chat.press("ctrl+n")
        await chat.say("second")
        second = chat.app.chat.conversation.id
        opened = chat.app.chat.open_chat
        for last, texts in ((first, ["first", "one"]), (second, ["second", "two"])):
            other = second if last == first else first
            await asyncio.gather(opened(other), opened(None), opened(last))
            assert chat.texts == texts
            assert str(chat.app.chat.transcript.border_title) == texts[0]


async def test_own_system_prompt_and_sampling_reach_the_engine(tmp_path: Path) -> None:
    settings = Settings().with_value("chat.system_prompt", "Be brief.")
    settings = settings.with_value("sampling.temperature", 0.0)
    async with chat_app(tmp_path, settings=settings) as chat:
        await chat.say("go")
        turns, params = engine_of(chat).asked[0]
        assert turns[0] == Message("system", "Be brief.")
        assert params.temperature == 0.0
        await chat.press("f5")
        await chat.until(lambda: chat.app.screen is not chat.app.chat)
        chat.app.screen.query_one("#field-temperature").value = "9"  # type: ignore[attr-defined]
        await chat.press("f5")
        assert "0 to 5" in str(chat.app.screen.query_one("#wrong", Static).content)
        chat.app.screen.query_one("#field-temperature").value = "1.5"  # type: ignore[attr-defined]
        chat.app.screen.query_one("#system").text = "Be long."  # type: ignore[attr-defined]
        await chat.press("f5")
        await chat.until(lambda: chat.app.screen is chat.app.chat)
        await chat.say("go")
        turns, params = engine_of(chat).asked[1]
        assert turns[0] == Message("system", "Be long.")
        assert params == SamplingParams(temperature=1.5)
