"""A context that runs full, with the built-in model: said before sending, shown, and true."""

from __future__ import annotations

from pathlib import Path

from qh_chat.settings import Settings
from tests.support.chat_app import ChatPilot, chat_app, real_models

CONTEXT = 128


def short(policy: str = "drop", max_tokens: int = 8) -> Settings:
    """Settings with a small context and short answers, so that a few turns fill it."""
    settings = Settings().with_value("models.context_length", CONTEXT)
    settings = settings.with_value("chat.context_policy", policy)
    return settings.with_value("sampling.max_tokens", max_tokens)


async def fill(chat: ChatPilot, turns: int) -> None:
    await chat.ready()
    for number in range(turns):
        await chat.say(f"Question number {number} of a chat that will be a little too long.")


def left_out(chat: ChatPilot) -> list[bool]:
    return [view.has_class("-left-out") for view in chat.views]


async def test_what_will_be_left_out_is_said_and_marked_before_sending(tmp_path: Path) -> None:
    async with chat_app(tmp_path, models=real_models(), settings=short()) as chat:
        await fill(chat, 1)
        await chat.counted()
        assert chat.title == "Message"
        assert not any(left_out(chat))
        await fill(chat, 4)
        chat.app.chat.composer.put("One more question of about the same length as the others.")
        await chat.counted()
        marked = sum(left_out(chat))
        assert marked >= 2
        assert chat.title.startswith(f"Context full: the oldest {marked} messages (")
        # The oldest, with a line below the last of them; the rest is what the model sees.
        assert left_out(chat) == [True] * marked + [False] * (10 - marked)
        assert [view.has_class("-edge") for view in chat.views].index(True) == marked - 1
        used = chat.facts.context_used
        assert used is not None
        assert used <= CONTEXT
        assert chat.facts.left_out == marked
        # The answer leaves out exactly what was foretold.
        await chat.press("enter")
        await chat.idle()
        note = chat.mark()
        assert note.startswith("reached its longest length · left out the oldest ")
        assert f"oldest {marked} messages" in note


async def test_with_stop_a_full_context_is_refused_and_the_text_stays(tmp_path: Path) -> None:
    settings = short("stop", 64)
    async with chat_app(tmp_path, models=real_models(), settings=settings) as chat:
        await fill(chat, 2)
        while chat.views[-1].record.reason != "context_full":
            await chat.say("And then? Tell me more of the same, please, and slowly.")
        assert "f5" in chat.mark()
        chat.app.chat.composer.put("Another question.")
        await chat.counted()
        assert chat.title.startswith("Context full: ")
        assert chat.title.endswith(" of 128 tokens, no room for an answer")
        before = len(chat.views)
        await chat.press("enter")
        assert chat.app.chat.composer.text == "Another question."
        assert len(chat.views) == before
        assert not chat.app.chat.answering
        # Another policy for this chat, and the same text goes through.
        await chat.press("f5")
        await chat.until(lambda: chat.app.screen is not chat.app.chat)
        chat.app.screen.query_one("#policy").value = "drop"  # type: ignore[attr-defined]
        await chat.press("f5")
        await chat.counted()
        await chat.press("enter")
        await chat.idle()
        assert len(chat.views) == before + 2
        assert "left out the oldest" in chat.mark()


async def test_a_message_that_cannot_fit_is_not_sent(tmp_path: Path) -> None:
    async with chat_app(tmp_path, models=real_models(), settings=short()) as chat:
        await fill(chat, 1)
        text = "word " * 300
        chat.app.chat.composer.put(text)
        await chat.counted()
        assert chat.title.startswith("Too long: ")
        assert "of 128 tokens for the message and the system prompt" in chat.title
        await chat.press("enter")
        assert chat.app.chat.composer.text == text
        assert len(chat.views) == 2
        chat.app.chat.composer.put("short")
        await chat.counted()
        assert chat.title == "Message"


async def test_sent_before_it_was_counted_the_error_is_said_once(tmp_path: Path) -> None:
    async with chat_app(tmp_path, models=real_models(), settings=short()) as chat:
        await chat.ready()
        await chat.say("word " * 300)
        assert chat.mark().startswith("ended by an error · prompt: expected at most 127 tokens")
        assert not chat.app._notifications
        await chat.press("up")
        assert chat.app.chat.composer.text == "word " * 300


async def test_an_edit_is_counted_from_where_it_branches(tmp_path: Path) -> None:
    async with chat_app(tmp_path, models=real_models(), settings=short()) as chat:
        await fill(chat, 1)
        await chat.counted()
        alone = chat.facts.context_used
        await fill(chat, 2)
        chat.app.chat.transcript.focus()
        await chat.press("g", "e")
        await chat.counted()
        assert chat.app.chat.composer.text.startswith("Question number 0")
        assert chat.title == "Edit: the answers so far stay as a branch"
        assert chat.facts.context_used is not None
        assert alone is not None
        assert chat.facts.context_used < alone
        assert not any(left_out(chat))


async def test_the_numbers_are_those_of_the_real_tokenizer(tmp_path: Path) -> None:
    async with chat_app(tmp_path, models=real_models()) as chat:
        await chat.ready()
        await chat.say("Tell me a story about a fox.")
        stats = chat.views[-1].record.stats
        assert stats is not None
        assert stats.tokens > 0
        assert f"{stats.tokens:,} token" in chat.numbers()
        assert "tok/s" in chat.numbers() or stats.tokens == 1
        assert "first token" in chat.numbers()
        await chat.counted()
        used = chat.facts.context_used
        assert used is not None
        # The prompt, the answer without its end mark, and the marks around the next answer.
        assert abs(used - stats.prompt_tokens - stats.tokens) <= 4
